package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// ErrNoQuorum is [artifact.ErrNoQuorum].
var ErrNoQuorum = artifact.ErrNoQuorum

// errMoved means that the node that was asked does not lead, or not any more: ask the one that does. Whether the command
// was committed may be open, but all commands may be repeated.
var errMoved = fmt.Errorf("the leadership moved: %w", artifact.ErrUnavailable)

// maxHops bounds how often one proposal is passed on because the leadership moved, before this node looks again who leads.
const maxHops = 3

// propose takes c through the log of the leader, whoever it is, and waits until it is applied here. While there is no
// leader, or another one than was thought, it tries again, as long as an election can take. The acks are for the leader.
func (n *Node) propose(ctx context.Context, c command, acks ...artifact.Ack) (result, error) {
	cmd, err := appendCommand(nil, c)
	if err != nil {
		return result{}, err
	}
	if len(cmd) > maxCommand {
		return result{}, fmt.Errorf("a command of %d bytes is too large for the log (%d): %w", len(cmd), maxCommand, artifact.ErrRefused)
	}
	if err := n.allowed(c); err != nil { // a leader of an older version only says that it does not know such a command
		return result{}, err
	}
	for begin, try := time.Now(), 0; ; try++ {
		moved := n.moved.wait()
		r, err := n.proposeOnce(ctx, c, cmd, acks)
		if !errors.Is(err, errMoved) || n.config.Forward == nil {
			return r, err
		}
		if left := n.patience(begin); left <= 0 || left <= 3*n.heartbeat() && n.minority() {
			return result{}, fmt.Errorf("%w: %w", err, ErrNoQuorum)
		}
		select {
		case <-moved:
		case <-time.After(min(backoff(try), n.config.HeartbeatTimeout)):
		case <-n.stopping:
			return result{}, errClosed
		case <-ctx.Done():
			return result{}, fmt.Errorf("%w: %w: %w", ctx.Err(), err, ErrNoQuorum)
		}
	}
}

// patience returns how much longer a proposal that began at begin waits for a leader: no longer than an election takes,
// counted from when the last one was lost.
func (n *Node) patience(begin time.Time) time.Duration {
	n.pulse.leader(n.hasLeader())
	if since := n.pulse.since(); !since.IsZero() && since.Before(begin) {
		begin = since
	}
	return 5*n.heartbeat() - time.Since(begin)
}

// minority reports whether there is no leader, and too many voters are silent for there to be one. A voter that is only about to start
// is silent, too: so who asks waits as long as one election takes, all the same.
func (n *Node) minority() bool {
	if n.config.Silent == nil || n.hasLeader() {
		return false
	}
	voters, silent := 0, 0
	for _, s := range n.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if id := string(s.ID); id != n.id.Node && n.config.Silent(id) {
			silent++
		}
	}
	return voters-silent <= voters/2
}

// proposeOnce proposes to the leader that is known now.
func (n *Node) proposeOnce(ctx context.Context, c command, cmd []byte, acks []artifact.Ack) (result, error) {
	err := n.writable()
	if err == nil {
		return n.proposeHere(ctx, c, cmd, acks)
	}
	addr, id := n.raft.LeaderWithID()
	if !errors.Is(err, errMoved) || id == "" || n.config.Forward == nil || string(id) == n.id.Node {
		return result{}, err
	}
	to := Member{ID: string(id), Address: n.addressOf(string(id)), Voter: true}
	if to.Address == "" {
		to.Address = string(addr)
	}
	return n.passOn(ctx, to, c, appendRequest(nil, request{acks, cmd}))
}

// passOn takes a proposal to the node that is thought to lead, and from there to the one that it names.
func (n *Node) passOn(ctx context.Context, to Member, c command, body []byte) (result, error) {
	for range maxHops {
		data, err := n.config.Forward(ctx, to, body)
		if err != nil {
			return result{}, fmt.Errorf("ask the leader %s: %w: %w", to.ID, err, errMoved)
		}
		fault.Point(fault.LeaderSaid)
		a, err := parseAnswer(data)
		if err != nil {
			return result{}, fmt.Errorf("answer of the leader %s: %w: %w", to.ID, err, artifact.ErrMalformed)
		}
		if !a.moved {
			return n.settleHere(ctx, c, a.result)
		}
		if a.leader.ID == "" || a.leader.ID == to.ID || a.leader.ID == n.id.Node {
			return result{}, fmt.Errorf("node %s does not lead: %w", to.ID, errMoved)
		}
		to = a.leader
	}
	return result{}, fmt.Errorf("passed on %d times: %w", maxHops, errMoved)
}

// settleHere waits until what the leader has answered is applied here, and believes this node's own catalog then.
func (n *Node) settleHere(ctx context.Context, c command, r result) (result, error) {
	if err := n.AwaitApplied(ctx, r.index); err != nil {
		return result{}, err
	}
	p, ok := c.(publishCommand)
	if !ok || r.err != nil && !errors.Is(r.err, artifact.ErrConflict) {
		return r, r.err
	}
	have, err := n.Manifest(ctx, p.Manifest.Module)
	if err != nil {
		return result{}, fmt.Errorf("the leader says that %s is committed at index %d: %v: %w", p.Manifest.Module, r.index, err, artifact.ErrUnavailable)
	}
	r.manifest = have
	return r, r.err
}

// Accept proposes what another node's Forward brought, if this node leads, and returns the answer for it. An error means
// that body is not what a node sends.
func (n *Node) Accept(ctx context.Context, body []byte) ([]byte, error) {
	req, c, err := parseRequest(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, artifact.ErrMalformed)
	}
	r, err := n.proposeHere(ctx, c, req.cmd, req.acks)
	r.err = err
	full := errors.Is(err, errFull) && !n.alone() // raft steps down, as it could not write
	a := answer{result: r, moved: errors.Is(err, errMoved) || full || n.ends()}
	if a.moved {
		a.result = result{}
		addr, id := n.raft.LeaderWithID()
		if a.leader = (Member{ID: string(id), Address: n.addressOf(string(id)), Voter: id != ""}); a.leader.Address == "" {
			a.leader.Address = string(addr)
		}
	}
	return appendAnswer(nil, a)
}

// ends reports whether this node does not take part any more, whatever becomes of what it was asked.
func (n *Node) ends() bool {
	select {
	case <-n.raftDone:
		return true
	case <-n.stopping:
		return true
	case <-n.latch.done: // it is about to hand the leadership over
		return true
	default:
		return false
	}
}
