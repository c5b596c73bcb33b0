package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// founder is a fresh node that can be stopped and started again at the same address with the same file.
type founder struct {
	t      *testing.T
	id     string
	file   string
	expect int
	join   []string
	addr   string
	starts uint64

	node   *testNode
	cancel context.CancelFunc
	done   chan struct{}
	got    Formation
	err    error

	mu    sync.Mutex
	crash string // the step after which the process ends
	once  bool
	fell  chan struct{} // closed then
}

var errCrash = errors.New("the process ended here")

func newFounder(t *testing.T, id string, expect int) *founder {
	f := &founder{t: t, id: id, expect: expect, file: formFile(t), addr: "127.0.0.1:0", fell: make(chan struct{})}
	f.listen()
	f.addr = f.node.addr()
	t.Cleanup(func() { f.stop() })
	return f
}

func (f *founder) listen() {
	f.starts++
	f.node = start(f.t, f.id, func(c *Config, h *Hello) {
		h.Cluster, h.Starts, h.Boot = "", f.starts, fmt.Sprintf("boot-%s-%d", f.id, f.starts)
		c.Listen, c.pause = f.addr, 20*time.Millisecond
		c.step = f.step
	})
}

func (f *founder) step(step string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.once || f.crash == "" || step != f.crash {
		return nil
	}
	f.once = true
	f.node.Close() // nobody hears any more from it
	close(f.fell)
	return errCrash
}

func (f *founder) form() {
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(f.t.Context())
	f.done = make(chan struct{})
	go func() {
		defer close(f.done)
		f.got, f.err = Form(ctx, FormConfig{Expect: f.expect, Join: f.join, File: f.file, Link: f.node.Link, Log: f.node.logs.logger()})
	}()
}

func (f *founder) stop() {
	f.node.Close()
	if f.cancel != nil {
		f.cancel()
		<-f.done
	}
}

func (f *founder) restart() {
	f.stop()
	f.listen()
	f.form()
}

func (f *founder) wait() Formation {
	f.t.Helper()
	select {
	case <-f.done:
	case <-time.After(30 * time.Second):
		f.t.Fatalf("node %s does not get a cluster:\n%s", f.id, strings.Join(f.node.logs.lines, ""))
	}
	if f.err != nil {
		f.t.Fatalf("node %s: %v", f.id, f.err)
	}
	return f.got
}

// founders returns fresh nodes that all have the addresses of all.
func founders(t *testing.T, expect int, ids ...string) []*founder {
	var all []*founder
	var addrs []string
	for _, id := range ids {
		f := newFounder(t, id, expect)
		all, addrs = append(all, f), append(addrs, f.addr)
	}
	for _, f := range all {
		f.join = addrs
	}
	return all
}

// same checks that all founded one cluster, and returns its id.
func same(t *testing.T, all []*founder, ids string) string {
	t.Helper()
	var cluster string
	for i, f := range all {
		got := f.wait()
		if i == 0 {
			cluster = got.Cluster
		}
		if got.Cluster != cluster || cluster == "" {
			t.Fatalf("node %s has cluster %q, another has %q", f.id, got.Cluster, cluster)
		}
		if s := serverIDs(got); s != ids {
			t.Fatalf("node %s founds with %q, want %q", f.id, s, ids)
		}
	}
	return cluster
}

func serverIDs(f Formation) string {
	var ids []string
	for _, m := range f.Servers {
		ids = append(ids, m.ID)
	}
	return strings.Join(ids, "")
}

func TestFormInAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			all := founders(t, 3, "1", "2", "3")
			for _, i := range order[:2] {
				all[i].form()
			}
			// The two have heard of each other, and of nobody else, before the third starts to form.
			until(t, "the two see each other", func() bool {
				for _, i := range order[:2] {
					f := all[i].node.former()
					if f == nil {
						return false
					}
					f.mu.Lock()
					n := len(f.sees)
					f.mu.Unlock()
					if n == 0 {
						return false
					}
				}
				return true
			})
			all[order[2]].form()
			cluster := same(t, all, "123")
			for _, f := range all {
				f.restart()
			}
			if again := same(t, all, "123"); again != cluster {
				t.Errorf("after a restart the cluster is %q, it was %q", again, cluster)
			}
		})
	}
}

func TestFormFourOfThree(t *testing.T) {
	all := founders(t, 3, "1", "2", "3", "4")
	for _, f := range all {
		f.form()
	}
	clusters := map[string]int{}
	joined := 0
	for _, f := range all {
		got := f.wait()
		clusters[got.Cluster]++
		if got.Servers == nil {
			joined++
			if len(got.Ask) == 0 {
				t.Errorf("node %s joins, and is told nobody to ask", f.id)
			}
		} else if !slices.ContainsFunc(got.Servers, func(m Member) bool { return m.ID == f.id }) || len(got.Servers) != 3 {
			t.Errorf("node %s founds with %q", f.id, serverIDs(got))
		}
	}
	if len(clusters) != 1 || joined != 1 {
		t.Errorf("clusters %v, %d nodes joined, want one cluster and one that joined", clusters, joined)
	}
}

