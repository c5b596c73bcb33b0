package replicate

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// Member is another node, as the cluster knows it.
type Member struct {
	ID      string // its Node.ID
	Address string // where its transport listens
	Voter   bool   // false: it receives everything and decides nothing
}

// Members returns the cluster's members as the last configuration this node has heard of names them.
func (n *Node) Members() []Member {
	var out []Member
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		out = append(out, Member{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return out
}

// Join adds m to the cluster, or changes what is known of it. It returns when the change is committed. Only the leader
// can do it. A voter counts in the quorum at once, also while it has nothing yet: add it as nonvoter first, and again as
// voter when it is caught up.
func (n *Node) Join(ctx context.Context, m Member) error {
	return n.change(ctx, "add member "+m.ID, func(prev uint64) raft.Future {
		id, addr := raft.ServerID(m.ID), raft.ServerAddress(m.Address)
		if m.Voter {
			return n.raft.AddVoter(id, addr, prev, 0)
		}
		for _, s := range n.raft.GetConfiguration().Configuration().Servers {
			if s.ID == id && s.Suffrage == raft.Voter { // AddNonvoter would only change its address
				return n.raft.DemoteVoter(id, prev, 0)
			}
		}
		return n.raft.AddNonvoter(id, addr, prev, 0)
	})
}

// Remove removes a member. Only the leader can do it.
func (n *Node) Remove(ctx context.Context, id string) error {
	return n.change(ctx, "remove member "+id, func(prev uint64) raft.Future {
		return n.raft.RemoveServer(raft.ServerID(id), prev, 0)
	})
}

// TransferLeadership hands the leadership to another voter.
func (n *Node) TransferLeadership(ctx context.Context) error {
	if err := n.writable(); err != nil {
		return err
	}
	if err := n.wait(ctx, n.raft.LeadershipTransfer()); err != nil {
		return fmt.Errorf("transfer leadership: %w: %w", err, artifact.ErrUnavailable)
	}
	return nil
}

// change makes a change of the configuration that holds only if no other came in between.
func (n *Node) change(ctx context.Context, what string, f func(prev uint64) raft.Future) error {
	if err := n.writable(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	prev := n.raft.GetConfiguration().Index()
	if err := n.wait(ctx, f(prev)); err != nil {
		return fmt.Errorf("%s: %w: %w", what, err, artifact.ErrUnavailable)
	}
	return nil
}
