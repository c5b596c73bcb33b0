package mirror

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

const zipPath = helloPath + "v1.0.0.zip"

// A zip is on the disks of enough voters before it is committed: the log takes it with their acks only.
func TestSpread(t *testing.T) {
	c := newCluster(t, 3)
	c.before = func(_ int, p artifact.Publication) {
		held := 0
		for _, n := range c.nodes {
			if n.store.Durable(p.Manifest.Zip) == nil {
				held++
			}
		}
		if !p.Manifest.Zip.IsZero() && held < 2 {
			t.Errorf("%d nodes have the zip when it is proposed", held)
		}
	}
	c.nodes[0].want(zipPath, 200, "PK")
	c.nodes[0].want(helloPath+"v1.0.0.mod", 200, "module") // inline: no copies, no acks
	c.up.Down(true)
	for _, n := range c.nodes {
		n.want(zipPath, 200, "PK")
		n.want(helloPath+"v1.0.0.mod", 200, "module")
	}
}

// A go.mod that is too large for the log travels like a zip.
func TestSpreadLargeMod(t *testing.T) {
	c := newCluster(t, 3)
	mv := c.up.Add("example.com/large@v1.0.0\n-- go.mod --\nmodule example.com/large\n" + strings.Repeat("// much to say\n", 5000) + "-- a.go --\npackage a\n")
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	for _, n := range c.nodes {
		n.want("/example.com/large/@v/v1.0.0.mod", 200, "much to say")
	}
	n := c.nodes[1]
	man, _ := n.index.Manifest(t.Context(), mv)
	n.lose(man.Mod)
	n.hot.drop("/example.com/large/@v/v1.0.0.mod")
	c.up.Down(true)
	n.want("/example.com/large/@v/v1.0.0.mod", 200, "much to say")
}

// The copying begins when the download has ended: the check waits here until a copy has arrived.
func TestSpreadBesideCheck(t *testing.T) {
	c := newCluster(t, 2)
	arrived := make(chan struct{})
	c.spread = func(int, artifact.Manifest) error { close(arrived); return nil }
	c.nodes[0].step = func(step string) {
		if step == "check" {
			<-arrived
		}
	}
	c.nodes[0].want(zipPath, 200, "PK")
}

// Too few copies: nothing is committed, and it is an outage. The blob stays for the next try.
func TestSpreadTooFew(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[1], c.down[2] = true, true })
	c.nodes[0].want(zipPath, 503, "too few other nodes have a copy")
	if !c.nodes[0].index.empty() {
		t.Error("something is committed")
	}
	if !c.nodes[0].store.Has(artifact.RefOf(c.up.Artifact(helloV, artifact.Zip))) {
		t.Error("the blob is gone")
	}
	c.set(func() { c.down[1] = false })
	c.nodes[0].want(zipPath, 200, "PK")
}

// What the upstream sent and fails the check is stored nowhere, and the next source's is spread in its place.
func TestSpreadOfLies(t *testing.T) {
	c := newCluster(t, 3)
	evil := mirrortest.Zip(helloV, map[string]string{"go.mod": "module example.com/hello\n", "hello.go": "package evil\n"})
	c.up.Tamper(helloV, artifact.Zip, func([]byte) []byte { return evil })
	c.nodes[0].want(zipPath, 403, "checksum mismatch")
	for _, n := range c.nodes {
		n.nothingStored()
	}
	good := mirrortest.New()
	t.Cleanup(good.Close)
	good.Add(hello)
	c.nodes[0].options = []func(*Config){func(cf *Config) { cf.Upstream = &proxies{urls: []string{c.up.URL(), good.URL()}} }}
	c.nodes[0].boot()
	c.nodes[0].want(zipPath, 200, "PK")
}

