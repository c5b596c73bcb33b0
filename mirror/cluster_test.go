package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// cluster is several mirrors with one log, one upstream and one checksum database.
type cluster struct {
	t     *testing.T
	up    *mirrortest.Upstream
	sums  *checksums
	nodes []*node

	mu      sync.Mutex // guards all below, and the catalogs of all nodes while something is committed
	agreed  *memIndex
	log     []entry
	quorum  bool
	down    map[int]bool                              // nodes that do not answer others
	owner   func(mv module.Version, asker int) int    // whose turn it is
	tamper  func(from int, body io.Reader) io.Reader  // of what a node hands to others
	spread  func(to int, man artifact.Manifest) error // before a copy is admitted
	fetched []string                                  // "2<0": node 2 took a blob from node 0
	enough  int                                       // acks that a blob needs
	copying atomic.Int64                              // spreadings that nobody has ended
	before  func(from int, p artifact.Publication)    // before a commit
}

type entry struct {
	manifest *artifact.Publication
	listing  *artifact.Listing
}

// node is one mirror and its own view of the log.
type node struct {
	*rig
	c       *cluster
	id      int
	options []func(*Config)

	paused  bool // guarded by c.mu, as the rest: it applies nothing
	applied int
	changes []artifact.Change
	woken   chan struct{}
	heads   bool // it has the tree heads

	moved chan struct{} // has room for one: the follower has reported
}

// newCluster starts n mirrors in front of an upstream that has hello.
func newCluster(t *testing.T, n int, options ...func(*Config)) *cluster {
	c := &cluster{t: t, up: mirrortest.New(), sums: &checksums{records: map[module.Version]artifact.Record{}}, agreed: newMemIndex(),
		quorum: true, down: map[int]bool{}, owner: func(module.Version, int) int { return 0 }, enough: n / 2}
	t.Cleanup(c.up.Close)
	t.Cleanup(func() {
		if n := c.copying.Load(); n != 0 {
			t.Errorf("%d spreadings were not ended, or twice", n)
		}
	})
	zip, mod := c.up.Sums(c.up.Add(hello))
	c.sums.set(helloV, zip, mod)
	for id := range n {
		nd := &node{c: c, id: id, woken: make(chan struct{}), moved: make(chan struct{}, 1), heads: true, options: options}
		nd.rig = &rig{t: t, up: c.up, index: newMemIndex(), sums: c.sums, dir: t.TempDir(), logs: new(lockedBuffer)}
		c.nodes = append(c.nodes, nd)
		nd.boot()
	}
	return c
}

// boot starts the node on what is there, as after a restart.
func (n *node) boot() {
	n.start(append([]func(*Config){func(cf *Config) {
		cf.Index, cf.Proofs, cf.Changes, cf.Peers, cf.Dir = clusterIndex{n.index, n}, n, n, &fakePeers{n.c, n.id}, n.dir
		cf.Names, cf.TrashKeep = n, trashKeep
	}}, n.options...)...)
	n.step = func(step string) {
		if step == "follow" {
			select {
			case n.moved <- struct{}{}:
			default:
			}
		}
	}
}

// clusterIndex is the catalog of a node.
type clusterIndex struct {
	*memIndex
	n *node
}

func (x clusterIndex) Publish(ctx context.Context, p artifact.Publication) (artifact.Manifest, error) {
	c := x.n.c
	c.mu.Lock()
	before := c.before
	c.mu.Unlock()
	if before != nil {
		before(x.n.id, p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.quorum {
		return artifact.Manifest{}, fmt.Errorf("no leader: %w", artifact.ErrNoQuorum)
	}
	have := c.agreed.manifests[p.Manifest.Module]
	for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
		ref := p.Manifest.Ref(k)
		blob := k == artifact.Zip || ref.Size > artifact.MaxInline
		if blob && !ref.IsZero() && have.Ref(k).IsZero() && !c.acked(x.n.id, ref, p.Acks) {
			return artifact.Manifest{}, fmt.Errorf("too few acks for %v: %v: %w", ref, p.Acks, artifact.ErrUnavailable)
		}
	}
	if err := c.agreed.merge(p); err != nil {
		return artifact.Manifest{}, err
	}
	p.Manifest = c.agreed.manifests[p.Manifest.Module]
	c.commit(x.n, entry{manifest: &p})
	return p.Manifest, nil
}

func (c *cluster) acked(from int, ref artifact.Ref, acks []artifact.Ack) bool {
	seen := map[string]bool{}
	for _, a := range acks {
		if a.Ref == ref && a.Node != name(from) {
			seen[a.Node] = true
		}
	}
	return len(seen) >= c.enough
}

func (x clusterIndex) PublishListing(ctx context.Context, l artifact.Listing) error {
	c := x.n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.quorum {
		return artifact.ErrNoQuorum
	}
	c.commit(x.n, entry{listing: &l})
	return nil
}

// commit appends e, and applies it where that is not paused; from does so in any case.
func (c *cluster) commit(from *node, e entry) {
	c.log = append(c.log, e)
	for _, n := range c.nodes {
		if !n.paused || n == from {
			n.apply()
		}
	}
}

// resume lets a node apply what it has not.
func (n *node) resume() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.paused = false
	n.apply()
}

