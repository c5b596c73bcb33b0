package sumdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// maxAhead bounds the heads that wait to be committed.
const maxAhead = 64

// ahead holds heads of more records than the committed one: met while there was no quorum to commit them, or shown by a
// peer whose catalog is further. Each is signed, and proven consistent with the committed head of that moment and with the
// one before it, so what is built on one is true whether or not it is ever committed. Nothing of this outlives the process.
type ahead struct {
	mu    sync.Mutex
	heads []aheadHead   // guarded by mu; by size
	wake  chan struct{} // holds one when there is something for settle to do
}

type aheadHead struct {
	head
	used bool // a record has a proof against it: it is to be committed, whatever comes after it
}

func newAhead() ahead { return ahead{wake: make(chan struct{}, 1)} }

// over returns the newest head, if it has more than n records. With use it is to be committed as soon as that is possible.
func (a *ahead) over(n int64, use bool) (head, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.heads) == 0 {
		return head{}, false
	}
	last := &a.heads[len(a.heads)-1]
	if last.N <= n {
		return head{}, false
	}
	if use {
		last.used = true
		a.tell()
	}
	return last.head, true
}

// add adds h, which is proven consistent with the newest one here, if it is newer. One that no record needs makes room.
func (a *ahead) add(h head) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := len(a.heads)
	if n > 0 && a.heads[n-1].N >= h.N {
		return
	}
	switch {
	case n > 0 && !a.heads[n-1].used:
		a.heads = a.heads[:n-1]
	case n == maxAhead: // whoever has a record of the oldest one gets another proof from Commit
		a.heads = slices.Delete(a.heads, 0, 1)
	}
	a.heads = append(a.heads, aheadHead{head: h})
	a.tell()
}

// tell wakes settle.
func (a *ahead) tell() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// all returns the heads, by size.
func (a *ahead) all() []aheadHead {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.heads)
}

// remove removes the head of this tree.
func (a *ahead) remove(tree tlog.Tree) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heads = slices.DeleteFunc(a.heads, func(h aheadHead) bool { return h.Tree == tree })
}

// newest returns the newest head that is known here to be right: the committed one, or one that is ahead of it. An error
// matches [fs.ErrNotExist] if none is committed: then none is right yet.
func (db *DB) newest(ctx context.Context) (head, error) {
	now, err := db.committed(ctx)
	if err != nil {
		return head{}, err
	}
	if h, ok := db.ahead.over(now.N, false); ok {
		return h, nil
	}
	return now, nil
}

// hold keeps h, which is consistent with the committed head and of which v is a view, among the heads that are ahead. It
// must be consistent with these too: else that is a fork, although neither of the two is committed.
func (db *DB) hold(ctx context.Context, h head, v *view) error {
	last, ok := db.ahead.over(0, false)
	if !ok || last.Tree == h.Tree {
		db.ahead.add(h)
		return nil
	}
	if h.N <= last.N {
		v = &view{db: db, ctx: ctx, tree: last.Tree, online: true}
	}
	if _, err := db.consistent(ctx, last, h, v); err != nil {
		return err
	}
	if err := v.keep(); err != nil {
		return err
	}
	db.ahead.add(h)
	return nil
}

// beyond returns a head of more than id records, although the committed one has no more and h, which the record came with,
// is not committed yet: it commits one, or says in the end that there is no quorum for that and takes it as it is.
func (db *DB) beyond(ctx context.Context, id int64, h head) (head, error) {
	if waiting, ok := db.ahead.over(id, false); ok {
		h = waiting
	}
	err := db.advance(ctx, h)
	if err == nil {
		return db.committed(ctx)
	}
	if errors.Is(err, artifact.ErrNoQuorum) {
		if h, ok := db.ahead.over(id, true); ok {
			return h, nil
		}
	}
	return head{}, err
}

