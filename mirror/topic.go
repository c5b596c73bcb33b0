package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// topic is one kind of answer that changes: the lists of all module paths, or their @latest.
//
//	age < TTL                    answered from memory
//	age < 2 TTL                  answered from memory, refreshed in the background
//	older, or not in memory      refreshed; who has something older waits for StaleWait only
//	the upstream does not answer the older answer, of any age, from memory or from the catalog
//	offline, cached-only         what the catalog holds
//
// An error is not remembered, except that a failing upstream is not asked again for a moment while there is an older
// answer, and that "no such module" is believed for NegativeTTL.
//
// Whoever puts an answer into memory takes its turn for the path, and reads the catalog in it. So of two that do it at
// the same time, a refresh and a publication or two publications, the last one has seen what both of them know: what was
// published is never missing from memory, however the two are interleaved.
type topic struct {
	m      *Mirror
	class  class
	memory *cache[*seen]
	turns  [64]chan struct{}  // by hash of the path; held while the catalog is read, never while anybody else is asked
	epochs [256]atomic.Uint64 // by hash of the path; raised when the catalog's listing of one of them changes
	// ask returns what the upstream says, after making it known to the catalog. fs.ErrNotExist: it knows no such module.
	ask func(ctx context.Context, path string) (*seen, error)
	// held returns what the catalog alone can say; fs.ErrNotExist if it can say nothing.
	held func(ctx context.Context, path string) (*seen, error)
	// settle brings an answer up to date with the catalog, and says whether it may be remembered.
	settle func(ctx context.Context, path string, s *seen) (now *seen, keep bool, err error)
}

// seen is an answer with its age. It never changes once in memory.
type seen struct {
	answer   *answer   // nil if absent, and of a list until it is settled
	absent   error     // why there is none
	versions []string  // of a list: what the upstream said
	counted  int       // how many published versions were considered; upstreamOnly if the upstream's word was all
	at       time.Time // when that was true
	failed   time.Time // when the upstream last failed to give a newer one
	epoch    uint64    // of the path when the catalog was read for it
}

const upstreamOnly = -1

const failedWait = 5 * time.Second // before an upstream that failed is asked again for the same thing

func newTopic(m *Mirror, c class) *topic {
	t := &topic{m: m, class: c, memory: newCache[*seen](m.config.ListBytes)}
	for i := range t.turns {
		t.turns[i] = make(chan struct{}, 1)
	}
	return t
}

// turn waits for the turn for path and returns what ends it. It heeds no context: a publication must be seen.
func (t *topic) turn(path string) (end func()) {
	c := t.turns[shard(path, len(t.turns))]
	c <- struct{}{}
	return func() { <-c }
}

func (t *topic) epoch(path string) *atomic.Uint64 { return &t.epochs[shard(path, len(t.epochs))] }

// get returns the answer for a module path.
func (t *topic) get(ctx context.Context, path string, cachedOnly bool) (*answer, outcome, error) {
	s, _ := t.memory.get(path)
	if s != nil && t.m.config.Peers != nil && s.epoch != t.epoch(path).Load() {
		s = t.catchUp(ctx, path)
	}
	if s != nil {
		age := time.Since(s.at)
		switch {
		case age < t.m.config.ListTTL:
			return s.answer, outcomeHit, nil
		case cachedOnly:
			return s.answer, outcomeHit, nil
		case time.Since(s.failed) < failedWait:
			return t.stale(s)
		case age < 2*t.m.config.ListTTL:
			background(t.m.flights, t.key(path), t.budget(), t.slots(), func(ctx context.Context) (any, error) { return t.refresh(ctx, path) })
			return s.answer, outcomeStale, nil
		}
	} else if err := t.m.knownAbsent(t.key(path)); err != nil {
		return nil, outcomeMiss, err
	}
	if cachedOnly {
		s, err := t.known(ctx, path)
		if err != nil {
			return nil, 0, err
		}
		return s.answer, outcomeHit, nil
	}
	return t.wait(ctx, path, s)
}

// known returns the answer that the catalog alone can give.
func (t *topic) known(ctx context.Context, path string) (*seen, error) {
	s, err := t.held(ctx, path)
	if err != nil {
		return nil, err
	}
	s, _, err = t.settle(ctx, path, s)
	return s, err
}

