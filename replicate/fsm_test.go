package replicate

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// universe draws commands, most of them valid, about a few modules of one database.
type universe struct {
	t    *rapid.T
	db   *replicatetest.Database
	fork *replicatetest.Database
	ms   []replicatetest.Module
	head int64 // newest committed, as far as the drawn commands were applied
}

func newUniverse(tb testing.TB, t *rapid.T) *universe {
	u := &universe{t: t, db: replicatetest.NewDatabase(tb, "sum.example.org")}
	for i := range 12 {
		m := u.db.AddModule(fmt.Sprintf("example.com/m%d", i%3), fmt.Sprintf("v1.%d.0", i), fmt.Sprintf("module example.com/m%d\n", i%3))
		u.ms = append(u.ms, m)
		if i == 6 {
			u.fork = u.db.Fork()
		}
	}
	for u.fork.Size() < u.db.Size() {
		u.fork.Add(fmt.Sprintf("other %d\n", u.fork.Size()))
	}
	return u
}

func (u *universe) int(min, max int) int { return rapid.IntRange(min, max).Draw(u.t, "n") }

func (u *universe) command() command {
	n := int64(u.int(1, int(u.db.Size())))
	switch u.int(0, 20) {
	case 0:
		return trustCommand{u.db.Key}
	case 1, 2, 3, 4:
		base := u.head
		if u.int(0, 7) == 0 {
			base = int64(u.int(0, int(u.db.Size())))
		}
		return headCommand{Database: u.db.Name, Note: u.db.Head(n), Base: base, Proof: u.db.Prove(max(n, base), min(n, base))}
	case 5:
		n := max(n, 8)
		return headCommand{Database: u.db.Name, Note: u.fork.Head(n), Base: u.head, Proof: u.fork.Prove(max(n, u.head), min(n, u.head))}
	case 6:
		return forkCommand{artifact.Fork{Database: u.db.Name, A: u.db.Head(max(n, 8)), B: u.fork.Head(max(n, 8))}}
	case 7, 8:
		return ackForkCommand{u.db.Name}
	case 10:
		id := []string{"A", "B"}[u.int(0, 1)]
		return registerCommand{Peer{ID: id, Name: []string{"a", "b"}[u.int(0, 1)], Role: RoleVoter, Boot: []string{"x", "y"}[u.int(0, 1)], Starts: uint64(u.int(1, 3)), Level: u.int(0, newestLevel)}}
	case 11:
		return holdCommand{[]string{"A", "B"}[u.int(0, 1)], u.int(0, 1) == 0}
	case 12:
		return forgetCommand{[]string{"A", "B"}[u.int(0, 1)]}
	case 14:
		return levelCommand{Level: int64(u.int(1, newestLevel)), By: []string{"A", "B"}[u.int(0, 1)]}
	case 15, 16:
		return clockCommand{int64(u.int(0, 40))}
	case 13:
		return auditCommand{Audit{Time: time.Unix(int64(u.int(1, 5)), 0), Actor: "root@host", Action: "recover", Reason: []string{"", "two disks are lost"}[u.int(0, 1)]}}
	case 9:
		l := artifact.Listing{Path: "example.com/m0", Listed: time.Unix(int64(u.int(1, 9)), 0).UTC()}
		for i := range u.int(0, 3) {
			l.Versions = append(l.Versions, fmt.Sprintf("v1.%d.0", i))
		}
		return listingCommand{l}
	}
	return publishCommand{u.publication(n)}
}

// publication returns some parts of some module, sometimes with parts that others have published otherwise.
func (u *universe) publication(size int64) artifact.Publication {
	m := u.ms[u.int(0, int(size)-1)]
	p := u.db.Publication(m, size)
	parts := u.int(1, 7)
	if parts&1 == 0 {
		p.Info, p.Manifest.Info = nil, artifact.Ref{}
	} else if u.int(0, 3) == 0 {
		p.Info = fmt.Appendf(nil, `{"Version":"%s"}`, m.Version.Version)
		p.Manifest.Info = artifact.RefOf(p.Info)
	}
	if parts&2 == 0 {
		p.Mod, p.Manifest.Mod = nil, artifact.Ref{}
	} else if u.int(0, 5) == 0 {
		p.Mod = nil // fine if it is in the catalog
	}
	if parts&4 == 0 {
		p.Manifest.Zip = artifact.Ref{}
	} else if u.int(0, 3) == 0 {
		p.Manifest.Zip.Size++
	}
	return p
}

// snapshotInto streams m's catalog into another state machine, as raft does.
func (m *machine) snapshotInto(to *machine) {
	m.tb.Helper()
	meta, r, err := m.store.Open(liveID)
	if err != nil {
		m.tb.Fatal(err)
	}
	defer r.Close()
	k, err := to.store.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		m.tb.Fatal(err)
	}
	if n, err := io.Copy(k, r); err != nil || n != meta.Size {
		m.tb.Fatalf("snapshot has %d bytes, its metadata say %d: %v", n, meta.Size, err)
	}
	if err := k.Close(); err != nil {
		m.tb.Fatal(err)
	}
	_, in, err := to.store.Open(k.ID())
	if err != nil {
		m.tb.Fatal(err)
	}
	defer in.Close()
	if err := to.Restore(in); err != nil {
		m.tb.Fatal(err)
	}
}

