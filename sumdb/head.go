package sumdb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// head is a tree head whose signature is verified.
type head struct {
	tlog.Tree
	note []byte // as we serve it: the signed text and the verified signature, nothing else
	from string // the source that showed it; empty if it was read from the catalog
}

// advances bounds how often a compare-and-set of the head is tried again.
const advances = 8

// openHead verifies the signature on msg. The note that it returns is put together anew: signatures by unknown keys, of
// which a source can add a hundred, are dropped, and the signature has its canonical form.
func (db *DB) openHead(msg []byte) (head, error) {
	if h, ok := db.heads.get(string(msg)); ok {
		return h, nil
	}
	tree, err := artifact.OpenTreeHead(db.verifier, msg)
	if err != nil {
		return head{}, err
	}
	n, err := note.Open(msg, note.VerifierList(db.verifier))
	if err != nil {
		return head{}, fmt.Errorf("tree head: %v: %w", err, artifact.ErrRefused)
	}
	if bytes.Count([]byte(n.Text), []byte("\n")) > 3 {
		db.metrics.extraLines.Inc()
		db.Log.Warn("signed tree head has lines that nobody knows", "note", n.Text)
	}
	h := head{Tree: tree, note: []byte(n.Text + "\n")}
	for _, sig := range n.Sigs {
		raw, err := base64.StdEncoding.DecodeString(sig.Base64)
		if err != nil {
			return head{}, fmt.Errorf("tree head: %v: %w", err, artifact.ErrRefused)
		}
		h.note = fmt.Appendf(h.note, "— %s %s\n", sig.Name, base64.StdEncoding.EncodeToString(raw))
	}
	db.heads.put(string(msg), h, int64(len(msg)+len(h.note)))
	return h, nil
}

// committed returns the newest committed head. An error matches [fs.ErrNotExist] if there is none.
func (db *DB) committed(ctx context.Context) (head, error) {
	return db.committedBelow(ctx, math.MaxInt64)
}

// committedBelow returns the newest committed head of fewer than below records.
func (db *DB) committedBelow(ctx context.Context, below int64) (head, error) {
	msg, err := db.Catalog.TreeHead(ctx, db.name, below)
	if err != nil {
		return head{}, err
	}
	return db.openHead(msg)
}

// headFor returns a committed head of more than id records. The newest committed head is taken if it will do, so that no
// lookup moves the head without need; else it is moved to h, the head that the record came with. Without a quorum to move
// it with, a head is returned that is proven consistent with the committed one, and that is to be committed.
func (db *DB) headFor(ctx context.Context, id int64, h head) (head, error) {
	for range advances {
		now, err := db.committed(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			if now, err = db.bootstrap(ctx); err != nil {
				db.Log.Debug("no first tree head from /latest", "err", err)
				now, err = db.first(ctx, h)
			}
		}
		if err != nil || now.N > id {
			return now, err
		}
		if now, err = db.beyond(ctx, id, h); err != nil || now.N > id {
			return now, err
		}
	}
	return head{}, fmt.Errorf("tree head of %s moves too fast: %w", db.name, artifact.ErrUnavailable)
}

// ensureHead returns the newest committed head, and makes the first if there is none.
func (db *DB) ensureHead(ctx context.Context) (head, error) {
	h, err := db.committed(ctx)
	if errors.Is(err, fs.ErrNotExist) && db.Sync != nil && db.sync(ctx) == nil {
		h, err = db.committed(ctx)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return h, err
	}
	return db.bootstrap(ctx)
}

// bootstrap commits the first head, as any source signed by the database has it: trust on first use.
func (db *DB) bootstrap(ctx context.Context) (head, error) {
	v, err := db.once(ctx, "bootstrap", fetchBudget, func(ctx context.Context) (any, error) {
		var err error
		for a := range ask(ctx, db, classLatest, db.latest) {
			h, err2 := a.val, a.err
			if err2 == nil {
				h, err2 = db.first(ctx, h)
			}
			if err2 == nil {
				return h, nil
			}
			err = worse(err, absence(err2))
		}
		if err == nil {
			err = fmt.Errorf("no tree head of %s is committed, and there is nowhere to ask for one: %w", db.name, artifact.ErrUnavailable)
		}
		return head{}, err
	})
	if err != nil {
		return head{}, err
	}
	return v.(head), nil
}

