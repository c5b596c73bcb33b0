package statuspage

import (
	"testing"
	"time"
)

// The mirror's state in a sentence: the worst that is true comes first.
func TestSentence(t *testing.T) {
	edit := func(nodes int, f func(*Cluster)) Cluster {
		c := healthy(nodes)
		if f != nil {
			f(&c)
		}
		return c
	}
	kill := func(c *Cluster) {
		n := &c.Zones[1].Nodes[0]
		n.Silent, n.State = true, Bad
		c.Alive--
	}
	one := Cluster{Self: "a", Leader: "a", Voters: 1, Alive: 1, Zones: []Zone{{Nodes: []Node{{ID: "a"}}}}}
	alone := func(f func(*Cluster)) Cluster { c := one; f(&c); return c }
	for _, c := range []struct {
		c     Cluster
		state State
		text  string
	}{
		{one, OK, "This mirror is healthy: everything that is held is served, new modules are taken in."},
		{alone(func(c *Cluster) { c.Offline = true }), OK, "This mirror is healthy: everything that is held is served, nothing is fetched (it runs offline)."},
		{alone(func(c *Cluster) { c.Ready = "about to stop" }), Bad, "This node should get no requests now: about to stop."},
		{alone(func(c *Cluster) { c.Writes = "the disk is full" }), Warn, "Everything that is held is served, but this node takes in nothing new: the disk is full."},
		{edit(3, nil), OK, "All 3 nodes in 2 zones are healthy: everything is served, new modules are taken in, and any one voter may fail."},
		{edit(5, nil), OK, "All 5 nodes in 2 zones are healthy: everything is served, new modules are taken in, and any 2 voters may fail."},
		{edit(3, kill), Warn, "1 of 3 nodes does not answer. Everything is served, new modules are taken in, and no more voter may fail."},
		{edit(5, kill), Warn, "1 of 5 nodes does not answer. Everything is served, new modules are taken in, and any one more voter may fail."},
		{edit(3, func(c *Cluster) { c.Alive = 1 }), Bad, "Everything that is held is served, but nothing new is committed: 1 of 3 voters answer, and 2 are needed."},
		{edit(3, func(c *Cluster) { c.Leader = "" }), Bad, "Everything that is held is served, but nothing new is committed: the nodes have no leader."},
		{edit(3, func(c *Cluster) { c.Zones[0].Nodes[1].State = Warn }), Warn, "1 of 3 nodes needs attention. Everything is served, new modules are taken in."},
		{edit(3, func(c *Cluster) { c.Problems = []string{"x"} }), Warn, "Everything is served, new modules are taken in, and there is something to look at."},
	} {
		if state, text := c.c.sentence(); state != c.state || text != c.text {
			t.Errorf("%s %q,\nwant %s %q", state, text, c.state, c.text)
		}
	}
}

func TestHealthOfZone(t *testing.T) {
	ok, warn, bad, dead := Node{}, Node{State: Warn}, Node{State: Bad}, Node{State: Bad, Silent: true}
	for _, c := range []struct {
		nodes []Node
		state State
		text  string
	}{
		{[]Node{ok, ok}, OK, "healthy"}, {[]Node{ok, warn}, Warn, "1 of 2 healthy"}, {[]Node{ok, dead}, Warn, "1 of 2 healthy"}, {[]Node{dead, dead}, Bad, "silent"}, {[]Node{bad, ok, ok}, Warn, "2 of 3 healthy"},
	} {
		if state, text := (Zone{Nodes: c.nodes}).health(); state != c.state || text != c.text {
			t.Errorf("%v: %s %q, want %s %q", c.nodes, state, text, c.state, c.text)
		}
	}
}

func TestNumbersForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Hour: "now", time.Second: "now", 99 * time.Second: "99 s ago", 100 * time.Second: "1 min ago", 99*time.Minute + 59*time.Second: "99 min ago",
		100 * time.Minute: "1 h ago", 47 * time.Hour: "47 h ago", 48 * time.Hour: "2 days ago"} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 KB", 9_940: "9.9 KB", 10_000: "10 KB", 999_499: "999 KB", 999_500: "1.0 MB", 480e9: "480 GB", 1 << 63: "9.2 EB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("bytesOf(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %q, want %q", n, got, want)
		}
	}
}
