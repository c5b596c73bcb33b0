package sumdb

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// A tile that the disk has damaged is found although memory holds it, and the right one takes its place; offline it stays damaged,
// and nobody is served it.
func TestScrubOfTiles(t *testing.T) {
	l := newLab(t, 70_000, nil) // so that there are three levels
	kept := l.seed(t, "kept")
	var names []string
	if err := l.tiles.walk(t.Context(), func(name string) bool { names = append(names, name); return true }); err != nil || len(names) < 3 {
		t.Fatalf("%d tiles, %v", len(names), err)
	}
	damage := map[string]func([]byte) []byte{
		"flip": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":  func(b []byte) []byte { return b[:len(b)-1] },
	}
	for _, name := range names {
		for how, f := range damage {
			b, err := l.tiles.root.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.tiles.root.WriteFile(name, f(slices.Clone(b)), 0o600); err != nil {
				t.Fatal(err)
			}
			off := l.offline(t)
			if err := off.Scrub(t.Context()); err != nil {
				t.Errorf("%s %s, offline: %v", how, name, err)
			}
			if err := l.tiles.checkFile(name); !errors.Is(err, artifact.ErrDamaged) {
				t.Errorf("%s %s, offline: %v", how, name, err)
			}
			if got := tilesCounted(t, off, "damaged"); got != 1 {
				t.Errorf("%s %s, offline: %v damaged", how, name, got)
			}
			if err := l.Scrub(t.Context()); err != nil {
				t.Errorf("%s %s: %v", how, name, err)
			}
			if err := l.tiles.checkFile(name); err != nil {
				t.Errorf("%s %s is not healed: %v", how, name, err)
			}
		}
	}
	want := float64(len(names) * len(damage))
	if d, m := tilesCounted(t, l.DB, "damaged"), tilesCounted(t, l.DB, "healed"); d != want || m != want {
		t.Errorf("%v damaged, %v healed, want %v", d, m, want)
	}
	wantLines(t, newGoClient(l.offline(t), l.Key, nil), kept)

	// What is no tile is left alone, and a scrub ends with its context.
	if err := l.tiles.root.WriteFile("tile/8/0/stray", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Scrub(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := l.tiles.root.Stat("tile/8/0/stray"); errors.Is(err, fs.ErrNotExist) {
		t.Error("it is removed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Scrub(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Scrub = %v", err)
	}
	if err := l.restore(t.Context(), tlog.Tile{H: tileHeight, L: 3, N: 99, W: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a tile beyond the tree: %v", err)
	}
}

// tilesCounted returns the value of a counter of tiles.
func tilesCounted(t *testing.T, db *DB, what string) float64 {
	t.Helper()
	return testutil.ToFloat64(map[string]prometheus.Counter{"damaged": db.metrics.damaged, "healed": db.metrics.mended}[what])
}
