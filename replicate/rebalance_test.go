package replicate

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// crowd is a cluster whose first nodes, all of one zone, are its voters, and which looks after its members only when told.
type crowd struct {
	*cluster
	held  completeness
	grown map[*Node]*grower
}

func newCrowd(t *testing.T, zones string, voters int, steady time.Duration) *crowd {
	c := &crowd{cluster: &cluster{t: t, net: newNetwork()}, grown: map[*Node]*grower{}}
	c.config = func(i int, conf *Config) {
		conf.Complete = c.held.of
		conf.Self.Zone = zones[i : i+1]
		conf.Voters, conf.reconcile, conf.steady = voters, time.Hour, steady
	}
	c.open(c.add())
	c.held.set(c.nodes[0].ID(), everything)
	c.db = trusting(t, c.nodes[0])
	for i := 1; i < len(zones); i++ {
		c.add()
		id, err := Identify(c.dirs[i])
		if err != nil {
			t.Fatal(err)
		}
		c.held.set(id.Node, everything)
		c.join(i, i < voters)
	}
	c.publish("example.com/a", "v1.0.0")
	c.same()
	return c
}

// step has the leader look once.
func (c *crowd) step() {
	c.t.Helper()
	lead := c.leader()
	if c.grown[lead] == nil {
		c.grown[lead] = &grower{}
	}
	if err := c.grown[lead].step(c.t.Context(), lead); err != nil {
		c.t.Logf("look: %v", err)
	}
}

// until has the leader look until something is so.
func (c *crowd) until(what string, so func() bool) {
	c.t.Helper()
	for range 10 {
		if so() {
			return
		}
		c.step()
	}
	c.t.Fatalf("there is not %s: the voters are of the zones %s, a vote is on its way to %q", what, c.spread(), c.note())
}

