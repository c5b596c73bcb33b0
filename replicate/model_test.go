package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// model is what a catalog holds, as maps, and the rules of Apply written a second time: without Raft, bbolt, encodings or
// hashes. It knows of each tree head which history it is of, so that it never has to look at a proof.
type model struct {
	w         *world
	keys      map[string]string         // database → the key that it is trusted by
	heads     map[string]map[int64]tree // database → size → the tree that is committed
	forks     map[string][]*knownFork   // database → evidence
	manifests map[module.Version]artifact.Manifest
	inline    map[artifact.Digest][]byte
	conflicts map[module.Version]map[string]bool // encodings of what was refused
	listings  map[string]artifact.Listing
	cluster   string
	nodes     map[string]Peer
	gone      map[string]bool
	members   []string // ids of the last configuration
	level     int
	audits    []Audit
	leaves    []grown // in the order in which they were committed
	clock     int64   // microseconds since 1970
	vote      string  // who is to get one
	dated     bool    // clock is more than the number of the last leaf
}

// grown is a manifest as it was each time one grew.
type grown struct {
	artifact.Manifest
	at    int64 // microseconds since 1970
	dated bool  // the time is a part of the leaf
}

type knownFork struct {
	a, b  tree // a is the smaller one
	acked bool
}

func newModel(w *world) *model {
	return &model{
		w: w, keys: map[string]string{}, heads: map[string]map[int64]tree{}, forks: map[string][]*knownFork{},
		manifests: map[module.Version]artifact.Manifest{}, inline: map[artifact.Digest][]byte{},
		conflicts: map[module.Version]map[string]bool{}, listings: map[string]artifact.Listing{},
		nodes: map[string]Peer{}, gone: map[string]bool{}, level: firstLevel,
	}
}

// verdict is what the model says becomes of a command.
type verdict struct {
	err           error // nil, or one of classes
	manifest      artifact.Manifest
	listed        string
	forked, peers bool
}

// classes are what a refusal may match, the narrower ones first.
var classes = []error{ErrTooOld, ErrRemoved, ErrClone, ErrNameTaken, artifact.ErrConflict, artifact.ErrStale, fs.ErrNotExist, artifact.ErrMalformed, artifact.ErrUnavailable, artifact.ErrRefused}

func classOf(err error) error {
	for _, c := range classes {
		if errors.Is(err, c) {
			return c
		}
	}
	return err
}

// differs says how an answer of the catalog is another than the model's; "" if it is the same.
func (v verdict) differs(r result) string {
	if classOf(r.err) != v.err {
		return fmt.Sprintf("answers %v, want %v", r.err, v.err)
	}
	if !sameManifest(r.manifest, v.manifest) {
		return fmt.Sprintf("answers the manifest %+v, want %+v", r.manifest, v.manifest)
	}
	if r.listed != v.listed || r.forked != v.forked || r.peers != v.peers {
		return fmt.Sprintf("answers listed %q, forked %v, peers %v, want %q, %v, %v", r.listed, r.forked, r.peers, v.listed, v.forked, v.peers)
	}
	return ""
}

func sameManifest(a, b artifact.Manifest) bool { return bytes.Equal(encoded(a), encoded(b)) }

func encoded(m artifact.Manifest) []byte {
	b, err := m.AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	return b
}

var refusal = verdict{err: artifact.ErrRefused}

func (m *model) trust(name, key string) verdict {
	if have, ok := m.keys[name]; ok && have != key {
		return refusal
	}
	m.keys[name] = key
	return verdict{}
}

// last returns the largest tree that is committed.
func (m *model) last(db string) (last tree, any bool) {
	for _, t := range m.heads[db] {
		if t.n > last.n {
			last, any = t, true
		}
	}
	return last, any
}

// head judges the signed head of t, with a proof that t and the tree of base records are of one history.
func (m *model) head(t tree, base int64, proof tlog.TreeProof, whole bool) verdict {
	db := m.w.name(t)
	if m.keys[db] != m.w.key(t) {
		return refusal
	}
	if known, ok := m.heads[db][t.n]; ok && known == t {
		return verdict{}
	} else if ok {
		m.keepFork(db, known, t)
		return verdict{err: artifact.ErrRefused, forked: true}
	}
	last, any := m.last(db)
	switch {
	case m.frozen(db):
		return verdict{err: artifact.ErrUnavailable}
	case t.n == 0:
		return refusal
	case base != last.n:
		return verdict{err: artifact.ErrStale}
	case !any && len(proof) > 0, any && (!whole || m.w.of(t.history, last.n) != last):
		return refusal
	}
	if m.heads[db] == nil {
		m.heads[db] = map[int64]tree{}
	}
	m.heads[db][t.n] = t
	return verdict{}
}

