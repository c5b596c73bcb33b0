package sumdb

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Hold returns when this node holds, durably, what a client without any state needs to verify r against the newest head that
// is committed here: another node is about to publish r, and may be lost right after. Tiles that are missing come from peers
// first. An error matches [artifact.ErrUnavailable] if the catalog here is not that far, or nobody has a tile now, and
// [artifact.ErrRefused] if r is not in that tree.
func (db *DB) Hold(ctx context.Context, r artifact.Record) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	now, err := db.committed(ctx)
	if err != nil {
		return absence(err)
	}
	if r.ID < 0 || r.ID >= now.N {
		return fmt.Errorf("record %d of %s lies beyond the committed tree of %d records: %w", r.ID, db.name, now.N, artifact.ErrUnavailable)
	}
	if err := db.holdEdge(ctx, now.Tree, now.Tree, true); err != nil {
		return err
	}
	v := &view{db: db, ctx: ctx, tree: now.Tree, online: true}
	hashes, err := v.ReadHashes([]int64{tlog.StoredHashIndex(0, r.ID)})
	if err != nil {
		return fmt.Errorf("tiles of record %d of %s: %w", r.ID, db.name, absence(err))
	}
	if hashes[0] != tlog.RecordHash(r.Text) {
		return fmt.Errorf("record %d of %s is another one in the tree of %d records; text %.300q: %w", r.ID, db.name, now.N, r.Text, artifact.ErrRefused)
	}
	return nil
}

// Hold is [DB.Hold] of the database that r is of.
func (s *Set) Hold(ctx context.Context, r artifact.Record) error {
	db, err := s.of(r)
	if err != nil {
		return err
	}
	return db.Hold(ctx, r)
}

// Commit is [DB.Commit] of the database that r is of.
func (s *Set) Commit(ctx context.Context, r artifact.Record) (artifact.Record, error) {
	db, err := s.of(r)
	if err != nil {
		return r, err
	}
	return db.Commit(ctx, r)
}

func (s *Set) of(r artifact.Record) (*DB, error) {
	for _, db := range s.dbs {
		if db.name == r.Database {
			return db, nil
		}
	}
	return nil, fmt.Errorf("checksum database %q is not configured on this node: %w", r.Database, artifact.ErrUnavailable)
}
