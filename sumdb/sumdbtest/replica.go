package sumdbtest

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Replica is one node's copy of a Catalog. It gets what is committed only when it is told to, or when it commits something
// itself or is asked to catch up: it lags. It is the Catalog, and the Changes, of package sumdb.
type Replica struct {
	main *Catalog

	mu      sync.Mutex
	local   *Catalog
	applied int           // guarded by mu; entries of main's log
	wake    chan struct{} // guarded by mu; closed when something is applied
	cut     bool          // guarded by mu; main is out of reach
}

// NewReplica returns a node's copy of c, with nothing in it.
func (c *Catalog) NewReplica() *Replica {
	local := NewCatalog()
	local.verifiers = c.verifiers
	for name := range c.verifiers {
		local.heads[name] = make(map[int64]committedHead)
		local.records[name] = make(map[module.Version]artifact.Record)
	}
	return &Replica{main: c, local: local, wake: make(chan struct{})}
}

// Cut puts the other nodes out of reach, or not.
func (r *Replica) Cut(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
}

// Apply applies up to n more entries, and returns how many are left then.
func (r *Replica) Apply(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		n = 0
	}
	r.main.mu.Lock()
	entries := r.main.log[r.applied:]
	r.main.mu.Unlock()
	n = min(n, len(entries))
	r.local.mu.Lock()
	for _, f := range entries[:n] {
		f(r.local)
	}
	r.local.mu.Unlock()
	if n > 0 {
		r.applied += n
		close(r.wake)
		r.wake = make(chan struct{})
	}
	return len(entries) - n
}

// Sync applies all there is.
func (r *Replica) Sync(ctx context.Context) error {
	if err := r.reachable(); err != nil {
		return err
	}
	r.Apply(1 << 30)
	return ctx.Err()
}

func (r *Replica) reachable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		return fmt.Errorf("there is no leader: %w: %w", artifact.ErrNoQuorum, artifact.ErrUnavailable)
	}
	return nil
}

// Publish is [Catalog.Publish].
func (r *Replica) Publish(m module.Version, rec artifact.Record) error {
	if err := r.reachable(); err != nil {
		return err
	}
	err := r.main.Publish(m, rec)
	r.Apply(1 << 30)
	return err
}

// Record is [Catalog.Record].
func (r *Replica) Record(ctx context.Context, db string, m module.Version) (artifact.Record, error) {
	return r.local.Record(ctx, db, m)
}

// TreeHead is [Catalog.TreeHead].
func (r *Replica) TreeHead(ctx context.Context, db string, below int64) ([]byte, error) {
	return r.local.TreeHead(ctx, db, below)
}

// CommitTreeHead is [Catalog.CommitTreeHead]. What came of a lost compare-and-set is applied here later.
func (r *Replica) CommitTreeHead(ctx context.Context, db string, note []byte, base int64, proof tlog.TreeProof) error {
	if err := r.reachable(); err != nil {
		return err
	}
	err := r.main.CommitTreeHead(ctx, db, note, base, proof)
	if err == nil {
		r.Apply(1 << 30)
	}
	return err
}

// CommitFork is [Catalog.CommitFork].
func (r *Replica) CommitFork(ctx context.Context, f artifact.Fork) error {
	if err := r.reachable(); err != nil {
		return err
	}
	err := r.main.CommitFork(ctx, f)
	r.Apply(1 << 30)
	return err
}

// Fork is [Catalog.Fork].
func (r *Replica) Fork(ctx context.Context, db string) (artifact.Fork, error) {
	return r.local.Fork(ctx, db)
}

// Records yields what is published in this copy, from Seq from on.
func (r *Replica) Records(ctx context.Context, db string, from int64) iter.Seq2[artifact.Change, error] {
	return func(yield func(artifact.Change, error) bool) {
		r.local.mu.Lock()
		changes := r.local.changes
		r.local.mu.Unlock()
		for seq := max(from, 0); seq < int64(len(changes)); seq++ {
			m := changes[seq]
			rec, err := r.local.Record(ctx, db, m)
			if err != nil {
				yield(artifact.Change{}, err)
				return
			}
			if !yield(artifact.Change{Seq: seq, Manifest: artifact.Manifest{Module: m, Record: rec}}, nil) {
				return
			}
		}
	}
}

// Next returns how much is published in this copy.
func (r *Replica) Next(context.Context) (int64, error) {
	r.local.mu.Lock()
	defer r.local.mu.Unlock()
	return int64(len(r.local.changes)), nil
}

// Wake returns a channel that is closed when the next entry is applied.
func (r *Replica) Wake() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wake
}
