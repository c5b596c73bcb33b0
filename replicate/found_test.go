package replicate

import (
	"fmt"
	"strings"
	"testing"
)

// founded founds a cluster of three at once.
func founded(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newNetwork()}
	f := &Founding{Cluster: "THE-CLUSTER"}
	for i := range 3 {
		c.add()
		id, err := Identify(c.dirs[i])
		if err != nil || !id.Fresh {
			t.Fatalf("Identify() = %+v, %v", id, err)
		}
		f.Servers = append(f.Servers, Member{ID: id.Node, Address: c.addr(i), Voter: true})
	}
	c.config = func(i int, conf *Config) {
		conf.Join = i != 1
		if i == 1 {
			conf.Found = f
		}
	}
	for i := range c.nodes {
		c.open(i)
	}
	return c
}

// Three new nodes found a cluster of three voters. Only one of them writes the first entry.
func TestFound(t *testing.T) {
	c := founded(t)
	c.db = trusting(t, c.leader())
	for i := range c.nodes {
		c.registered(i)
	}
	m := c.publish("example.com/a", "v1.0.0")
	c.same()
	for i, n := range c.nodes {
		waitFor(t, fmt.Sprintf("name of the cluster at node %d", i), func() bool { st, _ := n.Status(t.Context()); return st.Cluster == "THE-CLUSTER" })
		if ms := n.Members(); len(ms) != 3 || !ms[0].Voter || !ms[1].Voter || !ms[2].Voter {
			t.Errorf("node %d: Members() = %+v", i, ms)
		}
	}
	for i := range c.nodes { // later starts say the same, and found nothing
		c.close(i)
		c.open(i)
	}
	c.same()
	for i, n := range c.nodes {
		if got, err := n.Manifest(t.Context(), m.Module); err != nil || !sameParts(got, m) {
			t.Errorf("node %d: Manifest() = %+v, %v", i, got, err)
		}
		if id, err := readIdentity(n.identityPath()); err != nil || id.Cluster != "THE-CLUSTER" {
			t.Errorf("node %d: node.json is %+v, %v", i, id, err)
		}
	}
}

func TestFoundRefused(t *testing.T) {
	for name, f := range map[string]*Founding{
		"without itself": {Cluster: "C", Servers: []Member{{ID: "x", Address: "y"}}},
		"without a name": {},
	} {
		if _, err := Open(t.Context(), Config{Dir: t.TempDir(), Found: f}); err == nil || !strings.Contains(err.Error(), "asked to found") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A start that died before it had a log has founded nothing: the next one may join another cluster.
func TestFoundingInterrupted(t *testing.T) {
	dir := t.TempDir()
	n := &Node{config: Config{Dir: dir, Found: &Founding{Cluster: "C"}}}
	var err error
	if n.id, err = loadIdentity(dir); err != nil {
		t.Fatal(err)
	}
	if err := n.choose(); err != nil {
		t.Fatal(err)
	}
	if id, err := Identify(dir); err != nil || id.Cluster != "C" || !id.Fresh {
		t.Errorf("Identify() = %+v, %v", id, err)
	}
	joined := openNode(t, Config{Dir: dir, Join: true})
	if id, err := readIdentity(n.identityPath()); err != nil || id.Cluster != "" || len(joined.Members()) != 0 {
		t.Errorf("a node that is to join founds %+v, %v: %+v", id, err, joined.Members())
	}
}

// A node that ran alone for long, and whose catalog has no node table, becomes three.
func TestOldNodeGrows(t *testing.T) {
	var held completeness
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) { conf.Complete = held.of }
	i := c.add()
	n := openNode(t, Config{Dir: c.dirs[i]})
	c.nodes[i] = n
	c.db = trusting(t, n)
	old := c.publish("example.com/a", "v1.0.0")
	if all, err := n.Peers(t.Context()); err != nil || len(all) != 1 || all[0].Name != "" {
		t.Errorf("Peers() of a node that is alone = %+v, %v", all, err)
	}
	c.close(0)
	c.open(0)
	c.registered(0)
	held.set(c.nodes[0].ID(), everything)
	for len(c.nodes) < 3 {
		i := c.add()
		c.join(i, false)
		held.set(c.nodes[i].ID(), everything)
	}
	waitFor(t, "three voters", func() bool { return len(c.voters()) == 3 })
	c.publishAt(c.follower(), "example.com/b", "v1.0.0")
	c.same()
	for i, n := range c.nodes {
		if m, err := n.Manifest(t.Context(), old.Module); err != nil || !sameParts(m, old) {
			t.Errorf("node %d: %+v, %v", i, m, err)
		}
	}
	c.close(c.indexOf(c.leader()))
	c.publish("example.com/c", "v1.0.0")
}
