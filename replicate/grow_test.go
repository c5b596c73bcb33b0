package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// completeness is what nodes say of their blobs, in tests.
type completeness struct {
	mu  sync.Mutex
	seq map[string]int64 // guarded by mu; by node
}

func (c *completeness) of(id string) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seq, ok := c.seq[id]
	return seq, ok
}

func (c *completeness) set(id string, seq int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seq == nil {
		c.seq = map[string]int64{}
	}
	c.seq[id] = seq
}

const everything = 1 << 40

func (c *cluster) voters() (names []string) {
	all, err := c.leader().Peers(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range all {
		if p.Voter {
			names = append(names, p.Name)
		}
	}
	return names
}

func (c *cluster) votes(i int) bool {
	for _, name := range c.voters() {
		if name == fmt.Sprintf("node%d", i) {
			return true
		}
	}
	return false
}

// A nonvoter becomes a voter when it holds every blob and there are too few, of a new zone first; a replica never does.
func TestPromotion(t *testing.T) {
	var held completeness
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		conf.Complete = held.of
		conf.Self.Zone = []string{"a", "a", "b", "b", "c"}[i]
		conf.Self.Role = []string{"", "", "", "replica", ""}[i]
	}
	c.grow(1)
	held.set(c.nodes[0].ID(), everything)
	c.publish("example.com/a", "v1.0.0")
	for range 4 {
		c.join(c.add(), false)
	}
	c.same()
	for i := 1; i < 5; i++ {
		held.set(c.nodes[i].ID(), 0)
	}
	held.set(c.nodes[3].ID(), everything)
	if err := c.leader().Promote(t.Context(), c.nodes[1].ID()); !isIncomplete(err, c.nodes[1].ID()) || !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Promote of a node that lacks a blob: %v", err)
	}
	if got := c.voters(); len(got) != 1 {
		t.Errorf("voters are %v before anybody else is complete", got)
	}
	for _, i := range []int{2, 4} {
		held.set(c.nodes[i].ID(), everything)
		waitFor(t, "promotion", func() bool { return c.votes(i) })
	}
	held.set(c.nodes[1].ID(), everything)
	lead := c.leader()
	var g grower // a look, and another
	for range 3 {
		if err := g.step(t.Context(), lead); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(c.voters(), " "); len(c.voters()) != 3 || c.votes(1) || c.votes(3) {
		t.Errorf("voters are %s, want node0, node2 and node4", got)
	}
	// An operator can have more, and what he takes away is not given back.
	c.lead("promote", func(lead *Node) error { return lead.Promote(t.Context(), c.nodes[3].ID()) })
	if !c.votes(3) {
		t.Error("a replica that an operator promoted has no vote")
	}
	for _, i := range []int{3, 4} {
		c.lead("demote", func(lead *Node) error { return lead.Demote(t.Context(), c.nodes[i].ID()) })
	}
	waitFor(t, "promotion of another one", func() bool { return c.votes(1) })
	if c.votes(4) || c.votes(3) {
		t.Errorf("voters are %v, want node0, node1 and node2", c.voters())
	}
	c.publish("example.com/b", "v1.0.0")
	c.same()
}

func isIncomplete(err error, id string) bool {
	var e *IncompleteError
	return errors.As(err, &e) && e.Node == id && strings.Contains(err.Error(), id)
}

// The candidate of a zone without a voter comes first.
func TestCandidate(t *testing.T) {
	var held completeness
	n := &Node{config: Config{Voters: 3, Complete: held.of}}
	peers := []Peer{
		{ID: "1", Zone: "a", Role: RoleVoter, Member: true, Voter: true},
		{ID: "2", Zone: "a", Role: RoleVoter, Member: true},
		{ID: "3", Zone: "b", Role: RoleVoter, Member: true},
		{ID: "4", Zone: "c", Role: RoleVoter, Member: true, Held: true},
		{ID: "5", Zone: "c", Role: RoleVoter},
		{ID: "6", Zone: "c", Role: RoleReplica, Member: true},
		{ID: "7", Zone: "c", Role: RoleVoter, Member: true},
	}
	for _, p := range peers {
		held.set(p.ID, 9)
	}
	held.set("7", 8)
	if p, ok := n.candidate(peers, 9); !ok || p.ID != "3" {
		t.Errorf("candidate() = %+v, %v, want 3", p, ok)
	}
	peers[2].Voter = true
	if p, ok := n.candidate(peers, 9); !ok || p.ID != "2" {
		t.Errorf("candidate() = %+v, %v, want 2, as 7 is not complete", p, ok)
	}
	n.pulse.heard("2", false)
	if p, ok := n.candidate(peers, 9); ok {
		t.Errorf("candidate() = %+v, and it does not answer", p)
	}
	n.pulse.heard("2", true)
	peers[1].Voter = true
	held.set("7", 9)
	if p, ok := n.candidate(peers, 9); ok {
		t.Errorf("candidate() = %+v, and there are three voters", p)
	}
}

