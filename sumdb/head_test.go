package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// seed publishes a record of its own in l, so that something is committed, and returns the module.
func (l *lab) seed(t testing.TB, name string) module.Version {
	t.Helper()
	m := mv("example.com/" + name + "@v1.0.0")
	l.add(m)
	if err := l.cat.Publish(m, want(t, l.DB, m)); err != nil {
		t.Fatal(err)
	}
	return m
}

// The head moves only when a record lies beyond it, and then to the head that the record came with.
func TestHeadMovesOnNeed(t *testing.T) {
	l := newLab(t, 10, nil)
	l.seed(t, "first") // 11 records
	l.src.Grow(100)
	l.add(hello)
	l.src.Grow(100)
	want(t, l.DB, mv("example.com/first@v1.0.0"))
	r := want(t, l.DB, hello)
	if r.TreeSize != 212 || r.ID != 111 {
		t.Errorf("record %d in tree of %d", r.ID, r.TreeSize)
	}
	l.src.Grow(100)
	l.verified.put(hello, r, 0)
	if r := want(t, l.DB, hello); r.TreeSize != 212 {
		t.Errorf("tree of %d", r.TreeSize)
	}
	if got, want := l.cat.Commits(), []int64{11, 212}; !slices.Equal(got, want) {
		t.Errorf("commits %v, want %v", got, want)
	}
}

// A record verified before has a proof against the head of now.
func TestVerifiedRecordIsRenewed(t *testing.T) {
	l := newLab(t, 10, nil)
	l.add(hello)
	want(t, l.DB, hello)
	l.src.Grow(300)
	other := mv("example.com/other@v1.0.0")
	l.add(other)
	want(t, l.DB, other)
	before := l.src.Count("lookup")
	if r := want(t, l.DB, hello); r.TreeSize != 312 || r.Check(l.src.Root(312)) != nil {
		t.Errorf("tree of %d", r.TreeSize)
	}
	if l.src.Count("lookup") != before {
		t.Error("looked up again")
	}
}

// Without /latest the first head is that of the first lookup.
func TestBootstrapFromLookup(t *testing.T) {
	l := newLab(t, 10, nil)
	l.add(hello)
	l.DB = l.reopen(t, func(c *Config) { c.Direct = noLatest{l.src} })
	want(t, l.DB, hello)
	if got, want := l.cat.Commits(), []int64{11}; !slices.Equal(got, want) {
		t.Errorf("commits %v, want %v", got, want)
	}
}

type noLatest struct{ *sumdbtest.Database }

func (n noLatest) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if path == "/latest" {
		return nil, fs.ErrNotExist
	}
	return n.Database.Get(ctx, path, limit)
}

// /latest may lag behind the lookups.
func TestLatestLags(t *testing.T) {
	l := newLab(t, 10, nil)
	l.add(hello)
	l.src.Lie(sumdbtest.Lies{FrozenAt: 5})
	want(t, l.DB, hello)
	if got, want := l.cat.Commits(), []int64{5, 11}; !slices.Equal(got, want) {
		t.Errorf("commits %v, want %v", got, want)
	}
}

// A lost compare-and-set is tried again.
func TestStaleHead(t *testing.T) {
	l := newLab(t, 10, nil)
	l.seed(t, "first")
	l.src.Grow(10)
	l.add(hello)
	l.cat.Stale(3)
	want(t, l.DB, hello)
	l.add(mv("example.com/other@v1.0.0"))
	l.cat.Stale(1000)
	if _, err := l.Record(t.Context(), mv("example.com/other@v1.0.0")); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Record: %v", err)
	}
}

// Nodes that advance at the same time all succeed, and the head only grows.
func TestNodesAdvanceTogether(t *testing.T) {
	l := newLab(t, 10, nil)
	var ms []module.Version
	for i := range 40 {
		ms = append(ms, mv(fmt.Sprintf("example.com/m%d@v1.0.0", i)))
	}
	nodes := []*DB{l.DB}
	for range 3 {
		nodes = append(nodes, open(t, Config{Key: l.src.Key(), Catalog: l.cat, Direct: l.src}))
	}
	var wg sync.WaitGroup
	for i, db := range nodes {
		wg.Go(func() {
			for j := range ms {
				m := ms[(j+i*7)%len(ms)]
				l.add(m)
				if _, err := db.Record(t.Context(), m); err != nil {
					t.Errorf("Record(%s): %v", m, err)
				}
			}
		})
	}
	wg.Wait()
	if c := l.cat.Commits(); !slices.IsSorted(c) {
		t.Errorf("commits %v", c)
	}
}

