package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What this node does not hold is brought in by the node whose turn it is, so that the cluster asks the upstream once. Whoever
// asks a peer does that in a flight of its own, "ask …"; the flight that asks the upstream is joined from there, and by peers
// (Bring), and asks no peer. So two nodes that each believe it is the other's turn both ask the upstream, and neither waits
// for the other for ever.

// catalogWait bounds how long what another node committed may take to arrive here.
const catalogWait = 30 * time.Second

// Bring is what another node asks for with Peers.Resolve: it has this node bring an artifact in, or join whoever does, and
// returns the manifest that is committed then. It asks no other node. Errors have the classes that clients would be told.
func (m *Mirror) Bring(ctx context.Context, mv module.Version, k artifact.Kind) (artifact.Manifest, error) {
	if err := m.mayAsk(Request{Op: OpArtifact, Module: mv, Kind: k}); err != nil {
		return artifact.Manifest{}, err
	}
	man, err := m.manifest(ctx, mv)
	if err != nil || !man.Ref(k).IsZero() {
		return man, err
	}
	if m.config.Upstream == nil {
		return man, fmt.Errorf("%s %s: %w", mv, k, errOffline)
	}
	key := flightKey(k, mv)
	if it := m.pending.get(key); it != nil {
		return man, &uncommitted{it, fmt.Errorf("%s %s: %w", mv, k, artifact.ErrNoQuorum)}
	}
	if err := m.knownAbsent(key); err != nil {
		return man, fmt.Errorf("%s %s: %w", mv, k, err)
	}
	if err := cmp.Or(m.config.Store.Err(), m.room(0)); err != nil {
		return man, fmt.Errorf("%s %s: %w", mv, k, err)
	}
	ctx, cancel := m.whileWriting(ctx)
	defer cancel()
	l, err := m.own(ctx, mv, k, key, "peer", m.slots(k))
	if err != nil {
		return man, fmt.Errorf("%s %s: %w", mv, k, err)
	}
	return l.value.man, nil
}

// mayAsk holds what a peer asks for to the rules for what a client asks for.
func (m *Mirror) mayAsk(req Request) error {
	if again, err := ParseRequest(req.Path()); err != nil || again != req {
		return badRequest("%q at %q is nothing to ask a node for", req.Module.Path, req.Module.Version)
	}
	if module.MatchPrefixPatterns(m.config.Private, req.Module.Path) {
		return fmt.Errorf("%s is private and not served here: %w", req.Module.Path, errPrivate)
	}
	return nil
}

// slots returns where a fetch of kind k waits for its turn.
func (m *Mirror) slots(k artifact.Kind) chan struct{} {
	if k == artifact.Zip {
		return m.zips
	}
	return m.small
}

// resolve has the node whose turn it is bring an artifact in, or does it here, in one of slots.
func (m *Mirror) resolve(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, slots chan struct{}) (landed[bringing], error) {
	return fly(ctx, m.flights, askKey(key), m.config.ClientWait, m.askBudget(k), m.asks, func(ctx context.Context) (bringing, error) {
		return m.askOrOwn(ctx, mv, k, key, id, slots)
	})
}

// askKey joins those who ask another node for the same.
func askKey(key string) string { return "ask " + key }

// askBudget is how long it may take to ask another node for an artifact, and to bring it in here all the same.
func (m *Mirror) askBudget(k artifact.Kind) time.Duration { return 2*m.budget(k) + catalogWait }

// askOrOwn asks the node whose turn it is, or brings an artifact in here.
func (m *Mirror) askOrOwn(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, slots chan struct{}) (bringing, error) {
	b, done, before := m.askOwner(ctx, mv, k)
	if done || ctx.Err() != nil {
		return b, before
	}
	l, err := m.own(ctx, mv, k, key, id, slots)
	return l.value, After(err, before)
}

// askOwner asks the node whose turn it is. It is not done if this node has to do it itself: because it is its turn; because
// what is committed is lost everywhere; or because the other one cannot commit, but may have passed its bytes through.
func (m *Mirror) askOwner(ctx context.Context, mv module.Version, k artifact.Kind) (bringing, bool, error) {
	have, err := m.manifest(ctx, mv)
	if err != nil {
		return bringing{}, true, err
	}
	if !have.Ref(k).IsZero() {
		return bringing{}, false, nil
	}
	budget := m.budget(k)
	asking, cancel := context.WithTimeoutCause(ctx, budget, &budgetError{budget})
	man, ok, err := m.config.Peers.Resolve(asking, mv, k)
	err = m.flights.inTime(asking, "another node", err)
	cancel()
	switch {
	case !ok:
		return bringing{}, false, err
	case errors.Is(err, artifact.ErrNoQuorum) && m.config.OnQuorumLoss == passThrough:
		return bringing{}, false, nil
	case err != nil:
		m.refusedBy(mv, k, err)
		return bringing{}, true, err
	case man.Module != mv || man.Ref(k).IsZero():
		return bringing{}, true, fmt.Errorf("another node answers with the manifest of %s: %w", artifact.Truncate(man.Module.String(), 200), artifact.ErrUnavailable)
	}
	b, err := m.arrived(ctx, mv, k)
	return b, true, err
}

// refusedBy tells whoever watches this node that another one refused what this one was asked for, if that is what err says.
func (m *Mirror) refusedBy(mv module.Version, k artifact.Kind, err error) {
	if said := (*saidError)(nil); errors.As(err, &said) && isRefusal(err) {
		m.happened(Event{What: Refused, Module: mv, Kind: k}, fmt.Errorf("%s refused it: %w", said.node, err))
	}
}

// arrived waits until this node's catalog has what another node says is committed, and returns what the catalog has: what is
// served is always that.
func (m *Mirror) arrived(ctx context.Context, mv module.Version, k artifact.Kind) (bringing, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.budget(k)+catalogWait, &budgetError{catalogWait})
	defer cancel()
	late := time.NewTimer(catalogWait)
	defer late.Stop()
	for {
		wake := m.wake()
		have, err := m.manifest(ctx, mv)
		if err != nil {
			return bringing{}, err
		}
		if !have.Ref(k).IsZero() {
			m.published(ctx, mv)
			small, f, err := m.held(ctx, have, k)
			if f != nil {
				f.Close() // it is opened again by each who waits
			}
			return bringing{have, small}, notAbsent(err)
		}
		if err := m.starved(); err != nil {
			return bringing{}, err
		}
		select {
		case <-wake:
		case <-time.After(catalogPoll):
		case <-late.C:
			return bringing{}, fmt.Errorf("another node has committed it, and it has not arrived here within %v: %w", catalogWait, artifact.ErrUnavailable)
		case <-ctx.Done():
			return bringing{}, context.Cause(ctx)
		}
	}
}

// catalogPoll is how often the catalog is looked at by who waits for it, if nothing wakes it before.
const catalogPoll = 50 * time.Millisecond

// wake returns what tells that the catalog changed; nil, which never does, without Changes.
func (m *Mirror) wake() <-chan struct{} {
	if m.config.Changes == nil {
		return nil
	}
	return m.config.Changes.Wake()
}

// budget returns how long the work for one artifact may take.
func (m *Mirror) budget(k artifact.Kind) time.Duration {
	if k == artifact.Zip {
		return m.config.ZipBudget
	}
	return m.config.FetchBudget
}