// first commits h as the first head, unless another is committed in the meantime, and returns what is committed.
func (db *DB) first(ctx context.Context, h head) (head, error) {
	if h.N == 0 {
		return head{}, fmt.Errorf("%s is empty: %w", db.name, artifact.ErrUnavailable)
	}
	if err := db.sync(ctx); err != nil { // another node may have made the first long ago
		db.Log.Debug("catalog has not caught up", "err", err)
	}
	if now, err := db.committed(ctx); !errors.Is(err, fs.ErrNotExist) {
		return now, err
	}
	view := db.stage(ctx, h)
	if _, err := view.ReadHashes(nil); err != nil { // the right edge
		return head{}, err
	}
	if err := view.keep(); err != nil {
		return head{}, err
	}
	switch err := db.Catalog.CommitTreeHead(ctx, db.name, h.note, 0, nil); {
	case err == nil:
		db.Log.Info("first tree head, trusted on first use", "size", h.N, "root", h.Hash.String())
		db.checked.Store(time.Now().UnixNano())
		db.metrics.size.Set(float64(h.N))
	case !errors.Is(err, artifact.ErrStale):
		return head{}, err
	}
	return db.committed(ctx)
}

// stage returns a view of the tree of a head that is not known to be consistent with the committed one.
func (db *DB) stage(ctx context.Context, h head) *view {
	return &view{db: db, ctx: ctx, tree: h.Tree, online: true, staged: make(map[tlog.Tile][]byte)}
}

// latest asks s for its newest head.
func (db *DB) latest(ctx context.Context, s *source) (head, error) {
	msg, err := db.fetch(ctx, s, "/latest", artifact.MaxTreeHead)
	if err != nil {
		return head{}, err
	}
	h, err := db.openHead(msg)
	if err != nil {
		err = fmt.Errorf("%s: %w", s, err)
		s.blame(err)
	}
	h.from = s.String()
	return h, err
}

// advance moves the committed head to h, if h is larger. The tiles of h's edge, and those of the old head's edge in h's
// shape, are durable before h is committed; so the old head can serve as an anchor. A head that contradicts the committed
// one is a fork. If there is no quorum, h is held among the heads that are ahead.
func (db *DB) advance(ctx context.Context, h head) error {
	if err := db.frozen(ctx); err != nil {
		return err
	}
	for range advances {
		now, err := db.committed(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			_, err = db.first(ctx, h)
			return err
		}
		if err != nil {
			return err
		}
		if h.N <= now.N {
			return nil
		}
		view := db.stage(ctx, h)
		proof, err := db.consistent(ctx, now, h, view)
		if err != nil {
			return err
		}
		if err := view.keep(); err != nil {
			return err
		}
		err = db.Catalog.CommitTreeHead(ctx, db.name, h.note, now.N, proof)
		if errors.Is(err, artifact.ErrStale) {
			if err := db.sync(ctx); err != nil { // else what is read next may be as old
				db.Log.Debug("catalog has not caught up", "err", err)
			}
			continue
		}
		if errors.Is(err, artifact.ErrNoQuorum) {
			if err2 := db.hold(ctx, h, view); err2 != nil {
				return err2
			}
		}
		if err != nil {
			return fmt.Errorf("commit tree head of %d records: %w", h.N, err)
		}
		db.Log.Info("tree head moved", "from", now.N, "to", h.N, "root", h.Hash.String())
		db.metrics.advances.Inc()
		db.metrics.size.Set(float64(h.N))
		db.ready.put([2]int64{now.N, h.N}, true, 0)
		return nil
	}
	return fmt.Errorf("tree head of %s moves too fast: %w", db.name, artifact.ErrUnavailable)
}