func (m *model) fork(a, b tree, whole bool) verdict {
	db := m.w.name(a)
	if m.keys[db] != m.w.key(a) || m.keys[db] != m.w.key(b) {
		return refusal
	}
	if a.n == b.n && a == b || a.n != b.n && (a.n == 0 || a.n > b.n || !whole || m.w.of(b.history, a.n) == a) {
		return refusal
	}
	m.keepFork(db, a, b)
	return verdict{forked: true}
}

func (m *model) keepFork(db string, a, b tree) {
	if a.n > b.n || a.n == b.n && a.history > b.history {
		a, b = b, a
	}
	open := 0
	for _, f := range m.forks[db] {
		if f.a == a && f.b == b {
			return
		}
		if !f.acked {
			open++
		}
	}
	committedA, committedB := m.heads[db][a.n] == a, m.heads[db][b.n] == b
	if committedA != committedB {
		other := a
		if committedA {
			other = b
		}
		for _, f := range m.forks[db] {
			if f.acked && (f.a == other || f.b == other) {
				return
			}
		}
	}
	if open < maxForks {
		m.forks[db] = append(m.forks[db], &knownFork{a: a, b: b})
	}
}

func (m *model) frozen(db string) bool {
	return slices.ContainsFunc(m.forks[db], func(f *knownFork) bool { return !f.acked })
}

func (m *model) ackFork(db string) verdict {
	if !m.frozen(db) {
		return verdict{err: fs.ErrNotExist}
	}
	for _, f := range m.forks[db] {
		f.acked = true
	}
	return verdict{}
}

// publish judges p, whose record is of t if it is whole. Its parts are right if the bytes that they name are.
func (m *model) publish(p artifact.Publication, t tree, forged forgery, rightInfos [][]byte) verdict {
	n := p.Manifest
	if forged == forgedSum || n.Info.IsZero() && n.Mod.IsZero() && n.Zip.IsZero() || n.Zip.Size > artifact.MaxZip {
		return refusal
	}
	if m.keys[n.Record.Database] == "" {
		return refusal
	}
	if m.frozen(n.Record.Database) {
		return verdict{err: artifact.ErrUnavailable}
	}
	if head, ok := m.heads[n.Record.Database][t.n]; !ok || head != t || forged != forgedNothing {
		return refusal
	}
	rightInfo := func(b []byte) bool {
		return slices.ContainsFunc(rightInfos, func(right []byte) bool { return bytes.Equal(b, right) })
	}
	rightMod := func(b []byte) bool { return artifact.ModSum(b) == n.ModSum }
	if !m.rightPart(n.Info, p.Info, rightInfo) || !m.rightPart(n.Mod, p.Mod, rightMod) {
		return refusal
	}
	old, ok := m.manifests[n.Module]
	if ok && (old.ZipSum != n.ZipSum || old.ModSum != n.ModSum || !old.Mod.IsZero() && !n.Mod.IsZero() && old.Mod != n.Mod) {
		m.keepConflict(n)
		return verdict{err: artifact.ErrConflict, manifest: old}
	}
	now := n
	if ok { // whatever is there stays for ever
		now = old
		for _, part := range []struct{ now, n *artifact.Ref }{{&now.Info, &n.Info}, {&now.Mod, &n.Mod}, {&now.Zip, &n.Zip}} {
			if part.now.IsZero() {
				*part.now = *part.n
			}
		}
	}
	if ok && now.Info == old.Info && now.Mod == old.Mod && now.Zip == old.Zip {
		return verdict{manifest: old}
	}
	m.manifests[n.Module] = now
	m.grow(now)
	for _, part := range []struct {
		data     []byte
		ref, now artifact.Ref
	}{{p.Info, n.Info, now.Info}, {p.Mod, n.Mod, now.Mod}} {
		if part.data != nil && part.ref == part.now {
			m.inline[part.ref.Digest] = part.data
		}
	}
	return verdict{manifest: now}
}

// grow adds a leaf. From level 3 on it is later than all before, and after the last time that was told.
func (m *model) grow(now artifact.Manifest) {
	g := grown{Manifest: now, at: int64(len(m.leaves)), dated: m.level >= clockLevel}
	if g.dated {
		if m.dated {
			g.at = m.clock + 1
		}
		m.clock, m.dated = g.at, true
	}
	m.leaves = append(m.leaves, g)
}

// date judges the time that a leader's clock shows.
func (m *model) date(at int64) verdict {
	if m.level < clockLevel || at > maxClock {
		return refusal
	}
	if !m.dated && at >= int64(len(m.leaves)) || m.dated && at > m.clock {
		m.clock, m.dated = at, true
	}
	return verdict{}
}

// rightPart reports whether data, or what is known under ref, are the bytes of ref and right.
func (m *model) rightPart(ref artifact.Ref, data []byte, right func([]byte) bool) bool {
	if data == nil && (ref.IsZero() || ref.Size > artifact.MaxInline) {
		return true
	}
	if data == nil {
		data = m.inline[ref.Digest]
	}
	return data != nil && artifact.RefOf(data) == ref && right(data)
}

