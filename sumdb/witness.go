package sumdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
)

// Levels of a tree's right edge that are full behind an anchor and a deep anchor, in bits of the tree's size.
const (
	anchorBits = 2 * tileHeight
	deepBits   = 3 * tileHeight
)

// errFrozen is matched by every error of a database that is frozen by a fork.
var errFrozen = fmt.Errorf("frozen by a fork: %w", artifact.ErrUnavailable)

// errOtherHistory is matched by every error about a head that contradicts ours, as an operator knows.
var errOtherHistory = fmt.Errorf("which an operator has acknowledged: %w", artifact.ErrRefused)

// Run works in the background until ctx is done: it gets the first head, asks for a newer one every HeadInterval, and
// checks all other heads that were met for consistency with the committed one. It commits the heads for which there was no
// quorum, and holds the tiles of what other nodes committed. It returns nil then.
func (db *DB) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { db.watch(ctx); return nil })
	g.Go(func() error { db.poll(ctx); return nil })
	g.Go(func() error { db.settle(ctx); return nil })
	if db.Changes != nil {
		g.Go(func() error { db.keepUp(ctx); return nil })
	}
	return g.Wait()
}

// poll keeps the head fresh.
func (db *DB) poll(ctx context.Context) {
	if len(db.sources) == 0 {
		return
	}
	retry := time.Second
	for {
		wait := jitter(db.HeadInterval)
		if err := db.guard("refresh", func() error { return db.tick(ctx) }); err != nil && ctx.Err() == nil {
			db.Log.Warn("tree head not refreshed", "err", err)
			wait, retry = min(jitter(retry), wait), min(2*retry, time.Minute)
		} else {
			retry = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (db *DB) tick(ctx context.Context) error {
	if _, err := db.ensureHead(ctx); err != nil {
		return err
	}
	return db.refreshed(ctx)
}

// jitter returns d, give or take a tenth, so that nodes do not ask in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// witness has h, a validly signed head that was met and is not committed, checked in the background. It never waits.
func (db *DB) witness(h head) {
	if h.N == 0 || db.judged(h) {
		return
	}
	select {
	case db.queue <- h:
	default:
		db.metrics.witness("dropped")
	}
}

// judged reports whether it is known already what to make of h.
func (db *DB) judged(h head) bool {
	_, ours := db.seen.get(h.Tree)
	_, other := db.others.get(h.Tree)
	return ours || other
}

// watch checks the heads that witness queued.
func (db *DB) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-db.queue:
			if db.judged(h) {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, fetchBudget)
			outcome := "failed"
			err := db.guard("check tree head", func() (err error) {
				outcome, err = db.check(ctx, h)
				return err
			})
			cancel()
			db.metrics.witness(outcome)
			if err == nil {
				db.seen.put(h.Tree, true, 0)
			} else if !errors.Is(err, errFrozen) {
				db.Log.Warn("tree head not checked", "source", h.from, "size", h.N, "err", err)
			}
		}
	}
}

// check proves h consistent with the committed head, and commits it as an anchor if it is a better one than there is.
func (db *DB) check(ctx context.Context, h head) (outcome string, err error) {
	if err := db.frozen(ctx); err != nil {
		return "frozen", err
	}
	now, err := db.committed(ctx)
	if err != nil {
		return "failed", err
	}
	if h.N > now.N {
		return db.checkAhead(ctx, h)
	}
	proof, err := db.consistent(ctx, now, h, &view{db: db, ctx: ctx, tree: now.Tree, online: true})
	if err != nil {
		return outcomeOf(err), err
	}
	db.ready.put([2]int64{h.N, now.N}, true, 0)
	if better, err := db.improves(ctx, h, now); err != nil || !better {
		return "consistent", err
	}
	if err := db.Catalog.CommitTreeHead(ctx, db.name, h.note, now.N, proof); err != nil {
		return "failed", err // also if the head moved meanwhile: whoever meets h next has it checked again
	}
	db.Log.Info("older tree head kept as an anchor", "size", h.N, "newest", now.N)
	return "anchor", nil
}

// checkAhead proves h, which is newer than the committed head, consistent with the newest one that is known here.
func (db *DB) checkAhead(ctx context.Context, h head) (outcome string, err error) {
	known, err := db.newest(ctx)
	if err != nil {
		return "failed", err
	}
	v := db.stage(ctx, h)
	if h.N <= known.N {
		v = &view{db: db, ctx: ctx, tree: known.Tree, online: true}
	}
	if _, err := db.consistent(ctx, known, h, v); err != nil {
		return outcomeOf(err), err
	}
	return "consistent", nil
}

func outcomeOf(err error) string {
	if errors.Is(err, errFrozen) {
		return "fork"
	}
	return "failed"
}

