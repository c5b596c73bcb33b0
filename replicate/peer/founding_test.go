package peer

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// founding is some fresh nodes that try to found a cluster over a network that delays, loses and repeats what they say to
// each other, while they start again at any time. What they decide is decided by the code of Form; only the calls between
// nodes are done here, one at a time.
type founding struct {
	t      *testing.T
	expect int
	nodes  []*foundingNode
	calls  []call // that were sent, and may arrive now, later, again or never
}

type foundingNode struct {
	*former
	accepted map[string]map[string]bool // who has said yes to this node's proposal, by cluster
}

// call is a request that a proposer has sent.
type call struct {
	to    int
	abort bool
	p     Proposal
}

// state returns what node i says of itself, as it answers GET /v1/form.
func (f *founding) state(i int) formState {
	st := formState{Hello: f.nodes[i].link.Self()}
	f.nodes[i].describe(&st)
	return st
}

func (f *founding) lookOne(rt *rapid.T) { f.look(rt, f.draw(rt, "node")) }

func (f *founding) lookAll(rt *rapid.T) {
	for i := range f.nodes {
		f.look(rt, i)
	}
}

// look lets a node ask some of the others, and do what follows from the answers.
func (f *founding) look(rt *rapid.T, i int) {
	n := f.nodes[i]
	before := n.current()
	seen := map[string]formState{}
	for j := range f.nodes {
		if j != i && mostly(rt, "answers") {
			st := f.state(j)
			seen[st.Hello.Node] = st
		}
	}
	n.sees = slices.Sorted(maps.Keys(seen))
	f.deliver(rt, rapid.IntRange(0, 3).Draw(rt, "arrive before it has all answers"))
	self := n.link.Self().Node
	switch {
	case before != nil && before.State == stateFormed:
	case before != nil && before.Proposal.Servers[0].ID == self:
		f.collect(rt, n, before.Proposal)
	case before != nil:
		if _, err := n.follow(f.t.Context(), *before, seen); err != nil {
			f.t.Fatal(err)
		}
	default:
		if cluster, _ := n.existing(seen); cluster != "" {
			rt.Logf("node %s goes to cluster %s", self, short(cluster))
			n.join(cluster)
			return
		}
		if p, ok := n.suggest(seen); ok {
			ok, err := n.propose(p)
			if err != nil {
				f.t.Fatal(err)
			}
			if !ok {
				return // it has promised something in between
			}
			rt.Logf("node %s proposes %s for %s", self, short(p.Cluster), names(p.Servers))
			f.send(p, false)
		}
	}
}

// collect lets a proposer go on: it has heard from all, asks again, or gives up.
func (f *founding) collect(rt *rapid.T, n *foundingNode, p Proposal) {
	self := n.link.Self().Node
	switch yes := n.accepted[p.Cluster]; {
	case len(yes) == len(p.Servers)-1:
		got, err := n.finish(p)
		if err != nil || got == nil {
			f.t.Fatalf("finish: %v, %v", got, err)
		}
		rt.Logf("node %s has founded %s", self, short(p.Cluster))
	case rapid.Bool().Draw(rt, "give up"):
		rt.Logf("node %s takes %s back", self, short(p.Cluster))
		if err := n.release(p.Cluster, self, "aborted"); err != nil {
			f.t.Fatal(err)
		}
		f.send(p, true)
	default:
		f.send(p, false)
	}
}

func (f *founding) deliverOne(rt *rapid.T) { f.deliver(rt, 1) }

func (f *founding) deliverSome(rt *rapid.T) { f.deliver(rt, len(f.calls)) }

func (f *founding) send(p Proposal, abort bool) {
	for i, n := range f.nodes {
		if id := n.link.Self().Node; p.has(id) && id != p.Servers[0].ID {
			f.calls = append(f.calls, call{i, abort, p})
		}
	}
}

// deliver lets so many calls arrive, in any order.
func (f *founding) deliver(rt *rapid.T, count int) {
	for range min(count, len(f.calls)) {
		f.arrive(rt)
	}
}

// arrive lets a call arrive; the answer may be lost, and the call may come again.
func (f *founding) arrive(rt *rapid.T) {
	k := rapid.IntRange(0, len(f.calls)-1).Draw(rt, "call")
	c := f.calls[k]
	if !rapid.Bool().Draw(rt, "again") {
		f.calls = slices.Delete(f.calls, k, k+1)
	}
	n, from := f.nodes[c.to], c.p.Servers[0].ID
	if c.abort {
		rt.Logf("node %s hears that %s is taken back", n.link.Self().Node, short(c.p.Cluster))
		if err := n.release(c.p.Cluster, from, "released"); err != nil {
			f.t.Fatal(err)
		}
		return
	}
	err := n.accept(c.p, from)
	rt.Logf("node %s is asked to accept %s: %v", n.link.Self().Node, short(c.p.Cluster), err)
	if err != nil && ClassOf(err) == "" {
		f.t.Fatal(err)
	}
	if err == nil && mostly(rt, "answer arrives") {
		for _, proposer := range f.nodes {
			if proposer.link.Self().Node != from {
				continue
			}
			if proposer.accepted[c.p.Cluster] == nil {
				proposer.accepted[c.p.Cluster] = map[string]bool{}
			}
			proposer.accepted[c.p.Cluster][n.link.Self().Node] = true
		}
	}
}

