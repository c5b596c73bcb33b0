package mirror

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Whichever nodes are asked, and however often, the cluster asks the upstream once.
func TestOneFetchInAll(t *testing.T) {
	c := newCluster(t, 3)
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() { c.nodes[i%3].want(zipPath, 200, "PK") })
	}
	all.Wait()
	for _, k := range []string{"info", "mod"} {
		for _, n := range c.nodes {
			n.want(helloPath+"v1.0.0."+k, 200, "")
		}
	}
	for _, k := range []string{"info", "mod", "zip"} {
		if got := c.up.Count(helloPath + "v1.0.0." + k); got != 1 {
			t.Errorf("%d questions for the %s", got, k)
		}
	}
}

// What the owner says of a version that it cannot bring in reaches the client of another node with its status and reason.
func TestOwnersErrors(t *testing.T) {
	for name, f := range map[string]struct {
		fault  func(c *cluster)
		status int
		says   string
	}{
		"absent":  {func(c *cluster) { c.up.DeleteVersion(helloV) }, 404, ""},
		"refused": {func(c *cluster) { c.up.HTML(helloV, artifact.Zip) }, 403, "not a module zip"},
		"down":    {func(c *cluster) { c.up.Down(true) }, 503, ""},
		"late": {func(c *cluster) {
			c.up.Stall(helloV, artifact.Zip, 10)
			c.nodes[0].options = []func(*Config){func(cf *Config) { cf.ZipBudget = 50 * time.Millisecond }}
			c.nodes[0].boot()
		}, 504, "did not answer within"},
		"policy": {func(c *cluster) {
			c.nodes[0].options = []func(*Config){func(cf *Config) { cf.Private = "example.com/*" }}
			c.nodes[0].boot()
		}, 403, "is private"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3)
			f.fault(c)
			a := c.nodes[1].want(zipPath, f.status, f.says)
			if f.status == 404 && a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("absence that the owner may have remembered is cached on: %s", a.header.Get("Cache-Control"))
			}
			c.nodes[1].nothingStored()
		})
	}
}

// An absence is believed by the owner for a while, and by nobody else: what is published then is found half a minute later.
func TestOwnersAbsence(t *testing.T) {
	c := newCluster(t, 2)
	path := "/example.com/new/@v/v1.0.0.mod"
	c.nodes[1].want(path, 404, "")
	mv := c.up.Add("example.com/new@v1.0.0\n-- go.mod --\nmodule example.com/new\n")
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	c.nodes[1].want(path, 404, "")
	c.nodes[0].negative.drop(flightKey(artifact.Mod, mv)) // the half minute is over
	c.nodes[1].want(path, 200, "module")
}

// The owner dies in the middle: the next one takes over, and at last the node that was asked.
func TestOwnerDies(t *testing.T) {
	for _, left := range [][]int{{1, 2}, {2}} {
		c := newCluster(t, 3)
		c.enough = len(left) - 1
		c.nodes[0].step = func(step string) {
			if step == "download" {
				c.set(func() {
					for i := range c.nodes {
						c.down[i] = i != left[0] && i != left[len(left)-1]
					}
				})
				panic("it dies")
			}
		}
		c.nodes[2].want(zipPath, 200, "PK")
		if len(left) == 2 {
			c.nodes[1].want(zipPath, 200, "PK")
		}
		c.nodes[0].nothingHere(t)
	}
}

func (n *node) nothingHere(t *testing.T) {
	t.Helper()
	for ref := range n.store.All() {
		t.Errorf("stored at %s: %v", name(n.id), ref)
	}
}

// Two nodes of which each believes that it is the other's turn do not wait for each other.
func TestNoLoops(t *testing.T) {
	c := newCluster(t, 2)
	c.owner = func(_ module.Version, asker int) int { return 1 - asker }
	var both sync.WaitGroup
	for i := range 2 {
		both.Go(func() {
			c.nodes[i].want(zipPath, 200, "PK")
			c.nodes[i].want(helloPath+"list", 200, "v1.0.0")
			c.nodes[i].want("/example.com/hello/@latest", 200, "v1.0.0")
		})
	}
	both.Wait()
}

// A node whose catalog lags behind waits for what the owner has committed, and serves what the log says.
func TestLag(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[1]
	c.set(func() { n.paused = true })
	done := make(chan string)
	go func() { done <- n.want(helloPath+"v1.0.0.mod", 200, "module").body }()
	for committed := false; !committed; {
		<-c.nodes[0].Wake() // the owner has applied it
		_, err := c.nodes[0].index.Manifest(t.Context(), helloV)
		committed = err == nil
	}
	select {
	case <-done:
		t.Fatal("answered without the catalog")
	default:
	}
	n.resume()
	<-done
	if got := c.up.Count(helloPath + "v1.0.0.mod"); got != 1 {
		t.Errorf("%d questions to the upstream", got)
	}
}