// consistent proves that the smaller of the trees of now, a committed head, and of h is a prefix of the other one, of which
// v is a view. If it is not, that is a fork, and the evidence is committed. An error of any other kind proves nothing.
func (db *DB) consistent(ctx context.Context, now, h head, v *view) (tlog.TreeProof, error) {
	if _, ok := db.others.get(h.Tree); ok {
		return nil, otherHistory(db.name, h)
	}
	a, b := now, h
	if h.N < now.N {
		a, b = h, now
	}
	if a.N == b.N {
		if a.Hash == b.Hash {
			return nil, nil
		}
		return nil, db.fork(ctx, h, artifact.Fork{Database: db.name, A: a.note, B: b.note})
	}
	if a.N == 0 {
		return nil, nil
	}
	derived, err := tlog.TreeHash(a.N, v)
	if err != nil {
		return nil, err
	}
	proof, err := tlog.ProveTree(b.N, a.N, v)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckTree(proof, b.N, b.Hash, a.N, derived); err != nil {
		return nil, fmt.Errorf("consistency of %d and %d records of %s: %v: %w", a.N, b.N, db.name, err, artifact.ErrRefused)
	}
	if derived != a.Hash {
		return nil, db.fork(ctx, h, artifact.Fork{Database: db.name, A: a.note, B: b.note, Derived: derived, Proof: proof})
	}
	return proof, nil
}

// refresh asks every source for its newest head, moves the committed one to the largest that can be proven, and has the
// others checked: two places that are shown different histories notice it here. It is joined, and asks at most every two
// seconds.
func (db *DB) refresh(ctx context.Context) error {
	_, err := db.once(ctx, "refresh", latestBudget+fetchBudget, func(ctx context.Context) (any, error) {
		if err := db.frozen(ctx); err != nil {
			return nil, err
		}
		heads, err := db.latests(ctx)
		moved := false
		for i, r := range heads {
			if !moved {
				if err2 := db.advanceOne(ctx, r, len(heads)-i); errors.Is(err2, errFrozen) {
					return nil, err2
				} else if err2 != nil {
					err = worse(err, err2)
					continue
				}
				db.noteRollback(ctx, r.val)
				moved = true
			}
			db.witness(r.val) // also the first one: it may be no larger than what is committed, and was not looked at then
		}
		if !moved && err == nil {
			err = fmt.Errorf("no source for the tree head of %s: %w", db.name, artifact.ErrUnavailable)
		}
		if !moved {
			return nil, err
		}
		db.checked.Store(time.Now().UnixNano())
		return nil, nil
	})
	return err
}

// latests asks all sources at the same time for their newest heads, and returns them, the largest first. One that hangs
// has no say after latestBudget. The error says why one of them had no head.
func (db *DB) latests(ctx context.Context) (heads []result[head], err error) {
	ctx, cancel := context.WithTimeout(ctx, latestBudget)
	defer cancel()
	results := make([]result[head], len(db.sources))
	var wg sync.WaitGroup
	for i, s := range db.sources {
		wg.Go(func() { results[i] = askOne(ctx, db, s, db.latest) })
	}
	wg.Wait()
	for _, r := range results {
		switch {
		case r.mute, r.err == nil && r.val.N == 0: // says nothing
		case r.err == nil:
			heads = append(heads, r)
		case errors.Is(r.err, context.DeadlineExceeded) && ctx.Err() != nil:
			r.source.hang(classLatest, latestBudget)
			fallthrough
		default:
			err = worse(err, absence(r.err))
		}
	}
	slices.SortStableFunc(heads, func(a, b result[head]) int { return cmp.Compare(b.val.N, a.val.N) })
	return heads, err
}

// advanceOne is advance for the first of n heads, in its share of the time. A source whose head is no good is blamed.
func (db *DB) advanceOne(ctx context.Context, r result[head], n int) error {
	ctx, cancel := context.WithTimeout(ctx, share(ctx, fetchBudget, n))
	defer cancel()
	err := db.advance(ctx, r.val)
	if noGood(err) {
		db.Log.Warn("tree head is no good", "source", r.source.String(), "size", r.val.N, "err", err)
		r.source.blame(err)
	}
	return err
}

// noteRollback counts it if h, the largest head that the sources have, is older than the committed one.
func (db *DB) noteRollback(ctx context.Context, h head) {
	if now, err := db.committed(ctx); err == nil && h.N < now.N {
		db.metrics.rollbacks.Inc()
		db.Log.Debug("sources have an older tree head", "size", h.N, "committed", now.N)
	}
}

// refreshed is refresh, but believes a recent one.
func (db *DB) refreshed(ctx context.Context) error {
	if at := db.checked.Load(); at != 0 && time.Since(time.Unix(0, at)) < absentFor {
		return nil
	}
	return db.refresh(ctx)
}
