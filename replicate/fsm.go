package replicate

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// fsm applies committed entries to the catalog. raft calls it from one goroutine.
type fsm struct {
	catalog   *catalog
	snapshots *snapshots
	stable    raft.StableStore // of the log
	latch     *latch
	log       *slog.Logger
	metrics   *metrics
	limit     time.Duration    // a commit that takes longer is a disk fault
	ended     <-chan struct{}  // closed when raft has been told to end; nil: never
	changed   func(peers bool) // called after entries, and whether the node table may have changed; may be nil
	forked    func()           // called after an entry that may have brought the evidence of a fork; may be nil
	listed    func(string)     // called with the path of each listing that changed, "" for any; may be nil
	gaveUp    error            // why entries were left out; of raft's goroutine
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply applies one entry.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// errNothing rolls a transaction back that has nothing to write.
var errNothing = errors.New("nothing to write")

// ApplyBatch applies entries in one transaction, together with the index, term and configuration that they lead to. It
// reads no clock, disk or network besides the catalog, so every node computes the same. The response to an entry is a
// []result, one for each command; nil if the entry was in the catalog before; or the error that stopped this node.
//
// An entry that does not parse means that this node cannot follow the cluster any more: its writes stop, it never skips.
// After a fault of the disk nothing is applied any more either; the catalog's own index stays, so a restart repeats the
// rest. If the disk is full it waits until there is room, because raft does not come back to an entry that it has handed
// over.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	fault.Point(fault.ApplyBegin)
	err := f.gaveUp
	if err == nil {
		err = f.latch.insist("write the catalog", f.ended, func() error { return f.commit(logs, out) })
		f.gaveUp = err
	}
	if err != nil {
		for i := range out {
			out[i] = err
		}
		return out
	}
	fault.Point(fault.ApplyDone)
	peers := false
	for _, results := range out {
		peers = f.report(results) || peers
	}
	if f.changed != nil {
		f.changed(peers)
	}
	return out
}

func (f *fsm) commit(logs []*raft.Log, out []any) error {
	return f.latch.guard("write the catalog", f.limit, func() error {
		clear(out)
		err := f.catalog.update(func(s state) error { return applyLogs(s, logs, out) })
		if errors.Is(err, errNothing) {
			return nil
		}
		return err
	})
}

func applyLogs(s state, logs []*raft.Log, out []any) error {
	index, term := s.applied()
	before := index
	for i, l := range logs {
		if l.Index <= index {
			continue
		}
		index, term = l.Index, l.Term
		switch l.Type {
		case raft.LogConfiguration:
			if err := s.setMembers(l.Index, l.Data); err != nil {
				return err
			}
		case raft.LogCommand:
			cmds, err := parseEntry(l.Data)
			if err != nil {
				return fmt.Errorf("log entry %d: %w", l.Index, err)
			}
			results := make([]result, len(cmds))
			for j, c := range cmds {
				if results[j], err = s.apply(c); err != nil {
					return fmt.Errorf("log entry %d: %w", l.Index, err)
				}
			}
			out[i] = results
		}
	}
	if index == before {
		return errNothing
	}
	if err := s.setApplied(index, term); err != nil {
		return err
	}
	fault.Point(fault.ApplyWritten)
	return nil
}

// report says on every node what an operator must know, and reports whether the node table changed.
func (f *fsm) report(response any) (peers bool) {
	results, _ := response.([]result)
	for _, r := range results {
		f.metrics.applied(r.err)
		peers = peers || r.peers
		if r.forked && f.forked != nil {
			f.forked()
		}
		if r.listed != "" && f.listed != nil {
			f.listed(r.listed)
		}
		switch {
		case errors.Is(r.err, artifact.ErrConflict):
			f.log.Error("conflict: what is committed stays, the evidence is kept", "module", r.manifest.Module.Path, "version", r.manifest.Module.Version, "err", r.err)
		case errors.Is(r.err, artifact.ErrRefused):
			f.log.Error("a proposal did not pass the checks of every node", "err", r.err)
		}
	}
	return peers
}

// Snapshot returns at once: the catalog itself is the snapshot, there is nothing to copy.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.latch.fault(); err != nil {
		return nil, err
	}
	return live{}, nil
}

// live is a snapshot that is the catalog itself.
type live struct{}

// Persist tells the sink that there are no bytes to come.
func (live) Persist(k raft.SnapshotSink) error {
	k.(*sink).local = true
	return nil
}

func (live) Release() {}

// Restore puts an installed snapshot in the place of the catalog.
func (f *fsm) Restore(r io.ReadCloser) error {
	for {
		w, ok := r.(raft.ReadCloserWrapper)
		if !ok {
			break
		}
		r = w.WrappedReadCloser()
	}
	in, ok := r.(*installed)
	if !ok {
		return fmt.Errorf("restore from a %T, which is not an installed snapshot", r)
	}
	if err := f.latch.fault(); err != nil {
		return err
	}
	if err := f.stable.SetUint64(keyInstalled, in.meta.Index); err != nil { // first: see facts
		return err
	}
	fault.Point(fault.SnapshotMarked)
	if err := f.latch.guard("put an installed snapshot in the place of the catalog", f.limit, func() error { return f.catalog.replace(in.path) }); err != nil {
		return err
	}
	fault.Point(fault.SnapshotRestored)
	f.log.Info("catalog replaced by the leader's snapshot", "index", in.meta.Index, "term", in.meta.Term)
	if f.forked != nil {
		f.forked()
	}
	if f.listed != nil {
		f.listed("")
	}
	if f.changed != nil {
		f.changed(true)
	}
	return nil
}
