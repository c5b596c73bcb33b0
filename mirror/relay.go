package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// Between zones a blob travels once for all nodes of a zone: one of them, its relay for that blob, takes it from afar, and the
// others take it from there. Which one that is, [Peers] knows. Here is what a node does when it is the relay of another: it
// pulls the blob as for itself, joined with whoever wants the same of it, but never asks a relay in turn. So of two nodes that
// each believe the other to be the relay, both pull, and neither waits for the other for ever.

// Want is a published blob that this node lacks.
type Want struct {
	Module module.Version
	Kind   artifact.Kind
	Ref    artifact.Ref

	Relayed    bool        // another node of the zone asked this one to bring it here: it must not ask a relay
	Background *Background // nil: a client or a commit waits for it
}

// Background is a pull that nobody waits for, as long as nobody does.
type Background struct {
	once    sync.Once
	hurried chan struct{}
}

// NewBackground returns a pull that nobody waits for.
func NewBackground() *Background { return &Background{hurried: make(chan struct{})} }

// Hurry says that somebody waits for the pull from now on: nothing must hold it up any more.
func (b *Background) Hurry() {
	if b != nil {
		b.once.Do(func() { close(b.hurried) })
	}
}

// Hurried returns a channel that is closed once somebody waits for the pull; of nil, which is one that somebody waits for from
// the beginning, a channel that is closed.
func (b *Background) Hurried() <-chan struct{} {
	if b == nil {
		return alwaysClosed
	}
	return b.hurried
}

var alwaysClosed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Unhurried calls wait, which holds the pull up, with a context that ends with ctx, or as soon as somebody waits for the pull.
// An end of the second kind is no error.
func (b *Background) Unhurried(ctx context.Context, wait func(context.Context) error) error {
	select {
	case <-b.Hurried():
		return nil
	default:
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-b.Hurried():
			cancel()
		case <-waiting.Done():
		}
	}()
	err := wait(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return nil
	}
	return err
}

// unhurried is pace for a pull of b.
func (b *Background) unhurried(pace pacer) pacer {
	return func(ctx context.Context, n int) error {
		return b.Unhurried(ctx, func(ctx context.Context) error { return pace(ctx, n) })
	}
}

// Slowed is a body that [Peers] hand over and that is to be read no faster than Pace lets it, which is called after n bytes were
// read: the way that it comes is shared. What Pace waits is not held against the sender.
type Slowed interface {
	Pace(ctx context.Context, n int) error
}

// slowedBy returns a pacer of both pace, which may be nil, and what body says.
func slowedBy(pace pacer, body any) pacer {
	s, ok := body.(Slowed)
	switch {
	case !ok:
		return pace
	case pace == nil:
		return s.Pace
	}
	return func(ctx context.Context, n int) error {
		if err := s.Pace(ctx, n); err != nil {
			return err
		}
		return pace(ctx, n)
	}
}

// relayBudget is how long a pull for others may take that nobody waits for.
const relayBudget = 10 * time.Minute

// Relaying is how far a blob is that is brought here for another node.
type Relaying int

// What Relay returns.
const (
	RelayQueued Relaying = iota // it waits for other pulls to end
	RelayUnderWay
	RelayHere
)

// Relay brings a published blob here because another node of the zone asks for it, and waits for that as long as it says. If
// that was too short it goes on, and whoever asks again joins it. A node that has not heard yet that the blob is published says so
// with an error that matches artifact.ErrUnavailable.
func (m *Mirror) Relay(ctx context.Context, w Want, wait time.Duration) (Relaying, error) {
	man, err := m.manifest(ctx, w.Module)
	if err != nil {
		return RelayQueued, notAbsent(err)
	}
	if blob := w.Kind == artifact.Zip || w.Ref.Size > artifact.MaxInline; !blob || man.Ref(w.Kind) != w.Ref {
		return RelayQueued, fmt.Errorf("%s %s: this node's catalog does not name %v: %w", w.Module, w.Kind, w.Ref, artifact.ErrUnavailable)
	}
	if m.intact(ctx, man, w.Kind) == nil {
		return RelayHere, nil
	}
	if m.config.Peers == nil {
		return RelayQueued, fmt.Errorf("this node has no other nodes to ask: %w", artifact.ErrUnavailable)
	}
	if err := m.config.Store.Err(); err != nil {
		return RelayQueued, err
	}
	w.Relayed = true
	key, budget, slots := "relay ", m.config.ZipBudget, m.relayed
	if w.Background != nil { // those that nobody waits for stand in nobody's way
		key, budget, slots = "relay in the background ", relayBudget+time.Duration(w.Ref.Size/followSlowest)*time.Second, m.relays
	}
	ctx, cancel := m.whileWriting(ctx)
	defer cancel()
	key += w.Ref.Digest.String()
	_, err = fly(ctx, m.flights, key, wait, budget, slots, func(ctx context.Context) (struct{}, error) {
		m.relaying.Store(key, true)
		defer m.relaying.Delete(key)
		return struct{}{}, m.relay(ctx, man, w)
	})
	_, begun := m.relaying.Load(key)
	switch late := (*waitError)(nil); {
	case err == nil:
		return RelayHere, nil
	case errors.As(err, &late) && begun:
		return RelayUnderWay, nil
	case errors.As(err, &late):
		return RelayQueued, nil
	}
	return RelayQueued, err
}

// relay is the work of Relay.
func (m *Mirror) relay(ctx context.Context, man artifact.Manifest, w Want) error {
	if m.intact(ctx, man, w.Kind) == nil {
		return nil
	}
	var pace pacer
	if w.Background == nil {
		m.clients.Add(1)
		defer m.clients.Add(-1)
	} else {
		pace = func(ctx context.Context, n int) error { return m.giveWay(ctx, n, m.pullLimit) }
	}
	return m.fetchWanted(ctx, man, w, pace)
}

// giveWay lets a background pull go on when the limit and the clients' pulls let it: these come first, but not for ever.
func (m *Mirror) giveWay(ctx context.Context, n int, limit *rate.Limiter) error {
	for waited := time.Duration(0); m.clients.Load() > 0 && waited < followYield; waited += followYield / 20 {
		select {
		case <-time.After(followYield / 20):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if limit == nil {
		return nil
	}
	return limit.WaitN(ctx, n)
}