// wait refreshes and waits: for a moment if there is something older, then for as long as a client waits at most. If
// there can be no refresh, whatever the reason, something older is better than an error; but a refusal is an answer.
func (t *topic) wait(ctx context.Context, path string, old *seen) (*answer, outcome, error) {
	total := t.m.config.ClientWait
	first := min(t.m.config.StaleWait, total)
	l, err := t.fly(ctx, path, first)
	if err != nil && ctx.Err() == nil && statusOf(err) >= http.StatusInternalServerError {
		if old == nil {
			old, _ = t.known(ctx, path)
		}
		if old != nil {
			return t.stale(old)
		}
		if late := (*waitError)(nil); errors.As(err, &late) {
			l, err = t.fly(ctx, path, total-first)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	s := l.value
	switch {
	case s.absent != nil:
		return nil, outcomeMiss, s.absent
	case !s.failed.IsZero():
		return t.stale(s)
	case l.joined:
		return s.answer, outcomeJoined, nil
	case t.m.config.Upstream == nil:
		return s.answer, outcomeHit, nil
	}
	return s.answer, outcomeFetched, nil
}

func (t *topic) fly(ctx context.Context, path string, wait time.Duration) (landed[*seen], error) {
	return fly(ctx, t.m.flights, t.key(path), wait, t.budget(), t.slots(), func(ctx context.Context) (*seen, error) { return t.refresh(ctx, path) })
}

func (t *topic) key(path string) string { return t.class.String() + " " + path }

// budget leaves time after the upstream's to look for something older.
func (t *topic) budget() time.Duration { return t.m.config.ListBudget + 10*time.Second }

func (t *topic) stale(s *seen) (*answer, outcome, error) {
	t.m.metrics.stale.WithLabelValues(t.class.String()).Inc()
	return s.answer, outcomeStale, nil
}

// refresh brings the answer for path up to date, as far as that is possible, and keeps it in memory.
func (t *topic) refresh(ctx context.Context, path string) (*seen, error) {
	epoch := t.epoch(path).Load()
	s, err := t.renew(ctx, path)
	if err != nil {
		return nil, err
	}
	return t.install(ctx, path, s, epoch)
}

// install brings s up to date with the catalog and keeps it in memory. It was found out after the epoch.
func (t *topic) install(ctx context.Context, path string, s *seen, epoch uint64) (*seen, error) {
	defer t.turn(path)()
	now, keep, err := t.settle(ctx, path, s)
	if err != nil {
		return nil, err
	}
	now.epoch = epoch
	if keep {
		t.keep(path, now)
	} else {
		t.drop(path)
	}
	return now, nil
}

// published brings memory up to date after something of path was published.
func (t *topic) published(ctx context.Context, path string) {
	defer t.turn(path)()
	t.m.negative.drop(t.key(path))
	s, ok := t.memory.get(path)
	if !ok || s.counted == upstreamOnly {
		return
	}
	if s.versions != nil {
		if now, keep, err := t.settle(ctx, path, s); err == nil && keep {
			t.keep(path, now)
			return
		}
	}
	t.memory.drop(path)
}

func (t *topic) renew(ctx context.Context, path string) (*seen, error) {
	if t.m.config.Upstream == nil {
		return t.orAbsent(ctx, path, t.held, errOffline)
	}
	asking, cancel := context.WithTimeoutCause(ctx, t.m.config.ListBudget, &budgetError{t.m.config.ListBudget})
	s, err := t.askAround(asking, path)
	err = t.m.flights.inTime(asking, "the upstream", err)
	cancel()
	if err == nil {
		return s, nil
	}
	if isAbsent(err) { // what was published stays listed
		return t.orAbsent(ctx, path, t.heldOf, err)
	}
	t.m.log.Info("no newer answer from upstream", "module", path, "class", t.class.String(), "err", err)
	old, _ := t.memory.get(path)
	if old == nil {
		if old, _ = t.held(ctx, path); old == nil {
			return nil, fmt.Errorf("%s %s: %w", path, t.class, err)
		}
	}
	failed := *old
	failed.failed = time.Now()
	return &failed, nil
}

// heldOf is held for a module that the upstream does not know any more: only what was published counts.
func (t *topic) heldOf(ctx context.Context, path string) (*seen, error) {
	if versions, err := t.m.committed(ctx, path); err != nil || len(versions) == 0 {
		return nil, orElse(err, errNothing)
	}
	return t.held(ctx, path)
}

var errNothing = notExist("nothing of it is published")

// orAbsent returns what is held, as of now, or remembers for a while that there is nothing, because of why.
func (t *topic) orAbsent(ctx context.Context, path string, held func(context.Context, string) (*seen, error), why error) (*seen, error) {
	s, err := held(ctx, path)
	switch {
	case err == nil:
		now := *s
		now.at = time.Now()
		return &now, nil
	case isAbsent(err):
		return &seen{absent: t.m.believed(fmt.Errorf("%s %s: %w", path, t.class, why)), at: time.Now()}, nil
	}
	return nil, err
}

// keep remembers what is known of path now, and nothing else. The caller has the turn for it.
func (t *topic) keep(path string, s *seen) {
	if s.absent != nil {
		t.memory.drop(path)
		t.m.rememberAbsent(t.key(path), s.absent)
		return
	}
	t.m.negative.drop(t.key(path))
	t.memory.put(path, s, s.cost(), 0) // an answer may be needed at any age
}

// drop forgets what is known of path. The caller has the turn for it.
func (t *topic) drop(path string) {
	t.memory.drop(path)
	t.m.negative.drop(t.key(path))
}

// cost returns what s takes in memory.
func (s *seen) cost() int64 {
	const itself = 112
	n := itself + s.answer.cost() + int64(cap(s.versions))*16
	for _, v := range s.versions {
		n += int64(len(v)+7) &^ 7
	}
	return n
}

// errOffline is for what is not held while there is no upstream by the operator's will.
var errOffline = notExist("not held; this mirror runs offline")

// orElse returns err, or other if there is none.
func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