// Whatever the way to the last entry, the catalog is the same: entry by entry, in batches, with entries that come twice,
// over restarts, and from a snapshot at any point.
func TestSameStateByEveryWay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		u := newUniverse(t, rt)
		a := newMachine(t)
		applied := 0
		a.apply(trustCommand{u.db.Key})
		for range u.int(1, 40) {
			var cmds []command
			for range u.int(1, 3) {
				cmds = append(cmds, u.command())
			}
			for _, r := range a.apply(cmds...) {
				if r.err == nil {
					applied++
				}
			}
			if msg, err := a.catalog.TreeHead(t.Context(), u.db.Name, math.MaxInt64); err == nil {
				u.head = treeOf(t, u.db, msg)
			}
		}
		b := newMachine(t)
		for i := 0; i < len(a.logs); {
			from := max(0, i-u.int(0, 3))
			to := min(len(a.logs), i+u.int(1, 10))
			b.ApplyBatch(a.logs[from:to])
			i = to
			switch u.int(0, 5) {
			case 0:
				path := b.catalog.path
				if err := b.catalog.close(); err != nil {
					rt.Fatal(err)
				}
				b.open(path)
			case 1:
				c := newMachine(t)
				b.snapshotInto(c)
				b = c
			}
		}
		if got, want := dump(t, b.catalog), dump(t, a.catalog); got != want {
			rt.Fatalf("after %d entries one catalog is\n%s\nthe other\n%s", len(a.logs), got, want)
		}
		for err := range (&Catalog{catalog: b.catalog}).Check(t.Context(), nil) {
			rt.Errorf("Check: %v", err)
		}
		rt.Logf("%d commands applied", applied)
	})
}

// No bit of a publication can be turned so that the catalog takes it for something else. The zip's digest is the
// exception: nothing in a record speaks about it, so it is checked before it is proposed, and fixed by being first.
func TestFlippedPublication(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	db.AddModule("example.com/a", "v1.1.0", "module example.com/a\n")
	db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(3)})
	for _, withZip := range []bool{false, true} {
		p := db.Publication(mod, 3)
		if !withZip {
			p.Manifest.Zip = artifact.Ref{}
		}
		flipBits(t, m, publishCommand{p}, func(_ command, r result) bool {
			got := r.manifest
			got.Zip = p.Manifest.Zip
			a, _ := got.AppendBinary(nil)
			b, _ := p.Manifest.AppendBinary(nil)
			return withZip && string(a) == string(b)
		})
	}
}

func TestFlippedTreeHead(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	for i := range 7 {
		db.Add(fmt.Sprintf("record %d\n", i))
	}
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(4)})
	for _, n := range []int64{7, 3} {
		// A signature is base64, whose last digit has bits that mean nothing: another note, but of the same tree.
		sameTree := func(c command, _ result) bool {
			tree, err := artifact.OpenTreeHead(verifierOf(t, db), c.(headCommand).Note)
			return err == nil && tree == db.Tree(n)
		}
		flipBits(t, m, headCommand{Database: db.Name, Note: db.Head(n), Base: 4, Proof: db.Prove(max(n, 4), min(n, 4))}, sameTree)
	}
}

// flipBits applies c with each of its bits turned, each to the same state. Each must be refused, or be harmless.
func flipBits(t *testing.T, m *machine, c command, harmless func(command, result) bool) {
	t.Helper()
	data := entryOf(t, c)
	if r := try(t, m, data); r == nil || r[0].err != nil {
		t.Fatalf("the command itself is refused: %v", r)
	}
	for i := range len(data) * 8 {
		bad := slices.Clone(data)
		bad[i/8] ^= 1 << (i % 8)
		cmds, err := parseEntry(bad)
		if err != nil {
			continue
		}
		for j, r := range try(t, m, bad) {
			if r.err == nil && !harmless(cmds[j], r) {
				t.Fatalf("bit %d of byte %d (%q) turned: accepted as %+v", i%8, i/8, data[max(0, i/8-8):i/8+1], r.manifest)
			}
		}
	}
}

// try computes what an entry would do, and undoes it.
func try(t *testing.T, m *machine, data []byte) (out []result) {
	t.Helper()
	cmds, err := parseEntry(data)
	if err != nil {
		t.Fatal(err)
	}
	undo := errors.New("undo")
	if err := m.catalog.update(func(s state) error {
		for _, c := range cmds {
			r, err := s.apply(c)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return undo
	}); !errors.Is(err, undo) {
		t.Fatal(err)
	}
	return out
}

func TestUnparsableEntryStops(t *testing.T) {
	m := newMachine(t)
	err, ok := m.Apply(&raft.Log{Index: 7, Term: 1, Type: raft.LogCommand, Data: []byte("from the future")}).(error)
	if !ok || !strings.Contains(err.Error(), "log entry 7") || m.latch.fault() == nil {
		t.Errorf("Apply = %v, fault %v", err, m.latch.fault())
	}
	if err, ok := m.Apply(&raft.Log{Index: 8, Term: 1, Type: raft.LogNoop}).(error); !ok {
		t.Errorf("Apply of the next entry = %v", err)
	}
}

// A configuration moves the applied index, otherwise an idle cluster cannot take a snapshot.
func TestConfigurationIsApplied(t *testing.T) {
	m := newMachine(t)
	conf := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "b"}}}
	m.ApplyBatch([]*raft.Log{{Index: 1, Term: 3, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)}})
	list, err := m.store.List()
	if err != nil || len(list) != 1 || list[0].Index != 1 || list[0].Term != 3 || list[0].ConfigurationIndex != 1 || len(list[0].Configuration.Servers) != 1 {
		t.Errorf("List() = %+v, %v", list, err)
	}
}
