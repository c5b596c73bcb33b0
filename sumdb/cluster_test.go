package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// peerNode is one node as the others reach it.
type peerNode struct {
	*DB
	replica *sumdbtest.Replica
	name    string
	down    atomic.Bool                                                  // refuses connections
	hangs   atomic.Bool                                                  // says nothing
	edit    atomic.Pointer[func(path string, code int, b []byte) []byte] // what it says instead; nil: the truth

	mu    sync.Mutex
	asked []string // by peers
}

func (p *peerNode) String() string { return p.name }

// Get is what another node gets from p.
func (p *peerNode) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	p.mu.Lock()
	p.asked = append(p.asked, path)
	p.mu.Unlock()
	if p.hangs.Load() {
		<-ctx.Done()
		return nil, fmt.Errorf("%s: %w", p, ctx.Err())
	}
	if p.down.Load() {
		return nil, fmt.Errorf("%s: connection refused: %w", p, artifact.ErrUnavailable)
	}
	w := httptest.NewRecorder()
	p.ServePeer(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx))
	b := w.Body.Bytes()
	if edit := p.edit.Load(); edit != nil {
		if edited := (*edit)(path, w.Code, b); edited != nil {
			return edited, nil
		}
	}
	switch {
	case w.Code == http.StatusNotFound:
		return nil, fmt.Errorf("%s: %s: %w", p, path, fs.ErrNotExist)
	case w.Code != http.StatusOK:
		return nil, fmt.Errorf("%s: %s: %d: %w", p, path, w.Code, artifact.ErrUnavailable)
	default:
		return b, nil
	}
}

// wasAsked returns what peers asked p for since the last call.
func (p *peerNode) wasAsked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.asked
	p.asked = nil
	return out
}

// cluster is a test database and nodes that share a catalog.
type cluster struct {
	src   *sumdbtest.Database
	cat   *sumdbtest.Catalog
	nodes []*peerNode
	next  atomic.Uint64
}

// newCluster returns a cluster of n nodes. Its database has size records.
func newCluster(t testing.TB, n, size int, change func(*Config)) *cluster {
	t.Helper()
	c := &cluster{src: sumdbtest.New("sum.example.com")}
	c.src.Grow(size)
	c.cat = sumdbtest.NewCatalog(c.src.Key())
	for range n {
		c.join(t, change)
	}
	return c
}

// join adds a node.
func (c *cluster) join(t testing.TB, change func(*Config)) *peerNode {
	t.Helper()
	p := &peerNode{replica: c.cat.NewReplica(), name: fmt.Sprintf("node %d", len(c.nodes))}
	conf := Config{
		Key: c.src.Key(), Catalog: p.replica, Changes: p.replica, Sync: p.replica.Sync, Direct: c.src, LookupBudget: 10 * time.Second,
		Peers: func() (out []Source) {
			for _, o := range c.nodes {
				if o != p {
					out = append(out, o)
				}
			}
			return out
		},
	}
	if change != nil {
		change(&conf)
	}
	p.DB = open(t, conf)
	c.nodes = append(c.nodes, p)
	return p
}

// ServeHTTP hands each request to the next node that is up.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for {
		p := c.nodes[c.next.Add(1)%uint64(len(c.nodes))]
		if !p.down.Load() && !p.hangs.Load() {
			p.ServeHTTP(w, r)
			return
		}
	}
}

// publish has node p look m up, which the database has, and commits its record.
func (c *cluster) publish(t testing.TB, p *peerNode, m module.Version) {
	t.Helper()
	if err := p.replica.Publish(m, want(t, p.DB, m)); err != nil {
		t.Fatal(err)
	}
}

// log adds a record to the database that is published at p.
func (c *cluster) log(t testing.TB, p *peerNode, name string) module.Version {
	t.Helper()
	m := mv("example.com/" + name + "@v1.0.0")
	add(c.src, m)
	c.publish(t, p, m)
	return m
}

// bury adds a record to the database that is published at p with a head whose edge is not above the record.
func (c *cluster) bury(t testing.TB, p *peerNode, name string) module.Version {
	t.Helper()
	m := mv("example.com/" + name + "@v1.0.0")
	add(c.src, m)
	c.src.Grow(700)
	c.publish(t, p, m)
	return m
}

// syncAll has all catalogs catch up.
func (c *cluster) syncAll() {
	for _, p := range c.nodes {
		p.replica.Apply(1 << 30)
	}
}