// Commit returns r, which Record returned before, with a proof against a committed head, so that it can be published. It
// commits that head if that is still to be done. An error matches [artifact.ErrNoQuorum] if it cannot be done now.
func (db *DB) Commit(ctx context.Context, r artifact.Record) (artifact.Record, error) {
	h, err := db.committedBelow(ctx, r.TreeSize+1)
	if err == nil && h.N == r.TreeSize && r.Check(h.Hash) == nil {
		return r, nil
	}
	if err := db.frozen(ctx); err != nil {
		return r, err
	}
	now, err := db.committed(ctx)
	if err != nil {
		return r, absence(err)
	}
	if now.N <= r.ID {
		waiting, ok := db.ahead.over(r.ID, true)
		if !ok {
			return r, fmt.Errorf("record %d of %s lies beyond the committed tree of %d records; look it up again: %w", r.ID, db.name, now.N, artifact.ErrUnavailable)
		}
		if err := db.advance(ctx, waiting); err != nil {
			return r, err
		}
		if now, err = db.committed(ctx); err != nil {
			return r, absence(err)
		}
	}
	return db.prove(ctx, now, r, true)
}

// composeAhead returns the answer to a lookup of record, which lies beyond the committed head. What it says stays true: its
// head is signed and proven consistent with the committed one, so no later head can contradict it but half of a fork.
func (db *DB) composeAhead(ctx context.Context, m module.Version, record artifact.Record, only bool) (composed, error) {
	h, ok := db.ahead.over(record.ID, false)
	if !ok {
		return composed{}, fmt.Errorf("record %d of %s lies beyond every tree head that is known here: %w", record.ID, db.name, artifact.ErrUnavailable)
	}
	r, err := db.prove(ctx, h, record, !only)
	if err != nil {
		return composed{}, fmt.Errorf("answer for record %d: %w", record.ID, held(err))
	}
	c, err := answerWith(m, r, h, cacheNever, 0)
	c.uncommitted = true
	return c, err
}

// settle commits the heads that are ahead, as soon as that is possible, until ctx is done. One that only a peer showed waits
// until the catalog has overtaken it, and is checked against what was committed.
func (db *DB) settle(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-db.ahead.wake:
		}
		for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 15*time.Second) {
			err := db.guard("commit tree heads", func() error { return db.settleAll(ctx) })
			if err == nil {
				break
			}
			db.Log.Debug("tree head waits to be committed", "err", err)
			pause(ctx, jitter(wait))
		}
	}
}

// settleAll commits what is to be committed, smallest first, and forgets what the catalog has overtaken.
func (db *DB) settleAll(ctx context.Context) error {
	var waits error
	for _, h := range db.ahead.all() {
		ctx, cancel := context.WithTimeout(ctx, fetchBudget)
		err := db.settleOne(ctx, h)
		cancel()
		if errors.Is(err, errWaits) {
			waits = err
			continue
		}
		if err != nil && !noGood(err) {
			return err
		}
		if err != nil {
			db.Log.Warn("tree head is no good any more", "size", h.N, "err", err)
			db.ahead.remove(h.Tree)
		}
	}
	return waits
}

// errWaits means that a head is for another node to commit.
var errWaits = errors.New("is not committed yet")

func (db *DB) settleOne(ctx context.Context, h aheadHead) error {
	now, err := db.committed(ctx)
	if err != nil {
		return err
	}
	if h.N > now.N && !h.used {
		return fmt.Errorf("tree head of %d records, shown by %s, %w", h.N, h.from, errWaits)
	}
	if h.N > now.N {
		if err := db.advance(ctx, h.head); err != nil {
			return err
		}
		db.ahead.remove(h.Tree)
		return nil
	}
	if err := db.frozen(ctx); err != nil {
		return err
	}
	proof, err := db.consistent(ctx, now, h.head, &view{db: db, ctx: ctx, tree: now.Tree, online: true})
	if err != nil {
		return err
	}
	if h.used && h.N < now.N { // records with a proof against it are still to be published
		if err := db.Catalog.CommitTreeHead(ctx, db.name, h.note, now.N, proof); err != nil {
			return err
		}
	}
	db.ahead.remove(h.Tree)
	return nil
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
