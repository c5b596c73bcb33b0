package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
)

// Collector brings the tiles together that clients without any state need of one tree: into a backup, and out of one. What
// is in Store then is authenticated against Head, wherever it comes from; [CheckOffline] and [CheckEdge] find it.
type Collector struct {
	Head  tlog.Tree
	Store *TileStore // that tiles are put into; what it has is not asked for
	From  []Source   // asked in this order; of one whose tiles do not lead to Head, none are taken
}

// Records collects what verifies records, which are of the tree. An error matches [artifact.ErrRefused] if a record is another
// one in the tree, and says which tile is missing or wrong, and in which source, if that is why.
func (c *Collector) Records(ctx context.Context, records []artifact.Record) error {
	indexes := make([]int64, len(records))
	for i, r := range records {
		if r.ID < 0 || r.ID >= c.Head.N {
			return fmt.Errorf("record %d of %s lies beyond the tree of %d records: %w", r.ID, r.Database, c.Head.N, artifact.ErrRefused)
		}
		indexes[i] = tlog.StoredHashIndex(0, r.ID)
	}
	hashes, err := c.read(ctx, indexes)
	if err != nil {
		return err
	}
	for i, r := range records {
		if hashes[i] != tlog.RecordHash(r.Text) {
			return fmt.Errorf("record %d of %s is another one in the tree of %d records; text %.300q: %w", r.ID, r.Database, c.Head.N, r.Text, artifact.ErrRefused)
		}
	}
	return nil
}

// Edge collects what leads from Head to a, an older head. An error matches [artifact.ErrRefused] if a is of another history.
func (c *Collector) Edge(ctx context.Context, a tlog.Tree) error {
	root, err := tlog.TreeHash(a.N, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return c.read(ctx, indexes) }))
	if err == nil && root != a.Hash {
		err = fmt.Errorf("the tree of %d records has the root %v in that of %d records, and its signed head says %v: %w", a.N, root, c.Head.N, a.Hash, artifact.ErrRefused)
	}
	return err
}

// read reads hashes out of tiles: of any source, and if these do not fit together, of each alone.
func (c *Collector) read(ctx context.Context, indexes []int64) (hashes []tlog.Hash, err error) {
	var errs []error
	for try := 0; try <= len(c.From); try++ {
		r := &collecting{c: c, ctx: ctx, from: c.From}
		if try > 0 {
			r.from, r.bare = c.From[try-1:try], true
		}
		hashes, err := tlog.TileHashReader(c.Head, r).ReadHashes(indexes)
		if err == nil {
			err = r.err
		}
		if err == nil {
			return hashes, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if r.complete {
			err = fmt.Errorf("tiles of %s do not lead to the signed root of %d records: %w", r.names(), c.Head.N, err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// collecting is the tlog.TileReader of one attempt.
type collecting struct {
	c        *Collector
	ctx      context.Context
	from     []Source
	bare     bool  // without what the store has
	complete bool  // all tiles were read: an error that follows is about their content
	err      error // of SaveTiles
}

func (r *collecting) names() string {
	var all []string
	if !r.bare {
		all = append(all, "what was collected before")
	}
	for _, s := range r.from {
		all = append(all, s.String())
	}
	return strings.Join(all, ", ")
}

func (r *collecting) Height() int { return tileHeight }

func (r *collecting) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(tileWrites)
	for i, t := range tiles {
		if !r.bare {
			if b, err := r.c.Store.Tile(t); err == nil {
				data[i] = b
				continue
			}
		}
		g.Go(func() (err error) { data[i], err = r.fetch(ctx, t); return err })
	}
	err := g.Wait()
	r.complete = err == nil
	return data, err
}

// fetch asks the sources for a tile.
func (r *collecting) fetch(ctx context.Context, t tlog.Tile) ([]byte, error) {
	var errs []error
	for _, s := range r.from {
		b, err := s.Get(ctx, "/"+t.Path(), tileBytes)
		if err == nil && len(b) != t.W*tlog.HashSize {
			err = fmt.Errorf("it has %d bytes: %w", len(b), artifact.ErrMalformed)
		}
		if err == nil {
			return b, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("nobody can be asked for it"))
	}
	return nil, fmt.Errorf("%s: %w", t.Path(), errors.Join(errs...))
}

// SaveTiles keeps tiles that are authenticated.
func (r *collecting) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	r.err = r.c.Store.Put(tiles, data)
}

// Source is the store as a source of its tiles, by the name of name.
func (s *TileStore) Source(name string) Source { return storedTiles{s, name} }

type storedTiles struct {
	store *TileStore
	name  string
}

func (s storedTiles) String() string { return s.name }

func (s storedTiles) Get(_ context.Context, path string, _ int64) ([]byte, error) {
	t, err := tlog.ParseTilePath(strings.TrimPrefix(path, "/"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return s.store.Tile(t)
}

// ParseTileFile returns the tile that a file of a store, by its name and content, holds. An error matches
// [artifact.ErrRefused] if the name is none of a tile, and [artifact.ErrDamaged] if the content is not what was stored.
func ParseTileFile(name string, file []byte) (tlog.Tile, []byte, error) {
	t, err := tlog.ParseTilePath(name)
	if err != nil || checkTile(t) != nil || keyOf(t).path() != name {
		return t, nil, fmt.Errorf("%q is no tile: %w", name, artifact.ErrRefused)
	}
	b, err := parseTileFile(file)
	if err != nil {
		return t, nil, err
	}
	t.W = len(b) / tlog.HashSize
	return t, b, nil
}

// MaxTileFile bounds a file of a store.
const MaxTileFile = tileBytes + 64