// What peers may ask is what clients may ask.
func TestBringRefuses(t *testing.T) {
	c := newCluster(t, 1, func(cf *Config) { cf.Private = "example.com/private" })
	for mv, status := range map[module.Version]int{
		{Path: "example.com/hello", Version: "master"}:   400,
		{Path: "example.com/hello", Version: ""}:         400,
		{Path: "localhost/hello", Version: "v1.0.0"}:     400,
		{Path: "../../etc/passwd", Version: "v1.0.0"}:    400,
		{Path: "example.com/hello", Version: "v9.0.0"}:   400,
		{Path: "example.com/private", Version: "v1.0.0"}: 403,
	} {
		if _, err := c.nodes[0].Bring(t.Context(), mv, artifact.Mod); statusOf(err) != status {
			t.Errorf("Bring %v: %v", mv, err)
		}
	}
	if _, err := c.nodes[0].Bring(t.Context(), helloV, 9); statusOf(err) != 400 {
		t.Errorf("Bring of kind 9: %v", err)
	}
	for path, status := range map[string]int{"localhost/hello": 400, "example.com/private": 403, "": 400} {
		if _, err := c.nodes[0].Tell(t.Context(), OpList, path, ""); statusOf(err) != status {
			t.Errorf("Tell %q: %v", path, err)
		}
	}
	for _, query := range []string{"", "v1.0.0", "latest", "../x"} {
		if _, err := c.nodes[0].Tell(t.Context(), OpQuery, "example.com/hello", query); statusOf(err) != 400 {
			t.Errorf("Tell %q: %v", query, err)
		}
	}
	if got := len(c.up.Requests()); got != 0 {
		t.Errorf("%d questions to the upstream", got)
	}
}

// The cluster asks for lists, @latest and queries once, and every node says the same.
func TestListsAgree(t *testing.T) {
	c := newCluster(t, 3)
	c.up.Alias("example.com/hello", "main", "v1.0.0")
	paths := []string{helloPath + "list", "/example.com/hello/@latest", helloPath + "main.info"}
	same := func(what string, want string) {
		t.Helper()
		for _, p := range paths {
			for _, n := range c.nodes {
				if a := n.get(p); a.status != 200 || !strings.Contains(a.body, want) {
					t.Errorf("%s: %s at %s: %d %q", what, p, name(n.id), a.status, a.body)
				}
			}
		}
	}
	same("first", "v1.0.0")
	for _, p := range paths {
		if got := c.up.Count(p); got != 1 {
			t.Errorf("%d questions for %s", got, p)
		}
	}
	c.up.Down(true)
	same("the upstream is gone", "v1.0.0")
}

// A list that changed at one node changes at the others as soon as the log is applied there, long before their own answers
// are old.
func TestListsFollowTheLog(t *testing.T) {
	c := newCluster(t, 3)
	for _, n := range c.nodes {
		n.want(helloPath+"list", 200, "v1.0.0\n")
		n.want("/example.com/hello/@latest", 200, "v1.0.0")
	}
	c.up.Add("example.com/hello@v1.1.0\n-- go.mod --\nmodule example.com/hello\n")
	asked := c.up.Count(helloPath + "list")
	for _, of := range []*topic{c.nodes[0].list, c.nodes[0].latest} {
		if _, err := of.refresh(t.Context(), helloV.Path); err != nil { // its answers were old
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		n.want(helloPath+"list", 200, "v1.0.0\nv1.1.0\n")
		n.want("/example.com/hello/@latest", 200, "v1.1.0")
	}
	if got := c.up.Count(helloPath + "list"); got != asked+1 {
		t.Errorf("%d questions", got-asked)
	}
}

// So it does when another catalog takes the place of the node's own, of which no single change is told.
func TestListsOfAnotherCatalog(t *testing.T) {
	c := newCluster(t, 2)
	n := c.nodes[1]
	for range 2 { // the second time it is remembered, with all that the log has told
		n.want(helloPath+"list", 200, "v1.0.0\n")
	}
	now := time.Now().Add(time.Second)
	l := artifact.Listing{Path: helloV.Path, Versions: []string{"v1.0.0", "v1.2.0"}, Listed: now}
	if err := n.index.PublishListing(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	n.Relisted("")
	n.want(helloPath+"list", 200, "v1.0.0\nv1.2.0\n")
}

// What an answer is old at the owner it is old at who asks: a list is never believed for longer because it went around.
func TestToldAge(t *testing.T) {
	c := newCluster(t, 2)
	c.nodes[0].want(helloPath+"list", 200, "")
	s, _ := c.nodes[0].list.memory.get(helloV.Path)
	old := *s
	old.at = old.at.Add(-50 * time.Second)
	c.nodes[0].list.keep(helloV.Path, &old)
	c.nodes[1].want(helloPath+"list", 200, "v1.0.0")
	got, _ := c.nodes[1].list.memory.get(helloV.Path)
	if age := time.Since(got.at); age < 50*time.Second {
		t.Errorf("the answer is %v old at the second node", age)
	}
	c.nodes[1].queries.drop(queryKey(helloV))
}

// Without peers nothing of this is there, and what they need is asked for at once.
func TestClusterConfig(t *testing.T) {
	c := newCluster(t, 1)
	base := Config{Index: c.nodes[0].index, Store: c.nodes[0].store}
	for name, f := range map[string]func(*Config){
		"peers without proofs":  func(cf *Config) { cf.Peers = &fakePeers{c, 0} },
		"unknown word":          func(cf *Config) { cf.OnQuorumLoss = "perhaps" },
		"passthrough, no files": func(cf *Config) { cf.OnQuorumLoss = passThrough },
	} {
		cf := base
		f(&cf)
		if _, err := New(cf); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m, err := New(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Follow(t.Context()); err == nil {
		t.Error("follows nothing")
	}
	if p := fmt.Sprint(m.Progress()); p != fmt.Sprint(Progress{}) {
		t.Errorf("Progress = %s", p)
	}
}