func (n *node) apply() {
	for ; n.applied < len(n.c.log); n.applied++ {
		switch e := n.c.log[n.applied]; {
		case e.manifest != nil:
			n.index.mu.Lock()
			if err := n.index.merge(*e.manifest); err != nil {
				n.t.Errorf("apply: %v", err)
			}
			n.index.mu.Unlock()
			n.changes = append(n.changes, artifact.Change{Seq: int64(len(n.changes)), Manifest: e.manifest.Manifest})
		case e.listing != nil:
			_ = n.index.PublishListing(context.Background(), *e.listing)
			n.Relisted(e.listing.Path)
		}
	}
	close(n.woken)
	n.woken = make(chan struct{})
}

func (n *node) Wake() <-chan struct{} {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.woken
}

func (n *node) Changes(_ context.Context, from int64) iter.Seq2[artifact.Change, error] {
	n.c.mu.Lock()
	all := n.changes[min(int(from), len(n.changes)):]
	n.c.mu.Unlock()
	return func(yield func(artifact.Change, error) bool) {
		for i, c := range all {
			if later := func(o artifact.Change) bool { return o.Manifest.Module == c.Manifest.Module }; slices.ContainsFunc(all[i+1:], later) {
				continue
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

func (n *node) Place(_ context.Context, mv module.Version) (int64, error) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for _, c := range slices.Backward(n.changes) {
		if c.Manifest.Module == mv {
			return c.Seq, nil
		}
	}
	return 0, fs.ErrNotExist
}

// Proven knows the records of the database, and no proofs.
func (n *node) Proven(_ context.Context, man artifact.Manifest) error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if !n.heads {
		return fmt.Errorf("the tree head of %d records is not here: %w", man.Record.TreeSize, artifact.ErrUnavailable)
	}
	n.c.sums.mu.Lock()
	defer n.c.sums.mu.Unlock()
	for _, r := range n.c.sums.records {
		if r.ID == man.Record.ID && bytes.Equal(r.Text, man.Record.Text) {
			return nil
		}
	}
	return fmt.Errorf("record %d is not in the tree: %w", man.Record.ID, artifact.ErrRefused)
}

func name(id int) string { return fmt.Sprintf("node%d", id) }

// set changes the cluster under its lock.
func (c *cluster) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *cluster) isDown(id int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down[id]
}

// fakePeers are the other nodes, without a network.
type fakePeers struct {
	c    *cluster
	self int
}

// travel is what becomes of an error between two nodes.
func travel(err error) error {
	if err == nil {
		return nil
	}
	return ClassError(ErrorClass(err))
}

// turn returns the node to ask, if it is another one: the owner, or the next that answers.
func (p *fakePeers) turn(mv module.Version) (*node, bool) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	first := p.c.owner(mv, p.self)
	for i := range p.c.nodes {
		id := (first + i) % len(p.c.nodes)
		if id == p.self {
			return nil, false
		}
		if !p.c.down[id] {
			return p.c.nodes[id], true
		}
	}
	return nil, false
}

func (p *fakePeers) Resolve(ctx context.Context, mv module.Version, k artifact.Kind) (artifact.Manifest, bool, error) {
	for {
		n, ok := p.turn(mv)
		if !ok {
			return artifact.Manifest{}, false, nil
		}
		man, err := n.Bring(ctx, mv, k)
		if p.c.isDown(n.id) {
			continue // it died, and what it said was not heard
		}
		return man, true, SaidBy("node "+name(n.id), travel(err))
	}
}

func (p *fakePeers) Ask(ctx context.Context, op Op, path, query string) (Told, bool, error) {
	n, ok := p.turn(module.Version{Path: path, Version: query})
	if !ok {
		return Told{}, false, nil
	}
	told, err := n.Tell(ctx, op, path, query)
	return told, true, travel(err)
}