// A smaller valid tree is an older point of the same line: no error, no move, also over a restart.
func TestRolledBackDatabase(t *testing.T) {
	l := newLab(t, 10, nil)
	l.add(hello)
	l.src.Grow(500)
	l.seed(t, "last")
	want(t, l.DB, hello)
	for range 2 {
		l.src.Lie(sumdbtest.Lies{RollBack: 100})
		want(t, l.DB, hello)
		for _, o := range drain(t, l.DB) {
			if o != "consistent" && o != "anchor" {
				t.Errorf("witness: %s", o)
			}
		}
		if err := l.refresh(t.Context()); err != nil {
			t.Error(err)
		}
		if h, err := l.committed(t.Context()); err != nil || h.N != 512 {
			t.Errorf("head %d, %v", h.N, err)
		}
		l.DB = l.reopen(t, func(c *Config) { c.Direct = l.src })
	}
	if _, err := l.Record(t.Context(), mv("example.com/new@v1.0.0")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Record: %v", err)
	}
}

// forked returns a lab with a committed record and a fork of its database at 20 records that knows hello; both have more
// than 300 records.
func forked(t *testing.T) (l *lab, kept module.Version, fork *sumdbtest.Database) {
	l = newLab(t, 19, nil)
	l.add(mv("example.com/before@v1.0.0"))
	fork = l.src.Fork(20)
	add(fork, hello)
	fork.Grow(1000)
	kept = l.seed(t, "kept")
	l.src.Grow(300)
	l.seed(t, "last") // 322 records
	return l, kept, fork
}

// wantFrozen fails the test unless db is frozen with good evidence and still serves what it holds.
func wantFrozen(t *testing.T, l *lab, kept module.Version) {
	t.Helper()
	f, err := l.cat.Fork(t.Context(), l.name)
	if err != nil {
		t.Fatalf("no evidence: %v", err)
	}
	if err := f.Check(l.verifier); err != nil {
		t.Error(err)
	}
	l.src.AnswerAs(nil)
	for n := range int64(2) { // no tile of the fork took the place of one of ours
		b, err := l.tiles.Tile(tileAtW(0, n, 66))
		good, err2 := l.src.Get(t.Context(), fmt.Sprintf("/tile/8/0/%03d.p/66", n), tileBytes)
		if err != nil || err2 != nil || !bytes.Equal(b, good) {
			t.Errorf("tile 0/%d: %v, %v, equal %v", n, err, err2, bytes.Equal(b, good))
		}
	}
	fresh := mv("example.com/fresh@v1.0.0")
	l.add(fresh)
	if _, err := l.Record(t.Context(), fresh); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "two histories") {
		t.Errorf("new record: %v", err)
	}
	w := get(t, l, "/lookup/example.com/fresh@v1.0.0")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "two histories") || !strings.Contains(w.Body.String(), "modmirror sumdb ack-fork") || w.Header().Get("Retry-After") == "" {
		t.Errorf("new lookup: %d %s", w.Code, w.Body)
	}
	wantLines(t, newGoClient(l, l.Key, nil), kept)
	if w := get(t, l, "/supported"); w.Code != http.StatusOK {
		t.Errorf("supported: %d", w.Code)
	}
	if err := l.refresh(t.Context()); !errors.Is(err, errFrozen) {
		t.Errorf("refresh: %v", err)
	}
	if s, err := l.Status(t.Context()); err != nil || !s.Forked || s.Size != 322 {
		t.Errorf("Status = %+v, %v", s, err)
	}
}

