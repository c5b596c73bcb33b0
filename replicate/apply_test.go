package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// one applies one command and returns its error.
func (m *machine) one(c command) error {
	m.tb.Helper()
	return m.apply(c)[0].err
}

func records(tb testing.TB, n int) *replicatetest.Database {
	db := replicatetest.NewDatabase(tb, "sum.example.org")
	for i := range n {
		db.Add(fmt.Sprintf("record %d\n", i))
	}
	return db
}

func TestTreeHeads(t *testing.T) {
	db := records(t, 10)
	head := func(n, base int64) headCommand {
		return headCommand{Database: db.Name, Note: db.Head(n), Base: base, Proof: db.Prove(max(n, base), min(n, base))}
	}
	other := records(t, 10) // the same name, another key
	for _, tt := range []struct {
		name string
		c    headCommand
		want error // nil: committed
	}{
		{"first with a base", head(5, 4), artifact.ErrStale},
		{"first with a proof", headCommand{Database: db.Name, Note: db.Head(5), Proof: db.Prove(5, 4)}, artifact.ErrRefused},
		{"first, empty tree", headCommand{Database: db.Name, Note: db.Head(0)}, artifact.ErrRefused},
		{"first of an unknown database", headCommand{Database: "other.example.org", Note: db.Head(5)}, artifact.ErrRefused},
		{"first signed by another key", headCommand{Database: db.Name, Note: other.Head(5)}, artifact.ErrRefused},
		{"first that is no note", headCommand{Database: db.Name, Note: []byte("x")}, artifact.ErrRefused},
		{"first", head(5, 0), nil},
		{"known", head(5, 0), nil},
		{"known, with a wrong base", head(5, 3), nil},
		{"larger without a base", headCommand{Database: db.Name, Note: db.Head(8)}, artifact.ErrStale},
		{"larger with an old base", head(8, 4), artifact.ErrStale},
		{"larger without a proof", headCommand{Database: db.Name, Note: db.Head(8), Base: 5}, artifact.ErrRefused},
		{"larger with a proof of another pair", headCommand{Database: db.Name, Note: db.Head(8), Base: 5, Proof: db.Prove(9, 5)}, artifact.ErrRefused},
		{"larger", head(8, 5), nil},
		{"smaller with an old base", head(3, 5), artifact.ErrStale},
		{"smaller without a proof", headCommand{Database: db.Name, Note: db.Head(3), Base: 8}, artifact.ErrRefused},
		{"smaller", head(3, 8), nil},
		{"between", head(6, 8), nil},
		{"empty tree", headCommand{Database: db.Name, Note: db.Head(0), Base: 8}, artifact.ErrRefused},
	} {
		m := newMachine(t)
		if err := m.one(trustCommand{db.Key}); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(tt.name, "first") {
			m.one(head(5, 0))
		}
		if strings.HasPrefix(tt.name, "smaller") || tt.name == "between" || tt.name == "empty tree" {
			m.one(head(8, 5))
		}
		before := dump(t, m.catalog)
		err := m.one(tt.c)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if got := dump(t, m.catalog); tt.want != nil && stripApplied(got) != stripApplied(before) {
			t.Errorf("%s: refused, but the catalog changed from\n%s\nto\n%s", tt.name, before, got)
		}
	}
}

// A signed head of a size for which package tlog never returns ends no node: it is refused before any proof is looked at.
func TestTreeHeadsOfAbsurdSize(t *testing.T) {
	db := records(t, 4)
	huge := db.Sign(tlog.Tree{N: 1<<63 - 1, Hash: tlog.Hash{1}})
	m := newMachine(t)
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(4)})
	for what, c := range map[string]command{
		"head":     headCommand{Database: db.Name, Note: huge, Base: 4, Proof: db.Prove(4, 3)},
		"evidence": forkCommand{artifact.Fork{Database: db.Name, A: db.Head(4), B: huge, Derived: tlog.Hash{1}, Proof: db.Prove(4, 3)}},
	} {
		if err := m.one(c); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", what, err)
		}
	}
}

