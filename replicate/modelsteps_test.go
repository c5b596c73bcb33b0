package replicate

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// history is one of the sequences of records that are signed in a world.
type history int

const (
	left     history = iota // what the database signs
	right                   // what it also signs, with the same key: the same first records, then others
	stranger                // signed with another key under the same name
	other                   // another database
)

func (h history) String() string { return []string{"left", "right", "stranger", "other"}[h] }

// common is how many records left and right share, historyLength how many each history has.
const common, historyLength = 7, 12

// tree is the first n records of a history. Trees that are equal as such are one value.
type tree struct {
	history
	n int64
}

func (t tree) String() string { return fmt.Sprintf("%v:%d", t.history, t.n) }

// world is what the commands are about. It never changes.
type world struct {
	dbs     []*replicatetest.Database // by history
	modules []worldModule
}

type worldModule struct {
	replicatetest.Module
	history
}

func newWorld(tb testing.TB) *world {
	w := &world{dbs: make([]*replicatetest.Database, other+1)}
	add := func(h history, path string, minor int, gomod string) {
		w.modules = append(w.modules, worldModule{w.dbs[h].AddModule("example.com/"+path, fmt.Sprintf("v1.%d.0", minor), gomod), h})
	}
	w.dbs[left] = replicatetest.NewDatabase(tb, "sum.example.org")
	add(left, "a", 0, "module example.com/a\n")
	add(left, "a", 1, "module example.com/a\n") // the same bytes
	add(left, "a", 0, "module example.com/a // the database says two things\n")
	add(left, "b", 0, "module example.com/b\n//"+strings.Repeat("x", artifact.MaxInline)+"\n") // a blob
	add(left, "c", 0, "module example.com/c\n")
	for w.dbs[left].Size() < common {
		w.dbs[left].Add("of nobody\n")
	}
	w.dbs[right] = w.dbs[left].Fork()
	w.dbs[stranger] = replicatetest.NewDatabase(tb, "sum.example.org")
	w.dbs[other] = replicatetest.NewDatabase(tb, "other.example.org")
	add(left, "d", 0, "module example.com/d\n")
	add(right, "c", 0, "module example.com/c // on the right\n")
	add(right, "d", 0, "module example.com/d\n")
	add(stranger, "a", 0, "module example.com/a // of a stranger\n")
	add(other, "c", 0, "module example.com/c\n") // two databases that agree
	add(other, "d", 0, "module example.com/d // elsewhere\n")
	for h, db := range w.dbs {
		for db.Size() < historyLength {
			db.Add(fmt.Sprintf("record %d of %v\n", db.Size(), history(h)))
		}
	}
	return w
}

func (w *world) of(h history, n int64) tree {
	if h == right && n <= common {
		h = left
	}
	return tree{h, n}
}

func (w *world) name(t tree) string { return w.dbs[t.history].Name }
func (w *world) key(t tree) string  { return w.dbs[t.history].Key }

// treeOf returns the tree that a committed head speaks about.
func (w *world) treeOf(tb testing.TB, note []byte) tree {
	said, err := tlog.ParseTree(note)
	if err != nil {
		tb.Fatal(err)
	}
	for h := range w.dbs {
		if t := w.of(history(h), said.N); w.dbs[t.history].Tree(said.N) == said {
			return t
		}
	}
	tb.Fatalf("a head of no tree of this world:\n%s", note)
	return tree{}
}

// step is a command, what it is in words, and what the model says of it. It is drawn so that it mostly makes sense after
// those before it.
type step struct {
	text    string
	command command
	judge   func(m *model) verdict
}

// stepper draws steps.
type stepper struct {
	t *rapid.T
	w *world
	m *model // as it is before the step
}

func (s stepper) n(label string, min, max int) int {
	return rapid.IntRange(min, max).Draw(s.t, label)
}

// rarely is true once in n times, and false in the simplest case.
func (s stepper) rarely(label string, n int) bool { return s.n(label, 1, n) == n }

func pick[T any](s stepper, label string, all ...T) T {
	return rapid.SampledFrom(all).Draw(s.t, label)
}

func (s stepper) history() history {
	return pick(s, "history", left, left, left, right, right, other, stranger)
}

