package sumdb

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Whatever parses has one form only: putting it together gives back the bytes.
func FuzzParseLookup(f *testing.F) {
	msg, _ := realLookup(f, realModules[1])
	f.Add(msg)
	f.Add([]byte("-5\na b h1:x\n\ngo.sum database tree\n"))
	f.Add([]byte("007\na\n\nb"))
	f.Add([]byte("1\n\n\n"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, err := parseLookup(msg)
		if err != nil {
			if !errors.Is(err, artifact.ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := tlog.FormatRecord(a.id, a.text)
		if err != nil || string(again)+string(a.note) != string(msg) || a.id < 0 {
			t.Errorf("%q parses as %d, %q, %q; %v", msg, a.id, a.text, a.note, err)
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	f.Add("sum.golang.org")
	f.Add(known["sum.golang.org"] + " https://sum.example.com/x")
	f.Add("off")
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := ParseSpec(s)
		if err != nil {
			return
		}
		if again, err := ParseSpec(spec.String()); err != nil || again != spec || !validName(spec.Name) {
			t.Errorf("%q: %+v, again %+v, %v", s, spec, again, err)
		}
	})
}

// A tile path that passes the guard names a tile that the store takes, and is the path of that tile.
func FuzzTilePath(f *testing.F) {
	for _, p := range []string{"/tile/8/0/x001/234.p/5", "tile/8/0/000", "/tile/30/0/000", "/tile/8/data/000", "/tile/8/0/x999/x999/x999/x999/x999/999"} {
		f.Add(p, int64(71909756))
	}
	f.Fuzz(func(t *testing.T, p string, n int64) {
		tile, err := parseTilePath(p)
		if err != nil {
			if s := statusOf(err); s != 400 && s != 404 {
				t.Errorf("%q: %v is %d", p, err, s)
			}
			return
		}
		if "/"+tile.Path() != p || checkTile(tile) != nil {
			t.Errorf("%q: %v", p, tile)
		}
		if n >= 0 && n <= maxTree && within(tile, n) { // the last hash of the tile is one of the tree
			if last := tlog.StoredHashIndex(tile.L*tileHeight, tile.N<<tileHeight+int64(tile.W)-1); last >= tlog.StoredHashCount(n) {
				t.Errorf("%q is not within %d", p, n)
			}
		}
	})
}

func FuzzLookupPath(f *testing.F) {
	for _, p := range []string{"/lookup/github.com/!burnt!sushi/toml@v0.3.1", "/lookup/a.b/@v1.0.0", "/lookup/10.0.0.1/x@v1.0.0", "/lookup/x@y@z"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		m, err := parseLookupPath(p)
		if err != nil {
			return
		}
		esc, err := escape(m)
		if err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		if again, err := parseLookupPath("/lookup/" + esc); err != nil || again != m {
			t.Errorf("%q: %v, again %v, %v", p, m, again, err)
		}
	})
}

// A signed head opens to one canonical note, which opens to itself.
func FuzzOpenHead(f *testing.F) {
	l, _ := newReal(f)
	f.Add(realLatest(f))
	f.Add(append(realLatest(f), "— unknown.example AAAAAEFB\n"...))
	f.Fuzz(func(t *testing.T, msg []byte) {
		h, err := l.openHead(msg)
		if err != nil {
			if !errors.Is(err, artifact.ErrRefused) {
				t.Errorf("%v", err)
			}
			return
		}
		if again, err := l.openHead(h.note); err != nil || string(again.note) != string(h.note) || again.Tree != h.Tree {
			t.Errorf("%q: %q, %v", h.note, again.note, err)
		}
	})
}

// A file is a tile, and then the only form of it, or damaged. The sum makes sure that what was cut, or put together from
// two versions of a file, is not read as a narrower tile.
func FuzzTileFile(f *testing.F) {
	for _, n := range []int{0, 1, 9, 256, 257} {
		f.Add(tileFile(hashBytes(1, n)), false)
		f.Add(hashBytes(1, n), true)
	}
	f.Add(make([]byte, tlog.HashSize-1), true)
	f.Fuzz(func(t *testing.T, file []byte, seal bool) {
		if seal { // else few files have a sound sum
			file = tileFile(file)
		}
		b, err := parseTileFile(file)
		if err != nil {
			if !errors.Is(err, artifact.ErrDamaged) || b != nil {
				t.Errorf("%x: %x, %v", file, b, err)
			}
			if n := len(file) - sha256.Size; seal && n > 0 && n <= tileBytes && n%tlog.HashSize == 0 {
				t.Errorf("%x: %v", file, err)
			}
			return
		}
		if w := len(b) / tlog.HashSize; w < 1 || w > tileWidth || len(b)%tlog.HashSize != 0 || cap(b) != len(b) || !bytes.Equal(tileFile(b), file) {
			t.Errorf("%x is read as %x", file, b)
		}
		for _, bad := range [][]byte{file[:len(file)-1], file[tlog.HashSize:], append(bytes.Clone(file), 0)} {
			if b, err := parseTileFile(bad); err == nil {
				t.Errorf("%x is read as %x", bad, b)
			}
		}
	})
}