// stripApplied leaves the applied index out of a dump.
func stripApplied(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if !strings.HasPrefix(line, `cfg "applied"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestNewestTreeHead(t *testing.T) {
	m := newMachine(t)
	db := records(t, 300)
	for _, neighbour := range []string{"sum.example.oa", "sum.example.orga"} { // in the bucket
		z := replicatetest.NewDatabase(t, neighbour)
		z.Add("x\n")
		m.apply(trustCommand{z.Key}, headCommand{Database: z.Name, Note: z.Head(1)})
	}
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(300)})
	for _, n := range []int64{2, 255, 256} {
		if err := m.one(headCommand{Database: db.Name, Note: db.Head(n), Base: 300, Proof: db.Prove(300, n)}); err != nil {
			t.Fatal(err)
		}
	}
	for below, want := range map[int64]int64{1 << 62: 300, 301: 300, 300: 256, 256: 255, 255: 2, 3: 2} {
		msg, err := m.catalog.TreeHead(t.Context(), db.Name, below)
		if err != nil || treeOf(t, db, msg) != want {
			t.Errorf("TreeHead(below %d): %v, want %d", below, err, want)
		}
	}
	if _, err := m.catalog.TreeHead(t.Context(), db.Name, 2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("TreeHead(below 2) = %v, want fs.ErrNotExist", err)
	}
}

func TestForkFreezes(t *testing.T) {
	db := records(t, 4)
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	db.Add("record 5\n")
	f := records(t, 4)
	*f = *db.Fork()
	db.Add("left\n")
	f.Add("right\n")
	db.Add("left\n")
	f.Add("right\n")
	sameSize := artifact.Fork{Database: db.Name, A: db.Head(7), B: f.Head(7)}
	otherSizes := artifact.Fork{Database: db.Name, A: f.Head(7), B: db.Head(8), Derived: db.Tree(7).Hash, Proof: db.Prove(8, 7)}
	for name, start := range map[string]func(m *machine) error{
		"evidence of one size":  func(m *machine) error { return m.one(forkCommand{sameSize}) },
		"evidence of two sizes": func(m *machine) error { return m.one(forkCommand{otherSizes}) },
		"a head of known size": func(m *machine) error {
			m.one(headCommand{Database: db.Name, Note: db.Head(7), Base: 6, Proof: db.Prove(7, 6)})
			if err := m.one(headCommand{Database: db.Name, Note: f.Head(7), Base: 7}); !errors.Is(err, artifact.ErrRefused) || !strings.Contains(err.Error(), "SECURITY ERROR") {
				return fmt.Errorf("head of another history: %v, want ErrRefused with the evidence", err)
			}
			return nil
		},
	} {
		m := newMachine(t)
		m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(6)})
		if err := start(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ev, err := m.catalog.Fork(t.Context(), db.Name); err != nil || ev.Check(verifierOf(t, db)) != nil {
			t.Errorf("%s: Fork() = %v, %v, want evidence", name, ev, err)
		}
		publish := publishCommand{db.Publication(mod, 6)}
		advance := headCommand{Database: db.Name, Note: db.Head(8), Base: 6, Proof: db.Prove(8, 6)}
		if name == "a head of known size" {
			advance = headCommand{Database: db.Name, Note: db.Head(8), Base: 7, Proof: db.Prove(8, 7)}
		}
		for what, c := range map[string]command{"publish": publish, "advance": advance} {
			if err := m.one(c); !errors.Is(err, artifact.ErrUnavailable) {
				t.Errorf("%s: %s while frozen: %v, want ErrUnavailable", name, what, err)
			}
		}
		if err := m.one(ackForkCommand{db.Name}); err != nil {
			t.Errorf("%s: AckFork: %v", name, err)
		}
		if err := m.one(ackForkCommand{db.Name}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: second AckFork: %v, want fs.ErrNotExist", name, err)
		}
		start(m) // the same evidence again
		for what, c := range map[string]command{"publish": publish, "advance": advance} {
			if err := m.one(c); err != nil {
				t.Errorf("%s: %s after the fork was acknowledged: %v", name, what, err)
			}
		}
		later := artifact.Fork{Database: db.Name, A: db.Head(8), B: f.Head(8)}
		if err := m.one(forkCommand{later}); err != nil {
			t.Error(err)
		}
		if _, err := m.catalog.Fork(t.Context(), db.Name); err != nil {
			t.Errorf("%s: another fork does not freeze again: %v", name, err)
		}
	}
}

// What an operator has acknowledged does not freeze again when the committed head has moved on; a further head of the other
// history does.
func TestForkAcknowledged(t *testing.T) {
	db := records(t, 6)
	f := db.Fork()
	for range 10 {
		db.Add("left\n")
		f.Add("right\n")
	}
	against := func(n int64, g *replicatetest.Database, other int64) artifact.Fork { // of our head of n and g's of other
		ev := artifact.Fork{Database: db.Name, A: db.Head(n), B: g.Head(other)}
		if n < other {
			ev.Derived, ev.Proof = g.Tree(n).Hash, g.Prove(other, n)
		}
		if n > other {
			ev.A, ev.B, ev.Derived, ev.Proof = ev.B, ev.A, db.Tree(other).Hash, db.Prove(n, other)
		}
		return ev
	}
	for _, tt := range []struct {
		name   string
		f      artifact.Fork
		freeze bool
	}{
		{"the same", against(8, f, 10), false},
		{"a smaller head of ours", against(7, f, 10), false},
		{"a head of ours of that size", against(10, f, 10), false},
		{"a larger head of ours", against(12, f, 10), false},
		{"a further head of the other history", against(12, f, 11), true},
		{"an older head of the other history", against(8, f, 7), true},
		{"two heads that are not committed", artifact.Fork{Database: db.Name, A: f.Head(9), B: db.Head(11), Derived: db.Tree(9).Hash, Proof: db.Prove(11, 9)}, true},
		{"the acknowledged head against one that is not committed", against(11, f, 10), true},
	} {
		m := newMachine(t)
		m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(8)}, forkCommand{against(8, f, 10)}, ackForkCommand{db.Name})
		for _, n := range []int64{7, 10, 12} {
			base, newer := int64(8), max(n, 8)
			if n == 12 {
				base = 10
			}
			if err := m.one(headCommand{Database: db.Name, Note: db.Head(n), Base: base, Proof: db.Prove(max(newer, base), min(n, base))}); err != nil {
				t.Fatal(err)
			}
		}
		m.one(forkCommand{tt.f})
		if _, err := m.catalog.Fork(t.Context(), db.Name); errors.Is(err, fs.ErrNotExist) == tt.freeze {
			t.Errorf("%s: Fork() = %v, want frozen %v", tt.name, err, tt.freeze)
		}
	}
}

func TestForkWithoutProof(t *testing.T) {
	m := newMachine(t)
	db, other := records(t, 4), records(t, 4)
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(4)})
	for name, f := range map[string]artifact.Fork{
		"the same head twice":      {Database: db.Name, A: db.Head(4), B: db.Head(4)},
		"signed by somebody else":  {Database: db.Name, A: db.Head(4), B: other.Head(4)},
		"consistent":               {Database: db.Name, A: db.Head(3), B: db.Head(4), Derived: db.Tree(3).Hash, Proof: db.Prove(4, 3)},
		"made-up derived root":     {Database: db.Name, A: db.Head(3), B: db.Head(4), Derived: tlog.Hash{1}, Proof: db.Prove(4, 3)},
		"of an untrusted database": {Database: "other.example.org", A: db.Head(4), B: db.Head(4)},
	} {
		if err := m.one(forkCommand{f}); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
	}
	if _, err := m.catalog.Fork(t.Context(), db.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Fork() = %v, want fs.ErrNotExist", err)
	}
}

func TestTrust(t *testing.T) {
	m := newMachine(t)
	a, b := records(t, 1), records(t, 1)
	for range 2 {
		if err := m.one(trustCommand{a.Key}); err != nil {
			t.Error(err)
		}
	}
	for name, key := range map[string]string{"another key": b.Key, "no key": "x", "empty": "", "control character": strings.Replace(a.Key, "sum", "s\x01m", 1)} {
		if err := m.one(trustCommand{key}); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
	}
	if key, err := m.catalog.DatabaseKey(t.Context(), a.Name); err != nil || key != a.Key {
		t.Errorf("DatabaseKey() = %q, %v, want %q", key, err, a.Key)
	}
	if _, err := m.catalog.DatabaseKey(t.Context(), "other.example.org"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("DatabaseKey(unknown) = %v, want fs.ErrNotExist", err)
	}
}

func TestPublicationRefused(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	twin := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	db.Add("last\n")
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(3)})
	big := bytes.Repeat([]byte("x"), artifact.MaxInline+1)
	before := stripApplied(dump(t, m.catalog))
	for name, spoil := range map[string]func(p *artifact.Publication){
		"head not committed":       func(p *artifact.Publication) { p.Manifest.Record = db.Record(mod.ID, 2) },
		"record of another module": func(p *artifact.Publication) { p.Manifest.Record = db.Record(twin.ID, 3) },
		"other record id":          func(p *artifact.Publication) { p.Manifest.Record.ID = 1 },
		"untrusted database":       func(p *artifact.Publication) { p.Manifest.Record.Database = "other.example.org" },
		"no database":              func(p *artifact.Publication) { p.Manifest.Record.Database = "" },
		"no record":                func(p *artifact.Publication) { p.Manifest.Record = artifact.Record{} },
		"forged text": func(p *artifact.Publication) {
			p.Manifest.Record.Text = bytes.Replace(p.Manifest.Record.Text, []byte("h1:"), []byte("h1:A"), 1)
		},
		"other go.mod": func(p *artifact.Publication) {
			p.Mod = []byte("module evil\n")
			p.Manifest.Mod = artifact.RefOf(p.Mod)
		},
		"go.mod of other digest": func(p *artifact.Publication) { p.Mod = []byte("module example.com/b\n") },
		"go.mod without bytes":   func(p *artifact.Publication) { p.Mod = nil },
		"info without bytes":     func(p *artifact.Publication) { p.Info = nil },
		"bytes without a ref":    func(p *artifact.Publication) { p.Manifest.Info = artifact.Ref{} },
		"info of other version": func(p *artifact.Publication) {
			p.Info = []byte(`{"Version":"v1.0.1"}`)
			p.Manifest.Info = artifact.RefOf(p.Info)
		},
		"info not canonical": func(p *artifact.Publication) {
			p.Info = []byte(`{"Version": "v1.0.0"}`)
			p.Manifest.Info = artifact.RefOf(p.Info)
		},
		"inline above the limit": func(p *artifact.Publication) { p.Mod, p.Manifest.Mod = big, artifact.RefOf(big) },
		"nothing": func(p *artifact.Publication) {
			p.Info, p.Mod = nil, nil
			p.Manifest.Info, p.Manifest.Mod, p.Manifest.Zip = artifact.Ref{}, artifact.Ref{}, artifact.Ref{}
		},
		"zip above the limit": func(p *artifact.Publication) { p.Manifest.Zip.Size = artifact.MaxZip + 1 },
	} {
		p := db.Publication(mod, 3)
		spoil(&p)
		if err := m.one(publishCommand{p}); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
		if after := stripApplied(dump(t, m.catalog)); after != before {
			t.Fatalf("%s: refused, but the catalog changed from\n%s\nto\n%s", name, before, after)
		}
	}
}

// Of two infos the first wins; the bytes of the other are not kept.
func TestSecondInfoLoses(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(1)})
	first := db.Publication(mod, 1)
	first.Manifest.Zip = artifact.Ref{}
	second := db.Publication(mod, 1)
	second.Info = []byte(`{"Version":"v1.0.0"}`)
	second.Manifest.Info = artifact.RefOf(second.Info)
	r := m.apply(publishCommand{first}, publishCommand{second})
	if r[1].err != nil || r[1].manifest.Info != first.Manifest.Info || r[1].manifest.Zip != second.Manifest.Zip {
		t.Errorf("second publication: %+v, want the first info and the new zip", r[1])
	}
	if _, err := m.catalog.Inline(t.Context(), second.Manifest.Info.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Inline(second info) = %v, want fs.ErrNotExist", err)
	}
	if again := m.apply(publishCommand{second})[0]; again.err != nil || again.manifest.Info != first.Manifest.Info {
		t.Errorf("the same publication again: %+v, want what is committed", again)
	}
	if seq, _ := m.catalog.Root(); seq != 2 {
		t.Errorf("%d changes, want 2", seq)
	}
}

// A go.mod that is too large for the log is a blob: its digest is published, its bytes are elsewhere.
func TestLargeGoModIsBlob(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n//"+strings.Repeat("x", artifact.MaxInline)+"\n")
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(1)})
	p := db.Publication(mod, 1)
	p.Mod = nil
	if err := m.one(publishCommand{p}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.catalog.Inline(t.Context(), p.Manifest.Mod.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Inline() = %v, want fs.ErrNotExist", err)
	}
}

// A database that says two things about one version: the first stays, both are kept.
func TestConflict(t *testing.T) {
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	first := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	second := db.AddModule("example.com/a", "v1.0.0", "module example.com/a // other\n")
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(2)}, publishCommand{db.Publication(first, 2)})
	before, _ := m.catalog.Manifest(t.Context(), first.Version)
	for range 2 {
		r := m.apply(publishCommand{db.Publication(second, 2)})[0]
		if !errors.Is(r.err, artifact.ErrConflict) || r.manifest.ModSum != before.ModSum {
			t.Errorf("publish another go.mod: %+v, want ErrConflict and what is committed", r)
		}
	}
	var st Status
	if err := m.catalog.fill(t.Context(), &st); err != nil || st.Conflicts != 1 || st.Seq != 1 {
		t.Errorf("Status = %+v, %v, want 1 conflict, kept once", st, err)
	}
	if got := dump(t, m.catalog); !strings.Contains(got, "\nc \"example.com/a@v1.0.0\\x00") {
		t.Errorf("no evidence in\n%s", got)
	}
	for i := range 2 * maxConflicts {
		db.AddModule("example.com/a", "v1.0.0", fmt.Sprintf("module example.com/a // %d\n", i))
	}
	m.apply(headCommand{Database: db.Name, Note: db.Head(db.Size()), Base: 2, Proof: db.Prove(db.Size(), 2)})
	for i := range 2 * maxConflicts {
		mod := second
		mod.ID, mod.Mod = int64(2+i), fmt.Appendf(nil, "module example.com/a // %d\n", i)
		m.one(publishCommand{db.Publication(mod, db.Size())})
	}
	if m.catalog.fill(t.Context(), &st); st.Conflicts != maxConflicts {
		t.Errorf("%d conflicts are kept, want %d", st.Conflicts, maxConflicts)
	}
}

func TestListing(t *testing.T) {
	m := newMachine(t)
	when := time.Unix(1_700_000_000, 0).UTC()
	info := []byte(`{"Version":"v1.2.0"}`)
	l := artifact.Listing{Path: "example.com/a", Versions: []string{"v1.0.0", "v1.2.0"}, Listed: when}
	if err := m.one(listingCommand{l}); err != nil {
		t.Fatal(err)
	}
	if err := m.one(listingCommand{artifact.Listing{Path: l.Path, Latest: info, Latested: when.Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	got, err := m.catalog.Listing(t.Context(), l.Path)
	if err != nil || len(got.Versions) != 2 || !got.Listed.Equal(when) || !bytes.Equal(got.Latest, info) || !got.Latested.Equal(when.Add(time.Hour)) {
		t.Errorf("Listing() = %+v, %v, want both halves", got, err)
	}
	later := l
	later.Listed = when.Add(time.Minute)
	before := stripApplied(dump(t, m.catalog))
	if err := m.one(listingCommand{later}); err != nil || stripApplied(dump(t, m.catalog)) != before {
		t.Errorf("a later listing that says the same is written (%v)", err)
	}
	if err := m.one(listingCommand{artifact.Listing{Path: l.Path, Listed: later.Listed}}); err != nil {
		t.Error(err)
	}
	if got, _ := m.catalog.Listing(t.Context(), l.Path); len(got.Versions) != 0 || !bytes.Equal(got.Latest, info) {
		t.Errorf("after an empty list: %+v", got)
	}
	for name, bad := range map[string]artifact.Listing{
		"no path":            {Versions: l.Versions, Listed: when},
		"bad path":           {Path: "../x", Listed: when},
		"not sorted":         {Path: "example.com/a", Versions: []string{"v1.2.0", "v1.0.0"}, Listed: when},
		"twice":              {Path: "example.com/a", Versions: []string{"v1.2.0", "v1.2.0"}, Listed: when},
		"pseudo-version":     {Path: "example.com/a", Versions: []string{"v0.0.0-20200101000000-abcdefabcdef"}, Listed: when},
		"not canonical":      {Path: "example.com/a", Versions: []string{"v1.2"}, Listed: when},
		"empty version":      {Path: "example.com/a", Versions: []string{""}, Listed: when},
		"never seen list":    {Path: "example.com/a", Versions: l.Versions},
		"never seen latest":  {Path: "example.com/a", Latest: info},
		"latest is no info":  {Path: "example.com/a", Latest: []byte("{}"), Latested: when},
		"not a whole second": {Path: "example.com/a", Listed: when.Add(1)},
		"before 1970":        {Path: "example.com/a", Listed: time.Unix(-5, 0)},
	} {
		if err := checkListing(bad); !errors.Is(err, artifact.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}
