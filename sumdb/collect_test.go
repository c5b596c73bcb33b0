package sumdb

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
)

// changed is a source whose tiles are changed on their way.
type changed struct {
	Source
	name   string
	change func(path string, b []byte) ([]byte, error)
}

func (c changed) String() string { return c.name }

func (c changed) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	b, err := c.Source.Get(ctx, path, limit)
	if err != nil {
		return nil, err
	}
	return c.change(path, bytes.Clone(b))
}

func flipped(_ string, b []byte) ([]byte, error) { b[5] ^= 1; return b, nil }

// What is collected is enough to verify offline, comes from whoever has it right, and is never what does not lead to the head.
func TestCollector(t *testing.T) {
	l := newLab(t, 70_000, nil) // three levels of tiles
	first := l.seed(t, "first")
	anchor, _ := l.committed(t.Context())
	l.src.Grow(3000)
	l.add(mv("example.com/second@v1.0.0"))
	second := want(t, l.DB, mv("example.com/second@v1.0.0"))
	now, _ := l.committed(t.Context())
	r, err := l.Record(t.Context(), first)
	if err != nil || now.N <= anchor.N {
		t.Fatal(err, now.N, anchor.N)
	}
	liar := changed{l.src, "liar", flipped}
	short := changed{l.src, "short", func(_ string, b []byte) ([]byte, error) { return b[:len(b)-32], nil }}
	lacks := changed{l.src, "lacks", func(path string, b []byte) ([]byte, error) {
		if strings.HasPrefix(path, "/tile/8/1/") {
			return nil, fs.ErrNotExist
		}
		return b, nil
	}}
	held := l.tiles.Source("the store")
	for name, tt := range map[string]struct {
		from []Source
		says string // why not; "": all is well
	}{
		"the database":         {[]Source{l.src}, ""},
		"a store":              {[]Source{held}, ""},
		"a liar first":         {[]Source{liar, l.src}, ""},
		"a liar last":          {[]Source{l.src, liar}, ""},
		"one that cuts":        {[]Source{short, l.src}, ""},
		"one that lacks":       {[]Source{lacks, l.src}, ""},
		"a liar alone":         {[]Source{liar}, "tiles of liar do not lead to the signed root"},
		"one that lacks alone": {[]Source{lacks}, "tile/8/1/"},
		"nobody":               {nil, "nobody can be asked"},
	} {
		dir := t.TempDir()
		store := openTiles(t, dir)
		c := &Collector{Head: now.Tree, Store: store, From: tt.from}
		err := errors.Join(c.Records(t.Context(), []artifact.Record{r, second}), c.Edge(t.Context(), anchor.Tree))
		offline := errors.Join(CheckOffline(store, now.Tree, r), CheckOffline(store, now.Tree, second), CheckEdge(store, anchor.Tree, now.Tree))
		if tt.says == "" {
			if err != nil || offline != nil {
				t.Errorf("%s: collecting: %v; offline: %v", name, err, offline)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
		if got := tilesIn(t, dir); strings.Contains(name, "liar") && got > 0 {
			t.Errorf("%s: %d tiles are kept that lead nowhere", name, got)
		}
	}
	c := &Collector{Head: now.Tree, Store: openTiles(t, t.TempDir()), From: []Source{l.src}}
	other := second
	other.Text = bytes.Replace(second.Text, []byte("second"), []byte("sacond"), 1)
	if err := c.Records(t.Context(), []artifact.Record{other}); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("another record: %v", err)
	}
	other.ID = now.N
	if err := c.Records(t.Context(), []artifact.Record{other}); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("a record beyond the tree: %v", err)
	}
	wrong := anchor.Tree
	wrong.Hash[3] ^= 1
	if err := c.Edge(t.Context(), wrong); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("the head of another history: %v", err)
	}
}

func tilesIn(t *testing.T, dir string) (n int) {
	t.Helper()
	if err := filepath.WalkDir(filepath.Join(dir, "tile"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// A tile that was collected and damaged since is collected again.
func TestCollectorHeals(t *testing.T) {
	l := newLab(t, 300, nil)
	r, err := l.Record(t.Context(), l.seed(t, "kept"))
	if err != nil {
		t.Fatal(err)
	}
	now, _ := l.committed(t.Context())
	dir := t.TempDir()
	collect := func() error {
		c := &Collector{Head: now.Tree, Store: openTiles(t, dir), From: []Source{l.src}}
		return errors.Join(c.Records(t.Context(), []artifact.Record{r}), CheckOffline(openTiles(t, dir), now.Tree, r))
	}
	if err := collect(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, keyOf(tileAt(0, 1)).path())
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[7] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := collect(); err != nil {
		t.Errorf("a damaged tile: %v", err)
	}
}

func TestParseTileFile(t *testing.T) {
	data := hashBytes(1, 5)
	good := tileFile(data)
	name := keyOf(tileAt(0, 1234)).path()
	tile, b, err := ParseTileFile(name, good)
	if err != nil || tile != tileAtW(0, 1234, 5) || !bytes.Equal(b, data) {
		t.Fatalf("ParseTileFile() = %v, %x, %v", tile, b, err)
	}
	for _, bad := range []string{"", "tile", "tile/8/0/x001/234.p/5", "tile/8/data/001", "tile/7/0/001", "../" + name, "/" + name, "tile/8/0/../0/001", "tile/8/99/001", "x/" + name} {
		if _, _, err := ParseTileFile(bad, good); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("ParseTileFile(%q) = %v", bad, err)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		if _, _, err := ParseTileFile(name, b); !errors.Is(err, artifact.ErrDamaged) {
			t.Errorf("with byte %d turned: %v", i, err)
		}
	}
}