// passes has every node hold the tiles of what its catalog has.
func (c *cluster) passes(t testing.TB) {
	t.Helper()
	for _, p := range c.nodes {
		if p.down.Load() || p.hangs.Load() {
			continue
		}
		f := p.newFollower()
		if err := f.pass(t.Context()); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		f.save(true)
	}
}

// strict is a handler whose every answer but 200 fails the test.
func strict(t testing.TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != http.StatusOK {
			t.Errorf("%s: %d %s", r.URL.Path, rec.Code, rec.Body)
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// mixed makes n requests as one go command after the other would, whose config stays and whose cache goes now and then, and
// as an auditor would, and has before each of them something happen.
func mixed(t *testing.T, h http.Handler, key string, n int, known func() []module.Version, happen func(i int)) {
	t.Helper()
	c := newGoClient(strict(t, h), key, nil)
	for i := 0; i < n && !t.Failed(); i++ {
		happen(i)
		switch ms := known(); rand.N(8) {
		case 0:
			clear(c.cache)
		case 1:
			get(t, c.h, "/supported")
		case 2:
			if w := get(t, c.h, "/latest"); w.Code == http.StatusOK {
				if _, err := c.tree(w.Body.Bytes()); err != nil {
					t.Error(err)
				}
			}
		case 3:
			if tree, err := c.tree(c.latest); err == nil {
				get(t, c.h, "/"+someTile(tree.N).Path())
			}
		default:
			wantLines(t, c, ms[rand.N(len(ms))])
		}
		if c.security != "" {
			t.Fatal(c.security)
		}
	}
}

func (c *goClient) tree(msg []byte) (tlog.Tree, error) {
	v, err := note.NewVerifier(c.key)
	if err != nil {
		return tlog.Tree{}, err
	}
	return artifact.OpenTreeHead(v, msg)
}

// someTile returns a tile of the right edge of a tree of n records, as a client whose tree that is asks for.
func someTile(n int64) tlog.Tile {
	for {
		level := rand.N(3)
		m := n >> (8 * level)
		if w := int(m & 255); w > 0 {
			return tileAtW(level, m>>8, w)
		}
	}
}

// One client talks to three nodes in turn, none of which has all that the others have, while the head advances.
func TestRoundRobin(t *testing.T) {
	c := newCluster(t, 3, 60000, nil)
	ms := []module.Version{c.log(t, c.nodes[0], "first")}
	for _, p := range c.nodes {
		p.replica.Apply(1)
	}
	background(t, c.nodes[2].DB) // the others follow only now and then
	mixed(t, c, c.src.Key(), 1000, func() []module.Version { return ms }, func(i int) {
		if i%7 == 0 {
			c.src.Grow(rand.N(600))
			ms = append(ms, c.log(t, c.nodes[rand.N(3)], fmt.Sprint("m", i)))
		}
		c.nodes[rand.N(3)].replica.Apply(rand.N(3))
		if i%20 == 0 {
			p := c.nodes[rand.N(3)]
			if err := p.newFollower().pass(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// The sources are gone, one node is dead, and of the other two one lags: everything that was committed verifies.
func TestRoundRobinOffline(t *testing.T) {
	for dead, hows := range [][]string{{"down"}, {"hangs"}, {"down", "hangs"}} {
		for _, how := range hows {
			t.Run(fmt.Sprint(dead, how), func(t *testing.T) {
				c := newCluster(t, 3, 60000, nil)
				var ms []module.Version
				for i := range 40 {
					c.src.Grow(rand.N(600))
					ms = append(ms, c.log(t, c.nodes[rand.N(3)], fmt.Sprint("m", i)))
					if i%20 == 10 {
						c.syncAll()
						c.passes(t)
					}
				}
				c.syncAll()
				c.passes(t)
				c.src.Lie(sumdbtest.Lies{Down: true})
				if how == "down" {
					c.nodes[dead].down.Store(true)
				} else {
					c.nodes[dead].hangs.Store(true)
				}
				mixed(t, c, c.src.Key(), 100, func() []module.Version { return ms }, func(int) {})
			})
		}
	}
}

// With the sources gone, a node that has neither the newest records nor heads nor tiles answers with what it gets from the
// others, and never says that there is no such thing.
func TestLaggingNode(t *testing.T) {
	c := newCluster(t, 3, 3000, nil)
	var ms []module.Version
	for i := range 40 {
		c.src.Grow(200)
		ms = append(ms, c.log(t, c.nodes[i%2], fmt.Sprint("m", i)))
	}
	c.nodes[0].replica.Apply(1 << 30)
	c.nodes[1].replica.Apply(1 << 30)
	for _, p := range c.nodes[:2] {
		if err := p.newFollower().pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.src.Lie(sumdbtest.Lies{Down: true})
	c.nodes[2].replica.Apply(7)
	mixed(t, c, c.src.Key(), 200, func() []module.Version { return ms }, func(int) {})
}

// A node whose catalog is cut off from the others serves tiles of a newer tree than it has, once it has proven that tree.
func TestTileOfNewerTree(t *testing.T) {
	c := newCluster(t, 2, 3000, nil)
	kept := c.log(t, c.nodes[0], "kept") // 3001
	c.syncAll()
	c.passes(t)
	c.src.Grow(2000)
	c.log(t, c.nodes[0], "newer") // 5002
	c.src.Lie(sumdbtest.Lies{Down: true})
	lagging := c.nodes[1]
	lagging.replica.Cut(true)
	wantLines(t, newGoClient(lagging, c.src.Key(), c.src.Head(5002)), kept)
	if h, err := lagging.committed(t.Context()); err != nil || h.N != 3001 {
		t.Errorf("committed %d, %v: a peer's word commits nothing", h.N, err)
	}
	if w := get(t, lagging, "/latest"); !strings.Contains(w.Body.String(), "tree\n3001\n") {
		t.Errorf("%s", w.Body)
	}
	if s, err := lagging.Status(t.Context()); err != nil || s.Ahead != 5002 {
		t.Errorf("Status = %+v, %v", s, err)
	}

	// A tile beyond every tree is unknown, and one beyond ours is no absence while the peer says nothing.
	if w := get(t, lagging, "/tile/8/0/900"); w.Code != http.StatusServiceUnavailable { // the catalog is cut off: it cannot know
		t.Errorf("%d %s", w.Code, w.Body)
	}
	lagging.replica.Cut(false)
	if w := get(t, lagging, "/tile/8/0/900"); w.Code != http.StatusServiceUnavailable { // nor while the source is down
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A node whose catalog can catch up need not learn from peers how large the tree is.
func TestTileOfTreeCommittedElsewhere(t *testing.T) {
	c := newCluster(t, 2, 3000, nil)
	c.log(t, c.nodes[0], "kept")
	c.syncAll()
	c.src.Grow(2000)
	c.log(t, c.nodes[0], "newer") // 5002
	c.nodes[0].wasAsked()
	if w := get(t, c.nodes[1], "/tile/8/0/019.p/138"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, path := range c.nodes[0].wasAsked() {
		if path == "/latest" {
			t.Error("a peer was asked for its head")
		}
	}
}

// A newer head of a peer counts only if the database signed it and it continues what is known here.
func TestPeerHeadIsProven(t *testing.T) {
	for _, lie := range []string{"key", "tiles", "fork"} {
		t.Run(lie, func(t *testing.T) {
			c := newCluster(t, 2, 3000, nil)
			c.log(t, c.nodes[0], "kept")
			c.syncAll()
			c.passes(t)
			other := c.src.Fork(2000)
			add(other, hello)
			other.Grow(5000)
			c.src.Grow(2000)
			c.log(t, c.nodes[0], "newer")
			c.src.Lie(sumdbtest.Lies{Down: true})
			lagging := c.nodes[1]
			lagging.replica.Cut(true)
			edit := func(path string, code int, b []byte) []byte {
				switch {
				case lie == "key" && path == "/latest":
					other.Lie(sumdbtest.Lies{WrongKey: true})
					return other.Head(5002)
				case lie == "tiles" && path != "/latest" && code == http.StatusOK:
					return append([]byte{b[0] ^ 1}, b[1:]...)
				case lie == "fork":
					b, _ := other.Get(t.Context(), path, 1<<20)
					return b
				}
				return nil
			}
			c.nodes[0].edit.Store(&edit)
			w := get(t, lagging, "/tile/8/0/015")
			if w.Code == http.StatusOK || w.Code == http.StatusNotFound {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if _, err := lagging.Tiles.Tile(tileAt(0, 15)); err == nil {
				t.Error("stored")
			}
			if h, err := lagging.newest(t.Context()); err != nil || h.N != 3001 {
				t.Errorf("newest = %d, %v", h.N, err)
			}
			if err := lagging.Frozen(t.Context()); (lie == "fork") != errors.Is(err, errFrozen) {
				t.Errorf("Frozen: %v", err)
			}
		})
	}
}
