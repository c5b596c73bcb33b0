package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"modmirror/mirror/artifact"
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
type topic struct {
	m      *Mirror
	class  class
	memory *cache[*seen]
	// ask returns the upstream's answer, after making it known to the catalog. fs.ErrNotExist: it knows no such module.
	ask func(ctx context.Context, path string) (*seen, error)
	// held returns the answer that the catalog alone can give; fs.ErrNotExist if it can give none.
	held func(ctx context.Context, path string) (*seen, error)
}

// seen is an answer with its age. It never changes once in memory.
type seen struct {
	answer   *answer   // nil if absent
	absent   error     // why there is none
	versions []string  // of a list: what the upstream said
	at       time.Time // when that was true
	failed   time.Time // when the upstream last failed to give a newer one
}

const failedWait = 5 * time.Second // before an upstream that failed is asked again for the same thing

func newTopic(m *Mirror, c class, ask, held func(context.Context, string) (*seen, error)) *topic {
	return &topic{m: m, class: c, memory: newCache[*seen](1<<16, m.config.ListBytes), ask: ask, held: held}
}

// get returns the answer for a module path.
func (t *topic) get(ctx context.Context, path string, cachedOnly bool) (*answer, outcome, error) {
	s, _ := t.memory.get(path)
	if s != nil {
		age := time.Since(s.at)
		switch {
		case s.absent != nil && age < t.m.config.NegativeTTL:
			return nil, outcomeMiss, s.absent
		case s.absent != nil:
			s = nil
		case age < t.m.config.ListTTL:
			return s.answer, outcomeHit, nil
		case cachedOnly:
			return s.answer, outcomeHit, nil
		case time.Since(s.failed) < failedWait:
			return t.stale(s)
		case age < 2*t.m.config.ListTTL:
			background(t.m.flights, t.key(path), t.budget(), t.m.small, func(ctx context.Context) (any, error) { return t.refresh(ctx, path) })
			return s.answer, outcomeStale, nil
		}
	}
	if cachedOnly {
		s, err := t.held(ctx, path)
		if err != nil {
			return nil, 0, fmt.Errorf("%s %s: nothing held: %w", path, t.class, err)
		}
		return s.answer, outcomeHit, nil
	}
	return t.wait(ctx, path, s)
}

// wait refreshes and waits: for a moment if there is something older, then for as long as a client waits at most.
func (t *topic) wait(ctx context.Context, path string, old *seen) (*answer, outcome, error) {
	total := t.m.config.ClientWait
	first := min(t.m.config.StaleWait, total)
	l, err := t.fly(ctx, path, first)
	var late *waitError
	if errors.As(err, &late) {
		if old == nil {
			old, _ = t.held(ctx, path)
		}
		if old != nil {
			return t.stale(old)
		}
		l, err = t.fly(ctx, path, total-first)
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
	return fly(ctx, t.m.flights, t.key(path), wait, t.budget(), t.m.small, func(ctx context.Context) (*seen, error) { return t.refresh(ctx, path) })
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
	began := t.m.publications.Load()
	s, err := t.renew(ctx, path)
	if err != nil {
		return nil, err
	}
	t.keep(path, s)
	if t.m.publications.Load() != began && s.versions != nil {
		t.m.relist(ctx, path) // something was published after the catalog was asked
	}
	return s, nil
}

func (t *topic) renew(ctx context.Context, path string) (*seen, error) {
	if t.m.config.Upstream == nil {
		return t.orAbsent(ctx, path, t.held, errOffline)
	}
	asking, cancel := context.WithTimeout(ctx, t.m.config.ListBudget)
	s, err := t.ask(asking, path)
	cancel()
	if err == nil {
		return s, nil
	}
	if isAbsent(err) { // what was published stays listed
		return t.orAbsent(ctx, path, t.heldOf, err)
	}
	t.m.log.Info("no newer answer from upstream", "module", path, "class", t.class.String(), "err", err)
	old, _ := t.memory.get(path)
	if old == nil || old.absent != nil {
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
		return nil, orNotExist(err)
	}
	return t.held(ctx, path)
}

// orAbsent returns what is held, as of now, or remembers for a while that there is nothing, because of why.
func (t *topic) orAbsent(ctx context.Context, path string, held func(context.Context, string) (*seen, error), why error) (*seen, error) {
	s, err := held(ctx, path)
	switch {
	case err == nil:
		now := *s
		now.at = time.Now()
		return &now, nil
	case isAbsent(err):
		return &seen{absent: remember(fmt.Errorf("%s %s: %w", path, t.class, why)), at: time.Now()}, nil
	}
	return nil, err
}

func (t *topic) keep(path string, s *seen) {
	cost := int64(overhead)
	if s.answer != nil {
		cost += s.answer.cost() + int64(len(s.versions)*16)
	}
	ttl := time.Duration(0) // an answer may be needed at any age
	if s.absent != nil {
		ttl = t.m.config.NegativeTTL
	}
	t.memory.put(path, s, cost, ttl)
}

// errOffline is for what is not held while there is no upstream by the operator's will.
var errOffline = notExist("not held; this mirror runs offline")

// rememberedError is "no such thing" that is believed for a while, by us and by caches in between.
type rememberedError struct{ err error }

func (e *rememberedError) Error() string { return e.err.Error() }
func (e *rememberedError) Unwrap() error { return e.err }

func remember(err error) error { return &rememberedError{err} }

var errNothing = notExist("nothing is published")

func orNotExist(err error) error {
	if err != nil {
		return err
	}
	return errNothing
}

// maxListing bounds a list that is made known to the catalog, in bytes: a Raft entry should not be larger.
const maxListing = 256 << 10

// makeKnown tells the catalog one half of what is known of a path, unless that is what it knows already.
func (m *Mirror) makeKnown(ctx context.Context, half artifact.Listing, same func(known artifact.Listing) bool) {
	known, err := m.config.Index.Listing(ctx, half.Path)
	if err == nil && same(known) {
		return
	}
	if err == nil || isAbsent(err) {
		err = m.config.Index.PublishListing(ctx, half)
	}
	if err != nil { // it is served anyway; only another node, or an offline one, will not know
		m.log.Info("cannot make a list known to the catalog", "module", half.Path, "err", err)
	}
}