func TestFormAlone(t *testing.T) {
	f := newFounder(t, "1", 1)
	f.form()
	same(t, []*founder{f}, "1")
}

// Two sets that share a node, each of which knows nothing of the rest of the other: only one is founded.
func TestFormOverlapping(t *testing.T) {
	for range 3 {
		all := founders(t, 3, "1", "2", "3", "4", "5")
		a := func(ids ...int) (out []string) {
			for _, i := range ids {
				out = append(out, all[i-1].addr)
			}
			return out
		}
		all[0].join, all[1].join = a(1, 2, 5), a(1, 2, 5)
		all[2].join, all[3].join = a(3, 4, 5), a(3, 4, 5)
		all[4].join = a(1, 2, 3, 4, 5)
		for _, f := range all {
			f.form()
		}
		got := all[4].wait()
		if s := serverIDs(got); s != "125" && s != "345" {
			t.Fatalf("node 5 founds with %q", s)
		}
		for _, f := range all {
			if g := f.wait(); g.Cluster != got.Cluster {
				t.Errorf("node %s has cluster %q with %q, node 5 has %q with %q", f.id, g.Cluster, serverIDs(g), got.Cluster, serverIDs(got))
			}
		}
	}
}

func TestFormFindsCluster(t *testing.T) {
	leader := Member{ID: "9", Address: "127.0.0.1:9"}
	old := start(t, "8", func(c *Config, h *Hello) {
		h.Cluster = "old"
		c.Leader = func() (Member, bool) { return leader, true }
	})
	all := founders(t, 3, "1", "2", "3")
	for _, f := range all {
		f.join = append(slices.Clone(f.join), old.addr())
		f.form()
	}
	for _, f := range all {
		got := f.wait()
		if got.Cluster != "old" || got.Servers != nil {
			t.Errorf("node %s: %+v, want to join cluster old", f.id, got)
		}
		if len(got.Ask) == 0 || got.Ask[0] != leader {
			t.Errorf("node %s is told to ask %v, want the leader %v first", f.id, got.Ask, leader)
		}
	}
}

// The process of each node ends after each durable step, and starts again: there is one cluster, of all three.
func TestFormCrash(t *testing.T) {
	for _, c := range []struct {
		who  int
		step string
	}{{0, "proposed"}, {0, "formed"}, {1, "accepted"}, {2, "accepted"}, {1, "formed"}, {2, "formed"}} {
		t.Run(fmt.Sprint(c.who+1, c.step), func(t *testing.T) {
			t.Parallel()
			all := founders(t, 3, "1", "2", "3")
			all[c.who].crash = c.step
			for _, f := range all {
				f.form()
			}
			<-all[c.who].fell
			before, err := readRecord(all[c.who].file, all[c.who].id)
			if err != nil || before == nil {
				t.Fatalf("after the crash the file holds %v, %v", before, err)
			}
			all[c.who].restart()
			same(t, all, "123")
		})
	}
}

// A proposal that is taken back, with the process ended at each step of that, holds nobody for ever.
func TestFormCrashWhileTakingBack(t *testing.T) {
	for _, step := range []string{"aborted", "released"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			all := founders(t, 3, "1", "2", "3", "4")
			// 3 has accepted another proposal, so 1 has to take its own back when it makes one.
			other := Proposal{Cluster: "other", Expect: 3, Servers: []Member{{ID: "0", Address: "127.0.0.1:1"}, {ID: "3", Address: all[2].addr}, {ID: "7", Address: "127.0.0.1:2"}}}
			mine := Proposal{Cluster: "mine", Expect: 3, Servers: []Member{all[0].node.Self().Member(), all[1].node.Self().Member(), all[2].node.Self().Member()}}
			for i, p := range []Proposal{mine, mine, other} {
				if err := writeRecord(all[i].file, record{1, all[i].id, stateAccepted, p}); err != nil {
					t.Fatal(err)
				}
			}
			who := all[0]
			if step == "released" {
				who = all[1]
			}
			who.crash = step
			for _, f := range all {
				f.form()
			}
			<-who.fell
			who.restart()
			// 3 stays bound: 1, 2 and 4 are enough.
			same(t, []*founder{all[0], all[1], all[3]}, "124")
			if r := all[2].node.former().current(); r == nil || r.Proposal.Cluster != "other" {
				t.Errorf("node 3 holds %v, want the proposal that nobody took back", r)
			}
		})
	}
}