func (f *founding) restart(rt *rapid.T) {
	i := f.draw(rt, "node")
	rt.Logf("node %s starts again", f.nodes[i].link.Self().Node)
	f.nodes[i] = f.open(f.nodes[i].file, f.nodes[i].link.Self().Node)
}

func mostly(rt *rapid.T, label string) bool {
	return rapid.SampledFrom([]bool{true, true, true, false}).Draw(rt, label)
}

func (f *founding) draw(rt *rapid.T, label string) int {
	return rapid.IntRange(0, len(f.nodes)-1).Draw(rt, label)
}

// open returns a node as it is after a start: all that it knows is in its file.
func (f *founding) open(file, id string) *foundingNode {
	h := Hello{Node: id, Boot: "b", Address: "host:1", Role: "voter"}
	l := &Link{config: Config{Self: func() Hello { return h }, Log: slog.New(slog.DiscardHandler)}}
	var join []string
	for i := range len(f.nodes) {
		join = append(join, fmt.Sprintf("host%d:1", i))
	}
	n, err := newFormer(FormConfig{Expect: f.expect, Join: join, File: file, Link: l})
	if err != nil {
		f.t.Fatal(err)
	}
	n.most = len(f.nodes)
	n.alias = map[string]int{id: 1}
	return &foundingNode{former: n, accepted: map[string]map[string]bool{}}
}

// check: a cluster that one node knows to be founded is one that each of its founders has promised, and there is one only.
func (f *founding) check(rt *rapid.T) {
	promised := map[string]Proposal{}
	for _, n := range f.nodes {
		if r := n.current(); r != nil {
			promised[n.link.Self().Node] = r.Proposal
		}
		onDisk, err := readRecord(n.file, n.link.Self().Node)
		if err != nil {
			f.t.Fatal(err)
		}
		if now := n.current(); (now == nil) != (onDisk == nil) || now != nil && (now.State != onDisk.State || !now.Proposal.equal(onDisk.Proposal)) {
			rt.Fatalf("node %s acts on %+v, and its file holds %+v", n.link.Self().Node, now, onDisk)
		}
	}
	one := ""
	for _, n := range f.nodes {
		r := n.current()
		if r == nil || r.State != stateFormed {
			continue
		}
		if one != "" && one != r.Proposal.Cluster {
			rt.Fatalf("two clusters were founded, %s and %s", short(one), short(r.Proposal.Cluster))
		}
		one = r.Proposal.Cluster
		for _, m := range r.Proposal.Servers {
			if p := promised[m.ID]; !p.equal(r.Proposal) {
				rt.Fatalf("node %s founds %s, and node %s has promised %q", n.link.Self().Node, short(one), m.ID, short(p.Cluster))
			}
		}
	}
	for _, n := range f.nodes {
		if r := n.current(); n.joined != "" && (n.joined != one || r != nil) {
			rt.Fatalf("node %s goes to cluster %s, while %q was founded, and it has promised %+v", n.link.Self().Node, short(n.joined), short(one), r)
		}
	}
}

// However calls are delayed, lost and repeated, and whoever starts again at any time: nodes that expect a majority found one
// cluster or none, and only when each of its founders has promised that, and nothing else.
func TestFoundingRule(t *testing.T) {
	all := inMemory(t)
	rapid.Check(t, func(rt *rapid.T) {
		f := &founding{t: t, expect: 3}
		f.nodes = make([]*foundingNode, rapid.IntRange(3, 5).Draw(rt, "nodes"))
		dir, err := os.MkdirTemp(all, "")
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.nodes {
			f.nodes[i] = f.open(filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint(i))
		}
		for range 3 { // what goes wrong needs several proposals
			rt.Repeat(map[string]func(*rapid.T){
				"": f.check, "one looks": f.lookOne, "all look": f.lookAll, "a call arrives": f.deliverOne, "calls arrive": f.deliverSome, "restart": f.restart,
			})
		}
	})
}

// inMemory returns a directory in memory where the system has such a place: what is tested on it is what is computed, and the
// fsyncs of a disk would be most of the time.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "modmirror-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