// Two nodes that both believe that it is their turn, with different bytes of one sum: the first wins, and both serve it.
func TestTwoOwners(t *testing.T) {
	c := newCluster(t, 3)
	c.owner = func(_ module.Version, asker int) int { return asker }
	zip := c.up.Artifact(helloV, artifact.Zip)
	again := mirrortest.Repack(zip)
	other := mirrortest.New()
	t.Cleanup(other.Close)
	other.Add(hello)
	other.Tamper(helloV, artifact.Zip, func([]byte) []byte { return again })
	c.nodes[1].options = []func(*Config){func(cf *Config) { cf.Upstream = &proxies{urls: []string{other.URL()}} }}
	c.nodes[1].boot()

	var meet sync.WaitGroup // both have their copies before either commits
	meet.Add(2)
	var once [3]sync.Once
	c.set(func() {
		c.before = func(from int, p artifact.Publication) { once[from].Do(func() { meet.Done(); meet.Wait() }) }
	})
	var got [2]string
	var both sync.WaitGroup
	for i := range got {
		both.Go(func() { got[i] = c.nodes[i].want(zipPath, 200, "PK").body })
	}
	both.Wait()
	if got[0] != got[1] || got[0] != string(zip) && got[0] != string(again) {
		t.Errorf("the nodes serve %d and %d bytes", len(got[0]), len(got[1]))
	}
	if c.nodes[2].want(zipPath, 200, "PK").body != got[0] {
		t.Error("the third node serves other bytes")
	}
	for _, n := range c.nodes {
		if got := n.metric("verification_failures_total"); got != 0 {
			t.Errorf("%v alarms", got)
		}
	}
}

// An owner whose copies are not taken, and while it works something else is committed, serves that: whether the others say so,
// or only that they cannot.
func TestOutrun(t *testing.T) {
	for _, refuses := range []error{nil, artifact.ErrUnavailable} {
		c := newCluster(t, 3)
		c.owner = func(_ module.Version, asker int) int { return asker }
		zip := c.up.Artifact(helloV, artifact.Zip)
		var once sync.Once
		var outrun atomic.Bool
		c.spread = func(int, artifact.Manifest) error {
			if outrun.Load() {
				return refuses
			}
			return nil
		}
		c.nodes[0].step = func(step string) {
			if step == "record" {
				once.Do(func() {
					c.set(func() { c.nodes[0].paused = refuses == nil }) // it hears of it from the others only
					c.nodes[1].want(zipPath, 200, "PK")
					c.up.Tamper(helloV, artifact.Zip, mirrortest.Repack)
					outrun.Store(true)
				})
			}
		}
		if got := c.nodes[0].want(zipPath, 200, "PK").body; got != string(zip) {
			t.Error("other bytes than those that are committed")
		}
	}
}

// A node that lost its blob, or whose blob rots, gets it from another one, and clients see nothing of it.
func TestReadThrough(t *testing.T) {
	c := newCluster(t, 3, func(cf *Config) { cf.HotBytes = 1 })
	c.nodes[0].want(zipPath, 200, "PK")
	ref := c.nodes[0].zipRef()
	c.up.Down(true)
	n := c.nodes[0]
	n.lose(ref)
	n.want(zipPath, 200, "PK")
	if err := n.store.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	n.lose(ref)
	n.want("/cached-only"+zipPath, 200, "PK") // the cluster holds it
	n.rot(ref)
	n.want(zipPath, 200, "PK")
	if err := n.store.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if got := n.metric("pulls_total", "done"); got != 3 {
		t.Errorf("%v pulls counted", got)
	}
	n.options = append(n.options, func(cf *Config) { cf.Upstream = nil })
	n.boot()
	n.lose(ref)
	n.want(zipPath, 200, "PK")
}

