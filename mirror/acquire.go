package mirror

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Acquire brings an artifact in because somebody wants it here for later: it passes the gate like one that a client asks for,
// and joins whoever does so at the same time. What a client, or another node, waits for is not held to [Config.AcquireLimit]. It
// returns nil once the artifact is published, which it may have been before. No
// other node is asked. Errors are those that a client would be told.
func (m *Mirror) Acquire(ctx context.Context, mv module.Version, k artifact.Kind) error {
	if err := m.mayAsk(Request{Op: OpArtifact, Module: mv, Kind: k}); err != nil {
		return err
	}
	man, err := m.manifest(ctx, mv)
	if err != nil || !man.Ref(k).IsZero() {
		return err
	}
	if m.config.Upstream == nil {
		return fmt.Errorf("%s %s: %w", mv, k, errOffline)
	}
	key := flightKey(k, mv)
	if it := m.pending.get(key); it != nil {
		return fmt.Errorf("%s %s is verified, and not committed yet: %w", mv, k, artifact.ErrNoQuorum)
	}
	ctx, cancel := m.whileWriting(ctx)
	defer cancel()
	budget := m.acquireBudget(k)
	got, err := fly(ctx, m.flights, key, budget, budget, m.slots(k), func(ctx context.Context) (bringing, error) {
		if m.acquires == nil {
			return m.bringHere(ctx, mv, k, key, "follow")
		}
		b, end := m.hurried.begin(key)
		defer end()
		return m.bringPaced(ctx, mv, k, key, "follow", b.unhurried(m.acquires.WaitN))
	})
	if err == nil && got.value.man.Ref(k).IsZero() {
		err = artifact.ErrUnavailable
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", mv, k, err)
	}
	return nil
}

// acquireBudget returns how long an artifact may take that is fetched as slowly as the limit says, beside others.
func (m *Mirror) acquireBudget(k artifact.Kind) time.Duration {
	b := m.budget(k)
	if m.config.AcquireLimit > 0 && k == artifact.Zip {
		b += time.Duration(artifact.MaxZip/MinAcquireLimit) * time.Second
	}
	return b
}

// MinAcquireLimit is the least [Config.AcquireLimit], in bytes a second: a source ends an answer that is read more slowly.
const MinAcquireLimit = 64 << 10

// AcquireZips returns how many zips may be acquired at a time so that each gets on.
func (m *Mirror) AcquireZips(most int) int {
	if limit := m.config.AcquireLimit; limit > 0 {
		return min(max(int(limit/MinAcquireLimit), 1), most)
	}
	return most
}