func (m *model) keepConflict(refused artifact.Manifest) {
	all := m.conflicts[refused.Module]
	if all == nil {
		all = map[string]bool{}
		m.conflicts[refused.Module] = all
	}
	if len(all) < maxConflicts {
		all[string(encoded(refused))] = true
	}
}

// listing judges l, which is well-formed or not.
func (m *model) listing(l artifact.Listing, wellFormed bool) verdict {
	if !wellFormed {
		return verdict{err: artifact.ErrMalformed}
	}
	old, now := m.listings[l.Path], m.listings[l.Path]
	now.Path = l.Path
	news := false
	if !l.Listed.IsZero() {
		news = news || old.Listed.IsZero() || !slices.Equal(old.Versions, l.Versions)
		now.Versions, now.Listed = l.Versions, l.Listed
	}
	if !l.Latested.IsZero() {
		news = news || old.Latested.IsZero() || !bytes.Equal(old.Latest, l.Latest)
		now.Latest, now.Latested = l.Latest, l.Latested
	}
	if !news {
		return verdict{}
	}
	m.listings[l.Path] = now
	return verdict{listed: l.Path}
}

func (m *model) name(cluster string) verdict {
	if cluster == "" || len(cluster) > maxCluster || m.cluster != "" && m.cluster != cluster {
		return refusal
	}
	m.cluster = cluster
	return verdict{}
}

func (m *model) register(p Peer) verdict {
	old := m.nodes[p.ID]
	switch {
	case p.Role != RoleVoter && p.Role != RoleReplica:
		return refusal
	case m.gone[p.ID]:
		return verdict{err: ErrRemoved}
	case max(p.Level, firstLevel) < m.level:
		return verdict{err: ErrTooOld}
	case p.Starts < old.Starts, p.Starts == old.Starts && p.Boot != old.Boot:
		return verdict{err: ErrClone}
	}
	for other := range maps.Values(m.nodes) {
		if other.Name == p.Name && other.ID != p.ID {
			return verdict{err: ErrNameTaken}
		}
	}
	p.Held = old.Held
	m.nodes[p.ID] = p
	return verdict{peers: true}
}

func (m *model) forget(id string) verdict {
	if id == "" {
		return refusal
	}
	delete(m.nodes, id)
	m.gone[id] = true
	return verdict{peers: true}
}

func (m *model) hold(id string, held bool) verdict {
	p, ok := m.nodes[id]
	if !ok || p.Held == held {
		return verdict{}
	}
	p.Held = held
	m.nodes[id] = p
	return verdict{peers: true}
}

// raise judges a new feature level, which this version supports: all nodes that are known support it, but by, who has said so with this.
func (m *model) raise(level int, by string) verdict {
	if level <= m.level {
		return verdict{}
	}
	for id, p := range m.nodes {
		if id != by && max(p.Level, firstLevel) < level {
			return refusal
		}
	}
	for _, id := range m.members {
		if _, ok := m.nodes[id]; !ok && id != by {
			return refusal
		}
	}
	m.level = level
	return verdict{peers: true}
}

func (m *model) rebalance(to string) verdict {
	if _, ok := m.nodes[to]; m.level < rebalanceLevel || to != "" && !ok {
		return refusal
	}
	m.vote = to
	return verdict{}
}

func (m *model) audit(a Audit) verdict {
	if a.Actor == "" || a.Action == "" || a.Reason == "" {
		return refusal
	}
	for _, have := range m.audits {
		if a.Number = have.Number; have == a {
			return verdict{}
		}
	}
	a.Number = int64(len(m.audits)) + 1
	m.audits = append(m.audits, a)
	return verdict{}
}

// root computes the root of the Merkle tree over all leaves from nothing.
func (m *model) root() tlog.Hash {
	hashes := memoryHashes{}
	for i, leaf := range m.leaves {
		data := encoded(leaf.Manifest)
		if leaf.dated {
			data = binary.BigEndian.AppendUint64(append(data, 0), uint64(leaf.at))
		}
		more, err := tlog.StoredHashes(int64(i), data, &hashes)
		if err != nil {
			panic(err)
		}
		hashes = append(hashes, more...)
	}
	h, err := tlog.TreeHash(int64(len(m.leaves)), &hashes)
	if err != nil {
		panic(err)
	}
	return h
}

// changes returns the newest leaf of each module version, in order, as text.
func (m *model) changes() (all []string) {
	for i, leaf := range m.leaves {
		if !slices.ContainsFunc(m.leaves[i+1:], func(later grown) bool { return later.Module == leaf.Module }) {
			all = append(all, fmt.Sprint(i, leaf.at, leaf.Module))
		}
	}
	return all
}

type memoryHashes []tlog.Hash

func (m *memoryHashes) ReadHashes(indexes []int64) (out []tlog.Hash, err error) {
	for _, i := range indexes {
		out = append(out, (*m)[i])
	}
	return out, nil
}
