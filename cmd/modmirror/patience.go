package main

import (
	"context"
	"fmt"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// watchEvery is how often it is looked at whether it still makes sense to wait for another node.
const watchEvery = 250 * time.Millisecond

// while returns a context that ends with ctx, or soon after reason returns one. A node that hangs, and whose connections
// stand, would else be waited for as long as the work may take.
func while(ctx context.Context, reason func() error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := reason(); err != nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// whileAlive is while for a node that has to answer the questions how it is.
func (n *node) whileAlive(ctx context.Context, m peer.Member) (context.Context, context.CancelFunc) {
	return while(ctx, func() error {
		if s, ok := n.seen(m.ID); ok && !s.Healthy && !s.At.IsZero() {
			return fmt.Errorf("node %s does not answer any more: %w", m.Name, artifact.ErrUnavailable)
		}
		return nil
	})
}

// whileLeader is while for the node that leads, as far as this one hears.
func (n *node) whileLeader(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	return while(ctx, func() error {
		if lead, ok := n.leader(); ok && lead.ID != id {
			return fmt.Errorf("another node leads now: %w", artifact.ErrUnavailable)
		}
		return nil
	})
}
