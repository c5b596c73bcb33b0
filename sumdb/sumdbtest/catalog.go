package sumdbtest

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Catalog is the Catalog of package sumdb in memory, with the rules of the real one. It outlives the databases that are
// opened on it, as the real one outlives a restart.
type Catalog struct {
	verifiers map[string]note.Verifier

	mu      sync.Mutex
	records map[string]map[module.Version]artifact.Record // guarded by mu, as all below; by database
	heads   map[string]map[int64]committedHead            // by database and size
	newest  map[string]int64
	forks   map[string]artifact.Fork
	acked   map[string]map[tlog.Tree]bool // heads of acknowledged evidence
	down    bool
	stale   int
	commits []int64
	changes []module.Version // published, in order, with Seq 0 and up
	log     []func(*Catalog) // what was committed, for replicas
}

// errDown is what there is without a quorum.
var errDown = fmt.Errorf("commit: %w: %w", artifact.ErrNoQuorum, artifact.ErrUnavailable)

// commit does f, under mu, and has replicas do it later.
func (c *Catalog) commit(f func(*Catalog)) {
	f(c)
	c.log = append(c.log, f)
}

type committedHead struct {
	tree tlog.Tree
	note []byte
}

// NewCatalog returns an empty catalog for the databases with these verifier keys.
func NewCatalog(keys ...string) *Catalog {
	c := &Catalog{
		verifiers: make(map[string]note.Verifier),
		records:   make(map[string]map[module.Version]artifact.Record),
		heads:     make(map[string]map[int64]committedHead),
		newest:    make(map[string]int64),
		forks:     make(map[string]artifact.Fork),
		acked:     make(map[string]map[tlog.Tree]bool),
	}
	for _, key := range keys {
		v, err := note.NewVerifier(key)
		if err != nil {
			panic(err)
		}
		c.verifiers[v.Name()] = v
		c.heads[v.Name()] = make(map[int64]committedHead)
		c.records[v.Name()] = make(map[module.Version]artifact.Record)
	}
	return c
}

// SetDown makes everything that needs a quorum fail, or not.
func (c *Catalog) SetDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// Stale makes the next n commits of a head fail as if another one had won.
func (c *Catalog) Stale(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = n
}

// Commits returns the sizes of the heads committed, in order.
func (c *Catalog) Commits() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.commits)
}

// Publish commits the record of m. Its proof must be against a committed head.
func (c *Catalog) Publish(m module.Version, r artifact.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.heads[r.Database][r.TreeSize]
	if !ok {
		return fmt.Errorf("no committed tree head of %s has %d records: %w", r.Database, r.TreeSize, artifact.ErrRefused)
	}
	if _, _, err := r.Sums(m); err != nil {
		return err
	}
	if err := r.Check(h.tree.Hash); err != nil {
		return err
	}
	if c.down {
		return errDown
	}
	c.commit(func(c *Catalog) { c.records[r.Database][m] = r; c.changes = append(c.changes, m) })
	return nil
}

// Record returns the committed record of m.
func (c *Catalog) Record(ctx context.Context, db string, m module.Version) (artifact.Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.records[db][m]
	if !ok {
		return r, fmt.Errorf("%s: %w", m, fs.ErrNotExist)
	}
	return r, ctx.Err()
}

// TreeHead returns the newest committed head of a tree of fewer than below records.
func (c *Catalog) TreeHead(ctx context.Context, db string, below int64) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	best := int64(-1)
	for n := range maps.Keys(c.heads[db]) {
		if n < below && n > best {
			best = n
		}
	}
	if best < 0 {
		return nil, fmt.Errorf("tree head of %s: %w", db, fs.ErrNotExist)
	}
	return slices.Clone(c.heads[db][best].note), ctx.Err()
}

