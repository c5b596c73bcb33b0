package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// maxQueue bounds how many proposals wait; the next ones wait for a place, as long as their context lets them.
const maxQueue = 1024

// proposal is a command on its way into the log.
type proposal struct {
	ctx    context.Context
	cmd    []byte      // as appendCommand makes it
	result chan result // has room for one

	members []raft.Server // by whose voters the acks were counted
	recount func() error  // counts them by those of now; nil: it needs none
}

func (p *proposal) done(r result) { p.result <- r }

// proposeHere takes c through the log of this node, which leads, and waits until it is applied here. cmd is c's encoding.
// An error of ctx or one that matches [artifact.ErrUnavailable] leaves open whether c was or will be committed; all
// commands may be repeated. One that matches errMoved is worth another try.
func (n *Node) proposeHere(ctx context.Context, c command, cmd []byte, acks []artifact.Ack) (result, error) {
	if err := n.writable(); err != nil {
		return result{}, err
	}
	if err := n.allowed(c); err != nil {
		return result{}, err
	}
	p := &proposal{ctx: ctx, cmd: cmd, result: make(chan result, 1), members: n.servers()}
	if c, ok := c.(publishCommand); ok {
		p.recount = func() error { return n.checkAcks(ctx, c.Publication, acks) }
		if err := p.recount(); err != nil {
			return result{}, err
		}
	}
	full, _ := n.latch.short()
	select {
	case n.queue <- p:
	case <-n.stopping:
		return result{}, errClosed
	case <-n.latch.done:
		return result{}, n.latch.fault()
	case <-full:
		return result{}, n.isShort()
	case <-ctx.Done():
		return result{}, fmt.Errorf("wait for a place in the queue of proposals: %w", ctx.Err())
	}
	select {
	case r := <-p.result:
		return r, r.err
	case <-n.proposerDone:
		select {
		case r := <-p.result:
			return r, r.err
		default:
			return result{}, errClosed
		}
	case <-full:
		select {
		case r := <-p.result:
			return r, r.err
		default:
			return result{}, fmt.Errorf("%w, the outcome is not known", n.isShort())
		}
	case <-ctx.Done():
		return result{}, fmt.Errorf("wait for the log: %w", ctx.Err())
	}
}

// Starved says why this node cannot write now what the cluster commits, as its disk is full to the last byte; nil: it can.
func (n *Node) Starved() error {
	_, err := n.latch.short()
	return err
}

// isShort says that the disk is full, or was until now.
func (n *Node) isShort() error {
	if _, err := n.latch.short(); err != nil {
		return err
	}
	return fmt.Errorf("there was %w on the disk of %s", errFull, n.config.Dir)
}

var errClosed = fmt.Errorf("node is closed: %w", artifact.ErrUnavailable)

// writable tells early and cheaply why nothing can be written now.
func (n *Node) writable() error {
	if err := n.latch.fault(); err != nil {
		return err
	}
	if _, err := n.latch.short(); err != nil {
		return err
	}
	return n.leads()
}

// leads says why this node does not lead, or not any more.
func (n *Node) leads() error {
	if err := cmp.Or(n.latch.fault(), n.whyRefused()); err != nil {
		return err
	}
	if n.raft.State() == raft.Leader {
		return nil
	}
	if _, id := n.raft.LeaderWithID(); id != "" {
		return fmt.Errorf("this node is not the leader, %s is: %w", id, errMoved)
	}
	return fmt.Errorf("there is no leader: %w: %w", errMoved, ErrNoQuorum)
}

// runProposer is the one goroutine that hands entries to raft, one at a time. What queues up while one is in flight goes
// together into the next: an entry costs the disk the same, whether it carries one command or two hundred.
func (n *Node) runProposer() {
	defer close(n.proposerDone)
	var next *proposal
	for {
		if next == nil {
			select {
			case next = <-n.queue:
			case <-n.stopping:
				return
			}
		}
		var batch []*proposal
		batch, next = n.gather(next)
		if len(batch) > 0 {
			n.flush(batch)
		}
	}
}

// gather takes proposals from the queue, as many as fit into one entry, and the first one that did not.
func (n *Node) gather(first *proposal) (batch []*proposal, rest *proposal) {
	size := 0
	for p := first; ; {
		if err := n.recheck(p); err != nil {
			p.done(result{err: err})
		} else if len(batch) > 0 && size+len(p.cmd) > maxBatch {
			return batch, p
		} else {
			batch = append(batch, p)
			size += len(p.cmd)
		}
		select {
		case p = <-n.queue:
		default:
			return batch, nil
		}
	}
}

// servers returns the latest configuration, which may not be committed yet.
func (n *Node) servers() []raft.Server { return n.raft.GetConfiguration().Configuration().Servers }

// recheck says why p, which has waited in the queue, is not to be proposed any more. Its acks may be of voters that there
// were.
func (n *Node) recheck(p *proposal) error {
	if err := p.ctx.Err(); err != nil || p.recount == nil || slices.Equal(n.servers(), p.members) {
		return err
	}
	return p.recount()
}

// flush takes one entry through the log and answers its proposals.
func (n *Node) flush(batch []*proposal) {
	date, err := n.date(batch)
	entry := append([]byte{entryFormat}, date...)
	for _, p := range batch {
		entry = append(entry, p.cmd...)
	}
	n.metrics.proposed(len(batch), len(entry))
	var results []result
	var index uint64
	if err == nil {
		fault.Point(fault.ProposeBegin)
		results, index, err = n.commit(entry)
	}
	if err == nil {
		fault.Point(fault.ProposeDone)
	}
	if len(date) > 0 && len(results) > 0 {
		results = results[1:]
	}
	if err == nil && len(results) != len(batch) {
		err = fmt.Errorf("%d results for %d commands: %w", len(results), len(batch), artifact.ErrUnavailable)
	}
	if err == nil && len(n.queue) == 0 { // else the next entry says it
		n.announce(index)
	}
	for i, p := range batch {
		if err != nil {
			p.done(result{err: err})
		} else {
			results[i].index = index
			p.done(results[i])
		}
	}
}

// commit waits until entry is applied here, and returns its index. It gives up when raft has ended.
func (n *Node) commit(entry []byte) ([]result, uint64, error) {
	future, answer := ask(&n.futures, func() raft.ApplyFuture { return n.raft.Apply(entry, 0) })
	select {
	case err := <-answer:
		if err != nil {
			return nil, 0, n.unavailable(err)
		}
	case <-n.raftDone:
		return nil, 0, n.unavailable(raft.ErrRaftShutdown)
	}
	switch r := future.Response().(type) {
	case []result:
		return r, future.Index(), nil
	case error:
		return nil, 0, r
	}
	return nil, 0, fmt.Errorf("entry was not applied: %w", artifact.ErrUnavailable)
}

// unavailable says that raft could not commit now.
func (n *Node) unavailable(err error) error {
	if fault := n.latch.fault(); fault != nil {
		return fault
	}
	if errors.Is(err, errFull) {
		return err
	}
	switch {
	case errors.Is(err, raft.ErrLeadershipLost):
		return fmt.Errorf("commit: %w, the outcome is not known: %w", err, errMoved)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("commit: %w: %w", err, errMoved)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("commit: %w, the outcome is not known: %w", err, artifact.ErrUnavailable)
	}
	return fmt.Errorf("commit: %w: %w", err, artifact.ErrUnavailable)
}
