package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// How Scrub keeps itself from taking a whole processor, or disk: it rests three times as long as it reads.
const (
	scrubTiles = 64 // files at a time
	scrubRest  = 3
)

// Scrub reads every tile file again. One that is damaged is fetched from peers, else from the other sources, and authenticated
// against the committed head, before it takes the place of the damaged one; what nobody gives now stays damaged, is never served,
// and is fetched by the next read of it, or by the next Scrub. An error says that the files could not be looked at.
func (db *DB) Scrub(ctx context.Context) error {
	begin, n := time.Now(), 0
	err := db.Tiles.walk(ctx, func(name string) bool {
		if err := db.Tiles.checkFile(name); errors.Is(err, artifact.ErrDamaged) {
			db.heal(ctx, name, err)
		}
		if n++; n%scrubTiles == 0 {
			pause(ctx, scrubRest*time.Since(begin))
			begin = time.Now()
		}
		return ctx.Err() == nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("tiles of %s: %w", db.name, err)
	}
	return nil
}

// heal brings a damaged tile file back.
func (db *DB) heal(ctx context.Context, name string, why error) {
	db.metrics.damaged.Inc()
	t, err := tlog.ParseTilePath(path.Clean(name))
	if err == nil {
		err = checkTile(t)
	}
	if err != nil {
		db.Log.Warn("there is a file among the tiles that is none; it is left alone", "database", db.name, "file", name, "err", why)
		return
	}
	if err := db.restore(ctx, t); err != nil {
		db.Log.Error("a stored tile is damaged: look at the disk; nobody gives the right one now", "database", db.name, "tile", t.Path(), "damage", why, "err", err)
		return
	}
	db.metrics.mended.Inc()
	db.Log.Warn("a stored tile was damaged: look at the disk; the right one took its place", "database", db.name, "tile", t.Path(), "damage", why)
}

// restore reads the first hash that a tile stands for, in the committed tree: what is read is authenticated, and stored.
func (db *DB) restore(ctx context.Context, t tlog.Tile) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	now, err := db.committed(ctx)
	if err != nil {
		return absence(err)
	}
	index := tlog.StoredHashIndex(t.L*tileHeight, t.N<<tileHeight)
	if index >= tlog.StoredHashIndex(0, now.N) {
		return fmt.Errorf("it is of no committed tree: %w", fs.ErrNotExist)
	}
	db.Tiles.hot.forget(keyOf(t)) // or what memory holds would be taken for what the disk has
	v := &view{db: db, ctx: ctx, tree: now.Tree, online: true}
	if _, err := v.ReadHashes([]int64{index}); err != nil {
		return err
	}
	return db.Tiles.checkFile(keyOf(t).path())
}

// Scrub is [DB.Scrub] of every database.
func (s *Set) Scrub(ctx context.Context) error {
	var errs []error
	for _, db := range s.dbs {
		errs = append(errs, db.Scrub(ctx))
	}
	return errors.Join(errs...)
}
