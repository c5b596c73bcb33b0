package mirror

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Lists, @latest and queries are asked for by the node whose turn the path is, so that the cluster asks the upstream once and
// all nodes say the same. As with artifacts (bring.go) there are two flights: the one in which peers and clients of this node
// meet, "upstream …", asks no peer. What one node learns goes through the log into every catalog; a node whose memory is older
// than its catalog looks there first.

// Tell is what another node asks for with Peers.Ask: what the upstream says of a path, from memory if it said so less than
// Config.ListTTL ago. It asks no other node. Errors have the classes that clients would be told.
func (m *Mirror) Tell(ctx context.Context, op Op, path, query string) (Told, error) {
	if err := m.mayAsk(Request{Op: op, Module: module.Version{Path: path, Version: query}}); err != nil {
		return Told{}, err
	}
	if m.config.Upstream == nil {
		return Told{}, fmt.Errorf("%s: %w", path, errOffline)
	}
	if t := m.topicOf(op); t != nil {
		return t.tell(ctx, path)
	}
	q, err := m.ownQuery(ctx, module.Version{Path: path, Version: query})
	if err != nil {
		return Told{}, err
	}
	return Told{Body: q.body, Age: time.Since(q.at)}, nil
}

// tell answers another node.
func (t *topic) tell(ctx context.Context, path string) (Told, error) {
	s, ok := t.memory.get(path)
	if !ok || s.absent != nil || time.Since(s.at) >= t.m.config.ListTTL {
		epoch := t.epoch(path).Load()
		var err error
		if s, err = t.askUpstream(ctx, path); err != nil {
			return Told{}, fmt.Errorf("%s %s: %w", path, t.class, err)
		}
		if _, err := t.install(ctx, path, s, epoch); err != nil {
			return Told{}, err
		}
	}
	return t.told(s), nil
}

// told is s for another node.
func (t *topic) told(s *seen) Told {
	if t.class == classList {
		return Told{Body: artifact.FormatList(s.versions), Age: time.Since(s.at)}
	}
	return Told{Body: s.answer.body, Age: time.Since(s.at)}
}

// askAround asks the node whose turn it is, or the upstream.
func (t *topic) askAround(ctx context.Context, path string) (*seen, error) {
	if t.m.config.Peers == nil {
		return t.ask(ctx, path)
	}
	op := OpList
	if t.class == classLatest {
		op = OpLatest
	}
	told, ok, err := t.m.config.Peers.Ask(ctx, op, path, "")
	if !ok {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s, own := t.askUpstream(ctx, path)
		return s, After(own, err)
	}
	if err != nil {
		return nil, err
	}
	return t.understand(told, path)
}

// understand is the inverse of told.
func (t *topic) understand(told Told, path string) (*seen, error) {
	at := time.Now().Add(-max(told.Age, 0))
	if t.class == classList {
		if err := checkList(told.Body); err != nil {
			return nil, t.m.lied(told, path, err)
		}
		return &seen{versions: artifact.ParseList(told.Body, path), at: at}, nil
	}
	info, err := parseResolved(told.Body, path)
	if err != nil {
		return nil, t.m.lied(told, path, err)
	}
	return &seen{answer: newAnswer(info, typeJSON, shortCached, ""), counted: upstreamOnly, at: at}, nil
}

// lied raises the alarm about a node that tells what no upstream can have told it, and returns what clients are told.
func (m *Mirror) lied(t Told, path string, err error) error {
	err = fromPeer(t.From, err)
	m.alarm("peer", failPeer, err, Event{Module: module.Version{Path: path}, Source: t.From})
	return err
}

// askUpstream asks the upstream, or joins whoever does.
func (t *topic) askUpstream(ctx context.Context, path string) (*seen, error) {
	l, err := fly(ctx, t.m.flights, "upstream "+t.key(path), t.m.config.ClientWait, t.m.config.ListBudget, t.m.small, func(ctx context.Context) (*seen, error) {
		s, err := t.ask(ctx, path)
		return s, t.m.flights.inTime(ctx, "the upstream", err)
	})
	if err != nil {
		return nil, err
	}
	s := *l.value // others have it too
	return &s, nil
}

// slots returns where a refresh waits for its turn: who may ask a peer waits for another flight, which needs a slot.
func (t *topic) slots() chan struct{} {
	if t.m.config.Peers != nil {
		return t.m.asks
	}
	return t.m.small
}