// Five voters of three zones become 2, 2 and 1, whoever was there first, and of a zone those first that can do everything.
func TestVotersSpread(t *testing.T) {
	var held completeness
	unfit := map[string]bool{"b1": true}
	n := &Node{config: Config{Voters: 5, Complete: held.of, Fit: func(id string) bool { return !unfit[id] }}}
	var peers []Peer
	for _, id := range []string{"a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3"} {
		peers = append(peers, Peer{ID: id, Zone: id[:1], Role: RoleVoter, Member: true})
		held.set(id, 9)
	}
	peers[2].Voter = true
	var order []string
	for {
		p, ok := n.candidate(peers, 9)
		if !ok {
			break
		}
		order = append(order, p.ID)
		for i := range peers {
			peers[i].Voter = peers[i].Voter || peers[i].ID == p.ID
		}
	}
	if got, want := strings.Join(order, " "), "b2 c1 a1 b3"; got != want {
		t.Errorf("after a3 %s become voters, want %s", got, want)
	}
}

// The next change waits for the one before, and who does not say what it holds does not count as alive.
func TestCaughtUp(t *testing.T) {
	var held completeness
	n := &Node{config: Config{Complete: held.of}}
	n.id.Node = "1"
	all := []Peer{{ID: "1", Member: true, Voter: true}, {ID: "2", Member: true, Voter: true}, {ID: "3", Member: true}}
	held.set("1", 9)
	held.set("3", 0)
	if !n.caughtUp(all, 9) {
		t.Error("who is dead, or no voter, holds up the next change")
	}
	if q := n.quorumWith(all, "", false); q != (Quorum{2, 2, 1}) {
		t.Errorf("quorumWith() = %+v with a voter that says nothing", q)
	}
	held.set("2", 8)
	if n.caughtUp(all, 9) {
		t.Error("a voter that lacks something does not hold up the next change")
	}
	if q := n.quorumWith(all, "3", true); q != (Quorum{3, 2, 3}) {
		t.Errorf("quorumWith() = %+v", q)
	}
}

// A voter goes only if the rest can go on without it, and lacks nothing.
func TestRemovalRefused(t *testing.T) {
	var held completeness
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		conf.Complete = held.of
		conf.Voters = 1 // promoted by hand
	}
	c.grow(1)
	held.set(c.nodes[0].ID(), everything)
	for len(c.nodes) < 3 {
		i := c.add()
		id, err := Identify(c.dirs[i])
		if err != nil {
			t.Fatal(err)
		}
		held.set(id.Node, everything)
		c.join(i, true)
	}
	c.publish("example.com/a", "v1.0.0")
	lead := c.leader()
	var rest []*Node
	for _, n := range c.nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	ctx := t.Context()
	if err := lead.Remove(ctx, "nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of nobody: %v", err)
	}
	if err := rest[0].Remove(ctx, rest[1].ID()); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Remove at a follower: %v", err)
	}
	if err := lead.Remove(ctx, lead.ID()); err == nil || !strings.Contains(err.Error(), "transfer the leadership") {
		t.Errorf("Remove of the leader: %v", err)
	}
	for what, f := range map[string]func(context.Context, string) error{"Remove": lead.Remove, "Demote": lead.Demote} {
		held.set(rest[1].ID(), 0)
		if err := f(ctx, rest[0].ID()); !isIncomplete(err, rest[1].ID()) || !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("%s while a remaining voter lacks a blob: %v", what, err)
		}
		held.set(rest[1].ID(), everything)
		c.host(c.indexOf(rest[1])).partition(true)
		waitFor(t, "silence", func() bool { return !lead.pulse.answers(rest[1].ID()) })
		q, err := lead.Quorum(ctx)
		if err != nil || q != (Quorum{3, 2, 2}) {
			t.Errorf("Quorum() = %+v, %v", q, err)
		}
		if q, err := lead.QuorumAfter(ctx, rest[0].ID(), false); err != nil || q != (Quorum{2, 2, 1}) {
			t.Errorf("QuorumAfter() = %+v, %v", q, err)
		}
		var quorum *QuorumError
		if err := f(ctx, rest[0].ID()); !errors.As(err, &quorum) || quorum.After != (Quorum{2, 2, 1}) || !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("%s that leaves one of two: %v", what, err)
		}
		c.host(c.indexOf(rest[1])).partition(false)
		waitFor(t, "answer", func() bool { return lead.pulse.answers(rest[1].ID()) })
	}
	if got := c.voters(); len(got) != 3 {
		t.Fatalf("voters are %v after refusals", got)
	}
	c.lead("remove", func(lead *Node) error { return lead.Remove(ctx, rest[0].ID()) })
	c.lead("demote", func(lead *Node) error { return lead.Demote(ctx, rest[1].ID()) })
	if err := lead.Demote(ctx, lead.ID()); !isLast(err) {
		t.Errorf("Demote of the last voter: %v", err)
	}
}

