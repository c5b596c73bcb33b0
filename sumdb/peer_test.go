package sumdb

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/sumdb/sumdbtest"
)

// pair returns a cluster of n nodes over 3001 records, the last of which is published at node 0. All catalogs have that, and
// only node 0 has tiles.
func pair(t *testing.T, n int, change func(*Config)) *cluster {
	t.Helper()
	c := newCluster(t, n, 3000, change)
	c.log(t, c.nodes[0], "kept")
	c.syncAll()
	return c
}

// What another node holds is not asked of a source, and a peer is asked for nothing but tiles.
func TestPeersFirst(t *testing.T) {
	c := pair(t, 2, nil)
	if w := get(t, c.nodes[0], "/tile/8/0/003"); w.Code != http.StatusOK {
		t.Fatal(w.Code)
	}
	before := c.src.Count("")
	wantLines(t, newGoClient(c.nodes[1], c.src.Key(), nil), mv("example.com/kept@v1.0.0"))
	if w := get(t, c.nodes[1], "/tile/8/0/003"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := c.src.Count("") - before; n != 0 {
		t.Errorf("the source was asked %d times", n)
	}
	if w := get(t, c.nodes[1], "/tile/8/0/005"); w.Code != http.StatusOK { // nobody has it yet
		t.Errorf("%d %s", w.Code, w.Body)
	}
	c.log(t, c.nodes[1], "other")
	asked := c.nodes[0].wasAsked()
	if len(asked) == 0 || slices.ContainsFunc(asked, func(p string) bool { return !strings.HasPrefix(p, "/tile/") }) {
		t.Errorf("asked of a peer: %q", asked)
	}
}

// A peer is not the outside: an offline node asks it, and a node that has no other source.
func TestPeersOffline(t *testing.T) {
	for _, offline := range []bool{true, false} {
		c := pair(t, 1, nil)
		p := c.join(t, func(c *Config) { c.Direct, c.Offline = nil, offline })
		p.replica.Apply(1 << 30)
		wantLines(t, newGoClient(p, c.src.Key(), nil), mv("example.com/kept@v1.0.0"))
		if w := get(t, p, "/latest"); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

// An offline node whose catalog may be behind does not say that a record does not exist.
func TestOfflineAndBehind(t *testing.T) {
	c := newCluster(t, 1, 3000, nil)
	c.log(t, c.nodes[0], "kept")
	p := c.join(t, func(c *Config) { c.Offline = true })
	p.replica.Apply(1) // the head, and not the record
	p.replica.Cut(true)
	if w := get(t, p, "/lookup/example.com/kept@v1.0.0"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("cut off: %d %s", w.Code, w.Body)
	}
	p.replica.Cut(false)
	if w := get(t, p, "/lookup/example.com/none@v1.0.0"); w.Code != http.StatusNotFound {
		t.Errorf("unknown everywhere: %d %s", w.Code, w.Body)
	}
	if w := get(t, p, "/lookup/example.com/kept@v1.0.0"); w.Code != http.StatusOK {
		t.Errorf("known elsewhere: %d %s", w.Code, w.Body)
	}
}

// A peer that says nothing costs a second, once.
func TestPeerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pair(t, 2, nil)
		c.nodes[0].hangs.Store(true)
		for path, want := range map[string]time.Duration{"/tile/8/0/003": peerBudget} {
			took(t, path, want, func() {
				if w := get(t, c.nodes[1], path); w.Code != http.StatusOK {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		took(t, "another", 0, func() {
			if w := get(t, c.nodes[1], "/tile/8/0/004"); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
		c.src.Lie(sumdbtest.Lies{Down: true})
		took(t, "nobody has it", peerBudget, func() {
			if w := get(t, c.nodes[1], "/tile/8/0/005"); w.Code == http.StatusOK || w.Code == http.StatusNotFound {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	})
}

// Bad tiles of a peer are refused, blamed on it and counted, and the next one is asked, although no single one has all.
func TestPeerLies(t *testing.T) {
	c := pair(t, 4, nil)
	kept := mv("example.com/kept@v1.0.0")
	for _, path := range []string{"/tile/8/0/003", "/tile/8/0/004"} {
		get(t, c.nodes[0], path)
	}
	get(t, c.nodes[1], "/tile/8/0/003") // and its parents: all that node 1 has
	get(t, c.nodes[2], "/tile/8/0/004")
	wantLines(t, newGoClient(c.nodes[1], c.src.Key(), nil), kept)
	c.src.Lie(sumdbtest.Lies{Down: true})
	lie := func(path string, code int, b []byte) []byte {
		if code != http.StatusOK || !strings.Contains(path, "/8/0/") {
			return nil
		}
		return append([]byte{b[0] ^ 1}, b[1:]...)
	}
	c.nodes[0].edit.Store(&lie)
	p := c.nodes[3]
	now, err := p.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := &view{db: p.DB, ctx: t.Context(), tree: now.Tree, online: true}
	if _, err := v.ReadHashes([]int64{tlog.StoredHashIndex(0, 3<<8), tlog.StoredHashIndex(0, 4<<8)}); err != nil {
		t.Errorf("from two peers, neither of which has both tiles: %v", err)
	}
	for _, path := range []string{"/tile/8/0/003", "/tile/8/0/004"} {
		good, _ := c.nodes[0].Tiles.Tile(tileAt(0, int64(path[len(path)-1]-'0')))
		if w := get(t, p, path); w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), good) {
			t.Errorf("%s: %d %.300s", path, w.Code, w.Body)
		}
	}
	wantLines(t, newGoClient(p, c.src.Key(), nil), kept)
	s, err := p.Status(t.Context())
	if err != nil || len(s.Peers) != 3 || s.Peers[0].Refused == 0 || s.Peers[0].LastError == nil || s.Peers[1].Refused+s.Peers[2].Refused != 0 {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if n := testutil.ToFloat64(p.metrics.badPeers); n == 0 {
		t.Error("not counted")
	}
	asked := len(c.nodes[0].wasAsked())
	get(t, p, "/tile/8/0/003") // held by now
	if get(t, p, "/tile/8/0/005"); len(c.nodes[0].wasAsked()) > 1 || asked == 0 {
		t.Error("it is asked as often as before")
	}
}

// Who the peers are is asked again each time.
func TestPeersChange(t *testing.T) {
	c := pair(t, 1, nil)
	c.src.Lie(sumdbtest.Lies{Down: true})
	var list []Source
	p := c.join(t, func(c *Config) { c.Peers = func() []Source { return list } })
	p.replica.Apply(1 << 30)
	if w := get(t, p, "/latest"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("no peers: %d %s", w.Code, w.Body)
	}
	list = []Source{c.nodes[0], c.nodes[0]}
	if w := get(t, p, "/latest"); w.Code != http.StatusOK {
		t.Errorf("a peer: %d %s", w.Code, w.Body)
	}
	if s, _ := p.Status(t.Context()); len(s.Peers) != 1 || s.Peers[0].Name != "node 0" {
		t.Errorf("Peers = %+v", s.Peers)
	}
	list = nil
	if s, _ := p.Status(t.Context()); len(s.Peers) != 0 || p.askable() != true {
		t.Errorf("Peers = %+v", s.Peers)
	}
}

// A peer answers with what it holds and asks nobody.
func TestServePeer(t *testing.T) {
	c := pair(t, 2, nil)
	set, err := NewSet(c.nodes[0].DB)
	if err != nil {
		t.Fatal(err)
	}
	before := c.src.Count("")
	c.nodes[1].wasAsked()
	for path, want := range map[string]int{
		"/latest": 200, "/tile/8/0/011.p/185": 200, "/tile/8/0/003": 404, "/tile/8/0/999": 404,
		"/lookup/example.com/kept@v1.0.0": 404, "/lookup/example.com/none@v1.0.0": 404, "/supported": 404, "/": 404,
	} {
		if w := get(t, http.HandlerFunc(set.ServePeer), "/sumdb/sum.example.com"+path); w.Code != want {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
	if n := c.src.Count("") - before; n != 0 || len(c.nodes[1].wasAsked()) != 0 {
		t.Errorf("%d questions to the source", n)
	}
}
