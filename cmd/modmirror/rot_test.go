package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb/sumdbtest"
)

// rot turns a bit of every copy of text in a file, and fails the test if there is none.
func rot(t *testing.T, file, text string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	turned := bytes.Clone([]byte(text))
	turned[len(turned)-1] ^= 1
	if !bytes.Contains(b, []byte(text)) {
		t.Fatalf("%s does not hold %q", file, text)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte(text), turned), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A go.mod and an info that the disk has turned are fetched again, served, and kept.
func TestRottenInlineBytesAreFetchedAgain(t *testing.T) {
	s := newSite(t)
	s.add("example.com/kept@v1.0.0\n-- go.mod --\nmodule example.com/kept\n\ngo 1.20\n-- a.go --\npackage a\n")
	files := []string{"/example.com/kept/@v/v1.0.0.mod", "/example.com/kept/@v/v1.0.0.info"}
	p := s.start()
	var want []string
	for _, file := range files {
		want = append(want, s.want(p, file, 200))
	}
	if err := p.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	catalog := filepath.Join(s.data, "catalog.db")
	rot(t, catalog, "module example.com/kept\n\ngo 1.2")
	rot(t, catalog, `{"Version":"v1.0.0"`)
	p = s.start()
	for i, file := range files {
		s.want(p, "/cached-only"+file, 503)
		if got := s.want(p, file, 200); got != want[i] {
			t.Errorf("%s: %q, want %q", file, got, want[i])
		}
	}
	s.want(p, "/readyz", 200)
	if err := p.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	p = s.start("--offline")
	for i, file := range files {
		if got := s.want(p, file, 200); got != want[i] {
			t.Errorf("offline, %s: %q, want %q", file, got, want[i])
		}
	}
}

func TestStatusSaysDraining(t *testing.T) {
	c := config{DataDir: t.TempDir(), Offline: true, SumDB: []string{sumdbtest.New(databaseName).Key()}, ListTTL: time.Minute, NotFoundTTL: time.Second}
	n, err := openNode(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if st := n.status(t.Context()); st.Ready != "ok" || st.Writes != "ok" {
		t.Errorf("ready %q, writes %q", st.Ready, st.Writes)
	}
	n.mirror.Drain()
	if st := n.status(t.Context()); !strings.Contains(st.Ready, "draining") {
		t.Errorf("while draining: ready %q", st.Ready)
	}
}

func TestWritableNeedsALeader(t *testing.T) {
	for want, st := range map[string]replicate.Status{
		"":          {Leader: "x"},
		"no leader": {},
		"disk":      {Leader: "x", Fault: "disk"},
		"two":       {Leader: "x", Frozen: []string{"sum.example.org"}},
	} {
		if err := writable(st); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("writable(%+v) = %v, want %q", st, err, want)
		}
	}
}

// Fsck reads tiles that no record needs, and the sums of go.mod files that are blobs.
func TestFsckReadsAllTiles(t *testing.T) {
	s := newSite(t)
	s.add("example.com/kept@v1.0.0\n-- go.mod --\nmodule example.com/kept\n")
	p := s.start()
	s.want(p, "/example.com/kept/@v/v1.0.0.mod", 200)
	if err := p.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	s.wantClean()
	dir := filepath.Join(tilesDir(s.data, databaseName), "tile", "8", "3")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "000"), []byte("rot"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := s.fsck(); err == nil || !strings.Contains(out, "tile/8/3/000: ") {
		t.Errorf("fsck: %v\n%s", err, out)
	}
	mod := []byte("module example.com/large\n")
	if err := checkModSum(bytes.NewReader(mod), artifact.Manifest{ModSum: artifact.ModSum(mod)}); err != nil {
		t.Errorf("checkModSum: %v", err)
	}
	if err := checkModSum(bytes.NewReader(mod[1:]), artifact.Manifest{ModSum: artifact.ModSum(mod)}); err == nil {
		t.Error("checkModSum of other bytes is content")
	}
}

// A catalog that has lost a row says so on /readyz soon after the start, answers 503 for what it does not find, and has no feed there.
func TestDamagedCatalogIsNotReady(t *testing.T) {
	s := newSite(t)
	s.add("example.com/kept@v1.0.0\n-- go.mod --\nmodule example.com/kept\n")
	p := s.start()
	s.want(p, "/example.com/kept/@v/v1.0.0.mod", 200)
	if err := p.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(s.data, "catalog.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("m")).Delete([]byte("example.com/kept@v1.0.0")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c := config{DataDir: s.data, Offline: true, SumDB: []string{s.db.Key()}, ListTTL: time.Minute, NotFoundTTL: time.Second}
	n, err := openNode(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	soon(t, "the damage", func() bool { return n.ready(t.Context(), false) != nil })
	for path, want := range map[string]string{"/readyz": "the catalog is damaged", "/status": "example.com/kept", "/example.com/kept/@v/v1.0.0.mod": "the catalog is damaged",
		"/index": "ask another node of its cluster"} {
		w := httptest.NewRecorder()
		n.mirror.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if (w.Code != 503) != (path == "/status") || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %q, want %q", path, w.Code, w.Body, want)
		}
	}
}

// soon waits until ok.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not come", what)
		case <-tick.C:
		}
	}
}