func isLast(err error) bool {
	var q *QuorumError
	return errors.As(err, &q) && q.After.Voters == 0 && strings.Contains(err.Error(), "last voter")
}

// A node that is removed notices, says so, and never comes back; its name is free.
func TestRemoved(t *testing.T) {
	refused := make(chan error, 9)
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		if i == 2 {
			conf.OnRefused = func(err error) { refused <- err }
			conf.Join = true
		}
	}
	c.grow(3)
	m := c.publish("example.com/a", "v1.0.0")
	c.same()
	if c.leader() == c.nodes[2] {
		c.lead("transfer", func(lead *Node) error {
			if lead != c.nodes[2] {
				return nil
			}
			return lead.TransferLeadership(t.Context())
		})
		waitFor(t, "other leader", func() bool { return c.leader() != c.nodes[2] })
	}
	gone := c.nodes[2]
	c.lead("remove", func(lead *Node) error { return lead.Remove(t.Context(), gone.ID()) })
	if err := <-refused; !errors.Is(err, ErrRemoved) || !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("OnRefused(%v)", err)
	}
	st, err := gone.Status(t.Context())
	if err != nil || !strings.Contains(st.Refused, "was removed") {
		t.Errorf("Status() of a removed node = %+v, %v", st, err)
	}
	if _, err := gone.Manifest(t.Context(), m.Module); err != nil {
		t.Errorf("a removed node does not read: %v", err)
	}
	if err := gone.TrustDatabase(t.Context(), "x+1+y"); err == nil {
		t.Error("a removed node writes")
	}
	c.close(2)
	lead := c.leader()
	n := c.open(2)
	if err := lead.Check(n.Self()); !errors.Is(err, ErrRemoved) {
		t.Errorf("Check of a removed node: %v", err)
	}
	if err := lead.Join(t.Context(), Member{ID: n.ID(), Address: c.addr(2)}); !errors.Is(err, ErrRemoved) {
		t.Errorf("Join of a removed node: %v", err)
	}
	if err := <-refused; !errors.Is(err, ErrRemoved) {
		t.Errorf("OnRefused(%v)", err)
	}
	c.close(2)
	c.dirs[2] = t.TempDir() // the machine again, with an empty disk
	c.join(2, true)
	c.publish("example.com/b", "v1.0.0")
	c.same()
	all, err := c.leader().Peers(t.Context())
	if err != nil || len(all) != 3 {
		t.Errorf("Peers() = %+v, %v", all, err)
	}
}

// A removal that its leader began and did not end is ended by the next one.
func TestRemovalGoesOn(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader()
	i := c.follower()
	id := c.nodes[i].ID()
	if _, err := lead.propose(t.Context(), forgetCommand{id}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end of the removal", func() bool { return len(c.leader().Members()) == 2 })
	c.close(i)
	c.publish("example.com/a", "v1.0.0")
}

// Of two voters one can be removed, although that takes both votes: it votes on until it is out.
func TestRemoveOneOfTwo(t *testing.T) {
	refused := make(chan error, 9)
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		conf.OnRefused = func(err error) { refused <- err }
		conf.reconcile = time.Hour
	}
	c.grow(2)
	lead := c.leader()
	i := c.follower()
	id := c.nodes[i].ID()
	if _, err := lead.propose(t.Context(), forgetCommand{id}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "word of the removal", func() bool { gone, err := c.nodes[i].isGone(id); return gone && err == nil })
	for i := range 2 {
		if err := lead.TrustDatabase(t.Context(), replicatetest.NewDatabase(t, fmt.Sprintf("other%d.example.org", i)).Key); err != nil {
			t.Errorf("a write that needs both votes: %v", err)
		}
	}
	if len(refused) > 0 {
		t.Errorf("OnRefused(%v) while its vote is needed", <-refused)
	}
	c.lead("take out", func(lead *Node) error { return lead.drop(t.Context(), id, 0) })
	if err := <-refused; !errors.Is(err, ErrRemoved) {
		t.Errorf("OnRefused(%v)", err)
	}
	c.close(i)
	c.publish("example.com/c", "v1.0.0")
}