func (s stepper) step() step {
	steps := map[string]func() step{
		"publish": s.publish, "head": s.head, "fork": s.fork, "ack fork": s.ackFork, "listing": s.listing, "trust": s.trust,
		"register": s.register, "hold": s.hold, "forget": s.forget, "cluster": s.cluster, "level": s.level, "audit": s.audit, "clock": s.clock, "rebalance": s.rebalance,
	}
	return steps[pick(s, "kind", "publish", "head", "publish", "publish", "publish", "head", "publish", "fork", "ack fork", "ack fork",
		"listing", "register", "hold", "register", "level", "trust", "forget", "cluster", "audit", "clock", "clock", "level", "rebalance", "rebalance")]()
}

func (s stepper) trust() step {
	h := s.history()
	key, name := s.w.dbs[h].Key, s.w.dbs[h].Name
	if s.rarely("malformed", 8) {
		return step{"trust no key", trustCommand{"sum.example.org+x"}, func(*model) verdict { return refusal }}
	}
	return step{fmt.Sprintf("trust %v", h), trustCommand{key}, func(m *model) verdict { return m.trust(name, key) }}
}

// bent returns p with a bit turned, if whole is false, and whether it is whole.
func bent(p []tlog.Hash, whole bool) ([]tlog.Hash, bool) {
	if whole || len(p) == 0 {
		return p, true
	}
	p = slices.Clone(p)
	p[len(p)/2][0] ^= 1
	return p, false
}

func (s stepper) head() step {
	h := s.history()
	last, any := s.m.last(s.w.dbs[h].Name)
	if any && !s.rarely("of any history", 3) {
		h = last.history
	}
	t, base := s.w.of(h, int64(s.n("size", 0, historyLength))), last.n
	if s.rarely("another base", 5) {
		base = int64(s.n("base", 0, historyLength))
	}
	db := s.w.dbs[t.history]
	c := headCommand{Database: db.Name, Note: db.Head(t.n), Base: base}
	proof, whole := bent(db.Prove(max(t.n, base), min(t.n, base)), !s.rarely("bend the proof", 5))
	if s.rarely("no proof", 8) {
		proof, whole = nil, false
	}
	c.Proof = proof
	return step{fmt.Sprintf("head %v on %d, proof %v", t, base, whole), c, func(m *model) verdict { return m.head(t, base, proof, whole) }}
}

func (s stepper) fork() step {
	a, b := s.w.of(left, int64(s.n("size", common+1, historyLength))), s.w.of(right, int64(s.n("size", common+1, historyLength)))
	if s.rarely("any two", 4) {
		a, b = s.w.of(s.history(), int64(s.n("size", 0, historyLength))), s.w.of(s.history(), int64(s.n("size", 0, historyLength)))
	} else if a.n > b.n {
		a, b = b, a
	}
	db := s.w.dbs[b.history]
	f := artifact.Fork{Database: s.w.name(a), A: s.w.dbs[a.history].Head(a.n), B: db.Head(b.n)}
	whole := true
	if a.n < b.n {
		f.Derived = db.Tree(a.n).Hash
		f.Proof, whole = bent(db.Prove(b.n, a.n), !s.rarely("bend the proof", 5))
	}
	return step{fmt.Sprintf("fork of %v and %v, proof %v", a, b, whole), forkCommand{f}, func(m *model) verdict { return m.fork(a, b, whole) }}
}

func (s stepper) ackFork() step {
	db := s.w.dbs[left].Name
	if !s.m.frozen(db) {
		db = s.w.dbs[s.history()].Name
	}
	return step{"acknowledge the fork of " + db, ackForkCommand{db}, func(m *model) verdict { return m.ackFork(db) }}
}

// forgery is what is wrong with the record of a publication.
type forgery string

const (
	forgedNothing  forgery = "whole"
	forgedID       forgery = "of another id"
	forgedProof    forgery = "with a bent proof"
	forgedSum      forgery = "with another sum"
	forgedDatabase forgery = "of an unknown database"
)

