package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// network carries raft's own wire protocol over net.Pipe, so that its codec and its streams are tested too, and forwarded
// proposals.
type network struct {
	way func() time.Duration // how long something is on its way; nil: no time

	mu    sync.Mutex
	far   []net.Conn       // guarded by mu; that take that time
	hosts map[string]*host // guarded by mu; by address
}

// host is the Stream of the node at one address.
type host struct {
	net      *network
	id, addr string
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once

	mu    sync.Mutex
	node  *Node      // guarded by mu; nil as long as it is not open
	cut   bool       // guarded by mu; nothing comes through
	conns []net.Conn // guarded by mu
}

func newNetwork() *network { return &network{hosts: map[string]*host{}} }

// stream returns the stream of the node id at this address, in the place of an earlier one.
func (n *network) stream(id, addr string) *host {
	h := &host{net: n, id: id, addr: addr, incoming: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	n.hosts[addr] = h
	n.mu.Unlock()
	return h
}

func (n *network) at(addr string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[addr]
}

func (h *host) isCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cut
}

// partition takes the host off the network, or puts it back.
func (h *host) partition(cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut = cut
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}

func (h *host) keep(c net.Conn) net.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, c)
	return c
}

func (h *host) Dial(ctx context.Context, id, addr string) (net.Conn, error) {
	peer := h.net.at(addr)
	if peer == nil || peer.id != id || h.isCut() || peer.isCut() {
		return nil, errors.New("no such host, or another one")
	}
	a, b := net.Pipe()
	if h.net.way != nil {
		a, b = h.net.distantPipe()
	}
	select {
	case peer.incoming <- peer.keep(b):
		return h.keep(a), nil
	case <-peer.closed:
		return nil, errors.New("connection refused")
	case <-h.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// forward takes a proposal to the leader.
func (h *host) forward(ctx context.Context, leader Member, body []byte) ([]byte, error) {
	peer := h.net.at(leader.Address)
	if peer == nil || peer.id != leader.ID || h.isCut() || peer.isCut() {
		return nil, errors.New("no such host, or another one")
	}
	peer.mu.Lock()
	n := peer.node
	peer.mu.Unlock()
	if n == nil {
		return nil, errors.New("connection refused")
	}
	if h.net.way != nil {
		time.Sleep(h.net.way()) // of a bubble of synctest
		defer func() { time.Sleep(h.net.way()) }()
	}
	return n.Accept(ctx, body)
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.incoming:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error   { h.once.Do(func() { close(h.closed) }); return nil }
func (h *host) Addr() net.Addr { return address(h.addr) }

// cluster is a few nodes on one network.
type cluster struct {
	t      *testing.T
	net    *network
	dirs   []string
	nodes  []*Node // nil: closed
	db     *replicatetest.Database
	config func(i int, c *Config) // changes the configuration of node i; may be nil
}

// newCluster founds a cluster and adds voters until it has size of them.
func newCluster(t *testing.T, size int) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newNetwork()}
	c.grow(size)
	return c
}

func (c *cluster) grow(size int) {
	c.t.Helper()
	c.open(c.add())
	c.db = trusting(c.t, c.nodes[0])
	for len(c.nodes) < size {
		c.join(c.add(), true)
	}
}

func (c *cluster) add() int {
	c.dirs = append(c.dirs, c.t.TempDir())
	c.nodes = append(c.nodes, nil)
	return len(c.nodes) - 1
}

func (c *cluster) addr(i int) string { return fmt.Sprintf("host%d", i) }

func (c *cluster) host(i int) *host { return c.net.at(c.addr(i)) }

func (c *cluster) open(i int) *Node {
	c.t.Helper()
	id, err := Identify(c.dirs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	h := c.net.stream(id.Node, c.addr(i))
	conf := Config{
		Dir: c.dirs[i], Stream: h, Forward: h.forward, Join: i > 0, Self: Peer{Name: fmt.Sprintf("node%d", i), Version: "test"},
		HeartbeatTimeout: 500 * time.Millisecond, CommitTimeout: 10 * time.Millisecond, TrailingLogs: 1, reconcile: 20 * time.Millisecond,
	}
	if c.config != nil {
		c.config(i, &conf)
	}
	n := openNode(c.t, conf)
	h.mu.Lock()
	h.node = n
	h.mu.Unlock()
	c.nodes[i] = n
	return n
}

func (c *cluster) join(i int, voter bool) {
	c.t.Helper()
	n := c.open(i)
	c.lead("join", func(lead *Node) error { return lead.Join(c.t.Context(), Member{ID: n.ID(), Address: c.addr(i)}) })
	if voter {
		c.lead("promote", func(lead *Node) error { return lead.Promote(c.t.Context(), n.ID()) })
	}
	c.registered(i)
}

// lead has the leader do something, and again if the leadership moves or another change is under way.
func (c *cluster) lead(what string, f func(lead *Node) error) {
	c.t.Helper()
	waitFor(c.t, what, func() bool {
		err := f(c.leader())
		if err != nil && !errors.Is(err, artifact.ErrUnavailable) {
			c.t.Fatal(err)
		}
		return err == nil
	})
}

// registered waits until all open nodes know of the present life of node i.
func (c *cluster) registered(i int) {
	c.t.Helper()
	for _, n := range c.nodes {
		if n == nil {
			continue
		}
		waitFor(c.t, fmt.Sprintf("node %d registered", i), func() bool { return knows(c.t, n, c.nodes[i].Self()) })
	}
}

func knows(t *testing.T, n *Node, want Peer) bool {
	t.Helper()
	all, err := n.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.ID == want.ID && p.Boot == want.Boot {
			return true
		}
	}
	return false
}

// acks returns what all open nodes would say of the blobs of p.
func (c *cluster) acks(p artifact.Publication) (all []artifact.Ack) {
	for _, n := range c.nodes {
		if n != nil {
			all = append(all, n.ownAcks(artifact.Publication{Manifest: p.Manifest})...)
		}
	}
	return all
}

func (c *cluster) close(i int) {
	c.t.Helper()
	if err := c.nodes[i].Close(); err != nil {
		c.t.Error(err)
	}
	c.nodes[i] = nil
}

// leader waits until one of the nodes leads and is caught up.
func (c *cluster) leader() (lead *Node) {
	c.t.Helper()
	waitFor(c.t, "leader", func() bool {
		for _, n := range c.nodes {
			if n != nil && n.raft.State() == raft.Leader && n.raft.Barrier(time.Second).Error() == nil {
				lead = n
				return true
			}
		}
		return false
	})
	if lead == nil {
		c.t.FailNow()
	}
	return lead
}

// same waits until all open nodes have the leader's root.
func (c *cluster) same() {
	c.t.Helper()
	seq, root := c.leader().Root()
	for i, n := range c.nodes {
		if n == nil {
			continue
		}
		waitFor(c.t, fmt.Sprintf("%d leaves at node %d", seq, i), func() bool { s, _ := n.Root(); return s >= seq })
		if _, r := n.Root(); r != root {
			c.t.Errorf("node %d has the root %v, the leader %v", i, r, root)
		}
	}
}

// publish publishes through the leader, and again if the leadership changes meanwhile.
func (c *cluster) publish(path, version string) artifact.Manifest {
	c.t.Helper()
	return c.publishAt(-1, path, version)
}

// publishAt publishes through node i; -1: the leader.
func (c *cluster) publishAt(i int, path, version string) (man artifact.Manifest) {
	c.t.Helper()
	m := c.db.AddModule(path, version, "module "+path+"\n")
	waitFor(c.t, "published "+path, func() bool {
		n := c.leader()
		if i >= 0 {
			n = c.nodes[i]
		}
		p, err := c.advanced(n, m)
		if err == nil {
			p.Acks = c.acks(p)
			man, err = n.Publish(c.t.Context(), p)
		}
		if err != nil && !errors.Is(err, artifact.ErrUnavailable) && !errors.Is(err, artifact.ErrStale) {
			c.t.Fatal(err)
		}
		return err == nil
	})
	return man
}

// advanced commits the newest head through n and returns the publication of m.
func (c *cluster) advanced(n *Node, m replicatetest.Module) (artifact.Publication, error) {
	var base int64
	if msg, err := n.TreeHead(c.t.Context(), c.db.Name, 1<<62); err == nil {
		base = treeOf(c.t, c.db, msg)
	}
	err := n.CommitTreeHead(c.t.Context(), c.db.Name, c.db.Head(c.db.Size()), base, c.db.Prove(c.db.Size(), base))
	return c.db.Publication(m, c.db.Size()), err
}

func TestCluster(t *testing.T) {
	c := newCluster(t, 3)
	m := c.publish("example.com/a", "v1.0.0")
	c.same()
	for i, n := range c.nodes {
		if got, err := n.Manifest(t.Context(), m.Module); err != nil || !sameParts(got, m) {
			t.Errorf("node %d: Manifest() = %+v, %v", i, got, err)
		}
		if st, _ := n.Status(t.Context()); st.Cluster != c.nodes[0].id.Cluster || st.Cluster == "" {
			t.Errorf("node %d: %+v, want cluster %s", i, st, c.nodes[0].id.Cluster)
		}
		if len(n.Members()) != 3 {
			t.Errorf("node %d: Members() = %+v", i, n.Members())
		}
	}
	first := c.leader()
	for _, n := range c.nodes {
		if n == first {
			continue
		}
		key := replicatetest.NewDatabase(t, "other.example.org").Key
		forward := n.config.Forward
		n.config.Forward = nil
		if err := n.TrustDatabase(t.Context(), key); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), first.ID()) {
			t.Errorf("write at a follower that cannot forward: %v, want ErrUnavailable and who leads", err)
		}
		n.config.Forward = forward
	}

	if err := first.TransferLeadership(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "other leader", func() bool { return c.leader() != first })
	c.publish("example.com/b", "v1.0.0")
	c.same()

	for i, n := range c.nodes { // the leader dies
		if n == c.leader() {
			c.close(i)
			break
		}
	}
	c.publish("example.com/c", "v1.0.0")
	c.same()
	for i, n := range c.nodes {
		if n == nil {
			c.open(i)
		}
	}
	c.same()
	c.leader().Close() // also works on a leader that is asked nothing else
}

