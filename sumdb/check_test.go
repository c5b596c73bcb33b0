package sumdb

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

func problemsOf(t *testing.T, s *TileStore) (all []error) {
	t.Helper()
	for err := range s.Check(t.Context()) {
		all = append(all, err)
	}
	return all
}

// A store at rest is checked file by file, and an edge by the heads that it leads from and to.
func TestCheckTiles(t *testing.T) {
	src := sumdbtest.New("sum.example.org")
	src.Grow(300)
	dir := t.TempDir()
	s := openTiles(t, dir)
	a, now := tlog.Tree{N: 260, Hash: src.Root(260)}, tlog.Tree{N: 300, Hash: src.Root(300)}
	tiles := []tlog.Tile{tileAtW(0, 0, 256), tileAtW(0, 1, 44), tileAtW(1, 0, 1)}
	var data [][]byte
	for _, tile := range tiles {
		b, err := src.Get(t.Context(), "/"+tile.Path(), tileBytes)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, b)
	}
	if err := CheckEdge(s, a, now); err != nil {
		t.Errorf("an edge that is not held: %v", err)
	}
	if err := s.Put(tiles, data); err != nil {
		t.Fatal(err)
	}
	if got := problemsOf(t, s); len(got) > 0 {
		t.Errorf("a sound store: %v", got)
	}
	if err := CheckEdge(s, a, now); err != nil {
		t.Errorf("a sound edge: %v", err)
	}
	if err := CheckEdge(s, tlog.Tree{N: 260, Hash: now.Hash}, now); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("an edge that leads elsewhere: %v", err)
	}
	if got := AnchorBounds(1<<24 + 1<<16 + 5); got != [2]int64{1<<24 + 1<<16, 1 << 24} {
		t.Errorf("AnchorBounds = %v", got)
	}

	file := filepath.Join(dir, filepath.FromSlash(keyOf(tiles[1]).path()))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(good); at += 7 {
		b := append([]byte{}, good...)
		b[at] ^= 0x10
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := problemsOf(t, s); len(got) != 1 || !errors.Is(got[0], artifact.ErrDamaged) {
			t.Fatalf("byte %d is turned: %v", at, got)
		}
	}
	other := append([]byte{}, data[1]...)
	other[5] ^= 1
	if err := os.WriteFile(file, tileFile(other), 0o600); err != nil { // as if it had been forged
		t.Fatal(err)
	}
	if err := CheckEdge(openTiles(t, dir), a, now); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("a forged edge: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tile", "readme"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := problemsOf(t, openTiles(t, dir)); len(got) != 1 {
		t.Errorf("a stranger among the tiles: %v", got)
	}
	none, err := OpenTilesReadOnly(filepath.Join(dir, "none"))
	if err != nil {
		t.Fatal(err)
	}
	if got := problemsOf(t, none); len(got) > 0 {
		t.Errorf("no directory: %v", got)
	}
}
