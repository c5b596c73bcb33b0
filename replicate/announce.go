package replicate

import (
	"sync"

	"github.com/hashicorp/raft"
)

// announcer tells the other members at once what this node has committed as their leader. raft does so with the next entry
// or, if none follows, after CommitTimeout; as long would wait who has forwarded a proposal, and wants to see it applied at
// home. What is sent is what raft itself would send: the claim to lead in the term of an entry that this node has brought
// to a commit in that term, and that all up to there is committed. If it comes late or never, nothing is lost.
type announcer struct {
	mu      sync.Mutex
	latest  *raft.AppendEntriesRequest // guarded by mu; what is to be known
	telling map[raft.ServerID]bool     // guarded by mu; who is being told
	wg      sync.WaitGroup             // of those who tell; runProposer adds to it
}

// announce begins to tell that all up to index is committed. The entry there must be one that this node proposed and that
// was committed: what its term says of who leads it is true for ever.
func (n *Node) announce(index uint64) {
	others := n.otherServers()
	if len(others) == 0 {
		return
	}
	var entry raft.Log
	if err := n.store.GetLog(index, &entry); err != nil {
		return // raft's own message comes later
	}
	self := raft.ServerID(n.id.Node)
	addr := n.config.transport.EncodePeer(self, n.config.transport.LocalAddr())
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: addr},
		Term:      entry.Term, PrevLogEntry: index, PrevLogTerm: entry.Term, LeaderCommitIndex: index,
	}
	a := &n.announcer
	a.mu.Lock()
	defer a.mu.Unlock()
	a.latest = req
	for _, s := range others {
		if !a.telling[s.ID] {
			a.telling[s.ID] = true
			a.wg.Go(func() { n.tell(s, req) })
		}
	}
}

// tell sends req to one member, and then what was committed meanwhile.
func (n *Node) tell(to raft.Server, req *raft.AppendEntriesRequest) {
	a := &n.announcer
	for {
		var resp raft.AppendEntriesResponse // that it holds less, or knows of a later term, is for raft to find out
		err := n.config.transport.AppendEntries(to.ID, to.Address, req, &resp)
		a.mu.Lock()
		if err != nil || a.latest == req {
			delete(a.telling, to.ID)
			a.mu.Unlock()
			return
		}
		req = a.latest
		a.mu.Unlock()
	}
}

// otherServers returns the members without this node.
func (n *Node) otherServers() (out []raft.Server) {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.ID != raft.ServerID(n.id.Node) {
			out = append(out, s)
		}
	}
	return out
}