// CommitTreeHead commits a head under the rules of the interface.
func (c *Catalog) CommitTreeHead(ctx context.Context, db string, msg []byte, base int64, proof tlog.TreeProof) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.verifiers[db]
	if v == nil || ctx.Err() != nil {
		return fmt.Errorf("commit tree head of %s: %w", db, artifact.ErrUnavailable)
	}
	if c.down {
		return errDown
	}
	tree, err := artifact.OpenTreeHead(v, msg)
	if err != nil {
		return err
	}
	if _, ok := c.forks[db]; ok {
		return fmt.Errorf("%s is frozen: %w", db, artifact.ErrUnavailable)
	}
	if h, ok := c.heads[db][tree.N]; ok && h.tree == tree {
		return nil
	}
	if c.stale > 0 {
		c.stale--
		return fmt.Errorf("told to lose: %w", artifact.ErrStale)
	}
	newest, ok := c.newest[db]
	if newest != base {
		return fmt.Errorf("base %d, newest %d: %w", base, newest, artifact.ErrStale)
	}
	root := c.heads[db][newest].tree.Hash
	switch {
	case !ok:
		if len(proof) > 0 {
			return fmt.Errorf("first head with a proof: %w", artifact.ErrRefused)
		}
	case tree.N > newest:
		err = tlog.CheckTree(proof, tree.N, tree.Hash, newest, root)
	default:
		err = tlog.CheckTree(proof, newest, root, tree.N, tree.Hash)
	}
	if err != nil {
		return fmt.Errorf("%v: %w", err, artifact.ErrRefused)
	}
	msg = slices.Clone(msg)
	c.commit(func(c *Catalog) {
		c.heads[db][tree.N] = committedHead{tree, msg}
		c.newest[db] = max(c.newest[db], tree.N)
		c.commits = append(c.commits, tree.N)
	})
	return nil
}

// CommitFork freezes a database.
func (c *Catalog) CommitFork(ctx context.Context, f artifact.Fork) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.verifiers[f.Database]
	if v == nil || ctx.Err() != nil {
		return fmt.Errorf("commit fork of %s: %w", f.Database, artifact.ErrUnavailable)
	}
	if c.down {
		return errDown
	}
	if err := f.Check(v); err != nil {
		return err
	}
	if _, ok := c.forks[f.Database]; !ok && !c.acknowledged(v, f) {
		c.commit(func(c *Catalog) { c.forks[f.Database] = f })
	}
	return nil
}

// acknowledged reports whether of f's heads one is committed, and the other one was acknowledged. The caller holds mu.
func (c *Catalog) acknowledged(v note.Verifier, f artifact.Fork) bool {
	committed, acked := false, false
	for _, tree := range trees(v, f) {
		if c.heads[f.Database][tree.N].tree == tree {
			committed = true
		} else {
			acked = c.acked[f.Database][tree]
		}
	}
	return committed && acked
}

// trees returns the trees of checked evidence.
func trees(v note.Verifier, f artifact.Fork) (out []tlog.Tree) {
	for _, msg := range [][]byte{f.A, f.B} {
		tree, err := artifact.OpenTreeHead(v, msg)
		if err != nil {
			panic(err)
		}
		out = append(out, tree)
	}
	return out
}

// AckFork ends the freeze of a database, as an operator does.
func (c *Catalog) AckFork(db string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.forks[db]
	if !ok {
		panic("no fork of " + db)
	}
	c.commit(func(c *Catalog) {
		if c.acked[db] == nil {
			c.acked[db] = make(map[tlog.Tree]bool)
		}
		for _, tree := range trees(c.verifiers[db], f) {
			c.acked[db][tree] = true
		}
		delete(c.forks, db)
	})
}

// Fork returns the evidence that froze db.
func (c *Catalog) Fork(ctx context.Context, db string) (artifact.Fork, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.forks[db]
	if !ok {
		return f, fmt.Errorf("fork of %s: %w", db, fs.ErrNotExist)
	}
	return f, ctx.Err()
}