// A hundred clients who ask for what is missing cause one pull.
func TestReadThroughOnce(t *testing.T) {
	c := newCluster(t, 2)
	c.nodes[0].want(zipPath, 200, "PK")
	n := c.nodes[1]
	n.lose(n.zipRef())
	gate, pulling := make(chan struct{}), make(chan struct{}, 100)
	c.set(func() {
		c.tamper = func(_ int, body io.Reader) io.Reader {
			pulling <- struct{}{}
			return io.MultiReader(&waiting{gate}, body)
		}
	})
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { n.want(zipPath, 200, "PK") })
	}
	<-pulling
	close(gate)
	all.Wait()
	if got := c.fetches(1, 0); got != 1 {
		t.Errorf("%d pulls", got)
	}
}

// waiting has nothing to read, and says so when the gate opens.
type waiting struct{ gate chan struct{} }

func (w *waiting) Read([]byte) (int, error) {
	<-w.gate
	return 0, io.EOF
}

func (c *cluster) fetches(to, from int) (n int) {
	c.set(func() {
		for _, f := range c.fetched {
			if f == fmt.Sprintf("%d<%d", to, from) {
				n++
			}
		}
	})
	return n
}

// A peer that sends wrong bytes, or a part of them, is passed over; without another one the upstream is asked.
func TestReadThroughLies(t *testing.T) {
	for fault, tamper := range map[string]func(io.Reader) io.Reader{
		"wrong": func(r io.Reader) io.Reader { return io.MultiReader(strings.NewReader("x"), r) },
		"cut":   func(r io.Reader) io.Reader { return io.LimitReader(r, 50) },
	} {
		c := newCluster(t, 3, func(cf *Config) { cf.HotBytes = 1 })
		c.nodes[0].want(zipPath, 200, "PK")
		c.nodes[1].want(zipPath, 200, "PK") // a copy on one of the two others was enough
		n := c.nodes[2]
		zip := n.want(zipPath, 200, "PK").body
		liar := func(ids ...int) {
			c.set(func() {
				c.tamper = func(from int, body io.Reader) io.Reader {
					if slices.Contains(ids, from) {
						return tamper(body)
					}
					return body
				}
			})
		}
		liar(0)
		n.lose(n.zipRef())
		if got := n.want(zipPath, 200, "PK").body; got != zip || c.fetches(2, 1) == 0 {
			t.Errorf("%s: served %d bytes after %v", fault, len(got), c.fetched)
		}
		refused := n.metric("verification_failures_total", "peer")
		if fault == "wrong" && (refused != 1 || !strings.Contains(n.quarantined(), "peer node0")) || fault == "cut" && refused != 0 {
			t.Errorf("%s: %v refused, quarantine %q", fault, refused, n.quarantined())
		}
		liar(0, 1)
		n.lose(n.zipRef())
		before := c.up.Count(zipPath)
		if got := n.want(zipPath, 200, "PK").body; got != zip || c.up.Count(zipPath) != before+1 {
			t.Errorf("%s: served %d bytes, %d questions to the upstream", fault, len(got), c.up.Count(zipPath)-before)
		}
		c.up.Down(true)
		n.lose(n.zipRef())
		n.want(zipPath, 503, "")
	}
}

// What no node has and the upstream has lost is an outage, and no absence.
func TestLostEverywhere(t *testing.T) {
	c := newCluster(t, 2, func(cf *Config) { cf.HotBytes = 1 })
	c.nodes[0].want(zipPath, 200, "PK")
	ref := c.nodes[0].zipRef()
	c.nodes[0].lose(ref)
	c.nodes[1].lose(ref)
	c.nodes[1].start(func(cf *Config) {
		cf.Index, cf.Proofs, cf.Peers, cf.Upstream = clusterIndex{c.nodes[1].index, c.nodes[1]}, c.nodes[1], &fakePeers{c, 1}, nil
	})
	c.nodes[1].want(zipPath, 503, "missing here")
	c.up.Down(true)
	if a := c.nodes[0].get(zipPath, func(r *http.Request) { r.Header.Set("Disable-Module-Fetch", "true") }); a.status != 503 {
		t.Errorf("cached only: %d", a.status)
	}
}
