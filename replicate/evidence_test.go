package replicate

import (
	"path/filepath"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
)

// Whoever keeps evidence hears of a fork when it is committed, however that came about, and again after each start.
func TestOnFork(t *testing.T) {
	dir, told := t.TempDir(), make(chan artifact.Fork, 9)
	c := Config{Dir: dir, OnFork: func(f artifact.Fork) { told <- f }}
	n := openNode(t, c)
	db := trusting(t, n)
	db.Add("first\n")
	advance(t, n, db)
	left, right := db.Fork(), db.Fork()
	db.Add("true\n")
	left.Add("left\n")
	right.Add("right\n")
	advance(t, n, db)
	n.CommitTreeHead(t.Context(), db.Name, left.Head(2), 2, nil)
	if f := <-told; string(f.A) != string(db.Head(2)) || string(f.B) != string(left.Head(2)) {
		t.Errorf("told of %v", f)
	}
	if err := n.AckFork(t.Context(), db.Name); err != nil {
		t.Fatal(err)
	}
	if err := n.CommitFork(t.Context(), artifact.Fork{Database: db.Name, A: db.Head(2), B: right.Head(2)}); err != nil {
		t.Fatal(err)
	}
	if f := <-told; !strings.Contains(f.String(), string(right.Head(2)[:20])) && string(f.B) != string(right.Head(2)) {
		t.Errorf("told of %v", f)
	}
	n.Close()
	if len(told) > 0 {
		t.Errorf("told again: %v", <-told)
	}
	openNode(t, c)
	<-told
	<-told
}

// Evidence that cannot be read ends nothing.
func TestDamagedEvidence(t *testing.T) {
	dir, told := t.TempDir(), make(chan artifact.Fork, 9)
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	db.Add("first\n")
	f := db.Fork()
	db.Add("left\n")
	f.Add("right\n")
	if err := n.CommitFork(t.Context(), artifact.Fork{Database: db.Name, A: db.Head(2), B: f.Head(2)}); err != nil {
		t.Fatal(err)
	}
	n.Close()
	if err := setRow(filepath.Join(dir, "catalog.db"), "f", []byte(db.Name+"\x00x"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	openNode(t, Config{Dir: dir, OnFork: func(f artifact.Fork) { told <- f }})
	<-told
}