// A record beyond the committed head comes with a head of another history: refused, evidence, frozen, also after a restart.
func TestForkByAdvance(t *testing.T) {
	l, kept, fork := forked(t)
	fork2 := mv("example.com/onlyfork@v1.0.0")
	add(fork, fork2)
	l.src.AnswerAs(fork)
	var log strings.Builder
	reg := prometheus.NewRegistry()
	l.DB = l.reopen(t, func(c *Config) {
		c.Direct, c.Log, c.Metrics = l.src, slog.New(slog.NewTextHandler(&log, nil)), reg
	})
	if r, err := l.Record(t.Context(), fork2); !errors.Is(err, errFrozen) || !errors.Is(err, artifact.ErrUnavailable) {
		t.Fatalf("Record = %+v, %v", r, err)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "proof of misbehavior") {
		t.Errorf("log: %s", log.String())
	}
	if n := testutil.ToFloat64(l.metrics.forks); n != 1 {
		t.Errorf("forks_total = %v", n)
	}
	wantFrozen(t, l, kept)
	l.Close()
	l.DB = l.reopen(t, func(c *Config) { c.Direct = l.src })
	wantFrozen(t, l, kept)
}

// A record below the committed head is proven against that one, so a lie is refused; the head that it came with is checked
// nevertheless, whatever was wrong with the record.
func TestForkByLookup(t *testing.T) {
	unlike := mv("example.com/unlike@v1.0.0")
	for name, c := range map[string]struct {
		m    module.Version
		lies sumdbtest.Lies
		want error
	}{
		"record of the fork":     {hello, sumdbtest.Lies{}, artifact.ErrRefused},
		"lines of another":       {unlike, sumdbtest.Lies{}, artifact.ErrRefused},
		"id outside of the tree": {hello, sumdbtest.Lies{IDs: map[module.Version]string{hello: "1000000"}}, artifact.ErrMalformed},
		"record of both":         {mv("example.com/before@v1.0.0"), sumdbtest.Lies{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l, kept, fork := forked(t)
			fork.AddText(unlike, sumdbtest.Text(hello, sumdbtest.Sum("x"), sumdbtest.Sum("y")))
			fork.Lie(c.lies)
			l.src.AnswerAs(fork)
			l.DB = l.reopen(t, func(c *Config) { c.Direct = l.src })
			if r, err := l.Record(t.Context(), c.m); !errors.Is(err, c.want) {
				t.Fatalf("Record = %+v, %v, want %v", r, err, c.want)
			}
			if o := drain(t, l.DB); len(o) != 1 || !strings.HasPrefix(o[0], "fork") {
				t.Fatalf("witness: %q", o)
			}
			wantFrozen(t, l, kept)
		})
	}
}

// A head that no lookup needs is checked in the background: smaller, equal and larger ones give a fork away.
func TestForkByWitness(t *testing.T) {
	for _, size := range []int64{100, 322, 900} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l, kept, fork := forked(t)
			l.src.AnswerAs(fork)
			h, err := l.openHead(fork.Head(size))
			if err != nil {
				t.Fatal(err)
			}
			l.witness(h)
			if o := drain(t, l.DB); len(o) != 1 || !strings.HasPrefix(o[0], "fork") {
				t.Fatalf("witness: %q", o)
			}
			wantFrozen(t, l, kept)
		})
	}
}

// Two sources that are shown different histories are noticed.
func TestForkByRefresh(t *testing.T) {
	l, kept, fork := forked(t)
	l.DB = l.reopen(t, func(c *Config) { c.Direct, c.Proxies = l.src, []Source{fork} })
	l.refresh(t.Context())
	for range drain(t, l.DB) {
	}
	wantFrozen(t, l, kept)
}

// So are sources whose head is no larger than the committed one or the largest one, in whatever order they are asked, and
// also one that is alone.
func TestForkBySmallHead(t *testing.T) {
	for _, size := range []int64{100, 322, 350, 400} { // 322 are committed, the true database has 350
		for _, order := range []string{"first", "last", "alone"} {
			if order == "alone" && size > 322 {
				continue
			}
			t.Run(fmt.Sprint(size, " ", order), func(t *testing.T) {
				l, kept, fork := forked(t)
				fork.Lie(sumdbtest.Lies{FrozenAt: size})
				l.src.Grow(28)
				l.DB = l.reopen(t, func(c *Config) {
					switch order {
					case "first":
						c.Proxies = []Source{fork, l.src}
					case "last":
						c.Proxies = []Source{l.src, fork}
					case "alone":
						c.Proxies = []Source{fork}
					}
				})
				l.refresh(t.Context())
				drain(t, l.DB)
				if f, err := l.cat.Fork(t.Context(), l.name); err != nil || f.Check(l.verifier) != nil {
					t.Errorf("Fork = %v, %v", f, err)
				}
				wantLines(t, newGoClient(l, l.Key, nil), kept)
			})
		}
	}
}

