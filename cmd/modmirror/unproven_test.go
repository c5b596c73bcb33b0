package main

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unprove makes all blobs of a mirror that is stopped those of one that has just pulled them in bulk, and returns their files.
func unprove(t *testing.T, dir string) (files []string) {
	t.Helper()
	to := filepath.Join(dir, "unproven")
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files = append(files, filepath.Join(to, d.Name()))
		return os.Rename(path, files[len(files)-1])
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What a mirror has yet to prove is here for fsck, is in no backup of one that is stopped, and is served, offline, once it is proven.
func TestUnprovenBlobs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.start()
	ms := s.stock(rand.New(rand.NewPCG(21, 22)), 3, p.url)
	s.end(p)
	files := unprove(t, s.data)
	if len(files) != len(ms) {
		t.Fatalf("%d blobs of %d versions", len(files), len(ms))
	}
	if out := s.does("fsck", "--data-dir", s.data, "--json"); !strings.Contains(out, `"unproven": 3`) {
		t.Errorf("fsck: %s", out)
	}
	s.fails("start the mirror", "backup", filepath.Join(s.dir, "backup"), "--data-dir", s.data)
	good, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	flipBit(t, rand.New(rand.NewPCG(23, 24)), files[1])
	if out, err := s.fsck(); err == nil || strings.Count(out, " zip: ") != 1 {
		t.Errorf("fsck of a damaged one: %v\n%s", err, out)
	}
	if err := os.WriteFile(files[1], good, 0o600); err != nil {
		t.Fatal(err)
	}
	p = s.start("--offline")
	s.served(p, ms)
	s.end(p)
	for _, file := range files {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is still unproven", filepath.Base(file))
		}
	}
	s.wantClean()
	s.backs(filepath.Join(s.dir, "later"), "--data-dir", s.data)
}
