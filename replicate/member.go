package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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

// settled returns when everything is in the catalog that was in the log before. It is a command that changes nothing, and no
// barrier of raft's, which no catalog sees: whoever waits for the last committed index would wait for the next command.
func (n *Node) settled(ctx context.Context) error {
	_, err := n.propose(ctx, holdCommand{ID: "nobody"})
	return err
}

// The methods that change the members return when the change is committed. Only the leader can make one; the error matches
// [artifact.ErrUnavailable] elsewhere, and while another change is under way.

// Join adds m to the cluster as a nonvoter: it receives everything and decides nothing. What is a member keeps its vote,
// and gets its address changed. An error matches [ErrRemoved] if m was removed before.
func (n *Node) Join(ctx context.Context, m Member) error {
	what := "add member " + m.ID
	if gone, err := n.isGone(m.ID); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	} else if gone {
		return fmt.Errorf("%s: %w", what, ErrRemoved)
	}
	return n.change(ctx, what, 0, func(prev uint64) raft.Future { // whatever came before
		return n.raft.AddNonvoter(raft.ServerID(m.ID), raft.ServerAddress(m.Address), prev, 0)
	})
}

// configured returns the index of the present configuration, for a change that holds only if no other comes before it. Only
// the leader can say. raft itself does not: the index of its GetConfiguration is always 0, which stands for any.
func (n *Node) configured(ctx context.Context) (index uint64, err error) {
	if err := n.writable(); err != nil {
		return 0, err
	}
	if err := n.settled(ctx); err != nil {
		return 0, err
	}
	err = n.view(func(s state) error { _, index = s.members(); return nil })
	return index, err
}

// Promote makes a nonvoter that holds every blob a voter. An error may be an [IncompleteError] or a [QuorumError].
func (n *Node) Promote(ctx context.Context, id string) error {
	what := "promote node " + id
	if err := n.take(ctx); err != nil {
		return wrap(what, err)
	}
	defer func() { <-n.turn }()
	at, p, all, err := n.member(ctx, id)
	if err != nil || p.Voter {
		return wrap(what, err)
	}
	if err := n.quorumWith(all, id, true).check(what); err != nil {
		return err
	}
	if err := n.awaitComplete(ctx, what, []string{id}); err != nil {
		return err
	}
	if _, err := n.propose(ctx, holdCommand{id, false}); err != nil {
		return wrap(what, err)
	}
	return wrap(what, n.suffrage(ctx, id, true, at))
}

// Demote makes a voter a nonvoter, which it stays until it is promoted. An error may be an [IncompleteError] about a voter
// that remains, or a [QuorumError].
func (n *Node) Demote(ctx context.Context, id string) error {
	what := "demote node " + id
	if err := n.take(ctx); err != nil {
		return wrap(what, err)
	}
	defer func() { <-n.turn }()
	at, p, all, err := n.member(ctx, id)
	if err != nil {
		return wrap(what, err)
	}
	if p.Voter {
		if err := n.canLeave(ctx, what, id, all); err != nil {
			return err
		}
	}
	if _, err := n.propose(ctx, holdCommand{id, true}); err != nil || !p.Voter {
		return wrap(what, err)
	}
	return wrap(what, n.suffrage(ctx, id, false, at))
}

// Remove removes a node for good: its name is free, its id never comes back. An error may be an [IncompleteError] about a
// voter that remains, or a [QuorumError]; it matches [fs.ErrNotExist] if there never was such a node. One that was removed
// before is removed: whoever did not hear what became of a removal may repeat it.
//
// The removal is noted in the catalog first. If this node dies then, the next leader goes on with it.
func (n *Node) Remove(ctx context.Context, id string) error {
	what := "remove node " + id
	if err := n.take(ctx); err != nil {
		return wrap(what, err)
	}
	defer func() { <-n.turn }()
	at, p, all, err := n.member(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		if gone, gerr := n.isGone(id); gerr != nil || gone {
			return wrap(what, gerr)
		}
	}
	if err != nil {
		return wrap(what, err)
	}
	if p.Voter {
		if err := n.canLeave(ctx, what, id, all); err != nil {
			return err
		}
	}
	if _, err := n.propose(ctx, forgetCommand{id}); err != nil || !p.Member {
		return wrap(what, err)
	}
	return wrap(what, n.drop(ctx, id, at))
}