// named is a source with a name of its own.
type named struct {
	Source
	name string
}

func (n named) String() string { return n.name }

// After an operator has acknowledged a fork, the source that shows the other history is refused like any that lies, and the
// others have the answers; also after a restart. If it goes on with that history, that is a new lie.
func TestForkAcknowledged(t *testing.T) {
	l, kept, fork := forked(t)
	fresh := mv("example.com/fresh@v1.0.0")
	add(fork, fresh)
	var log lockedBuffer
	both := func(c *Config) {
		c.Proxies, c.Direct, c.Log = []Source{named{fork, "liar"}}, l.src, slog.New(slog.NewTextHandler(&log, nil))
	}
	l.DB = l.reopen(t, both)
	if r, err := l.Record(t.Context(), fresh); !errors.Is(err, errFrozen) {
		t.Fatalf("Record = %+v, %v", r, err)
	}
	if !strings.Contains(log.String(), `msg="checksum database forked" database=sum.example.com source=liar`) {
		t.Errorf("log: %s", log.String())
	}
	wantFrozen(t, l, kept) // adds fresh to the true history
	drain(t, l.DB)
	l.cat.AckFork(l.name)
	for _, when := range []string{"acknowledged", "restarted"} {
		if when == "restarted" {
			l.refresh(t.Context()) // Run begins with that
		}
		want(t, l.DB, fresh)
		for range 3 { // the first of them makes the next head that the other one is held against
			l.src.Grow(10)
			if err := l.refresh(t.Context()); err != nil {
				t.Errorf("%s: refresh: %v", when, err)
			}
			if h, err := l.committed(t.Context()); err != nil || h.N != l.src.Size() {
				t.Errorf("%s: head of %d records, %v, want %d", when, h.N, err, l.src.Size())
			}
			fresh = mv(fmt.Sprintf("example.com/fresh%d@v1.0.0", l.src.Size()))
			l.add(fresh)
			want(t, l.DB, fresh)
		}
		for _, o := range drain(t, l.DB) {
			if o != "consistent" && o != "anchor" {
				t.Errorf("%s: witness: %s", when, o)
			}
		}
		if s, err := l.Status(t.Context()); err != nil || s.Forked || s.Sources[0].LastError == nil || !strings.Contains(s.Sources[0].LastError.Error(), "liar shows") {
			t.Errorf("%s: Status = %+v, %v", when, s, err)
		}
		if n := testutil.ToFloat64(l.metrics.forks); when == "restarted" && n != 0 {
			t.Errorf("%v forks after the restart", n)
		}
		l.DB = l.reopen(t, both)
	}
	fork.Grow(1)
	l.refresh(t.Context())
	if _, err := l.Record(t.Context(), mv("example.com/any@v1.0.0")); !errors.Is(err, errFrozen) {
		t.Errorf("Record with a further head of the other history: %v", err)
	}
}

// Heads of another history without tiles to prove it, and tiles of another history under our heads, are no fork.
func TestBadTilesAreNoFork(t *testing.T) {
	l, _, fork := forked(t)
	h, err := l.openHead(fork.Head(900))
	if err != nil {
		t.Fatal(err)
	}
	l.witness(h)
	if o := drain(t, l.DB); len(o) != 1 || !strings.HasPrefix(o[0], "failed") {
		t.Errorf("witness: %q", o)
	}
	if f, err := l.cat.Fork(t.Context(), l.name); err == nil {
		t.Errorf("fork: %v", f)
	}
}

