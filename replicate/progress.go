package replicate

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// Applied returns the index of the last entry that is in this node's catalog.
func (n *Node) Applied(ctx context.Context) (index uint64, err error) {
	err = n.read(ctx, func(s state) error { index, _ = s.applied(); return nil })
	return index, err
}

// AwaitApplied waits until entry index is in this node's catalog.
func (n *Node) AwaitApplied(ctx context.Context, index uint64) error {
	return n.awaitCatalog(ctx, fmt.Sprintf("entry %d is committed, and not here yet", index), func(s state) (bool, error) {
		have, _ := s.applied()
		return have >= index, nil
	})
}

// awaitCatalog waits until this node's catalog is as ok wants it. waiting is what to say if ctx ends before.
func (n *Node) awaitCatalog(ctx context.Context, waiting string, ok func(s state) (bool, error)) error {
	for {
		next := n.applied.wait()
		done := false
		if err := n.view(func(s state) (err error) { done, err = ok(s); return err }); err != nil || done {
			return err
		}
		select {
		case <-next:
		case <-n.stopping:
			return errClosed
		case <-n.latch.done:
			return n.latch.fault()
		case <-n.refused:
			return n.whyRefused()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", waiting, ctx.Err(), artifact.ErrUnavailable)
		}
	}
}

// CommittedIndex returns the index of the last committed entry that changes catalogs, after a majority of the members has
// confirmed that this node leads. Only the leader can say. The error matches [artifact.ErrUnavailable] elsewhere.
func (n *Node) CommittedIndex(ctx context.Context) (uint64, error) {
	if err := n.writable(); err != nil {
		return 0, err
	}
	commit := n.raft.CommitIndex()
	// raft 1.7.3 may forget who asks, when a voter is removed at that moment.
	ctx, cancel := context.WithTimeout(ctx, 3*n.heartbeat())
	defer cancel()
	if err := n.wait(ctx, n.raft.VerifyLeader); err != nil {
		return 0, fmt.Errorf("verify the leadership: %w: %w", err, artifact.ErrUnavailable)
	}
	return n.lastForCatalog(ctx, commit)
}

// SettledIndex returns the index of an entry behind which a catalog has all that was committed before the call, and all that was
// in the log of any node then and will ever be committed. Only the leader can say; the error matches [artifact.ErrUnavailable]
// elsewhere.
//
// It has an entry of its own term committed (raft's barrier; Raft paper, section 5.4.2). What stands before it in this log is
// committed with it. What stands in no place of this log then, but in that of a node that is down or cut off, will be
// overwritten there: whoever is elected later has this entry, and with it this log up to there (5.4, leader completeness).
// [Node.CommittedIndex] does not promise that: a leader may take office over entries of its predecessors that it does not yet
// know to be committed.
func (n *Node) SettledIndex(ctx context.Context) (uint64, error) {
	if err := n.writable(); err != nil {
		return 0, err
	}
	if err := n.barrier(ctx); err != nil {
		return 0, fmt.Errorf("settle the log: %w: %w", err, artifact.ErrUnavailable)
	}
	return n.Applied(ctx)
}

// lastForCatalog returns the index of the last entry up to commit that changes catalogs: raft's own, barriers and the like, are
// applied to none, and whoever waited for one to be applied would wait for ever.
func (n *Node) lastForCatalog(ctx context.Context, commit uint64) (uint64, error) {
	applied, err := n.Applied(ctx)
	if err != nil {
		return 0, err
	}
	for i := commit; i > applied; i-- {
		var entry raft.Log
		if err := n.store.GetLog(i, &entry); err != nil {
			return 0, fmt.Errorf("read entry %d of the log: %v: %w", i, err, artifact.ErrUnavailable)
		}
		if entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration {
			return i, nil
		}
	}
	return applied, nil
}

// AwaitRegistered waits until the node table knows this life of the node: until then its acks do not count.
func (n *Node) AwaitRegistered(ctx context.Context) error {
	if n.config.Stream == nil {
		return nil
	}
	return n.awaitCatalog(ctx, "this start is not known to the cluster yet", func(s state) (bool, error) {
		p, _, err := s.peer(n.id.Node)
		return p.Starts == n.starts.Load(), err // of a start that is not counted: the one before, as its acks are
	})
}

// introduced waits as long as an election may take until the acks of this node count. The leader says what is the matter if
// they still do not.
func (n *Node) introduced(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, n.patience(time.Now()))
	defer cancel()
	_ = n.AwaitRegistered(ctx)
}
