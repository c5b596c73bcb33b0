//go:build faults

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/replicate/replicatetest/faultproxy"
)

// chaos is a cluster to which one thing after the other happens, and who of it may not answer a client for that reason.
type chaos struct {
	*netSite
	r     *rand.Rand // of what happens
	begin time.Time

	mu       sync.Mutex
	timeline []string
	down     map[*clusterNode]bool // guarded by mu; it is dead, stopped, or on its way back
	downs    map[*clusterNode]int  // guarded by mu; how often that was

	returning sync.WaitGroup
	built     atomic.Int64 // builds that succeeded
	excused   atomic.Int64 // builds whose only mirror was down
	read      atomic.Int64
}

// FAULTS 31, 32 and 36, and whatever lies between them: processes are killed, stopped for a while, restarted and parted at random
// while go commands, each with an empty cache and the checksum database on, download through one node, through all of them in a
// line, and through a balancer. A build fails only if it was given one mirror and that was down. What was ever answered and called
// committed is answered with the same bytes by every node in the end, without the upstream, and all catalogs are the same.
//
// CHAOS says for how long (45s), CHAOS_NODES how many nodes (3), and CHAOS_SEED has the same things happen as in an earlier run.
func TestChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	size, long := 3, 45*time.Second
	if text := os.Getenv("CHAOS_NODES"); text != "" {
		size, _ = strconv.Atoi(text)
	}
	if text := os.Getenv("CHAOS"); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	c := &chaos{netSite: newNetSite(t, size, seed), r: rand.New(rand.NewPCG(seed, 1)), down: make(map[*clusterNode]bool), downs: make(map[*clusterNode]int)}
	t.Logf("CHAOS_SEED=%d", seed)
	t.Cleanup(func() { t.Logf("CHAOS_SEED=%d\n%s", seed, strings.Join(c.timeline, "\n")) })
	c.netSite.begin()
	c.begin = time.Now()
	front := httptest.NewServer(c.balance())
	defer front.Close()

	var clients sync.WaitGroup
	var over atomic.Bool
	for i := range uint64(3) {
		r, readers := rand.New(rand.NewPCG(seed, 2+i)), rand.New(rand.NewPCG(seed, 100+i))
		clients.Go(func() {
			for !over.Load() {
				c.client(r, front.URL)
			}
		})
		clients.Go(func() {
			for !over.Load() {
				c.reader(readers.IntN)
			}
		})
	}
	faults := 0
	for ; time.Since(c.begin) < long && !t.Failed(); faults++ {
		c.happens()
		c.hold(0, time.Second)
	}
	over.Store(true)
	clients.Wait()
	c.returning.Wait()
	c.settled()
	c.kept()
	t.Logf("%d faults; %d builds, %d more through a mirror that was down; %d other requests; %d modules; %d times a node became leader, term %d",
		faults, c.built.Load(), c.excused.Load(), c.read.Load(), c.made, c.elections(), highest(c.terms()))
	c.sound()
	if c.built.Load() == 0 || len(c.order) == 0 {
		t.Error("nothing was downloaded")
	}
}

// happened writes a line of the timeline.
func (c *chaos) happened(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timeline = append(c.timeline, fmt.Sprintf("%6.1fs  ", time.Since(c.begin).Seconds())+fmt.Sprintf(format, args...))
}

// hold lets some time pass: what is drawn is when the next thing happens, not whether something is over.
func (c *chaos) hold(least, most time.Duration) {
	time.Sleep(least + time.Duration(c.r.Int64N(int64(most-least))))
}

// happens has one thing happen, and ends it, but for the return of a node.
func (c *chaos) happens() {
	n := c.nodes[c.r.IntN(len(c.nodes))]
	var rest []*clusterNode
	for _, o := range c.nodes {
		if o != n {
			rest = append(rest, o)
		}
	}
	switch kind := c.r.IntN(11); kind {
	case 0, 1, 2, 3, 4, 5:
		c.goesDown(n, kind%3)
		return
	case 6:
		c.happened("%s loses the others", n.name)
		c.net.Split([]string{n.name}, namesOf(rest))
	case 7:
		from := c.r.IntN(2) == 0
		c.happened("packets from %s are lost: %t, to it: %t", n.name, from, !from)
		for _, o := range rest {
			c.net.Set(n.name, o.name, faultproxy.Link{Stall: from})
			c.net.Set(o.name, n.name, faultproxy.Link{Stall: !from})
		}
	case 8:
		o := rest[c.r.IntN(len(rest))]
		c.happened("%s and %s lose each other", n.name, o.name)
		c.net.Split([]string{n.name}, []string{o.name})
	case 9:
		c.happened("the connections of %s are reset", n.name)
		for _, o := range rest {
			c.net.Set(n.name, o.name, faultproxy.Link{Cut: true})
		}
	case 10:
		c.happened("the network is bad")
		for _, from := range c.nodes {
			for _, to := range c.nodes {
				c.net.Set(from.name, to.name, faultproxy.Link{Loss: 0.2, Latency: 5 * time.Millisecond})
			}
		}
	}
	c.hold(time.Second, 6*time.Second)
	c.net.Heal()
	c.happened("the network is healed")
}