// Relisted is to be called after the catalog's listing of path has changed here, by whoever applies the log: what this node
// remembers of the path may be older; "" stands for all paths. It does not block, and reads nothing; the next who asks for the
// path does.
func (m *Mirror) Relisted(path string) {
	for _, t := range []*topic{m.list, m.latest} {
		if path != "" {
			t.epoch(path).Add(1)
			continue
		}
		for i := range t.epochs {
			t.epochs[i].Add(1)
		}
	}
}

// catchUp returns the answer that is remembered, with what the catalog knows since. Of two that were asked at the same time
// the one that came into the log last counts, whatever the clocks say.
func (t *topic) catchUp(ctx context.Context, path string) *seen {
	defer t.turn(path)()
	s, ok := t.memory.get(path)
	epoch := t.epoch(path).Load()
	if !ok || s.epoch == epoch {
		return s
	}
	held, err := t.held(ctx, path)
	if err != nil && !isAbsent(err) {
		return s
	}
	now := *s
	if err == nil && !held.at.IsZero() && !t.says(s, held) {
		now = *held
	}
	next, keep, err := t.settle(ctx, path, &now)
	if err != nil || !keep {
		return s
	}
	next.epoch = epoch
	t.keep(path, next)
	return next
}

// says reports whether s, which is remembered, is what the catalog holds.
func (t *topic) says(s, held *seen) bool {
	switch {
	case s.absent != nil:
		return false
	case t.class == classList:
		return slices.Equal(newestOf(s.versions, maxListing), held.versions)
	}
	return s.counted != upstreamOnly || bytes.Equal(s.answer.body, held.answer.body)
}

// shard returns a number for path, below n.
func shard(path string, n int) int {
	h := fnv.New32a()
	_, _ = io.WriteString(h, path) // never fails
	return int(h.Sum32() % uint32(n))
}

// resolved is what a query means, and when the upstream said so.
type resolved struct {
	*answer
	at time.Time
}

// resolveQuery asks the node whose turn it is what a query means, or the upstream.
func (m *Mirror) resolveQuery(ctx context.Context, mv module.Version) (*resolved, error) {
	if m.config.Peers == nil {
		return m.askQuery(ctx, mv)
	}
	told, ok, err := m.config.Peers.Ask(ctx, OpQuery, mv.Path, mv.Version)
	if !ok {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		q, own := m.ownQuery(ctx, mv)
		return q, After(own, err)
	}
	if err != nil {
		return nil, err
	}
	return m.learnQuery(mv, told)
}

// learnQuery remembers what another node says that a query means.
func (m *Mirror) learnQuery(mv module.Version, told Told) (*resolved, error) {
	body, err := parseResolved(told.Body, mv.Path)
	if err != nil {
		return nil, m.lied(told, mv.Path, err)
	}
	q := &resolved{newAnswer(body, typeJSON, shortCached, ""), time.Now().Add(-max(told.Age, 0))}
	m.keepQuery(mv, q)
	return q, nil
}

// ownQuery answers from memory or asks the upstream, or joins whoever does.
func (m *Mirror) ownQuery(ctx context.Context, mv module.Version) (*resolved, error) {
	key := queryKey(mv)
	if q, ok := m.queries.get(key); ok {
		return q, nil
	}
	if err := m.knownAbsent(key); err != nil {
		return nil, err
	}
	l, err := fly(ctx, m.flights, "upstream "+key, m.config.ClientWait, m.config.FetchBudget, m.small, func(ctx context.Context) (*resolved, error) {
		return m.askQuery(ctx, mv)
	})
	return l.value, err
}

// askQuery asks the upstream.
func (m *Mirror) askQuery(ctx context.Context, mv module.Version) (*resolved, error) {
	body, err := m.config.Upstream.Query(ctx, mv.Path, mv.Version)
	err = m.flights.inTime(ctx, "the upstream", err)
	if err == nil {
		body, err = parseResolved(body, mv.Path)
	}
	if err != nil {
		return nil, m.forget(queryKey(mv), fmt.Errorf("%s@%s: %w", mv.Path, mv.Version, err))
	}
	q := &resolved{newAnswer(body, typeJSON, shortCached, ""), time.Now()}
	m.keepQuery(mv, q)
	return q, nil
}

// keepQuery remembers q until it is too old.
func (m *Mirror) keepQuery(mv module.Version, q *resolved) {
	if left := m.config.ListTTL - time.Since(q.at); left > 0 {
		m.queries.put(queryKey(mv), q, q.cost(), left)
	}
}

func queryKey(mv module.Version) string { return "query " + mv.Path + "@" + mv.Version }