func (s stepper) publish() step {
	mod := s.w.modules[pick(s, "module", 0, 1, 4, 2, 3, 5, 6, 7, 0, 5, 8, 9, 10)]
	size, committed := s.size(mod)
	if !committed && !s.rarely("before its tree head", 4) {
		return s.head()
	}
	t := s.w.of(mod.history, size)
	p := s.w.dbs[mod.history].Publication(mod.Module, t.n)
	text := fmt.Sprintf("publish %v (record %d of %v)", mod.Version, mod.ID, t)
	parts := pick(s, "parts", 7, 3, 1, 2, 4, 5, 6, 0)
	spoilt := s.rarely("spoil it", 3) // no more than a third is to be refused, or nothing would ever be there
	otherInfo := fmt.Appendf(nil, `{"Version":"%s"}`, mod.Version.Version)
	infos := [][]byte{mod.Info, otherInfo}
	if parts&1 == 0 {
		p.Info, p.Manifest.Info = nil, artifact.Ref{}
	} else {
		kind := pick(s, "info", "info", "another info")
		if spoilt {
			kind = pick(s, "info", "info", "an info without its bytes", "the bytes of an info", "the info of v1.9.0", "an info with a space")
		}
		p.Info = map[string][]byte{"another info": otherInfo, "the info of v1.9.0": []byte(`{"Version":"v1.9.0"}`), "an info with a space": append([]byte(" "), otherInfo...)}[kind]
		if p.Info == nil {
			p.Info = mod.Info
		}
		p.Manifest.Info = artifact.RefOf(p.Info)
		switch kind {
		case "an info without its bytes":
			p.Info = nil
		case "the bytes of an info":
			p.Manifest.Info = artifact.Ref{}
		}
		text += ", " + kind
	}
	if parts&2 == 0 {
		p.Mod, p.Manifest.Mod = nil, artifact.Ref{}
	} else {
		text += ", " + s.goMod(&p, spoilt)
	}
	if parts&4 == 0 {
		p.Manifest.Zip = artifact.Ref{}
	} else {
		kind := pick(s, "zip", "zip", "another zip")
		if spoilt && s.rarely("too large", 4) {
			kind = "too large a zip"
		}
		switch kind {
		case "another zip":
			p.Manifest.Zip.Size++
		case "too large a zip":
			p.Manifest.Zip.Size = artifact.MaxZip + 1
		}
		text += ", " + kind
	}
	forged := forgedNothing
	if spoilt {
		forged = s.forge(&p.Manifest)
	}
	if forged != forgedNothing {
		text += ", its record " + string(forged)
	}
	return step{text, publishCommand{p}, func(m *model) verdict { return m.publish(p, t, forged, infos) }}
}

// size returns the size of a tree that mod's record is in, one whose head is committed if possible.
func (s stepper) size(mod worldModule) (n int64, committed bool) {
	var sizes []int64
	for n, t := range s.m.heads[s.w.dbs[mod.history].Name] {
		if n > mod.ID && s.w.of(mod.history, n) == t {
			sizes = append(sizes, n)
		}
	}
	if len(sizes) == 0 {
		return int64(s.n("size", int(mod.ID)+1, historyLength)), false
	}
	slices.Sort(sizes)
	return pick(s, "committed", sizes...), true
}

func (s stepper) goMod(p *artifact.Publication, spoilt bool) string {
	if len(p.Mod) > artifact.MaxInline {
		p.Mod = nil
		if s.rarely("other bytes", 3) {
			p.Manifest.Mod.Digest[0] ^= 1
			return "another large go.mod"
		}
		return "a large go.mod"
	}
	kind := "go.mod"
	if spoilt {
		kind = pick(s, "go.mod", "go.mod", "a go.mod without its bytes", "another go.mod", "other bytes than its go.mod")
	}
	switch kind {
	case "a go.mod without its bytes":
		p.Mod = nil
	case "another go.mod":
		p.Mod = []byte("module example.com/evil\n")
		p.Manifest.Mod = artifact.RefOf(p.Mod)
	case "other bytes than its go.mod":
		p.Mod = append(bytes.Clone(p.Mod), '\n')
	}
	return kind
}

func (s stepper) forge(m *artifact.Manifest) forgery {
	forged := pick(s, "forgery", forgedNothing, forgedNothing, forgedNothing, forgedID, forgedProof, forgedSum, forgedDatabase)
	switch forged {
	case forgedID:
		m.Record.ID++
	case forgedProof:
		proof, whole := bent(m.Record.Proof, false)
		if m.Record.Proof = proof; whole {
			return forgedNothing
		}
	case forgedSum:
		m.ModSum, m.ZipSum = m.ZipSum, m.ModSum
	case forgedDatabase:
		m.Record.Database = "nobody.example.org"
	}
	return forged
}

