package sumdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// What follows is for a node whose catalog is behind: a client may have been told of a newer head, or a record, by another
// node of the same cluster a moment ago.

const (
	syncBudget = 3 * time.Second       // for Config.Sync
	roundPause = 10 * time.Millisecond // between two rounds of the same question, so that many requests share one
)

// round joins f with the same question of others, but never with one that was asked before this call: what another node
// knew then may be less than what the client at hand was told.
func (db *DB) round(ctx context.Context, key string, budget time.Duration, f func(context.Context) error) error {
	called := time.Now()
	for {
		v, err := db.once(ctx, key, budget+roundPause, func(ctx context.Context) (any, error) {
			pause(ctx, roundPause)
			begun := time.Now()
			err := f(ctx)
			return begun, err
		})
		begun, ran := v.(time.Time)
		if err != nil && !ran || !begun.Before(called) {
			return err
		}
	}
}

// sync has the catalog catch up with the other nodes'.
func (db *DB) sync(ctx context.Context) error {
	if db.Sync == nil {
		return nil
	}
	return db.round(ctx, "sync", syncBudget, db.Sync)
}

// recordLate returns the record of m, which is not committed here and could not be found elsewhere because of why, once
// the catalog has caught up: another node may have committed it. That it does not exist is known only if the catalog has.
func (db *DB) recordLate(ctx context.Context, m module.Version, why error) (artifact.Record, error) {
	synced := db.sync(ctx)
	r, err := db.Catalog.Record(ctx, db.name, m)
	switch {
	case err == nil:
		return r, nil
	case !errors.Is(err, fs.ErrNotExist):
		return r, err
	case synced != nil && db.Offline && errors.Is(why, fs.ErrNotExist):
		return r, fmt.Errorf("%s is not stored on this node, which cannot say whether another one has it: %v: %w", m, synced, artifact.ErrUnavailable)
	}
	return r, why
}

// plausible reports whether a client can have been told of a tree that has t, when the newest one known here has n records.
func plausible(t tlog.Tile, n int64) bool {
	return within(t, 2*n+1<<20)
}

// headWith returns a head whose tree has t: now, the committed one, or a newer one that the catalog, a peer or a source
// tells of, as far as it is proven. A client that saw a newer head elsewhere, and checks an older one of this node's with
// it, asks for tiles in the newer one's shape.
func (db *DB) headWith(ctx context.Context, t tlog.Tile, now head) (head, error) {
	finds := []func(context.Context) error{func(context.Context) error { return nil }}
	if plausible(t, now.N) {
		finds = append(finds, db.sync, db.learn)
	}
	if len(db.sources) > 0 {
		finds = append(finds, db.refreshed)
	}
	var why error
	for _, find := range finds {
		err := find(ctx)
		h, err2 := db.newest(ctx)
		if err2 != nil {
			return h, absence(err2)
		}
		if within(t, h.N) {
			return h, nil
		}
		why, now = worse(why, err), h
	}
	if why != nil {
		return now, fmt.Errorf("%s is beyond the tree of %d records, and there is no newer one: %w", t.Path(), now.N, absence(why))
	}
	return now, fmt.Errorf("%s is beyond the tree of %d records: %w", t.Path(), now.N, fs.ErrNotExist)
}

// learn asks the peers for their newest heads and holds the newest that is proven: signed by the database, and consistent
// with what is known here. It is not committed because of that. An error says that a peer may know a newer one.
func (db *DB) learn(ctx context.Context) error {
	if len(db.peers()) == 0 {
		return nil
	}
	return db.round(ctx, "learn", fetchBudget, func(ctx context.Context) error {
		heads, err := db.peerHeads(ctx)
		for _, r := range heads {
			err2 := db.learnOne(ctx, r.val)
			if err2 == nil {
				return err // all others are smaller
			}
			if noGood(err2) {
				r.source.blame(err2)
				db.Log.Warn("tree head of a peer is no good", "source", r.source.String(), "size", r.val.N, "err", err2)
			}
			err = worse(err, err2)
		}
		return err
	})
}

// peerHeads returns the newest heads of all peers, the largest first, and why one of them gave none.
func (db *DB) peerHeads(ctx context.Context) (heads []result[head], err error) {
	peers := db.peers()
	results := make([]result[head], len(peers))
	var wg sync.WaitGroup
	for i, s := range peers {
		wg.Go(func() { results[i] = askOne(ctx, db, s, db.peerLatest) })
	}
	wg.Wait()
	for _, r := range results {
		if r.err != nil {
			err = worse(err, absence(r.err))
		} else {
			heads = append(heads, r)
		}
	}
	slices.SortStableFunc(heads, func(a, b result[head]) int { return cmp.Compare(b.val.N, a.val.N) })
	return heads, err
}

// peerLatest is latest in a peer's time. It is not joined: see round.
func (db *DB) peerLatest(ctx context.Context, s *source) (head, error) {
	ctx, cancel := context.WithTimeout(ctx, peerBudget)
	defer cancel()
	msg, err := db.get(ctx, s, "/latest", artifact.MaxTreeHead)
	if err != nil {
		return head{}, err
	}
	h, err := db.openHead(msg)
	if err != nil {
		return h, fmt.Errorf("%s: %w", s, err)
	}
	h.from = s.String()
	return h, nil
}

func (db *DB) learnOne(ctx context.Context, h head) error {
	if err := db.frozen(ctx); err != nil {
		return err
	}
	known, err := db.newest(ctx)
	if err != nil || h.N <= known.N {
		return err
	}
	v := db.stage(ctx, h)
	if _, err := db.consistent(ctx, known, h, v); err != nil {
		return err
	}
	if err := v.keep(); err != nil {
		return err
	}
	return db.hold(ctx, h, v)
}
