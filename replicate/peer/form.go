package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// FormConfig says how a node without a cluster gets one.
type FormConfig struct {
	Expect   int      // how many nodes found the cluster, an odd number; 0: this node only joins one that exists
	Join     []string // see ParseSeeds
	File     string   // keeps what this node has promised; its directory exists
	Link     *Link
	Resolver Resolver     // nil: the system's
	Log      *slog.Logger // nil: nothing is logged
}

// Formation is the cluster that a node has found or founded.
type Formation struct {
	Cluster string
	// Servers are the founders, sorted by id. The first of them starts the Raft cluster with exactly these, the others
	// wait for it. nil: the cluster existed before.
	Servers []Member
	// Ask are members that can say who leads: what Link.Join needs. nil: this node is a founder.
	Ask []Member
}

// abortAfter is how many rounds a proposer waits for a node that it saw a moment before.
const abortAfter = 10

// Form returns when this node is in agreement with others about a cluster, or has found one. It tries until ctx ends.
// While it runs, and after it, the link answers the others for it: the link has to stay open. It is called again after a
// restart, as long as the node has no cluster.
func Form(ctx context.Context, c FormConfig) (Formation, error) {
	n, err := newFormer(c)
	if err != nil {
		return Formation{}, fmt.Errorf("form a cluster: %w", err)
	}
	for {
		got, err := n.round(ctx)
		if err != nil {
			return Formation{}, fmt.Errorf("form a cluster: %w", err)
		}
		if got != nil {
			return *got, nil
		}
		d := n.forming.link.config.pause
		if !pause(ctx, d/2+mrand.N(d)) {
			return Formation{}, fmt.Errorf("form a cluster: %w", ctx.Err())
		}
	}
}

// former runs the rounds.
type former struct {
	*forming
	config FormConfig
	seeds  *Seeds
	most   int            // addresses that the seeds ever had at a time
	alias  map[string]int // how many of the addresses led to a node in the last round, by node
	missed int            // rounds in which not all answered to this node's proposal
	said   sayOnce
}

func newFormer(c FormConfig) (*former, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Expect < 0 || c.Expect > maxServers || c.Expect > 0 && c.Expect%2 == 0 {
		return nil, fmt.Errorf("--bootstrap-expect %d: it is an odd number up to %d, 3 for most; an even one survives no more losses than the odd one below it", c.Expect, maxServers)
	}
	if c.Expect == 0 && len(c.Join) == 0 {
		return nil, errors.New("there is nobody to join: name another node with --join")
	}
	seeds, err := ParseSeeds(c.Join)
	if err != nil {
		return nil, err
	}
	have, err := readRecord(c.File, c.Link.Self().Node)
	if err != nil {
		return nil, err
	}
	f := &forming{link: c.Link, file: c.File, expect: c.Expect, have: have}
	if c.Link.Self().Role == "replica" {
		f.expect = 0 // it decides nothing, so it founds nothing
	}
	c.Link.mu.Lock()
	c.Link.forming = f
	c.Link.mu.Unlock()
	return &former{forming: f, config: c, seeds: seeds}, nil
}

// round asks everybody once and does what follows from the answers.
func (n *former) round(ctx context.Context) (*Formation, error) {
	// What others say counts only against a promise that was made before they were asked: an answer that is older than
	// the proposal does not mean that it was taken back.
	before := n.current()
	if before != nil && before.State == stateFormed {
		return founded(before.Proposal), nil
	}
	seen := n.ask(ctx, n.addresses(ctx, before))
	if before != nil {
		return n.follow(ctx, *before, seen)
	}
	if cluster, ask := n.existing(seen); cluster != "" && n.join(cluster) {
		return &Formation{Cluster: cluster, Ask: ask}, nil
	}
	if p, ok := n.suggest(seen); ok {
		if ok, err := n.propose(p); !ok || err != nil {
			return nil, err
		}
		n.missed = 0
		n.config.Log.Info("proposing to found a cluster", "cluster", p.Cluster, "nodes", names(p.Servers))
		return n.collect(ctx, p)
	}
	return nil, nil
}

func founded(p Proposal) *Formation { return &Formation{Cluster: p.Cluster, Servers: p.Servers} }

