package main

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// flipBit changes one bit of a file, of a byte that is not zero: what has never been written hurts nobody.
func flipBit(t *testing.T, r *rand.Rand, file string) (at int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at = r.IntN(len(b)); b[at] == 0; at = r.IntN(len(b)) {
	}
	b[at] ^= 1 << r.IntN(8)
	if err := os.Chmod(file, 0o600); err != nil { // blobs are read-only
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return at
}

// FAULTS 35, a blob: one bit that flips while the mirror is stopped costs one fetch. Without an upstream it is an answer
// to be asked for again; wrong bytes never go out.
func TestFlippedBitInBlobs(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	s.load()
	p := s.start()
	zips := map[string]string{"/example.com/quote/@v/v1.2.0.zip": "", "/example.com/hello/@v/v1.0.0.zip": "", "/example.com/old/@v/v1.2.0.zip": ""}
	for path := range zips {
		zips[path] = s.says(p, path, 200, "PK")
		s.says(p, strings.TrimSuffix(path, "zip")+"mod", 200, "")
	}
	s.end(p)
	s.wantClean()

	flipped := 0
	err := filepath.WalkDir(filepath.Join(s.data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			flipBit(t, r, path)
			flipped++
		}
		return err
	})
	if err != nil || flipped != len(zips) {
		t.Fatalf("%d blobs damaged, want %d; %v", flipped, len(zips), err)
	}
	if out, err := s.fsck(); err == nil || strings.Count(out, " zip: ") != len(zips) {
		t.Errorf("fsck does not name every damaged blob: %v\n%s", err, out)
	}

	p = s.start("--offline")
	for path := range zips {
		if body := s.says(p, path, 503, "try again later"); strings.Contains(body, "PK\x03\x04") {
			t.Errorf("GET %s: the damaged zip", path)
		}
		s.says(p, strings.TrimSuffix(path, "zip")+"mod", 200, "module example.com/")
	}
	s.end(p)

	s.up.Reset()
	p = s.start()
	for range 2 {
		for path, want := range zips {
			if got := s.says(p, path, 200, ""); got != want {
				t.Errorf("GET %s: %d bytes, not those from before", path, len(got))
			}
		}
	}
	for path := range zips {
		if n := s.up.Count(path); n != 1 {
			t.Errorf("the upstream was asked %d times for %s", n, path)
		}
	}
	s.end(p)
	s.wantClean()
}

// FAULTS 35, the raft log and the catalog: after bits have flipped the mirror refuses to start, with one line that says
// what to do, or serves nothing but the truth. Neither that nor fsck ends in a trace of goroutines.
func TestDamagedCatalogAndLog(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.load()
	stored := make(map[string]string)
	keep := func(p *process, modules ...string) {
		for _, m := range modules {
			for _, kind := range []string{"info", "mod", "zip"} {
				stored[m+kind] = s.says(p, m+kind, 200, "")
			}
		}
	}
	p := s.start()
	keep(p, "/example.com/quote/@v/v1.2.0.", "/example.com/hello/@v/v1.0.0.")
	s.end(p)
	catalog, log := filepath.Join(s.data, "catalog.db"), filepath.Join(s.data, "raft", "raft.db")
	early, err := os.ReadFile(catalog)
	if err != nil {
		t.Fatal(err)
	}
	p = s.start()
	keep(p, "/example.com/old/@v/v1.2.0.")
	s.end(p)
	s.wantClean()
	sound := filepath.Join(s.dir, "sound")
	if err := os.CopyFS(sound, os.DirFS(s.data)); err != nil {
		t.Fatal(err)
	}

	flip := func(file, what string) error { // wherever it stands: pages that are not used any more hurt nobody
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !bytes.Contains(b, []byte(what)) {
			t.Errorf("%s has no %q", file, what)
		}
		wrong := []byte(what)
		wrong[len(wrong)/2] ^= 1
		return os.WriteFile(file, bytes.ReplaceAll(b, []byte(what), wrong), 0o600)
	}
	const magic = "\xed\xda\x0c\xed" // of both of a bbolt file's first pages
	const instruction = "restore node.json, raft and catalog.db together from one backup"
	for _, tt := range []struct {
		name   string
		damage func() error
		check  string // what fsck says
		start  string // what the refusal says; "": it starts
	}{
		{"bit in the catalog's heads", func() error { return flip(catalog, magic) }, "catalog.db: invalid database", instruction},
		{"bit in the catalog's rows", func() error { return flip(catalog, "example.com/quote") }, "keys are out of order", instruction},
		{"catalog cut short", func() error { return os.Truncate(catalog, 3*4096) }, "cut short", instruction},
		{"bit in the log's heads", func() error { return flip(log, magic) }, "raft.db: invalid database", instruction},
		{"bit in an entry that is applied", func() error { return flip(log, "example.com/quote") }, "raft log: entry", ""},
		{"bit in an entry to be applied", func() error {
			return errors.Join(os.WriteFile(catalog, early, 0o600), flip(log, "example.com/old"))
		}, "raft log: entry", instruction},
		{"log cut short", func() error { return os.Truncate(log, 5*4096) }, "cut short", instruction},
	} {
		if err := errors.Join(os.RemoveAll(s.data), os.CopyFS(s.data, os.DirFS(sound)), tt.damage()); err != nil {
			t.Fatal(err)
		}
		out, err := s.fsck()
		if (err == nil) != (tt.check == "") || !strings.Contains(out, tt.check) || strings.Contains(out, "goroutine ") {
			t.Errorf("%s: fsck: %v, want %q\n%s", tt.name, err, tt.check, out)
		}
		if tt.start != "" {
			if text := s.refuses("--offline"); !strings.HasPrefix(text, "modmirror: --data-dir ") || !strings.Contains(text, tt.start) {
				t.Errorf("%s: a start says %q, want %q", tt.name, text, tt.start)
			}
			continue
		}
		p := s.start("--offline")
		for path, want := range stored {
			if code, body := s.get(p, path); code == 200 && body != want {
				t.Errorf("%s: GET %s is answered with other bytes", tt.name, path)
			}
		}
		p.kill()
		if strings.Contains(p.output(), "goroutine ") {
			t.Errorf("%s: the mirror ends in a trace:\n%s", tt.name, p.output())
		}
	}
}