// A lone node that gets a transport later takes its new address into the configuration, so that others can be added.
func TestGrow(t *testing.T) {
	c := &cluster{t: t, net: newNetwork()}
	i := c.add()
	n := openNode(t, Config{Dir: c.dirs[i]})
	c.db = trusting(t, n)
	c.nodes[0] = n
	c.publish("example.com/a", "v1.0.0")
	c.close(0)
	c.open(0)
	waitFor(t, "own address", func() bool { return c.nodes[0].Members()[0].Address == c.addr(0) })
	c.registered(0)
	c.join(c.add(), true)
	c.join(c.add(), false)
	c.publish("example.com/b", "v1.0.0")
	c.same()
	c.lead("remove", func(lead *Node) error { return lead.Remove(t.Context(), c.nodes[2].ID()) })
	if ms := c.leader().Members(); len(ms) != 2 {
		t.Errorf("Members() = %+v after a removal", ms)
	}
}

// cut takes a snapshot on the leader, which cuts its log but for the last entry.
func (c *cluster) cut() {
	c.t.Helper()
	lead := c.leader()
	if err := lead.raft.Snapshot().Error(); err != nil {
		c.t.Fatal(err)
	}
	if first, err := lead.store.FirstIndex(); err != nil || first < 5 {
		c.t.Fatalf("the log begins at %d (%v) after a snapshot", first, err)
	}
}