// addresses returns whom to ask: the seeds, and who is in the promise.
func (n *former) addresses(ctx context.Context, have *record) []string {
	addrs, err := n.seeds.Resolve(ctx, n.config.Resolver)
	if err != nil {
		n.warn("cannot look up all of --join, trying again", "err", err)
	}
	n.most = max(n.most, len(addrs))
	if have != nil {
		for _, m := range have.Proposal.Servers {
			addrs = append(addrs, m.Address)
		}
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// ask returns what the others say, by node.
func (n *former) ask(ctx context.Context, addrs []string) map[string]formState {
	self := n.link.Self()
	seen := map[string]formState{}
	alias := map[string]int{}
	var mu sync.Mutex // guards seen and alias
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for _, addr := range addrs {
		if addr == self.Address {
			mu.Lock()
			alias[self.Node]++
			mu.Unlock()
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			st, err := n.askOne(ctx, addr)
			if err != nil {
				n.refusedBy(addr, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			alias[st.Hello.Node]++
			if st.Hello.Node != self.Node {
				seen[st.Hello.Node] = st
			}
		})
	}
	wg.Wait()
	var ids []string
	for id := range seen {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	n.mu.Lock()
	n.sees = ids
	n.mu.Unlock()
	n.alias = alias
	return seen
}

// refusedBy says why nothing came from a node in --join.
func (n *former) refusedBy(addr string, err error) {
	what := "a node in --join does not answer, trying again"
	if n.link.tell(err) {
		what = "a node in --join and this one do not speak to each other, trying again"
	}
	n.warn(what, "address", addr, "err", err)
}

// nodes returns how many nodes there may be, answering or not.
func (n *former) nodes() int {
	count := n.most
	for _, a := range n.alias {
		count -= a - 1 // several addresses of one
	}
	if n.alias[n.link.Self().Node] == 0 {
		count++ // this one is not in its own list
	}
	return count
}

func (n *former) askOne(ctx context.Context, addr string) (st formState, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	b, err := n.link.Call(ctx, Request{Addr: addr, Path: "/v1/form"}, nil, maxForm)
	if err != nil {
		return st, err
	}
	return parseFormState(b)
}

// existing returns the cluster that others are in, if there is exactly one.
func (n *former) existing(seen map[string]formState) (cluster string, ask []Member) {
	for _, st := range seen {
		c := st.Hello.Cluster
		if c == "" && st.Formed {
			c = st.Proposal.Cluster
		}
		if c == "" {
			continue
		}
		if cluster != "" && c != cluster {
			n.warn("the nodes in --join belong to different clusters, so this one joins none: correct --join", "cluster", cluster, "other", c)
			return "", nil
		}
		cluster = c
		if st.Leader != nil {
			ask = append(ask, *st.Leader)
		}
	}
	for _, st := range seen {
		if st.Hello.Cluster == cluster || st.Formed {
			ask = append(ask, st.Hello.Member())
		}
	}
	return cluster, ask
}

// suggest returns what this node has to propose: it is the lowest of enough nodes that are free, and all of them see it.
func (n *former) suggest(seen map[string]formState) (p Proposal, ok bool) {
	self := n.link.Self()
	if n.expect == 0 {
		return p, false
	}
	if nodes := n.nodes(); nodes >= 2*n.expect {
		n.warn("--bootstrap-expect is not more than half of the addresses in --join, so that two clusters could be founded; this node founds none: raise it, or name fewer addresses", "expect", n.expect, "addresses", nodes)
		return p, false
	}
	free := []Member{self.Member()}
	for id, st := range seen {
		switch {
		case st.Hello.Cluster != "" || st.Formed:
			return p, false // there is one already
		case !st.Ready || st.Proposal != nil || st.Expect == 0:
		case st.Expect != n.expect:
			n.warn("another node expects another number of nodes: start all with the same --bootstrap-expect", "node", st.Hello.String(), "expect", n.expect, "other", st.Expect)
		case slices.Contains(st.Sees, self.Node) && id == st.Hello.Node && st.Hello.Address != "":
			free = append(free, st.Hello.Member())
		}
	}
	slices.SortFunc(free, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	if len(free) < n.expect || free[0].ID != self.Node {
		return p, false
	}
	return Proposal{Cluster: rand.Text(), Expect: n.expect, Servers: free[:n.expect:n.expect]}, true
}

// follow sees a promise through.
func (n *former) follow(ctx context.Context, have record, seen map[string]formState) (*Formation, error) {
	p := have.Proposal
	for _, st := range seen { // its founders are in it, or know that all have agreed
		if st.Hello.Cluster == p.Cluster || st.Formed && st.Proposal.Cluster == p.Cluster {
			return n.finish(p)
		}
	}
	mine := p.Servers[0].ID == n.link.Self().Node
	if !mine {
		st, ok := seen[p.Servers[0].ID]
		takenBack := ok && st.Ready && (st.Proposal == nil || st.Proposal.Cluster != p.Cluster)
		if takenBack || ok && st.Hello.Cluster != "" {
			return nil, n.release(p.Cluster, p.Servers[0].ID, "released")
		}
		n.warn("waiting for the node that proposed the cluster; if it is lost for good: stop this node, remove "+n.file+", and start it again", "node", short(p.Servers[0].ID), "address", p.Servers[0].Address)
		return nil, nil
	}
	for _, st := range seen {
		if st.Hello.Cluster != "" || st.Formed {
			return nil, n.abort(ctx, p, "there is a cluster already")
		}
	}
	return n.collect(ctx, p)
}

// collect asks all for their acceptance of this node's proposal.
func (n *former) collect(ctx context.Context, p Proposal) (*Formation, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	errs := n.tell(ctx, p, "/v1/form/propose", body)
	var missing error
	for i, err := range errs {
		if err == nil {
			continue
		}
		if isNo(err) {
			return nil, n.abort(ctx, p, fmt.Sprintf("node %s: %v", short(p.Servers[i].ID), err))
		}
		missing = fmt.Errorf("node %s at %s: %w", short(p.Servers[i].ID), p.Servers[i].Address, err)
	}
	if missing == nil {
		return n.finish(p)
	}
	if n.missed++; n.missed >= abortAfter {
		n.missed = 0
		return nil, n.abort(ctx, p, missing.Error())
	}
	return nil, nil
}

// isNo reports whether err says that a node does not accept, rather than that it did not answer.
func isNo(err error) bool {
	if e, ok := errors.AsType[*StatusError](err); ok {
		return e.Code == http.StatusConflict || e.Code == http.StatusBadRequest || e.Code == http.StatusNotFound
	}
	return ClassOf(err) != "" && ClassOf(err) != Busy
}

// tell sends the same to all but this node, and returns their answers in the order of p.Servers.
func (n *former) tell(ctx context.Context, p Proposal, path string, body []byte) []error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	errs := make([]error, len(p.Servers))
	var wg sync.WaitGroup
	for i, m := range p.Servers[1:] {
		wg.Go(func() {
			_, errs[i+1] = n.link.Call(ctx, Request{Node: m.ID, Addr: m.Address, Method: "POST", Path: path}, body, maxText)
		})
	}
	wg.Wait()
	return errs
}

// abort takes this node's proposal back: first here, from then on it cannot be formed any more, then at the others. Who
// does not hear of it now asks later.
func (n *former) abort(ctx context.Context, p Proposal, why string) error {
	n.config.Log.Info("taking back the proposal to found a cluster", "cluster", p.Cluster, "err", why)
	if err := n.release(p.Cluster, p.Servers[0].ID, "aborted"); err != nil {
		return err
	}
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	n.tell(ctx, p, "/v1/form/abort", body)
	return nil
}

func (n *former) finish(p Proposal) (*Formation, error) {
	ok, err := n.form(p)
	if !ok || err != nil {
		return nil, err
	}
	n.config.Log.Info("a cluster was founded", "cluster", p.Cluster, "nodes", names(p.Servers))
	return founded(p), nil
}

// warn logs the same once a minute.
func (n *former) warn(what string, args ...any) {
	key := what
	if len(args) > 1 {
		key += fmt.Sprint(args[1])
	}
	if n.said.now(key, time.Now()) {
		n.config.Log.Warn(what, args...)
	}
}
