package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/sumdb/sumdbtest"
)

// simChecker holds what was promised so far against what is said and done.
type simChecker struct {
	sim      *sim
	verifier note.Verifier

	mu       sync.Mutex
	broken   []string                            // guarded by mu, as all that follows; what was violated
	stop     chan struct{}                       // closed at the first violation
	genuine  map[simKey]map[artifact.Digest]bool // bytes that were found to have the right sum
	won      map[simKey]artifact.Digest          // what was answered as committed
	parts    map[simKey]artifact.Ref             // what some catalog names
	roots    map[int64]tlog.Hash                 // by number of leaves
	heads    map[string]int64                    // records in the newest head, by node id
	history  map[string]bool                     // main, fork: which may still be the cluster's
	cluster  string
	spread   map[artifact.Digest]bool // blobs whose commit was looked at
	voterSet []votersAt               // as seen by anybody, in order
	lostDisk []diskLostAt             // guarded by mu
	calls    []porcupine.Operation
	counts   map[string]int
	lacking  []string // blobs that nodes lack in the end
}

// votersAt is a configuration, and when a node believed in it last.
type votersAt struct {
	at  time.Time
	ids string // sorted, joined
	all []string
}

func newSimChecker(s *sim) *simChecker {
	return &simChecker{sim: s, stop: make(chan struct{}), genuine: map[simKey]map[artifact.Digest]bool{}, won: map[simKey]artifact.Digest{}, parts: map[simKey]artifact.Ref{},
		roots: map[int64]tlog.Hash{}, heads: map[string]int64{}, history: map[string]bool{"main": true, "fork": true}, spread: map[artifact.Digest]bool{}, counts: map[string]int{}}
}

// violated notes that a promise is broken.
func (c *simChecker) violated(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.sim.trace.add("!", "VIOLATED: %s", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.broken) == 0 {
		close(c.stop)
	}
	c.broken = append(c.broken, text)
}