func TestInstallIntoEmptyNode(t *testing.T) {
	c := newCluster(t, 1)
	for i := range 5 {
		c.publish("example.com/a", fmt.Sprintf("v1.%d.0", i))
	}
	c.cut()
	listed := make(chan string, 9)
	c.config = func(_ int, conf *Config) { conf.OnListing = func(path string) { listed <- path } }
	c.join(c.add(), false)
	c.same()
	if len(listed) != 1 || <-listed != "" {
		t.Error("nobody is told that any listing may have changed")
	}
	c.publish("example.com/b", "v1.0.0")
	c.same()
	c.close(1)
	c.open(1)
	c.same()
	c.close(1)
	checkClean(t, c.dirs[1])
}

// A follower that was away too long gets a new catalog while it is being read, and never answers wrong.
func TestInstallUnderReaders(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader()
	old := c.publish("example.com/a", "v1.0.0")
	c.same()
	away := 0
	for c.nodes[away] == lead {
		away++
	}
	c.close(away)
	for i := range 5 {
		c.publish("example.com/b", fmt.Sprintf("v1.%d.0", i))
	}
	c.cut()
	n := c.open(away)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if m, err := n.Manifest(t.Context(), old.Module); err != nil || !sameParts(m, old) {
					t.Errorf("Manifest() during an install = %+v, %v", m, err)
					return
				}
				if _, err := n.Inline(t.Context(), old.Mod.Digest); err != nil {
					t.Errorf("Inline() during an install: %v", err)
					return
				}
			}
		})
	}
	c.same()
	cancel()
	readers.Wait()
	c.publish("example.com/c", "v1.0.0")
	c.same()
	c.close(away)
	checkClean(t, c.dirs[away])
}

