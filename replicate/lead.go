package replicate

import (
	"context"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// alone reports whether this node is the only voter of its cluster.
func (n *Node) alone() bool {
	voters, self := 0, false
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
			self = self || s.ID == raft.ServerID(n.id.Node)
		}
	}
	return voters == 1 && self
}

// hurry makes the only voter of a cluster stand for election at once, instead of after one or two heartbeat timeouts in
// which nobody can be heard. raft looks at its timer again when the timeout is made shorter at run time, and as it has
// never heard a leader it becomes a candidate, and with its own vote the leader. Timeouts that are short for good would
// do too, but the leader's lease cannot be changed at run time, and with a second node they would be far too short.
func (n *Node) hurry() error {
	return n.tune(func(rc *raft.ReloadableConfig) {
		rc.HeartbeatTimeout, rc.ElectionTimeout = n.heartbeat(), n.heartbeat()
	})
}

// watch follows raft's changes of leadership, looks after the log's size, and ends raft when the node closes or its disk
// fails (others take over then).
func (n *Node) watch() {
	defer n.background.Done()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	stopLeading := func() {}
	for {
		select {
		case leads := <-n.leading:
			n.setLeads(leads)
			stopLeading()
			stopLeading = func() {}
			if leads {
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); n.lead(ctx) }()
				stopLeading = func() { cancel(); <-done }
			}
		case <-tick.C:
			n.trim()
		case <-n.latch.done:
			n.log.Error("writes have stopped, reads go on", "err", n.latch.fault())
			n.stepDown()
			n.endRaft()
			stopLeading()
			<-n.stopping
			return
		case <-n.refused:
			n.endRaft()
			stopLeading()
			<-n.stopping
			return
		case <-n.stopping:
			n.endRaft()
			stopLeading()
			return
		}
	}
}

// stepDown hands the leadership to another voter before raft ends, so that nobody has to wait for an election. If it is this
// node's log that failed raft has given the leadership up by itself; if that hangs raft does not even hear of it. So it waits
// no longer than the others would until they elect a leader without being asked.
func (n *Node) stepDown() {
	if n.raft.State() != raft.Leader || n.alone() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.heartbeat())
	defer cancel()
	if err := n.wait(ctx, n.raft.LeadershipTransfer); err != nil {
		n.log.Warn("the leadership is not handed over; the others elect a new leader", "err", err)
	}
}

// endRaft tells raft to end and waits for it, a while: a goroutine of it may hang in the disk.
func (n *Node) endRaft() {
	if !n.futures.settle(n.heartbeat()) {
		n.log.Warn("raft ends before it has answered all that it was asked for")
	}
	future := n.raft.Shutdown()
	close(n.raftDone)
	if n.latch.fault() != nil {
		n.conns.hangUp()
	}
	n.endStreams() // raft would wait for them
	if t, ok := n.config.transport.(*pipelined); ok {
		t.end()
	}
	done := make(chan struct{})
	go func() { defer close(done); future.Error() }()
	select {
	case <-done:
	case <-time.After(closeWait / 2):
		n.log.Error("raft does not end, the disk hangs")
	}
}

// lead does what a new leader has to do first: apply all that was committed before, and give a new cluster its id and
// this node its present address. Then it looks after the members.
func (n *Node) lead(ctx context.Context) {
	for {
		err := n.takeOffice(ctx)
		if err == nil {
			n.inOffice.Store(true)
			defer n.inOffice.Store(false)
			select {
			case <-n.ready:
			default:
				close(n.ready)
			}
			n.lookAfter(ctx)
			return
		}
		if ctx.Err() != nil || n.raft.State() != raft.Leader {
			return
		}
		n.office.Store(&err)
		n.log.Warn("begin of leadership", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// InOffice reports whether this node leads and has applied all that was committed before it did: its catalog is the newest that
// there is, or was a [Node.Lease] ago.
func (n *Node) InOffice() bool { return n.inOffice.Load() && n.raft.State() == raft.Leader }

// Lease returns for how long this node may go on to lead without hearing of a majority, which may have another leader by then.
func (n *Node) Lease() time.Duration { return n.pace.lease }

func (n *Node) takeOffice(ctx context.Context) error {
	if err := n.barrier(ctx); err != nil {
		return err
	}
	cluster := ""
	if err := n.view(func(s state) error { cluster = s.cluster(); return nil }); err != nil {
		return err
	}
	if cluster == "" && n.id.Cluster != "" {
		c := clusterCommand{n.id.Cluster}
		cmd, err := appendCommand(nil, c)
		if err != nil {
			return err
		}
		if _, err := n.proposeHere(ctx, c, cmd, nil); err != nil {
			return err
		}
	}
	if n.isAlone() { // whoever opens it finds all features there
		if err := n.raiseLevel(ctx); err != nil {
			return err
		}
	}
	addr := n.config.transport.LocalAddr()
	conf := n.raft.GetConfiguration()
	for _, s := range conf.Configuration().Servers {
		if s.ID == raft.ServerID(n.id.Node) && s.Suffrage == raft.Voter && s.Address != addr {
			return n.wait(ctx, func() raft.Future { return n.raft.AddVoter(s.ID, addr, 0, 0) })
		}
	}
	return nil
}

// minTrailing is how many entries a log keeps whatever its size, so that a follower that restarts needs no snapshot.
const minTrailing = 1024

// trim keeps the log within its budget of bytes. TrailingLogs counts entries, and an entry may have 200 bytes or 256 KiB:
// during an import a million of them would fill the disk.
func (n *Node) trim() {
	used, entries, err := n.logUse()
	if err != nil {
		n.log.Warn("look at the log's size", "err", err)
		return
	}
	want := n.config.TrailingLogs
	if used > n.config.LogBudget {
		want = min(want, max(minTrailing, uint64(float64(entries)*float64(n.config.LogBudget)/float64(used))))
	}
	if err := n.tune(func(rc *raft.ReloadableConfig) { rc.TrailingLogs = want }); err != nil {
		n.log.Warn("change how much log is kept", "err", err)
	}
	if used > n.config.LogBudget && entries > want {
		n.background.Go(func() { n.raft.Snapshot() }) // cuts the log; what comes of it is in raft's messages
	}
}

// logUse returns how many bytes of the log's file are in use, and how many entries it has.
func (n *Node) logUse() (used int64, entries uint64, err error) {
	first, err := n.store.FirstIndex()
	if err != nil {
		return 0, 0, err
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return 0, 0, err
	}
	info, err := os.Stat(logPath(n.config.Dir))
	if err != nil {
		return 0, 0, err
	}
	free := n.store.Stats().FreePageN * os.Getpagesize()
	return info.Size() - int64(free), last - first + 1, nil
}