func (c *simChecker) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// isGenuine reports whether body may be that of k: I5. Any canonical info is genuine, as nothing vouches for one.
func (c *simChecker) isGenuine(k simKey, body []byte) bool {
	if k.Kind == artifact.Info {
		var info struct{ Version string }
		return json.Unmarshal(body, &info) == nil && info.Version == k.Module.Version
	}
	c.mu.Lock()
	known := c.genuine[k][sha256.Sum256(body)]
	c.mu.Unlock()
	if known {
		return true
	}
	zip, mod := c.sim.source.up.Sums(k.Module)
	sum := mirrortest.ModSum(body)
	if k.Kind == artifact.Zip {
		mod, sum = zip, mirrortest.ZipSum(body)
	}
	if sum != mod {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.genuine[k] == nil {
		c.genuine[k] = map[artifact.Digest]bool{}
	}
	c.genuine[k][sha256.Sum256(body)] = true
	return true
}

// artifactAnswer checks what a node said of an artifact: I2, I3, I5, I11.
func (c *simChecker) artifactAnswer(client int, l *simLife, k simKey, a answer, called time.Time) {
	op := porcupine.Operation{ClientId: client, Input: simCall{k, l.n.replica.ID()}, Call: called.UnixNano(), Return: time.Now().UnixNano()}
	says := simSaid{status: a.status}
	defer func() {
		op.Output = says
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls = append(c.calls, op)
	}()
	if a.status != http.StatusOK || a.aborted {
		if a.aborted {
			says.status = 0
		}
		c.count(fmt.Sprintf("status %d", says.status))
		c.sim.trace.add(fmt.Sprintf("c%d", client), "%s %v: %d %.200s", l.name, k, says.status, bytes.TrimSpace(a.body))
		return
	}
	committed, etag := a.header.Get("Modmirror-Committed") != "false", a.header.Get("ETag")
	digest := artifact.Digest(sha256.Sum256(a.body))
	c.sim.trace.add(fmt.Sprintf("c%d", client), "%s %v: 200 %.12s committed=%v etag=%.12s", l.name, k, digest, committed, etag)
	if !c.isGenuine(k, a.body) {
		c.violated("I5: %s served as %v what is not that: %.12s, %d bytes", l.name, k, digest, len(a.body))
	}
	if !committed {
		c.count("uncommitted")
		says.status = 0
		if etag != "" {
			c.violated("I11: %s served uncommitted bytes of %v with the ETag %s", l.name, k, etag)
		}
		return
	}
	c.count("committed")
	says.digest = digest
	if !strings.Contains(etag, digest.String()) {
		c.violated("%s served %v with the ETag %q for the bytes %v", l.name, k, etag, digest)
	}
	c.mu.Lock()
	first, known := c.won[k]
	if !known {
		c.won[k] = digest
	}
	c.mu.Unlock()
	if known && first != digest {
		c.violated("I2: %s served %v as %.12s, which was %.12s before", l.name, k, digest, first)
	}
}

// simCall and simSaid are one operation on the register of an artifact.
type simCall struct {
	key  simKey
	node string
}

type simSaid struct {
	status int // 0: nothing that binds anybody
	digest artifact.Digest
}

// simRegister is an artifact as a register that is written once: whoever reads it as committed reads the same, for ever; a node
// may lag and say that there is none, but not after it has read it.
var simRegister = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		by := map[simKey][]porcupine.Operation{}
		for _, op := range all {
			k := op.Input.(simCall).key
			by[k] = append(by[k], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return registerState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(registerState), input.(simCall), output.(simSaid)
		switch {
		case out.status == http.StatusOK:
			if s.digest != (artifact.Digest{}) && s.digest != out.digest {
				return false, s
			}
			return true, registerState{out.digest, s.with(in.node)}
		case out.status == http.StatusNotFound || out.status == http.StatusGone || out.status == http.StatusForbidden:
			return !s.has(in.node), s
		}
		return true, s
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%v: %v", input, output) },
}

type registerState struct {
	digest artifact.Digest
	nodes  string // that have read it, sorted
}

func (s registerState) has(node string) bool { return strings.Contains(s.nodes, node+" ") }

func (s registerState) with(node string) string {
	if s.has(node) {
		return s.nodes
	}
	all := append(strings.Fields(s.nodes), node)
	slices.Sort(all)
	return strings.Join(all, " ") + " "
}

// linear has porcupine look at all operations.
func (c *simChecker) linear() {
	c.mu.Lock()
	calls := c.calls
	c.mu.Unlock()
	for _, ops := range simRegister.Partition(calls) {
		if porcupine.CheckOperations(simRegister, ops) {
			continue
		}
		var b strings.Builder
		for _, op := range ops {
			in, out := op.Input.(simCall), op.Output.(simSaid)
			fmt.Fprintf(&b, "\n  %9.3f to %9.3f node %.8s: %d %.12s", time.Unix(0, op.Call).Sub(c.sim.trace.begin).Seconds(), time.Unix(0, op.Return).Sub(c.sim.trace.begin).Seconds(), in.node, out.status, out.digest)
		}
		c.violated("the history of %v is not that of a register that is written once (porcupine):%s", ops[0].Input.(simCall).key, b.String())
	}
}

// sumAnswer checks what a node said of a record: the text is genuine, and the tree head is of the one history. I4.
func (c *simChecker) sumAnswer(client int, l *simLife, m module.Version, a answer) {
	c.sim.trace.add(fmt.Sprintf("c%d", client), "%s lookup %v: %d %.100s", l.name, m, a.status, bytes.TrimSpace(a.body))
	c.count(fmt.Sprintf("lookup %d", a.status))
	if a.status != http.StatusOK {
		return
	}
	id, text, rest, err := tlog.ParseRecord(a.body)
	if err != nil {
		c.violated("%s answers a lookup of %v with what is no record: %v", l.name, m, err)
		return
	}
	zip, mod := c.sim.source.up.Sums(m)
	if string(text) != sumdbtest.Text(m, zip, mod) {
		c.violated("%s answers a lookup of %v with the record %d %q", l.name, m, id, text)
	}
	c.head(l.name, rest, a.header.Get("Modmirror-Committed") != "false")
}

// head checks a tree head that a node served or holds, and returns how many records it has. All that are committed are of one
// history; one that is not, and is said not to be, may be of another that the database has shown to a node that is cut off.
func (c *simChecker) head(who string, msg []byte, committed bool) int64 {
	tree, err := artifact.OpenTreeHead(c.verifier, msg)
	if err != nil {
		c.violated("%s has a tree head that is not signed: %v", who, err)
		return 0
	}
	in := func(db *sumdbtest.Database) bool {
		return db != nil && tree.N <= db.Size() && db.Root(tree.N) == tree.Hash
	}
	var fork *sumdbtest.Database
	c.sim.source.set(func() { fork = c.sim.source.fork })
	if !committed {
		if !in(c.sim.source.main) && !in(fork) {
			c.violated("I4: %s has a tree head of %d records that the database never signed", who, tree.N)
		}
		return tree.N
	}
	c.mu.Lock()
	c.history["main"] = c.history["main"] && in(c.sim.source.main)
	c.history["fork"] = c.history["fork"] && (fork == nil || in(fork))
	none := !c.history["main"] && !c.history["fork"]
	c.mu.Unlock()
	if none {
		c.violated("I4: %s has a tree head of %d records that contradicts those before", who, tree.N)
	}
	return tree.N
}

// follows reports whether the cluster may be of that history of the checksum database.
func (c *simChecker) follows(history string) bool {
	c.tick()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.history[history]
}

// tick looks at every catalog: I2, I3, I4, I9.
func (c *simChecker) tick() {
	for _, n := range c.sim.nodes {
		if l := n.serving(); l != nil {
			c.look(l)
		}
	}
}

func (c *simChecker) look(l *simLife) {
	c.sawVoters(l)
	ctx, cancel := context.WithTimeout(l.ctx, time.Minute)
	defer cancel()
	r := l.n.replica
	seq, root := r.Root()
	cluster := r.Cluster()
	c.mu.Lock()
	before, known := c.roots[seq]
	c.roots[seq] = root
	if c.cluster == "" {
		c.cluster = cluster
	}
	other := cluster != "" && cluster != c.cluster
	c.mu.Unlock()
	if known && before != root {
		c.violated("I2: %s has another root than was seen at %d leaves", l.name, seq)
	}
	if other {
		c.violated("I9: %s is of the cluster %s", l.name, cluster)
	}
	if msg, err := r.TreeHead(ctx, simDatabase, 1<<62); err == nil {
		size := c.head(l.name, msg, true)
		c.mu.Lock()
		old := c.heads[r.ID()]
		c.heads[r.ID()] = size
		c.mu.Unlock()
		if size < old {
			c.violated("I4: the newest tree head of %s had %d records and has %d", l.name, old, size)
		}
	}
	for _, m := range c.sim.source.versions() {
		man, err := r.Manifest(ctx, m)
		if err == nil {
			c.manifest(l, man)
		} else if !errors.Is(err, fs.ErrNotExist) && !l.dead.Load() {
			c.count("catalog read failed")
			c.sim.trace.add(l.node.name, "manifest of %v: %v", m, err)
		}
	}
}

// manifest checks that no part of it ever changes: I3.
func (c *simChecker) manifest(l *simLife, man artifact.Manifest) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		ref := man.Ref(k)
		if ref.IsZero() {
			continue
		}
		key := simKey{man.Module, k}
		c.mu.Lock()
		before, known := c.parts[key]
		if !known {
			c.parts[key] = ref
		}
		c.mu.Unlock()
		if known && before != ref {
			c.violated("I3: %s has %v as %v, which was %v", l.name, key, ref, before)
		}
	}
}

