package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// The evidence of a fork becomes one file, whole and once, also if another one has the same name.
func TestWriteEvidence(t *testing.T) {
	dir := t.TempDir()
	note := func(n int64, b byte) []byte {
		return append(tlog.FormatTree(tlog.Tree{N: n, Hash: tlog.Hash{b}}), "\n— sum.example.org/x signature\n"...)
	}
	f := artifact.Fork{Database: "sum.example.org/x", A: note(3, 1), B: note(5, 2), Proof: tlog.TreeProof{{7}}}
	g := f
	g.B = note(5, 3)
	want := filepath.Join(dir, "evidence", "sum.example.org_x-3-5")
	for round := range 2 {
		for i, f := range []artifact.Fork{f, g} {
			want := want + []string{".txt", "-2.txt"}[i]
			path, isNew, err := writeEvidence(dir, f)
			if err != nil || path != want || isNew != (round == 0) {
				t.Fatalf("writeEvidence = %q, %v, %v, want %q", path, isNew, err, want)
			}
			b, err := os.ReadFile(path)
			if err != nil || string(b) != f.String() {
				t.Errorf("%s holds %q, %v, want %q", path, b, err, f)
			}
			for _, part := range []string{"sum.example.org/x signature", f.Proof[0].String()} {
				if !strings.Contains(string(b), part) {
					t.Errorf("%s lacks %q", path, part)
				}
			}
		}
	}
	if files, err := os.ReadDir(filepath.Join(dir, "evidence")); err != nil || len(files) != 2 {
		t.Errorf("the directory holds %v, %v", files, err)
	}
	f.A = []byte("no tree head")
	if path, _, err := writeEvidence(dir, f); err == nil {
		t.Errorf("evidence without a tree head is in %s", path)
	}
}