// An answer that is older than the proposal must not release who has accepted it in between.
func TestFormOldAnswer(t *testing.T) {
	all := founders(t, 3, "1", "2", "3")
	f := all[1]
	n, err := newFormer(FormConfig{Expect: 3, Join: f.join, File: f.file, Link: f.node.Link})
	if err != nil {
		t.Fatal(err)
	}
	p := Proposal{Cluster: "p", Expect: 3, Servers: []Member{all[0].node.Self().Member(), f.node.Self().Member(), all[2].node.Self().Member()}}
	if _, err := newFormer(FormConfig{Expect: 3, Join: f.join, File: all[0].file, Link: all[0].node.Link}); err != nil {
		t.Fatal(err) // 1 answers from now on that it proposes nothing
	}
	host, port, _ := net.SplitHostPort(all[0].addr)
	n.seeds = &Seeds{[]seed{{kind: "dns", name: "all", port: "1"}, {kind: "host", name: host, port: port}}}
	first := true // the round has begun, 1 is about to be asked
	n.config.Resolver = resolverFunc(func() []string {
		if first {
			first = false
			if err := n.accept(p, "1"); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if got, err := n.round(t.Context()); got != nil || err != nil {
		t.Fatal(got, err)
	}
	if n.current() == nil {
		t.Fatal("a round that began before the promise has released it")
	}
	if got, err := n.round(t.Context()); got != nil || err != nil {
		t.Fatal(got, err)
	}
	if n.current() != nil {
		t.Fatal("the proposer does not propose it, and the promise is still held")
	}
}

func TestAcceptOnce(t *testing.T) {
	f := newFounder(t, "2", 3)
	n, err := newFormer(FormConfig{Expect: 3, Join: []string{"a:1"}, File: f.file, Link: f.node.Link})
	if err != nil {
		t.Fatal(err)
	}
	m := func(id string) Member { return Member{ID: id, Address: "h:1"} }
	prop := func(cluster string, ids ...string) Proposal {
		p := Proposal{Cluster: cluster, Expect: len(ids)}
		for _, id := range ids {
			p.Servers = append(p.Servers, m(id))
		}
		return p
	}
	refuse := func(p Proposal, from, want string) {
		t.Helper()
		if err := n.accept(p, from); ClassOf(err) != Refused || !strings.Contains(err.Error(), want) {
			t.Errorf("accept %v from %s: %v, want a refusal with %q", p, from, err, want)
		}
	}
	refuse(prop("p", "1", "2", "3"), "3", "only the lowest")
	refuse(prop("p", "1", "3", "4"), "1", "the proposal is for")
	refuse(prop("p", "1", "2", "3", "4", "5"), "1", "--bootstrap-expect")
	refuse(prop("p", "3", "2", "1"), "3", "order")
	refuse(Proposal{Cluster: "p", Expect: 3}, "1", "makes no sense")
	if err := n.accept(prop("p", "1", "2", "3"), "1"); err != nil {
		t.Fatal(err)
	}
	if err := n.accept(prop("p", "1", "2", "3"), "1"); err != nil {
		t.Errorf("the same again: %v", err)
	}
	refuse(prop("q", "1", "2", "3"), "1", "another proposal")
	if ok, err := n.propose(prop("q", "2", "3", "4")); ok || err != nil {
		t.Errorf("a node that has accepted proposes: %v, %v", ok, err)
	}
	if n.join("x") {
		t.Error("a node that has accepted joins another cluster")
	}
	if err := n.release("p", "3", ""); err != nil || n.current() == nil {
		t.Errorf("released by a node that did not propose: %v", err)
	}
	if err := n.release("q", "1", ""); err != nil || n.current() == nil {
		t.Errorf("released from another proposal: %v", err)
	}
	if err := n.release("p", "1", ""); err != nil || n.current() != nil {
		t.Errorf("not released: %v", err)
	}
	if _, err := os.Stat(f.file); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if !n.join("x") {
		t.Error("a free node cannot join")
	}
	refuse(prop("p", "1", "2", "3"), "1", "about to join")
}

func TestFormConfig(t *testing.T) {
	f := newFounder(t, "1", 3)
	for _, c := range []struct {
		expect int
		join   []string
		want   string
	}{
		{2, []string{"a:1"}, "odd number"}, {-1, []string{"a:1"}, "odd number"}, {101, []string{"a:1"}, "odd number"},
		{0, nil, "nobody to join"}, {3, []string{"a:b:c:1:"}, "host:port"},
	} {
		if _, err := Form(t.Context(), FormConfig{Expect: c.expect, Join: c.join, File: f.file, Link: f.node.Link}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Form with %d, %q: %v, want %q", c.expect, c.join, err, c.want)
		}
	}
	for _, content := range []string{"", "{}", `{"format":2}`, "x"} {
		os.WriteFile(f.file, []byte(content), 0o600)
		if _, err := Form(t.Context(), FormConfig{Expect: 3, Join: []string{"a:1"}, File: f.file, Link: f.node.Link}); err == nil || !strings.Contains(err.Error(), "remove that file") {
			t.Errorf("Form with the file %q: %v", content, err)
		}
	}
	p := Proposal{Cluster: "p", Expect: 1, Servers: []Member{{ID: "2", Address: "h:1"}}}
	writeRecord(f.file, record{1, "2", stateFormed, p})
	if _, err := Form(t.Context(), FormConfig{Expect: 3, Join: []string{"a:1"}, File: f.file, Link: f.node.Link}); err == nil || !strings.Contains(err.Error(), "belongs to node 2") {
		t.Errorf("Form with the file of another node: %v", err)
	}
}

// Six addresses and three expected: there could be two clusters, so none is founded.
func TestFormTooFewExpected(t *testing.T) {
	all := founders(t, 3, "1", "2", "3")
	for _, f := range all {
		f.join = append(slices.Clone(f.join), "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
		f.form()
	}
	all[0].node.logs.wait(t, "not more than half", "addresses=6")
	for _, f := range all {
		if r := f.node.former().current(); r != nil {
			t.Errorf("node %s has promised %v", f.id, r)
		}
	}
}

func TestFormAliases(t *testing.T) {
	all := founders(t, 3, "1", "2", "3")
	for _, f := range all { // each node has two addresses in the list
		for _, g := range all {
			f.join = append(slices.Clone(f.join), strings.Replace(g.addr, "127.0.0.1", "localhost", 1))
		}
		f.form()
	}
	same(t, all, "123")
}

func TestFormReplica(t *testing.T) {
	all := founders(t, 3, "1", "2", "3", "4")
	all[0].node.set(func(h *Hello) { h.Role = "replica" })
	for _, f := range all {
		f.form()
	}
	same(t, all[1:], "234")
	if got := all[0].wait(); got.Servers != nil || got.Cluster != all[1].got.Cluster {
		t.Errorf("the replica: %+v", got)
	}
}

func TestFormOtherExpect(t *testing.T) {
	all := founders(t, 3, "1", "2", "3")
	all[2].expect = 5
	for _, f := range all {
		f.form()
	}
	all[0].node.logs.wait(t, "same --bootstrap-expect", "expect=3", "other=5")
	if r := all[0].node.former().current(); r != nil {
		t.Errorf("node 1 has promised %v", r)
	}
}

// A node that does not come back does not hold the others: the proposal is taken back, and made with who is there.
func TestFormLostBeforeAccepting(t *testing.T) {
	all := founders(t, 3, "1", "2", "3", "4")
	lost := Proposal{Cluster: "lost", Expect: 3, Servers: []Member{all[0].node.Self().Member(), all[1].node.Self().Member(), all[2].node.Self().Member()}}
	if err := writeRecord(all[0].file, record{1, "1", stateAccepted, lost}); err != nil {
		t.Fatal(err)
	}
	all[2].node.Close()
	for _, f := range []*founder{all[0], all[1], all[3]} {
		f.form()
	}
	if cluster := same(t, []*founder{all[0], all[1], all[3]}, "124"); cluster == "lost" {
		t.Error("a proposal was formed that one node has not accepted")
	}
}

// Who does not see the proposer is not counted on: its address works in one direction only.
func TestSuggestNeedsToBeSeen(t *testing.T) {
	f := newFounder(t, "1", 3)
	n, err := newFormer(FormConfig{Expect: 3, Join: []string{"a:1"}, File: f.file, Link: f.node.Link})
	if err != nil {
		t.Fatal(err)
	}
	free := func(id string, sees ...string) formState {
		return formState{Hello: Hello{Node: id, Boot: "b", Address: "h:1"}, Ready: true, Expect: 3, Sees: sees}
	}
	if p, ok := n.suggest(map[string]formState{"2": free("2", "1", "3"), "3": free("3", "2")}); ok {
		t.Errorf("suggests %v, and 3 does not see 1", p)
	}
	seen := map[string]formState{"2": free("2", "1", "3"), "3": free("3", "1", "2")}
	if p, ok := n.suggest(seen); !ok || serverIDs(Formation{Servers: p.Servers}) != "123" {
		t.Errorf("suggests %v, %v, want 1, 2 and 3", p, ok)
	}
	seen["0"] = free("0", "1")
	if p, ok := n.suggest(seen); ok {
		t.Errorf("suggests %v, and 0 is lower", p)
	}
	seen["0"] = formState{Hello: Hello{Node: "0", Boot: "b", Cluster: "c"}}
	if p, ok := n.suggest(seen); ok {
		t.Errorf("suggests %v, and there is a cluster", p)
	}
}