// goesDown has a node go and come back: killed, stopped, or told to end. At most a minority is gone at a time, and whoever is back is
// waited for while other things happen.
func (c *chaos) goesDown(n *clusterNode, how int) {
	if c.goneBut(n) >= (len(c.nodes)-1)/2+1 {
		return
	}
	c.mark(n, true)
	switch how {
	case 0:
		c.happened("%s is killed", n.name)
		n.kill()
		c.hold(0, 2*time.Second)
		c.happened("%s is started", n.name)
		c.launch(n)
	case 1:
		c.happened("%s is stopped", n.name)
		if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			c.t.Error(err)
		}
		c.hold(500*time.Millisecond, 6*time.Second)
		if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			c.t.Error(err)
		}
		c.happened("%s goes on", n.name)
	case 2:
		c.happened("%s is told to end", n.name)
		if err := n.stop(time.Minute); err != nil {
			c.t.Errorf("%s does not end: %v", n.name, err)
		}
		c.launch(n)
		c.happened("%s is started", n.name)
	}
	p := n.process
	c.returning.Go(func() {
		if err := p.waitReady(time.Minute); err != nil {
			c.t.Errorf("%s does not come back: %.3000s", n.name, err)
			return
		}
		c.mark(n, false)
		c.happened("%s is ready", n.name)
	})
}

// goneBut returns how many would be down if n went down as well; all, if n is down.
func (c *chaos) goneBut(n *clusterNode) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := 1
	for o, down := range c.down {
		if down && o == n {
			return len(c.nodes)
		}
		if down {
			gone++
		}
	}
	return gone
}

func (c *chaos) mark(n *clusterNode, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[n] = down
	if down {
		c.downs[n]++
	}
}

// downSince returns how often n has been down, and whether it is.
func (c *chaos) downSince(n *clusterNode) (times int, now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.downs[n], c.down[n]
}

// client is one build of one or two modules, some of which nobody has asked for yet.
func (c *chaos) client(r *rand.Rand, front string) {
	var ms []module.Version
	for range 1 + r.IntN(2) {
		if old := c.known(r.IntN); old.Path != "" && r.IntN(3) == 0 && !containsPath(ms, old) {
			ms = append(ms, old)
		} else {
			ms = append(ms, c.fresh(nil, 1+r.IntN(100<<10)))
		}
	}
	dir, err := os.MkdirTemp(c.dir, "build-")
	if err != nil {
		c.t.Error(err)
		return
	}
	defer os.RemoveAll(dir)
	proxy, sums := front, ""
	var only *clusterNode
	var times int
	var gone bool
	switch r.IntN(3) {
	case 0: // one mirror, whatever happens to it
		only = c.nodes[r.IntN(len(c.nodes))]
		times, gone = c.downSince(only)
		proxy = "http://" + only.listen
	case 1: // all of them, without lookups: see docs/cluster.md
		var urls []string
		for _, i := range r.Perm(len(c.nodes)) {
			urls = append(urls, "http://"+c.nodes[i].listen)
		}
		proxy = strings.Join(urls, "|")
		for _, m := range ms {
			zip, mod := c.up.Sums(m)
			sums += fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zip, m.Path, m.Version, mod)
		}
	}
	begin := time.Now()
	err = c.downloadIn(dir, proxy, requires(ms...), sums)
	if err == nil {
		err = c.right(filepath.Join(dir, "go.sum"), ms)
	}
	if err == nil {
		c.built.Add(1)
		return
	}
	if only != nil {
		if after, _ := c.downSince(only); gone || after != times {
			c.excused.Add(1)
			return
		}
	}
	c.happened("a build of %v through %s, begun %v ago, fails", ms, proxy, time.Since(begin).Round(time.Millisecond))
	c.t.Errorf("a build of %v through %s, %v after the begin: %v", ms, proxy, time.Since(c.begin), err)
}

func containsPath(ms []module.Version, m module.Version) bool {
	for _, o := range ms {
		if o.Path == m.Path {
			return true
		}
	}
	return false
}

// right reports whether a go.sum has the hashes of the upstream.
func (c *chaos) right(file string, ms []module.Version) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, m := range ms {
		zip, mod := c.up.Sums(m)
		for _, line := range []string{m.Path + " " + m.Version + " " + zip + "\n", m.Path + " " + m.Version + "/go.mod " + mod + "\n"} {
			if !strings.Contains(string(b), line) {
				return fmt.Errorf("go.sum lacks %q:\n%s", line, b)
			}
		}
	}
	return nil
}

// known returns one of the modules that there are.
func (c *chaos) known(draw func(int) int) module.Version {
	c.making.Lock()
	defer c.making.Unlock()
	if c.made == 0 {
		return module.Version{}
	}
	return module.Version{Path: fmt.Sprintf("example.com/fault%d", 1+draw(c.made)), Version: "v1.0.0"}
}

// reader is one request for something, of any node; what it says goes into the ledger.
func (c *chaos) reader(draw func(int) int) {
	m := c.known(draw)
	n := c.nodes[draw(len(c.nodes))]
	if m.Path == "" {
		return
	}
	paths := artifactPaths(m)
	if _, err := c.ask(n, paths[draw(len(paths))]); err == nil {
		c.read.Add(1)
	}
	<-time.After(20 * time.Millisecond) // so that most of the machine is left to the builds
}