// spread returns the zones of the voters, sorted.
func (c *crowd) spread() string {
	var zones []string
	all, err := c.leader().Peers(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range all {
		if p.Voter {
			zones = append(zones, p.Zone)
		}
		if p.Held {
			c.t.Errorf("%s is held back", p.Name)
		}
	}
	slices.Sort(zones)
	return strings.Join(zones, "")
}

func (c *crowd) note() (to string) {
	if err := c.leader().view(func(s state) error { to = s.rebalancing(); return nil }); err != nil {
		c.t.Fatal(err)
	}
	return to
}

// Voters that are crowded in one zone are spread, one after the other, without ever being fewer than wanted.
func TestRebalance(t *testing.T) {
	c := newCrowd(t, "aaabc", 3, time.Nanosecond)
	lead := c.leader()
	var seen []string
	for range 20 {
		c.step()
		if got := c.spread(); len(seen) == 0 || seen[len(seen)-1] != got {
			seen = append(seen, got)
		}
	}
	if got, want := strings.Join(seen, " "), "aaa aaab aab aabc abc"; got != want && got != "aaa aaac aac aabc abc" {
		t.Errorf("the voters were of the zones %s, want %s", got, want)
	}
	if c.leader() != lead || !slices.ContainsFunc(lead.Members(), func(m Member) bool { return m.ID == lead.ID() && m.Voter }) {
		t.Error("the leader has demoted itself")
	}
	if to := c.note(); to != "" {
		t.Errorf("a vote is still on its way to %s", to)
	}
	c.publish("example.com/b", "v1.0.0")
	c.same()
}

// The second step waits until all that stay hold every blob: the one that goes may have the only other copy.
func TestRebalanceWaits(t *testing.T) {
	c := newCrowd(t, "aaab", 3, time.Nanosecond)
	lead, seq := c.leader(), int64(0)
	lead.config.reconcile = time.Millisecond // between two looks at who holds what
	c.until("one more voter", func() bool { return c.spread() == "aaab" })
	b := c.nodes[3].ID()
	seq, _ = lead.Root()
	c.held.set(b, seq-1)
	c.step()
	c.held.set(b, seq) // all that the voters of before had acked, and not what comes now
	c.publish("example.com/acked-by-others", "v1.0.0")
	seq++
	for range 4 {
		c.step()
	}
	if got := c.spread(); got != "aaab" {
		t.Errorf("the voters are of the zones %s, while one that stays lacks a blob", got)
	}
	lead.config.steady = time.Hour // so long it may be silent
	lead.pulse.heard(b, false)
	c.held.set(b, seq)
	for range 4 {
		c.step()
	}
	if got := c.spread(); got != "aaab" {
		t.Errorf("the voters are of the zones %s, while one that stays is silent", got)
	}
	lead.pulse.heard(b, true)
	c.until("one fewer", func() bool { return c.spread() == "aab" })
}

// Whatever the leader dies after, the next one goes on.
func TestRebalanceGoesOn(t *testing.T) {
	c := newCrowd(t, "aaab", 3, time.Nanosecond)
	var seen []string
	for range 12 {
		c.step()
		c.step() // what was acked before the first is held by then
		state := c.spread()
		if c.note() != "" {
			state += "+"
		}
		if len(seen) == 0 || seen[len(seen)-1] != state {
			seen = append(seen, state)
			i := c.indexOf(c.leader())
			c.close(i) // the rest has a majority in each step
			c.leader()
			c.open(i)
			c.registered(i)
			c.same()
			c.grown = map[*Node]*grower{}
		}
	}
	got := strings.Join(seen, " ")
	if !strings.HasPrefix(got, "aaa") || !strings.HasSuffix(got, " aab") || strings.Contains(got, "aabb") {
		t.Errorf("the voters were of the zones %s, want aaa+ aaab+ aab+ aab", got)
	}
	for _, want := range []string{"aaab+", "aab"} {
		if !slices.Contains(seen, want) {
			t.Errorf("the voters were of the zones %s, and never %s", got, want)
		}
	}
}

// Nothing moves for a node that was away in between, while a voter is silent, for a difference of one, for more voters than
// wanted, and for a node that an operator holds back.
func TestRebalanceNot(t *testing.T) {
	c := newCrowd(t, "aaab", 3, 10*time.Second)
	b := c.nodes[3].ID()
	lead, now := c.leader(), time.Now()
	all, err := lead.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	goal, _ := lead.Root()
	deprived := func() string {
		if p, ok := lead.deprived(all, goal); ok {
			return p.ID
		}
		return ""
	}
	if deprived() != b {
		t.Fatalf("the node that should get a vote is %q", deprived())
	}
	var even steadiness
	for i := range 60 { // it comes and goes every 10 s
		if i/10%2 == 1 {
			even = steadiness{}
		} else if even.lasts(b, now.Add(time.Duration(i)*time.Second), lead.config.steady) {
			t.Fatalf("a vote moves after %d s to a node that comes and goes", i)
		}
	}
	c.held.set(b, 0)
	if got := deprived(); got != "" {
		t.Errorf("a vote moves to %s, which lacks blobs", got)
	}
	c.held.set(b, everything)
	for _, p := range all {
		if p.Voter && p.ID != lead.ID() {
			lead.pulse.heard(p.ID, false)
			if got := deprived(); got != "" {
				t.Errorf("a vote moves to %s while %s is silent", got, p.Name)
			}
			lead.pulse.heard(p.ID, true)
		}
	}
	change := func(i int, f func(p *Peer)) {
		old := all
		all = slices.Clone(all)
		for j := range all {
			if all[j].ID == c.nodes[i].ID() {
				f(&all[j])
			}
		}
		if got := deprived(); got != "" {
			t.Errorf("a vote moves to %s with node %d changed", got, i)
		}
		all = old
	}
	change(3, func(p *Peer) { p.Held = true })
	change(3, func(p *Peer) { p.Role = RoleReplica })
	change(3, func(p *Peer) { p.Zone = "a" })
	change(3, func(p *Peer) { p.Voter = true })  // more than wanted
	change(2, func(p *Peer) { p.Voter = false }) // fewer
	lead.config.Fit = func(id string) bool { return id != b }
	if got := deprived(); got != "" {
		t.Errorf("a vote moves to %s, which takes no artifacts", got)
	}
	// What an operator wants is left alone.
	lead.config.Fit, lead.config.steady = nil, time.Nanosecond
	c.lead("promote", func(lead *Node) error { return lead.Promote(t.Context(), b) })
	for range 6 {
		c.step()
	}
	if got := c.spread(); got != "aaab" {
		t.Errorf("the voters are of the zones %s after an operator promoted one more", got)
	}
}

// A vote that is on its way to a node that cannot have it any more stays where it was.
func TestRebalanceEnds(t *testing.T) {
	c := newCrowd(t, "aaab", 3, time.Nanosecond)
	b := c.nodes[3].ID()
	c.until("a vote on its way", func() bool { return c.note() != "" })
	c.held.set(b, 0)
	c.until("no vote on its way", func() bool { return c.note() == "" })
	if to, got := c.note(), c.spread(); to != "" || got != "aaa" {
		t.Errorf("a vote is on its way to %q, voters are of the zones %s", to, got)
	}
	c.held.set(b, everything)
	c.until("a vote on its way", func() bool { return c.note() != "" })
	if err := c.leader().Remove(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	c.until("no vote on its way", func() bool { return c.note() == "" })
	if to, got := c.note(), c.spread(); to != "" || got != "aaa" {
		t.Errorf("a vote is on its way to %q, which was removed; voters are of the zones %s", to, got)
	}
}

// A voter that is silent between the two steps does not keep the cluster at one voter more than wanted: it loses its own, after
// a while, whoever it is.
func TestRebalanceWithoutOne(t *testing.T) {
	for _, test := range []struct {
		zones, want string
		dead        int
	}{
		{"aacb", "aab", 2}, // of a zone that has no other
		{"aaab", "aaa", 3}, // the one that has just got its vote
		{"aaab", "aab", 1}, // of the crowded zone
	} {
		c := newCrowd(t, test.zones, 3, time.Nanosecond)
		lead := c.leader()
		c.until("one more voter", func() bool { return len(c.spread()) == 4 })
		lead.config.steady = time.Hour
		dead := c.nodes[test.dead].ID()
		if lead.ID() == dead {
			t.Fatal("the first node does not lead")
		}
		lead.pulse.heard(dead, false)
		crowded := test.dead == 1
		for range 4 {
			c.step()
		}
		if got := c.spread(); !crowded && len(got) != 4 {
			t.Errorf("%s: the voters are of the zones %s at once", test.zones, got)
		}
		lead.config.steady = time.Nanosecond
		c.until("one fewer", func() bool { return c.spread() == test.want && c.note() == "" })
		if slices.ContainsFunc(lead.Members(), func(m Member) bool { return m.ID == dead && m.Voter }) {
			t.Errorf("%s: the silent one has kept its vote", test.zones)
		}
		if even := c.grown[lead].even; even.what == dead {
			t.Errorf("%s: it counts that the silent one was so, since %v, when it comes back", test.zones, even.since)
		}
	}
}

// Who is promoted by an operator while a vote is on its way keeps that, and who is needed is promoted then.
func TestRebalanceAndOperator(t *testing.T) {
	c := newCrowd(t, "aaabc", 3, time.Nanosecond)
	c.until("one more voter", func() bool { return c.spread() == "aaab" || c.spread() == "aaac" })
	for _, n := range c.nodes[3:] {
		c.lead("promote", func(lead *Node) error { return lead.Promote(t.Context(), n.ID()) })
	}
	for range 6 {
		c.step()
	}
	if got := c.spread(); got != "aabc" || c.note() != "" {
		t.Errorf("the voters are of the zones %s, a vote is on its way to %q; want aabc: one more than wanted, as the operator promoted one", got, c.note())
	}

	// Too few are left, and one of them is silent.
	c = newCrowd(t, "aaaab", 4, time.Nanosecond)
	lead := c.leader()
	c.until("one more voter", func() bool { return c.spread() == "aaaab" })
	lead.config.steady = time.Hour
	for i := 1; i < 3; i++ {
		c.lead("demote", func(lead *Node) error { return lead.Demote(t.Context(), c.nodes[i].ID()) })
	}
	lead.pulse.heard(c.nodes[4].ID(), false)
	c.lead("allow", func(lead *Node) error {
		_, err := lead.propose(t.Context(), holdCommand{c.nodes[1].ID(), false})
		return err
	})
	for range 6 {
		c.step()
	}
	if to := c.note(); to != "" {
		t.Errorf("a vote is on its way to %s while there are too few", to)
	}
}

// A vote that is on its way to a node that nobody knows, as in a catalog that was restored for a new cluster, keeps nobody from
// being promoted.
func TestRebalanceToNobody(t *testing.T) {
	c := newCrowd(t, "ab", 1, time.Nanosecond)
	for _, n := range c.nodes {
		if err := n.update(func(s state) error { return s.bucket(bucketConfig).Put(keyRebalance, []byte("LOST")) }); err != nil {
			t.Fatal(err)
		}
	}
	c.leader().config.Voters = 3
	c.until("a second voter", func() bool { return c.spread() == "ab" && c.note() == "" })
}

// Below its level a vote is not moved, and nobody gets one that is not known.
func TestRebalanceNeedsLevel(t *testing.T) {
	m := newMachine(t)
	p := Peer{ID: "ID1", Name: "one", Role: RoleVoter, Boot: "B", Starts: 1, Level: newestLevel}
	r := m.apply(registerCommand{p}, rebalanceCommand{"ID1"}, levelCommand{rebalanceLevel, "ID1"}, rebalanceCommand{"ID2"}, rebalanceCommand{"ID1"})
	for i, refused := range []bool{false, true, false, true, false} {
		if (r[i].err != nil) != refused {
			t.Errorf("command %d: %v", i, r[i].err)
		}
	}
	if !strings.Contains(dump(t, m.catalog), `cfg "rebalance" = "ID1"`) {
		t.Error("nothing says that a vote is on its way")
	}
	m.apply(rebalanceCommand{""})
	if strings.Contains(dump(t, m.catalog), `"rebalance"`) {
		t.Error("a vote is still on its way")
	}
}