// improves reports whether h is a newer anchor, or deep anchor, of now than the committed one.
func (db *DB) improves(ctx context.Context, h, now head) (bool, error) {
	for _, bits := range []uint{anchorBits, deepBits} {
		if h.N>>bits >= now.N>>bits {
			continue
		}
		old, err := db.anchor(ctx, now, bits)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if h.N > old.N { // old is zero if there is none
			return true, nil
		}
	}
	return false, nil
}

// anchor returns the newest committed head A with A>>bits < now>>bits: the tiles of its right edge are full below the
// level that bits stand for. An error matches [fs.ErrNotExist] if there is none.
func (db *DB) anchor(ctx context.Context, now head, bits uint) (head, error) {
	return db.committedBelow(ctx, now.N>>bits<<bits)
}

// edgeHeld reports whether the right edge of a is held in the shape of now's tree, of which a is a prefix: what a client
// whose tree is newer than a asks for. If not, and online is set, it is fetched.
func (db *DB) edgeHeld(ctx context.Context, a, now head, online bool) bool {
	return db.holdEdge(ctx, a.Tree, now.Tree, online) == nil
}

// errOtherTree means that a tree is no prefix of the committed one.
var errOtherTree = fmt.Errorf("is no prefix of it: %w", artifact.ErrRefused)

// holdEdge is edgeHeld, and says why not.
func (db *DB) holdEdge(ctx context.Context, a, now tlog.Tree, online bool) error {
	key := [2]int64{a.N, now.N}
	if _, ok := db.ready.get(key); ok {
		return nil
	}
	root, err := tlog.TreeHash(a.N, &view{db: db, ctx: ctx, tree: now, online: online})
	if err != nil {
		return fmt.Errorf("edge of the tree of %d records in that of %d: %w", a.N, now.N, err)
	}
	if root != a.Hash {
		return fmt.Errorf("the tree of %d records, for that of %d, %w", a.N, now.N, errOtherTree)
	}
	db.ready.put(key, true, 0)
	return nil
}

// frozen returns an error if a fork froze the database. Evidence that could not be committed yet counts, and is offered to
// the catalog again.
func (db *DB) frozen(ctx context.Context) error {
	if f := db.unsaved.Load(); f != nil {
		if err := db.Catalog.CommitFork(ctx, *f); err != nil {
			return fmt.Errorf("%s is %w; the evidence is not committed yet: %v", db.name, errFrozen, err)
		}
		db.unsaved.CompareAndSwap(f, nil)
	}
	return db.Frozen(ctx)
}

// Frozen returns why nothing new is verified, if a fork froze the database, and nil if not. It asks nobody but this node;
// evidence that could not be committed yet counts.
func (db *DB) Frozen(ctx context.Context) error {
	if f := db.unsaved.Load(); f != nil {
		return fmt.Errorf("the evidence is not committed yet: %w", frozenBy(*f))
	}
	f, err := db.Catalog.Fork(ctx, db.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return frozenBy(f)
}

func frozenBy(f artifact.Fork) error {
	return fmt.Errorf("%s signed two histories that contradict each other; nothing new is verified until an operator has removed the source that shows the wrong one and run 'modmirror sumdb ack-fork': %w", f.Database, errFrozen)
}

// otherHistory returns why h is of no use, a head that an operator has acknowledged as one of another history. A source
// that shows it is refused like any that lies, and from then on it cannot say that a version does not exist.
func otherHistory(name string, h head) error {
	return fmt.Errorf("%s shows a tree head of %d records of the other history of %s, %w; remove that source", cmp.Or(h.from, "a source"), h.N, name, errOtherHistory)
}

// fork commits the evidence f, of which h is the head that is not ours, and returns an error that matches errFrozen.
// Evidence that proves nothing is refused, and so is h if an operator has seen and acknowledged it. That is only known once
// f is offered: the catalog decides.
func (db *DB) fork(ctx context.Context, h head, f artifact.Fork) error {
	if err := f.Check(db.verifier); err != nil {
		return err
	}
	uncommitted := db.Catalog.CommitFork(ctx, f)
	if uncommitted == nil {
		if _, err := db.Catalog.Fork(ctx, db.name); errors.Is(err, fs.ErrNotExist) {
			db.others.put(h.Tree, true, 0)
			return otherHistory(db.name, h)
		}
	}
	db.metrics.forks.Inc()
	db.Log.Error("checksum database forked", "source", h.from, "evidence", f.String())
	if uncommitted != nil {
		db.Log.Error("evidence of a fork is not committed", "err", uncommitted)
		db.unsaved.Store(&f)
	}
	return frozenBy(f)
}