// After the log is cut behind entries that the catalog never sees, a restart must not ask for them.
func TestRestartAfterCut(t *testing.T) {
	c := newCluster(t, 1)
	c.publish("example.com/a", "v1.0.0")
	for range 5 {
		if err := c.nodes[0].raft.Barrier(time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
	c.cut()
	c.close(0)
	c.open(0)
	c.publish("example.com/b", "v1.0.0")
}

func TestSnapshotStore(t *testing.T) {
	m := newMachine(t)
	if list, err := m.store.List(); err != nil || len(list) != 0 {
		t.Errorf("List() of an empty catalog = %v, %v", list, err)
	}
	db := records(t, 3)
	m.apply(trustCommand{db.Key}, clusterCommand{"one"})
	m.apply(headCommand{Database: db.Name, Note: db.Head(1)})

	var open []io.Closer
	for range maxSends {
		_, r, err := m.store.Open(liveID)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
	}
	if _, _, err := m.store.Open(liveID); err == nil {
		t.Error("one more snapshot is sent than allowed")
	}
	for _, r := range open {
		r.Close()
	}
	meta, r, err := m.store.Open(liveID)
	if err != nil {
		t.Fatal(err)
	}
	m.apply(headCommand{Database: db.Name, Note: db.Head(2), Base: 1, Proof: db.Prove(2, 1)}) // while it is being sent
	good, err := io.ReadAll(r)
	if err != nil || int64(len(good)) != meta.Size || meta.Index != 2 {
		t.Errorf("snapshot of %d bytes at index %d: %v, metadata say %d", len(good), meta.Index, err, meta.Size)
	}
	r.Close()
	good = good[1 : len(good)-streamSealLen+1]

	install := func(m *machine, data []byte, index uint64) error {
		k, err := m.store.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			return err
		}
		if _, err := k.Write(sealedStream(data)); err != nil {
			return err
		}
		if err := k.Close(); err != nil {
			return err
		}
		_, in, err := m.store.Open(k.ID())
		if err != nil {
			return err
		}
		defer in.Close()
		return m.Restore(in)
	}
	other := newMachine(t)
	other.apply(clusterCommand{"two"})
	newer := newMachine(t)
	for range 3 {
		newer.apply(clusterCommand{"one"})
	}
	refused := 0
	for at := 2 * os.Getpagesize(); at < len(good); at += os.Getpagesize() {
		flipped := append([]byte{}, good...)
		flipped[at] ^= 1 // the number of a page
		m := newMachine(t)
		if err := install(m, flipped, 2); err != nil {
			refused++
		} else if got, want := dump(t, m.catalog), dumpOf(t, good); got != want {
			t.Errorf("installed with a damaged page: %s\nwant\n%s", got, want)
		}
	}
	if refused < 2 {
		t.Errorf("only %d damaged pages are noticed", refused)
	}
	for name, tt := range map[string]struct {
		m     *machine
		data  []byte
		index uint64
	}{
		"cut short":              {newMachine(t), good[:len(good)-4096], 2},
		"no catalog":             {newMachine(t), []byte("x"), 2},
		"nothing":                {newMachine(t), nil, 2},
		"older than its header":  {newMachine(t), good, 3},
		"of another cluster":     {other, good, 2},
		"older than what is had": {newer, good, 2},
	} {
		before := dump(t, tt.m.catalog)
		if err := install(tt.m, tt.data, tt.index); err == nil {
			t.Errorf("%s: installed", name)
		}
		if after := dump(t, tt.m.catalog); after != before {
			t.Errorf("%s: refused, but the catalog changed", name)
		}
		if err := sweepIsClean(tt.m.catalog.path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	noLog := newMachine(t)
	noLog.stable = deadStore{}
	if err := install(noLog, good, 2); err == nil || dump(t, noLog.catalog) == dumpOf(t, good) {
		t.Errorf("the catalog is ahead of a log that knows of no install: %v", err)
	}
	fresh := newMachine(t)
	_, slow, err := fresh.store.Open(liveID) // a send that nobody reads must not block the install
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := install(fresh, good, 2); err != nil {
		t.Error(err)
	}
	if _, err := fresh.catalog.TreeHead(t.Context(), db.Name, 2); err != nil {
		t.Errorf("after an install: %v", err)
	}
	if index, err := fresh.stable.GetUint64(keyInstalled); err != nil || index != 2 {
		t.Errorf("the log knows of an install at index %d, %v", index, err)
	}
	fresh.logs = make([]*raft.Log, 2)
	if err := fresh.one(headCommand{Database: db.Name, Note: db.Head(3), Base: 1, Proof: db.Prove(3, 1)}); err != nil {
		t.Errorf("the next entry after an install: %v", err)
	}
}

// deadStore is a log that cannot be written.
type deadStore struct{ raft.StableStore }

func (deadStore) SetUint64([]byte, uint64) error { return errDisk }

// dumpOf returns what is in the catalog whose file has this content.
func dumpOf(t testing.TB, file []byte) string {
	t.Helper()
	c := newCatalog(t.TempDir() + "/catalog.db")
	if err := os.WriteFile(c.path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.db, err = openDB(c.path, true); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	return dump(t, c)
}

// sweepIsClean reports temporary files that are still there.
func sweepIsClean(path string) error {
	entries, err := os.ReadDir(strings.TrimSuffix(path, "catalog.db"))
	for _, e := range entries {
		if strings.Contains(e.Name(), tempMark) {
			return fmt.Errorf("%s is left behind", e.Name())
		}
	}
	return err
}
