package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
)

// view reads hashes of a tree out of tiles, from the store or from sources. It is a tlog.HashReader whose every hash is
// authenticated against the tree's root by tlog.TileHashReader, which also says when the tiles may be kept. It is for one
// piece of work, by one goroutine at a time.
type view struct {
	db     *DB
	ctx    context.Context
	tree   tlog.Tree
	online bool // what the store lacks is asked of the sources

	// staged collects the authenticated tiles of a tree that is not known to be consistent with the committed one. They
	// must not reach the store before it is: the tiles of a forked tree would replace those of the committed tree.
	// Nil for a committed tree: its tiles are stored at once.
	staged map[tlog.Tile][]byte
}

// maxStaged bounds staged. A consistency proof needs no more than the right edges of two trees, twice.
const maxStaged = 8 * maxLevel

// errNotHeld means that a tile, whose path stands before it, is not in the store and the sources are not to be asked.
var errNotHeld = fmt.Errorf("is not held: %w", artifact.ErrUnavailable)

// errBadTiles means that the tiles read do not lead to the signed root.
var errBadTiles = fmt.Errorf("tiles do not lead to the signed root: %w", artifact.ErrRefused)

// ReadHashes reads the hashes at indexes. Bad tiles are no reason to give up: they are asked of each source alone then,
// without a look at the store.
func (v *view) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	if v.tree.N <= 0 || v.tree.N > maxTree {
		return nil, fmt.Errorf("tree of %d records: %w", v.tree.N, artifact.ErrRefused)
	}
	hashes, err := v.read(indexes, attempt{})
	if !errors.Is(err, errBadTiles) {
		return hashes, err
	}
	v.db.metrics.badTiles.Inc()
	if !v.online || !v.db.askable() {
		return nil, fmt.Errorf("tiles held of the tree of %d records of %s do not lead to its root: %w: %w", v.tree.N, v.db.name, artifact.ErrDamaged, artifact.ErrUnavailable)
	}
	return v.oneByOne(indexes, err)
}

// oneByOne is read from one source after the other, because err: what was read from wherever does not fit together. In the
// end it is read from all but those whose tiles were bad.
func (v *view) oneByOne(indexes []int64, err error) ([]tlog.Hash, error) {
	order := v.db.order(classTile)
	liars := make(map[*source]bool)
	for i, s := range order {
		if v.ctx.Err() != nil || !v.db.supported(v.ctx, s) {
			continue
		}
		hashes, err2 := v.readAt(indexes, s, len(order)-i)
		if err2 == nil {
			return hashes, nil
		}
		if errors.Is(err2, errBadTiles) {
			v.db.metrics.badTiles.Inc()
			v.db.Log.Warn("tiles are no good", "source", s.String(), "size", v.tree.N, "err", err2)
			v.db.refuse(s, err2)
			liars[s] = true
			err = fmt.Errorf("%s: %w", s, err2)
		}
	}
	if len(liars) > 0 && len(liars) < len(order) && v.ctx.Err() == nil {
		if hashes, err2 := v.read(indexes, attempt{without: liars}); err2 == nil {
			return hashes, nil
		}
	}
	return nil, err
}

// readAt is read from the first of n sources alone, in its share of the time. A peer need not have what is held here.
func (v *view) readAt(indexes []int64, s *source, n int) ([]tlog.Hash, error) {
	one := *v
	ctx, cancel := context.WithTimeout(v.ctx, share(v.ctx, fetchBudget, n))
	defer cancel()
	one.ctx = ctx
	if !s.peer {
		return one.read(indexes, attempt{only: s, bare: true})
	}
	hashes, err := one.read(indexes, attempt{only: s})
	if !errors.Is(err, errBadTiles) {
		return hashes, err
	}
	hashes, err2 := one.read(indexes, attempt{only: s, bare: true}) // what is held here may be what is bad
	if err2 == nil {
		return hashes, nil
	}
	return nil, err
}

// attempt says where tiles are read from.
type attempt struct {
	only    *source          // and from no other source; nil: from any
	bare    bool             // not from the store
	without map[*source]bool // nor from these
}

// read is one attempt of ReadHashes.
func (v *view) read(indexes []int64, a attempt) ([]tlog.Hash, error) {
	r := &tileReader{view: v, attempt: a}
	hashes, err := tlog.TileHashReader(v.tree, r).ReadHashes(indexes)
	switch {
	case r.err != nil: // nothing may be built on tiles that are not held
		return nil, r.err
	case err != nil && r.complete && a.only != nil && !r.fetched: // it gave nothing, so nothing bad
		return nil, fmt.Errorf("tree of %d records of %s: tiles held here are bad: %v: %w", v.tree.N, v.db.name, err, artifact.ErrUnavailable)
	case err != nil && r.complete:
		return nil, fmt.Errorf("%w: tree of %d records of %s: %v", errBadTiles, v.tree.N, v.db.name, err)
	}
	return hashes, err
}