// Evidence that cannot be committed now freezes this node at once, and is committed later.
func TestForkWithoutQuorum(t *testing.T) {
	l, kept, fork := forked(t)
	l.src.AnswerAs(fork)
	h, _ := l.openHead(fork.Head(900))
	if err := l.Frozen(t.Context()); err != nil {
		t.Errorf("Frozen: %v", err)
	}
	l.cat.SetDown(true)
	l.witness(h)
	drain(t, l.DB)
	if _, err := l.Record(t.Context(), mv("example.com/any@v1.0.0")); !errors.Is(err, errFrozen) {
		t.Errorf("Record: %v", err)
	}
	before := len(l.cat.Commits())
	if err := l.Frozen(t.Context()); !errors.Is(err, errFrozen) || !strings.Contains(err.Error(), "not committed") {
		t.Errorf("Frozen: %v", err)
	}
	if s, err := l.Status(t.Context()); err != nil || !s.Forked {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if _, err := l.cat.Fork(t.Context(), l.name); err == nil || len(l.cat.Commits()) != before {
		t.Errorf("Frozen committed something: %v", err)
	}
	l.cat.SetDown(false)
	l.Record(t.Context(), mv("example.com/any@v1.0.0"))
	wantFrozen(t, l, kept)
}

// An older head that is a better anchor than the committed ones becomes one; others do not.
func TestAnchors(t *testing.T) {
	l := newLab(t, 65536+1000, nil)
	l.seed(t, "newest")
	for _, c := range []struct {
		size int64
		want string
	}{
		{1000, "anchor"}, {500, "consistent"}, {60000, "anchor"}, {60000, "consistent"}, {65536, "consistent"}, {66000, "consistent"}, {2000, "consistent"},
	} {
		h, err := l.openHead(l.src.Head(c.size))
		if err != nil {
			t.Fatal(err)
		}
		if o, err := l.check(t.Context(), h); o != c.want || err != nil {
			t.Errorf("%d: %s, %v, want %s", c.size, o, err, c.want)
		}
	}
	if s, err := l.Status(t.Context()); err != nil || s.Anchor != 60000 || s.Deep != 0 {
		t.Errorf("Status = %+v, %v", s, err)
	}
}

// The queue of heads to check is bounded, and a full one delays nobody.
func TestWitnessQueueIsBounded(t *testing.T) {
	l := newLab(t, 200, nil)
	for n := range int64(100) {
		h, err := l.openHead(l.src.Head(n + 1))
		if err != nil {
			t.Fatal(err)
		}
		l.witness(h)
	}
	if n := testutil.ToFloat64(l.metrics.witnessed.WithLabelValues("dropped")); n != 36 {
		t.Errorf("%v dropped, want 36", n)
	}
}

// Run gets the first head, retries while it cannot, asks again every interval, and checks heads that were met.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 100, nil)
		l.src.Lie(sumdbtest.Lies{Down: true})
		background(t, l.DB)
		time.Sleep(time.Minute)
		l.src.Lie(sumdbtest.Lies{})
		time.Sleep(2 * time.Minute)
		if h, err := l.committed(t.Context()); err != nil || h.N != 100 {
			t.Fatalf("head %d, %v", h.N, err)
		}
		before := l.src.Count("latest")
		l.src.Grow(100)
		time.Sleep(24 * time.Hour)
		if h, err := l.committed(t.Context()); err != nil || h.N != 200 {
			t.Errorf("head %d, %v", h.N, err)
		}
		if n := l.src.Count("latest") - before; n < 20 || n > 28 {
			t.Errorf("/latest was asked %d times in a day, want about 24", n)
		}
		fork := l.src.Fork(50)
		add(fork, hello) // filler alone would be the same
		fork.Grow(500)
		l.src.AnswerAs(fork)
		time.Sleep(2 * time.Hour)
		if _, err := l.cat.Fork(t.Context(), l.name); err != nil {
			t.Errorf("fork: %v", err)
		}
	})
}

// A database that is opened with another key than its head was signed with says so.
func TestKeyChanged(t *testing.T) {
	l := newLab(t, 10, nil)
	l.seed(t, "kept")
	other := sumdbtest.New(l.src.Name())
	db := open(t, Config{Key: other.Key(), Catalog: l.cat, Tiles: l.tiles, Direct: other})
	add(other, hello)
	if _, err := db.Record(t.Context(), hello); !errors.Is(err, artifact.ErrRefused) || !strings.Contains(err.Error(), "not signed by") {
		t.Errorf("Record: %v", err)
	}
}

// An empty database has no head to trust, and is no error to a later one.
func TestEmptyDatabase(t *testing.T) {
	l := newLab(t, 0, nil)
	if w := get(t, l, "/supported"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("supported: %d", w.Code)
	}
	l.add(hello)
	r := want(t, l.DB, hello)
	if r.TreeSize != 1 || len(r.Proof) != 0 {
		t.Errorf("record %+v", r)
	}
	wantLines(t, newGoClient(l, l.Key, nil), hello)
}
