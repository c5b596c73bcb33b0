package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// What follows is for a store at rest. It asks nobody.

// AnchorBounds returns, for a head of n records, the two bounds below which the newest committed heads serve as anchors.
func AnchorBounds(n int64) [2]int64 {
	return [2]int64{n >> anchorBits << anchorBits, n >> deepBits << deepBits}
}

// CheckEdge reports whether the tiles of the right edge of the tree a, in the shape that they have in the tree now, lead
// to a's root: what a client needs whose tree is newer than a. An edge of which a tile is missing is not wrong; it is not
// used before it is held as a whole.
func CheckEdge(store *TileStore, a, now tlog.Tree) error {
	h := &heldTiles{store: store}
	root, err := tlog.TreeHash(a.N, tlog.TileHashReader(now, h))
	switch {
	case errors.Is(h.err, errNotHeld):
		return nil
	case h.err != nil:
		return h.err
	case err != nil:
		return fmt.Errorf("tiles do not lead to the signed root of %d records: %v: %w", now.N, err, artifact.ErrDamaged)
	case root != a.Hash:
		return fmt.Errorf("tiles do not lead from the head of %d records to that of %d: %w", now.N, a.N, artifact.ErrDamaged)
	}
	return nil
}

// Check reads every tile file, and yields what is wrong with any. If ctx ends, its error is the last one.
func (s *TileStore) Check(ctx context.Context) iter.Seq[error] {
	return func(yield func(error) bool) {
		err := s.walk(ctx, func(name string) bool {
			err := s.checkFile(name)
			return err == nil || yield(fmt.Errorf("%s: %w", name, err))
		})
		if err != nil {
			yield(err)
		}
	}
}

// walk calls f with the name of every tile file, until it says no.
func (s *TileStore) walk(ctx context.Context, f func(name string) bool) error {
	if s.root == nil {
		return nil
	}
	return fs.WalkDir(s.root.FS(), "tile", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == "tile" {
			return fs.SkipAll
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && !d.IsDir() && !f(name) {
			err = fs.SkipAll
		}
		return err
	})
}

// checkFile checks the file of this name.
func (s *TileStore) checkFile(name string) error {
	t, err := tlog.ParseTilePath(path.Clean(name))
	if err != nil || checkTile(t) != nil || strings.Contains(name, ".p") || keyOf(t).path() != name {
		return fmt.Errorf("is no tile: %w", artifact.ErrDamaged)
	}
	_, err = s.read(keyOf(t))
	return err
}