// watch looks at each change of a catalog at the very moment at which it is applied, which is before anybody can have pulled a
// blob because of it: that takes simulated time. So the first to apply a change shows who had its blob at the commit.
func (c *simChecker) watch(l *simLife) {
	var next int64
	for l.ctx.Err() == nil {
		wake := l.n.replica.Wake()
		c.sawVoters(l)
		for change, err := range l.n.replica.Changes(l.ctx, next) {
			if err != nil {
				break
			}
			next = change.Seq + 1
			for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
				if ref := change.Manifest.Ref(k); ref.Size > artifact.MaxInline || k == artifact.Zip && !ref.IsZero() {
					c.committed(l, change.Manifest.Module, ref)
				}
			}
		}
		select {
		case <-wake:
		case <-l.ctx.Done():
		}
	}
}

// sawVoters notes who votes, as a node knows it.
func (c *simChecker) sawVoters(l *simLife) {
	var ids []string
	for _, m := range l.n.replica.Members() {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	c.mu.Lock()
	defer c.mu.Unlock()
	key := strings.Join(ids, " ")
	c.voterSet = slices.DeleteFunc(c.voterSet, func(v votersAt) bool { return v.ids == key })
	if len(ids) > 0 {
		c.voterSet = append(c.voterSet, votersAt{time.Now(), key, ids})
	}
}

// diskLostAt is a disk that was lost for ever: what is committed may have been spread to it before.
type diskLostAt struct {
	at   time.Time
	id   string // of the node
	disk *simDisk
}

func (c *simChecker) lost(id string, disk *simDisk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lostDisk = append(c.lostDisk, diskLostAt{time.Now(), id, disk})
}

// committed checks a blob that has just been committed: a majority of the voters has it durably. I6. The voters may have changed
// between their word and the commit, so it is enough that those of some configuration of the last seconds have it; and so may their
// disks: one that was lost in these seconds counts with what it held.
func (c *simChecker) committed(l *simLife, m module.Version, ref artifact.Ref) {
	c.mu.Lock()
	seen := c.spread[ref.Digest]
	c.spread[ref.Digest] = true
	sets, lost := slices.Clone(c.voterSet), slices.Clone(c.lostDisk)
	c.mu.Unlock()
	if seen || l.dead.Load() {
		return
	}
	holds := map[string]bool{}
	var names []string
	for _, n := range c.sim.nodes {
		if id := n.id(); id != "" && n.disk.holds(ref.Digest) {
			holds[id] = true
			names = append(names, n.name)
		}
	}
	for _, d := range lost {
		if time.Since(d.at) <= 5*time.Second && d.disk.holds(ref.Digest) {
			holds[d.id] = true
			names = append(names, "the lost "+d.id)
		}
	}
	var last votersAt
	for _, set := range slices.Backward(sets) {
		if time.Since(set.at) > 5*time.Second {
			break
		}
		last = set
		have := 0
		for _, id := range set.all {
			if holds[id] {
				have++
			}
		}
		if have > len(set.all)/2 {
			c.count("blobs committed")
			return
		}
	}
	c.violated("I6: %s applies %v with the blob %v, which only %v hold durably, of the voters %q", l.name, m, ref, names, last.all)
}

// removed checks that no blob is taken away, but for one with wrong bytes, that any catalog names: I7.
func (c *simChecker) removed(n *simNode, digest artifact.Digest) {
	c.mu.Lock()
	named := false
	for _, ref := range c.parts {
		named = named || ref.Digest == digest
	}
	c.mu.Unlock()
	if named {
		c.violated("I7: %s takes away the blob %.12s, which catalogs name", n.name, digest)
		return
	}
	c.count("leftovers removed")
}

// everywhere checks at the end that every node serves all that anybody was answered with as committed: I1.
func (c *simChecker) everywhere() {
	c.mu.Lock()
	won := map[simKey]artifact.Digest{}
	for k, d := range c.won {
		won[k] = d
	}
	c.mu.Unlock()
	for _, n := range c.sim.nodes {
		l := n.serving()
		if l == nil {
			c.violated("I8: %s does not serve at the end", n.name)
			continue
		}
		c.holdsAll(n)
		for k, d := range won {
			called := time.Now()
			a, ok := l.ask(k.path())
			if !ok {
				continue
			}
			c.artifactAnswer(0, l, k, a, called)
			if got := artifact.Digest(sha256.Sum256(a.body)); a.status != http.StatusOK || got != d {
				c.violated("I1: %s answers for %v, which was served as %.12s: %d %.12s %.300s", l.name, k, d, a.status, got, strings.ToValidUTF8(string(a.body[:min(len(a.body), 200)]), "?"))
			}
		}
		c.lists(l, won)
	}
	if len(c.lacking) > 0 {
		c.violated("I8: %s", strings.Join(c.lacking, "; "))
	}
}

// holdsAll checks that a node which says that it holds every blob does so, durably: what it lacks it would pull for whoever asks,
// as long as another one has it.
func (c *simChecker) holdsAll(n *simNode) {
	if n == c.sim.rotten { // it finds out when it reads
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, ref := range c.parts {
		if (k.Kind == artifact.Zip || ref.Size > artifact.MaxInline) && !n.disk.holds(ref.Digest) {
			c.lacking = append(c.lacking, fmt.Sprintf("%s says that it holds every blob, and lacks that of %v", n.name, k))
		}
	}
}

// lists checks that no list lacks a version that is committed.
func (c *simChecker) lists(l *simLife, won map[simKey]artifact.Digest) {
	said := map[string][]string{}
	for k := range won {
		p := k.Module.Path
		if said[p] == nil {
			a, ok := l.ask("/" + p + "/@v/list")
			if !ok || a.status != http.StatusOK {
				c.violated("I1: %s answers for the list of %s: %d %s", l.name, p, a.status, a.body)
				continue
			}
			said[p] = strings.Fields(string(a.body))
		}
		if !slices.Contains(said[p], k.Module.Version) {
			c.violated("I1: %s has no %v in its list", l.name, k.Module)
		}
	}
}

// id is the node id on the present disk, "" as long as there is none.
func (n *simNode) id() string {
	if l := n.life.Load(); l != nil {
		if id := l.n.identity.Load(); id != nil {
			n.lastID.Store(&id.Node)
		}
	}
	if id := n.lastID.Load(); id != nil {
		return *id
	}
	return ""
}