func (s stepper) listing() step {
	l := artifact.Listing{Path: "example.com/" + pick(s, "path", "a", "b")}
	when := func(label string) time.Time { return time.Unix(int64(s.n(label, 1, 9)), 0).UTC() }
	if s.n("halves", 0, 2) != 1 {
		l.Listed = when("listed")
		for i := range s.n("versions", 0, 3) {
			l.Versions = append(l.Versions, fmt.Sprintf("v1.%d.0", i))
		}
	}
	if s.n("halves", 0, 2) != 0 {
		l.Latested = when("latested")
		l.Latest = pick(s, "latest", nil, []byte(`{"Version":"v1.0.0"}`), []byte(`{"Version":"v1.1.0"}`))
	}
	wellFormed := true
	if len(l.Versions) > 1 && s.rarely("not sorted", 5) {
		slices.Reverse(l.Versions)
		wellFormed = false
	}
	text := fmt.Sprintf("list %s at %d: %v, latest at %d: %s", l.Path, l.Listed.Unix(), l.Versions, l.Latested.Unix(), l.Latest)
	return step{text, listingCommand{l}, func(m *model) verdict { return m.listing(l, wellFormed) }}
}

func (s stepper) cluster() step {
	id := pick(s, "cluster", "one", "one", "two", "", strings.Repeat("x", maxCluster+1))
	return step{fmt.Sprintf("name the cluster %.8q", id), clusterCommand{id}, func(m *model) verdict { return m.name(id) }}
}

func (s stepper) node() string { return pick(s, "node", "A", "A", "B", "C") }

func (s stepper) register() step {
	id := s.node()
	p := Peer{ID: id, Name: strings.ToLower(id), Role: RoleVoter, Level: pick(s, "level", newestLevel, newestLevel, 0, auditLevel), Boot: pick(s, "boot", "x", "x", "y"), Starts: max(1, s.m.nodes[id].Starts+uint64(s.n("starts", 0, 2)))}
	switch pick(s, "but", "", "", "as a replica", "as a boss", "with another name", "from an old image") {
	case "as a replica":
		p.Role = RoleReplica
	case "as a boss":
		p.Role = "boss"
	case "with another name":
		p.Name = strings.ToLower(s.node())
	case "from an old image":
		p.Starts = uint64(s.n("starts", 1, 2))
	}
	text := fmt.Sprintf("register %s as %s %s of level %d, start %d, life %s", p.ID, p.Role, p.Name, p.Level, p.Starts, p.Boot)
	return step{text, registerCommand{p}, func(m *model) verdict { return m.register(p) }}
}

func (s stepper) hold() step {
	id, held := s.node(), s.n("held", 0, 1) == 1
	return step{fmt.Sprintf("hold %s: %v", id, held), holdCommand{id, held}, func(m *model) verdict { return m.hold(id, held) }}
}

func (s stepper) forget() step {
	id := s.node()
	if s.rarely("nobody", 8) {
		id = ""
	}
	return step{fmt.Sprintf("forget %q", id), forgetCommand{id}, func(m *model) verdict { return m.forget(id) }}
}

func (s stepper) level() step {
	level, by := pick(s, "level", newestLevel, newestLevel, firstLevel, auditLevel), s.node()
	return step{fmt.Sprintf("%s raises the level to %d", by, level), levelCommand{Level: int64(level), By: by}, func(m *model) verdict { return m.raise(level, by) }}
}

func (s stepper) clock() step {
	at := pick(s, "clock", s.m.clock+int64(s.n("passed", -3, 9)), int64(s.n("clock", 0, 20)), maxClock+1)
	at = max(at, 0)
	return step{fmt.Sprintf("the clock shows %d", at), clockCommand{at}, func(m *model) verdict { return m.date(at) }}
}

func (s stepper) rebalance() step {
	to := pick(s, "to", "", s.node(), s.node())
	return step{fmt.Sprintf("a vote is on its way to %q", to), rebalanceCommand{to}, func(m *model) verdict { return m.rebalance(to) }}
}

func (s stepper) audit() step {
	a := Audit{Time: time.Unix(int64(s.n("time", 1, 2)), 0).UTC(), Actor: "root@host", Action: "recover", Reason: pick(s, "reason", "two disks are lost", "a drill", "")}
	return step{fmt.Sprintf("note at %d: %q", a.Time.Unix(), a.Reason), auditCommand{a}, func(m *model) verdict { return m.audit(a) }}
}