// take waits for the turn to change the members: each change is judged by what the one before has left.
func (n *Node) take(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another change is under way: %w: %w", ctx.Err(), artifact.ErrUnavailable)
	}
}

// member returns a node that is known, all of them, and the index of the configuration that they are in, or of an earlier one.
// Only the leader is answered.
func (n *Node) member(ctx context.Context, id string) (at uint64, p Peer, all []Peer, err error) {
	if at, err = n.configured(ctx); err != nil {
		return 0, Peer{}, nil, err
	}
	if all, err = n.Peers(ctx); err != nil {
		return 0, Peer{}, nil, err
	}
	for _, p := range all {
		if p.ID == id {
			return at, p, all, nil
		}
	}
	return 0, Peer{}, nil, fmt.Errorf("there is no such node: %w", fs.ErrNotExist)
}

// canLeave reports whether the voter id may go: enough of the others must answer, and hold every blob.
func (n *Node) canLeave(ctx context.Context, what, id string, all []Peer) error {
	if err := n.quorumWith(all, id, false).check(what); err != nil {
		return err
	}
	if id == n.id.Node {
		return fmt.Errorf("%s: it leads; transfer the leadership first: %w", what, artifact.ErrUnavailable)
	}
	var rest []string
	for _, p := range all {
		if !p.Voter || p.ID == id {
			continue
		}
		if gone, err := n.isGone(p.ID); err != nil {
			return err
		} else if gone {
			return fmt.Errorf("%s: node %s is being removed and still votes; wait until it is out: %w", what, p.ID, artifact.ErrUnavailable)
		}
		rest = append(rest, p.ID)
	}
	return n.awaitComplete(ctx, what, rest)
}

// suffrage gives a member a vote, or takes it, if the configuration is still the one of index at.
func (n *Node) suffrage(ctx context.Context, id string, voter bool, at uint64) error {
	return n.change(ctx, "change the vote of "+id, at, func(prev uint64) raft.Future {
		if voter {
			return n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(n.addressOf(id)), prev, 0)
		}
		return n.raft.DemoteVoter(raft.ServerID(id), prev, 0)
	})
}

// drop takes a member out of the configuration, if that is still the one of index at.
func (n *Node) drop(ctx context.Context, id string, at uint64) error {
	return n.change(ctx, "take out node "+id, at, func(prev uint64) raft.Future {
		return n.raft.RemoveServer(raft.ServerID(id), prev, 0)
	})
}

// TransferLeadership hands the leadership to another voter. A node whose disk is full can do that too.
func (n *Node) TransferLeadership(ctx context.Context) error {
	if err := n.leads(); err != nil {
		return err
	}
	if err := n.wait(ctx, n.raft.LeadershipTransfer); err != nil {
		return fmt.Errorf("transfer leadership: %w: %w", err, artifact.ErrUnavailable)
	}
	return nil
}

// change makes a change of the configuration that holds only if no other came after the one of index prev.
func (n *Node) change(ctx context.Context, what string, prev uint64, f func(prev uint64) raft.Future) error {
	if err := n.writable(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := n.wait(ctx, func() raft.Future { return f(prev) }); err != nil {
		return fmt.Errorf("%s: %w: %w", what, err, artifact.ErrUnavailable)
	}
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// TransferLeadershipTo hands the leadership to the voter id.
func (n *Node) TransferLeadershipTo(ctx context.Context, id string) error {
	if err := n.leads(); err != nil {
		return err
	}
	addr := n.addressOf(id)
	if err := n.wait(ctx, func() raft.Future {
		return n.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(addr))
	}); err != nil {
		return fmt.Errorf("transfer leadership to %s: %w: %w", id, err, artifact.ErrUnavailable)
	}
	return nil
}
