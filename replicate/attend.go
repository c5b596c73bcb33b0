package replicate

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// broadcast wakes everybody who waits for the next event. The zero value is ready.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed by the next event; nil: nobody waits
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// hasChanged is told by the state machine that something was applied.
func (n *Node) hasChanged(peers bool) {
	if peers {
		n.tables.Add(1)
		n.peered.Store(true)
	}
	n.applied.wake()
}

// attend follows what is applied: the addresses of the other nodes, the newest roots, and what is said of this node.
func (n *Node) attend() {
	n.peered.Store(true)
	for {
		next := n.applied.wait()
		if n.peered.Swap(false) {
			if err := n.readBook(); err != nil {
				n.log.Error("read the node table", "err", err)
			}
			n.checkSelf()
		}
		n.followRoots()
		n.compareAll()
		select {
		case <-next:
		case <-n.stopping:
			return
		}
	}
}

// pulse is what raft says about who answers.
type pulse struct {
	mu         sync.Mutex
	leaderless time.Time            // guarded by mu; since when no leader is known; zero: one is
	silent     map[string]time.Time // guarded by mu; nodes whose last heartbeat failed, while this node leads, and when
	led        string               // guarded by mu; who led last; empty: nobody since the start
	changes    int64                // guarded by mu; how often another node was that than before
}

// silentFor is how long a failed heartbeat counts. raft tells of each, and they follow each other sooner: to connect and to send take a
// wireTimeout each at most, and then it waits for less than a third. That one succeeds again it tells once, which may be lost.
const silentFor = 3 * wireTimeout

// listen follows raft's observations until the node closes.
func (n *Node) listen() {
	events := make(chan raft.Observation, 256)
	n.raft.RegisterObserver(raft.NewObserver(events, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState, raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	}))
	n.pulse.leader(n.hasLeader())
	_, id := n.raft.LeaderWithID()
	n.pulse.leads(string(id))
	n.background.Go(func() {
		for {
			select {
			case o := <-events:
				n.observe(o)
			case <-n.stopping:
				return
			}
		}
	})
}

func (n *Node) observe(o raft.Observation) {
	switch d := o.Data.(type) {
	case raft.FailedHeartbeatObservation:
		n.pulse.heard(string(d.PeerID), false)
		return
	case raft.ResumedHeartbeatObservation:
		n.pulse.heard(string(d.PeerID), true)
		return
	case raft.LeaderObservation:
		n.pulse.leads(string(d.LeaderID))
	case raft.RaftState:
		if d == raft.Leader {
			n.pulse.reset()
		}
		if d == raft.Shutdown { // the leader itself was removed, or the node closes
			select {
			case <-n.raftDone:
			case <-n.stopping:
			case <-n.latch.done:
			default:
				n.Refuse(ErrRemoved)
			}
		}
	}
	n.pulse.leader(n.hasLeader())
	n.moved.wake()
}

func (n *Node) hasLeader() bool {
	_, id := n.raft.LeaderWithID()
	return id != ""
}

func (p *pulse) leader(known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known {
		p.leaderless = time.Time{}
	} else if p.leaderless.IsZero() {
		p.leaderless = time.Now()
	}
}

// leads notes who leads.
func (p *pulse) leads(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == "" || id == p.led {
		return
	}
	if p.led != "" {
		p.changes++
	}
	p.led = id
}

// Leader returns who leads, as far as this node knows, how often that was another node than before since this one was opened,
// and a channel that is closed when it may have changed. The id is empty while there is none.
func (n *Node) Leader() (id string, changes int64, moved <-chan struct{}) {
	moved = n.moved.wait() // before looking
	_, server := n.raft.LeaderWithID()
	n.pulse.mu.Lock()
	defer n.pulse.mu.Unlock()
	return string(server), n.pulse.changes, moved
}

// since returns since when no leader is known; zero if one is.
func (p *pulse) since() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leaderless
}

func (p *pulse) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = nil
}

func (p *pulse) heard(id string, answers bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answers {
		delete(p.silent, id)
		return
	}
	if p.silent == nil {
		p.silent = map[string]time.Time{}
	}
	p.silent[id] = time.Now()
}

func (p *pulse) answers(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	failed, ok := p.silent[id]
	return !ok || time.Since(failed) > silentFor
}