// keep stores what was staged, durably. The tree is known to be consistent with the committed one now.
func (v *view) keep() error {
	tiles := make([]tlog.Tile, 0, len(v.staged))
	data := make([][]byte, 0, len(v.staged))
	for t, b := range v.staged {
		tiles, data = append(tiles, t), append(data, b)
	}
	return v.db.Tiles.Put(tiles, data)
}

// tileReader is the tlog.TileReader of one attempt.
type tileReader struct {
	*view
	attempt
	fetched  bool  // some were not in the store
	complete bool  // all tiles were read: an error that follows is about their content
	err      error // of SaveTiles, which cannot return one
}

func (r *tileReader) Height() int { return tileHeight }

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	var missing []int
	var why error // why the worst of them is missing: damaged is worse than not held
	for i, t := range tiles {
		if !r.bare {
			if data[i] = r.staged[t]; data[i] != nil {
				continue
			}
			var err error
			if data[i], err = r.db.Tiles.Tile(t); err == nil {
				continue
			}
			if why == nil && errors.Is(err, fs.ErrNotExist) {
				why = fmt.Errorf("%s %w", t.Path(), errNotHeld)
			} else if !errors.Is(err, fs.ErrNotExist) {
				why = unreadable(t, err)
				r.db.Log.Warn("stored tile is not readable", "tile", t.Path(), "err", err)
			}
		}
		missing = append(missing, i)
	}
	if len(missing) > 0 && (!r.online || !r.db.askable()) {
		if why == nil { // asked of a source alone, and there is none
			why = fmt.Errorf("%s %w", tiles[missing[0]].Path(), errNotHeld)
		}
		return nil, why
	}
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(8)
	for _, i := range missing {
		g.Go(func() (err error) {
			data[i], err = r.db.fetchTile(ctx, tiles[i], r.attempt)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	r.complete, r.fetched = true, len(missing) > 0
	return data, nil
}

// unreadable returns why the stored tile t cannot be read, as a reason to ask again later: t exists.
func unreadable(t tlog.Tile, err error) error {
	return fmt.Errorf("%s: %w: %w", t.Path(), err, artifact.ErrUnavailable)
}

// SaveTiles keeps tiles that are authenticated. If only the store was asked they come from there, and reading them must not
// depend on whether it can be written.
func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	if !r.online {
		return
	}
	if r.staged == nil {
		r.err = r.db.Tiles.Put(tiles, data)
		return
	}
	for i, t := range tiles {
		if len(r.staged) < maxStaged {
			r.staged[t] = data[i]
		}
	}
}

// fetchTile asks the sources for t, those that how allows. The bytes are not authenticated. A 404 of a tile says nothing
// about a module, so the error does not match [fs.ErrNotExist].
func (db *DB) fetchTile(ctx context.Context, t tlog.Tile, how attempt) ([]byte, error) {
	if how.only != nil {
		b, err := db.tileAt(ctx, how.only, t)
		return b, absence(err)
	}
	var err error
	for a := range ask(ctx, db, classTile, func(ctx context.Context, s *source) ([]byte, error) {
		if how.without[s] {
			return nil, fmt.Errorf("%s: its tiles were bad: %w", s, artifact.ErrUnavailable)
		}
		return db.tileAt(ctx, s, t)
	}) {
		if a.err == nil {
			return a.val, nil
		}
		err = worse(err, a.err)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = fmt.Errorf("no source for %s: %w", t.Path(), artifact.ErrUnavailable)
	}
	return nil, absence(err)
}

// tileAt asks s for t, and if s has it not in this width, for the full tile, as the go command does. A peer cuts what it
// holds by itself.
func (db *DB) tileAt(ctx context.Context, s *source, t tlog.Tile) ([]byte, error) {
	size := t.W * tlog.HashSize
	b, err := db.fetch(ctx, s, "/"+t.Path(), int64(size))
	if !s.peer && t.W < tileWidth && errors.Is(err, fs.ErrNotExist) {
		full := t
		full.W = tileWidth
		if b, err2 := db.fetch(ctx, s, "/"+full.Path(), tileBytes); err2 == nil && len(b) == tileBytes {
			return b[:size:size], nil
		}
	}
	if err == nil && len(b) != size {
		err = fmt.Errorf("%s: %s has %d bytes, want %d: %w", s, t.Path(), len(b), size, artifact.ErrMalformed)
		s.blame(err)
	}
	return b, err
}