func (p *fakePeers) Spread(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.ReaderAt) Spreading {
	ctx, cancel := context.WithCancel(ctx)
	p.c.copying.Add(1)
	s := &fakeSpreading{c: p.c, enough: p.c.enough, cancel: cancel, acks: make(chan artifact.Ack, len(p.c.nodes)), errs: make(chan error, len(p.c.nodes))}
	for _, n := range p.c.nodes {
		if n.id == p.self {
			continue
		}
		s.running.Go(func() {
			err := p.copyTo(ctx, n, man, k, ref, body)
			if err != nil {
				s.errs <- fmt.Errorf("%s: %w", name(n.id), travel(err))
				return
			}
			s.acks <- artifact.Ack{Node: name(n.id), Starts: 1, Ref: ref, At: time.Now()}
		})
	}
	return s
}

func (p *fakePeers) copyTo(ctx context.Context, n *node, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.ReaderAt) error {
	if p.c.isDown(n.id) {
		return artifact.ErrUnavailable
	}
	if p.c.spread != nil {
		if err := p.c.spread(n.id, man); err != nil {
			return err
		}
	}
	return n.Admit(ctx, man, k, ref, io.NewSectionReader(body, 0, ref.Size), name(p.self))
}

type fakeSpreading struct {
	c       *cluster
	enough  int
	cancel  func()
	acks    chan artifact.Ack
	errs    chan error
	running sync.WaitGroup
}

func (s *fakeSpreading) Wait(ctx context.Context) ([]artifact.Ack, error) {
	defer s.Cancel()
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	var acks []artifact.Ack
	for len(acks) < s.enough {
		select {
		case a := <-s.acks:
			acks = append(acks, a)
		case <-done:
			if len(s.acks) > 0 {
				continue
			}
			close(s.errs)
			var all []error
			for err := range s.errs {
				all = append(all, err)
			}
			return acks, errors.Join(append(all, artifact.ErrUnavailable)...)
		case <-ctx.Done():
			return acks, fmt.Errorf("%d of %d acks: %w: %w", len(acks), s.enough, context.Cause(ctx), artifact.ErrUnavailable)
		}
	}
	return acks, nil
}

func (s *fakeSpreading) Cancel() {
	s.c.copying.Add(-1)
	s.cancel()
	s.running.Wait()
}

func (p *fakePeers) Fetch(ctx context.Context, w Want, accept func(io.Reader, int64, string) error) error {
	ref, absent := w.Ref, true
	var errs []error
	for _, n := range p.c.nodes {
		if n.id == p.self {
			continue
		}
		err := p.fetchFrom(ctx, n, ref, accept)
		if err == nil {
			return nil
		}
		absent = absent && errors.Is(err, fs.ErrNotExist)
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if absent {
		return fmt.Errorf("no peer has %v: %w", ref, fs.ErrNotExist)
	}
	return fmt.Errorf("%w: %w", artifact.ErrUnavailable, errors.Join(errs...))
}

func (p *fakePeers) fetchFrom(ctx context.Context, n *node, ref artifact.Ref, accept func(io.Reader, int64, string) error) error {
	if p.c.isDown(n.id) {
		return artifact.ErrUnavailable
	}
	f, err := n.store.Open(ref)
	if err != nil {
		return err
	}
	defer f.Close()
	p.c.mu.Lock()
	body := io.Reader(f)
	if p.c.tamper != nil {
		body = p.c.tamper(n.id, body)
	}
	p.c.fetched = append(p.c.fetched, fmt.Sprintf("%d<%d", p.self, n.id))
	p.c.mu.Unlock()
	return accept(body, ref.Size, name(n.id))
}

// lose removes a blob from a node's disk.
func (n *node) lose(ref artifact.Ref) {
	n.t.Helper()
	if err := n.store.Remove(ref.Digest); err != nil {
		n.t.Fatal(err)
	}
}

// zipRef returns what the catalog of n has for the zip of hello.
func (n *node) zipRef() artifact.Ref {
	man, _ := n.index.Manifest(n.t.Context(), helloV)
	return man.Zip
}

// rot changes a byte of a blob on a node's disk.
func (n *node) rot(ref artifact.Ref) {
	n.t.Helper()
	name := filepath.Join(n.dir, "blobs", "sha256", ref.Digest.String()[:2], ref.Digest.String())
	b, err := os.ReadFile(name)
	if err != nil {
		n.t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		n.t.Fatal(err)
	}
}
