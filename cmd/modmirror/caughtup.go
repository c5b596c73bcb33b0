package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// catchUpWait is how long a node that starts waits for its cluster before it takes requests all the same: one that is cut off
// serves what it has.
const catchUpWait = 10 * time.Second

// errBehind is why a node that has just started should get no requests yet.
var errBehind = errors.New("this node has just started and does not know yet what its cluster committed meanwhile")

// caughtUp says whether a node that started has heard of all that was committed when it did, and how the others are. Before
// that it would say less than they do, and ask the upstream for what they hold.
type caughtUp struct{ done atomic.Bool }

// err returns errBehind until the node has caught up.
func (c *caughtUp) err() error {
	if c.done.Load() {
		return nil
	}
	return errBehind
}

// keepUp catches up, or gives up, once after the start.
func (n *node) keepUp(ctx context.Context) error {
	defer n.caughtUp.done.Store(true)
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	for !n.isCurrent(ctx) {
		select {
		case <-ctx.Done():
			n.log.Warn("the others of the cluster do not answer; this node serves what it has", "waited", catchUpWait)
			return nil
		case <-time.After(watchEvery / 5):
		}
	}
	return nil
}

// isCurrent reports whether the catalog is that of the cluster, and each other member was asked how it is.
func (n *node) isCurrent(ctx context.Context) bool {
	if n.sync(ctx) != nil {
		return false
	}
	for _, m := range n.others() {
		if s, ok := n.seen(m.ID); !ok || !s.Asked {
			return false
		}
	}
	return true
}
