package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"modmirror/mirror/artifact"
)

// Self returns what this node says of itself.
func (n *Node) Self() Peer {
	p := n.config.Self
	p.ID, p.Boot, p.Starts, p.Held, p.Level = n.id.Node, n.boot, n.starts.Load(), false, n.config.level
	p.Name = cmp.Or(p.Name, p.ID[:min(8, len(p.ID))])
	p.Role = cmp.Or(p.Role, RoleVoter)
	if p.Address == "" && n.config.Stream != nil {
		p.Address = n.config.Stream.Addr().String()
	}
	return p
}

// Counted reports whether this start is written down. As long as the disk is full it is not, and Self names the start before.
func (n *Node) Counted() bool { return !n.uncounted.Load() }

// register takes what this node is into the node table, once after each start, as soon as there is a leader. Of two lives
// of one data directory the table knows the later one; the earlier one, a copy or an old image, is refused.
func (n *Node) register() {
	ctx, cancel := n.untilEnd()
	defer cancel()
	for try := 0; ; try++ {
		err := n.registerOnce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, artifact.ErrRefused) {
			n.Refuse(err)
			return
		}
		n.log.Debug("register at the cluster", "err", err)
		select {
		case <-n.moved.wait():
		case <-n.applied.wait():
		case <-time.After(backoff(try)):
		case <-ctx.Done():
		}
	}
}

func (n *Node) registerOnce(ctx context.Context) error {
	if n.uncounted.Load() {
		if err := n.latch.insist("count the start", ctx.Done(), n.countStart); err != nil {
			return err
		}
	}
	if err := n.nameCluster(ctx); err != nil {
		return err
	}
	self := n.Self()
	if err := self.check(); err != nil {
		return err
	}
	c := registerCommand{self}
	_, err := n.propose(ctx, c)
	if errors.Is(err, errMoved) && n.config.Forward != nil {
		return n.askAround(ctx, c)
	}
	return err
}

// askAround registers through any member that knows who leads. A node that has another address than before is not found
// by its leader until it has registered.
func (n *Node) askAround(ctx context.Context, c command) (err error) {
	cmd, err := appendCommand(nil, c)
	if err != nil {
		return err
	}
	for _, m := range n.Members() {
		if m.ID == n.id.Node {
			continue
		}
		if addr := n.addressOf(m.ID); addr != "" {
			m.Address = addr
		}
		ctx, cancel := context.WithTimeout(ctx, 5*n.config.HeartbeatTimeout) // for round trips, and no election
		_, err = n.passOn(ctx, m, c, appendRequest(nil, request{cmd: cmd}))
		cancel()
		if err == nil || errors.Is(err, artifact.ErrRefused) {
			return err
		}
	}
	return errMoved
}

// countStart counts a start for which there was no room before.
func (n *Node) countStart() error {
	return n.latch.guard("count the start", n.config.hung, func() error {
		if err := n.raise(n.id); err != nil {
			return err
		}
		n.uncounted.Store(false)
		return nil
	})
}

// nameCluster gives a new cluster its id, whoever leads it: the founder alone may know it.
func (n *Node) nameCluster(ctx context.Context) error {
	have := ""
	if err := n.view(func(s state) error { have = s.cluster(); return nil }); err != nil {
		return err
	}
	if have != "" || n.id.Cluster == "" {
		return nil
	}
	_, err := n.propose(ctx, clusterCommand{n.id.Cluster})
	return err
}

// backoff returns a random time that grows with the number of tries.
func backoff(try int) time.Duration {
	most := min(50*time.Millisecond<<min(try, 10), 2*time.Second)
	return most/2 + rand.N(most/2)
}

// untilEnd returns a context that ends when the node closes or does not take part any more.
func (n *Node) untilEnd() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	n.background.Go(func() {
		select {
		case <-n.stopping:
		case <-n.refused:
		case <-n.latch.done:
		case <-ctx.Done():
		}
		cancel()
	})
	return ctx, cancel
}

// Refuse ends this node's part in the cluster, for the reason that others gave for not taking it. Reads go on. Only the
// first reason counts.
func (n *Node) Refuse(reason error) {
	if !n.refusal.CompareAndSwap(nil, &reason) {
		return
	}
	close(n.refused)
	n.log.Error("the cluster does not take this node", "err", reason)
	if n.config.OnRefused != nil {
		go n.config.OnRefused(reason)
	}
}

// whyRefused returns why the cluster does not take this node; nil if it does.
func (n *Node) whyRefused() error {
	if err := n.refusal.Load(); err != nil {
		return fmt.Errorf("this node does not take part in its cluster: %w: %w", *err, artifact.ErrUnavailable)
	}
	return nil
}

// checkSelf looks at what the table says of this node now: it may have been removed, or a copy of it may have started.
func (n *Node) checkSelf() {
	if n.config.Stream == nil {
		return
	}
	uncounted := n.uncounted.Load() // before its starts are read, which are raised first
	self := n.Self()
	var bad error
	if err := n.view(func(s state) error {
		p, ok, err := s.peer(self.ID)
		if registered := ok && p.Starts >= self.Starts && !uncounted; err != nil || !registered && !s.gone(self.ID) {
			return err // not yet
		}
		bad, err = s.judge(self)
		return err
	}); err != nil {
		n.log.Error("read the node table", "err", err)
	}
	switch {
	case errors.Is(bad, ErrRemoved):
		n.leaving.Do(func() { n.background.Go(func() { n.leave(bad) }) })
	case bad != nil:
		n.Refuse(bad)
	}
}

// leave ends this node's part when it is out of the configuration, or nobody has led it for longer than an election takes.
// Until then its vote may be needed to take it out: of two voters none can do that alone.
func (n *Node) leave(why error) {
	tick := time.NewTicker(n.heartbeat() / 4)
	defer tick.Stop()
	for begin := time.Now(); n.isMember() && n.patience(begin) > 0; {
		if n.hasLeader() {
			begin = time.Now()
		}
		select {
		case <-tick.C:
		case <-n.stopping:
			return
		}
	}
	n.Refuse(why)
}

func (n *Node) isMember() bool {
	for _, m := range n.Members() {
		if m.ID == n.id.Node {
			return true
		}
	}
	return false
}