// A leader that takes itself out ends, and says why.
func TestLeaderTakenOut(t *testing.T) {
	refused := make(chan error, 9)
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) { conf.OnRefused = func(err error) { refused <- err } }
	c.grow(3)
	lead := c.leader()
	lead.drop(t.Context(), lead.ID(), 0) // may be too late to be answered
	if err := <-refused; !errors.Is(err, ErrRemoved) {
		t.Errorf("OnRefused(%v)", err)
	}
	c.close(c.indexOf(lead))
	c.publish("example.com/a", "v1.0.0")
}

// A voter that leaves with its leadership hands it over first.
func TestTransferAndClose(t *testing.T) {
	c := newCluster(t, 3)
	for range 2 {
		lead := c.leader()
		i := c.indexOf(lead)
		if err := lead.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.close(i)
		c.publish("example.com/a", fmt.Sprintf("v1.%d.0", i))
		c.open(i)
		c.registered(i)
		c.same()
	}
}

// A change of the members is over when the voters hold what those of before had acked, also what was applied only after it.
func TestChangeSettles(t *testing.T) {
	var held completeness
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(_ int, conf *Config) {
		conf.Complete = held.of
		conf.reconcile = time.Hour // by hand, below
	}
	c.grow(1)
	lead := c.leader()
	held.set(lead.ID(), everything)
	for range 2 {
		c.join(c.add(), false)
	}
	second, third := c.nodes[1].ID(), c.nodes[2].ID()
	held.set(second, everything)
	held.set(third, -1)
	var g grower
	step := func() {
		t.Helper()
		if err := g.step(t.Context(), lead); err != nil {
			t.Fatal(err)
		}
	}
	step()
	step()
	if !c.votes(1) || c.votes(2) {
		t.Fatalf("voters are %v, want the first two", c.voters())
	}
	c.publish("example.com/acked-by-the-first-alone", "v1.0.0")
	seq, _ := lead.Root()
	held.set(second, seq-1)
	held.set(third, everything)
	step()
	step()
	if c.votes(2) {
		t.Error("a third voter, while the second lacks what the first alone had acked")
	}
	held.set(second, seq)
	step()
	if !c.votes(2) {
		t.Error("no third voter, though the second holds everything")
	}
}

// A change of the members that was judged by another configuration than there is then is not made.
func TestChangeOfAnotherConfiguration(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader()
	at, err := lead.configured(t.Context())
	if err != nil || at == 0 {
		t.Fatalf("configured() = %d, %v", at, err)
	}
	c.join(c.add(), false)
	if err := lead.suffrage(t.Context(), c.nodes[3].ID(), true, at); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "configuration changed") {
		t.Errorf("a promotion judged by the configuration before: %v", err)
	}
	follower := c.nodes[c.follower()]
	if err := lead.drop(t.Context(), follower.ID(), at); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("a removal judged by the configuration before: %v", err)
	}
	if got := c.voters(); len(got) != 3 {
		t.Errorf("voters are %v", got)
	}
	if _, err := follower.configured(t.Context()); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("configured() at a follower: %v", err)
	}
}

// Two removals at a time are judged one after the other, also when another leader has begun the first.
func TestRemovalsInTurn(t *testing.T) {
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(_ int, conf *Config) { conf.reconcile = time.Hour }
	c.grow(3)
	lead := c.leader()
	var rest []*Node
	for _, n := range c.nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	if _, err := lead.propose(t.Context(), forgetCommand{rest[0].ID()}); err != nil { // and then its leader died
		t.Fatal(err)
	}
	if err := lead.Remove(t.Context(), rest[1].ID()); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "is being removed") {
		t.Errorf("Remove() while another node is being removed = %v", err)
	}
	if gone, err := lead.isGone(rest[1].ID()); gone || err != nil {
		t.Errorf("isGone() = %v, %v after a removal that was refused", gone, err)
	}
	lead.turn <- struct{}{} // somebody else is at it
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for what, f := range map[string]func(context.Context, string) error{"Remove": lead.Remove, "Demote": lead.Demote, "Promote": lead.Promote} {
		if err := f(ctx, rest[1].ID()); !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another change") {
			t.Errorf("%s while another change is under way: %v", what, err)
		}
	}
}

// Whoever did not hear what became of a removal may ask for it again.
func TestRemoveTwice(t *testing.T) {
	c := newCluster(t, 3)
	lead := c.leader()
	for _, n := range c.nodes {
		if n == lead {
			continue
		}
		for range 2 {
			c.lead("remove", func(lead *Node) error { return lead.Remove(t.Context(), n.ID()) })
		}
		return
	}
}
