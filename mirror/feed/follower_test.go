package feed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
)

// place is a source and a target in memory. What a version has grows part by part.
type place struct {
	tb  testing.TB
	dir string

	mu      sync.Mutex // guards all below
	id      string     // of the cluster of the source; "": it is no mirror
	clock   time.Time
	entries []Entry // each version once, at the time of its last change
	down    error   // why the source does not answer
	asked   []Query
	held    map[string]bool  // what the target has: "path@version zip"
	broken  map[string]error // why it cannot have something
	delay   time.Duration    // of an artifact
	active  int
	most    int // active at a time
}

func newPlace(tb testing.TB, dir string) *place {
	return &place{tb: tb, dir: dir, id: "C1", clock: time.UnixMicro(1e15).UTC(), held: map[string]bool{}, broken: map[string]error{}}
}

// publish adds parts to a version.
func (p *place) publish(path string, parts ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock = p.clock.Add(time.Microsecond)
	e := Entry{Path: path, Version: "v1.0.0"}
	if i := slices.IndexFunc(p.entries, func(o Entry) bool { return o.Path == path }); i >= 0 {
		e = p.entries[i]
		p.entries = slices.Delete(p.entries, i, i+1)
	}
	e.Timestamp = p.clock
	for _, k := range parts {
		if !slices.Contains(e.Parts, k) {
			e.Parts = append(slices.Clone(e.Parts), k)
		}
	}
	p.entries = append(p.entries, e)
}

func (p *place) String() string { return "https://source.example" }

func (p *place) Ask(ctx context.Context, path, query string, _ int64) ([]byte, http.Header, error) {
	q, err := ParseQuery(query)
	if err != nil || path != "/index" {
		p.tb.Errorf("asked for %s?%s: %v", path, query, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, q)
	for end := time.Now().Add(q.Wait); p.down == nil && p.id != "" && !slices.ContainsFunc(p.entries, func(e Entry) bool { return !e.Timestamp.Before(q.Since) }) && time.Now().Before(end); {
		p.mu.Unlock()
		pause(ctx, time.Second)
		p.mu.Lock()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	if p.down != nil {
		return nil, nil, p.down
	}
	var body []byte
	n, behind, through := 0, 0, p.clock
	for _, e := range p.entries {
		switch {
		case e.Timestamp.Before(q.Since):
		case n == min(q.limit(), 3): // small pages
			behind++
		default:
			n++
			through = e.Timestamp
			body, _ = e.AppendTo(body)
		}
	}
	h := http.Header{}
	if p.id != "" {
		if behind == 0 {
			through = p.clock
		}
		h.Set(HeaderID, p.id)
		h.Set(HeaderThrough, Format(through))
		h.Set(HeaderBehind, strconv.Itoa(behind))
	}
	return body, h, nil
}

func (p *place) Acquire(ctx context.Context, mv module.Version, k artifact.Kind) error {
	p.mu.Lock()
	p.active++
	p.most = max(p.most, p.active)
	delay := p.delay
	p.mu.Unlock()
	pause(ctx, delay)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	p.checkCursor()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	what := mv.String() + " " + k.String()
	for _, key := range []string{what, mv.String(), ""} {
		if err := p.broken[key]; err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	p.held[what] = true
	return nil
}

// saved returns what is in feed.json.
func (p *place) saved() (s state) {
	b, err := os.ReadFile(filepath.Join(p.dir, StateName))
	if errors.Is(err, os.ErrNotExist) {
		return s
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		p.tb.Errorf("feed.json: %v", err)
	}
	return s
}

// checkCursor holds what is durable to the promise: all before the cursor is here, or owed.
func (p *place) checkCursor() {
	s := p.saved()
	for _, e := range p.entries {
		if s.Feed != p.id || p.broken[e.Module().String()] == artifact.ErrPolicy || !e.Timestamp.Before(s.Since) || slices.ContainsFunc(s.Owed, func(o Owed) bool { return o.Path == e.Path }) {
			continue
		}
		if missing := p.missing(e); missing != "" && !p.tb.Failed() {
			p.tb.Errorf("the cursor is at %v, behind %s of %v, which is not here", s.Since, missing, e.Timestamp)
		}
	}
}

func (p *place) missing(e Entry) string {
	for _, k := range e.Kinds() {
		if what := e.Module().String() + " " + k.String(); !p.held[what] {
			return what
		}
	}
	return ""
}

func (p *place) allHeld() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(p.entries, func(e Entry) bool { return p.missing(e) != "" })
}

func (p *place) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *place) follower(change func(*Config)) *Follower {
	p.tb.Helper()
	c := Config{Source: p, Target: p, Dir: p.dir, Cluster: func() string { return "D1" }, Parallel: 3}
	if change != nil {
		change(&c)
	}
	f, err := New(c)
	if err != nil {
		p.tb.Fatal(err)
	}
	return f
}

// run follows until the returned function is called.
func (p *place) run(f *Follower) (stop func()) {
	ctx, cancel := context.WithCancel(p.tb.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			p.tb.Errorf("Run: %v", err)
		}
	}
}

func (p *place) await(what string, ok func() bool) {
	p.tb.Helper()
	for end := time.Now().Add(3 * time.Hour); !ok(); time.Sleep(100 * time.Millisecond) { // of the bubble's time
		if time.Now().After(end) {
			p.tb.Fatalf("no %s; asked last for %+v", what, p.asked[len(p.asked)-1])
		}
	}
}

func (p *place) questions() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.asked) }

func (p *place) has(what string) bool { p.mu.Lock(); defer p.mu.Unlock(); return p.held[what] }

func (p *place) now() time.Time { p.mu.Lock(); defer p.mu.Unlock(); return p.clock }

// Whatever is published, fails, comes back, and whenever the process dies: all is here at last, and at no moment is what is
// durable ahead of what is here. (Acquire looks at the file each time.)
func TestFollowsAll(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			p := newPlace(t, dir)
			stop := p.run(p.follower(nil))
			parts := []string{"info", "mod", "zip"}
			for range rapid.IntRange(1, 25).Draw(rt, "steps") {
				switch rapid.SampledFrom([]string{"publish", "publish", "publish", "break", "mend", "down", "up", "kill", "wait"}).Draw(rt, "step") {
				case "publish":
					for range rapid.IntRange(1, 5).Draw(rt, "count") {
						p.publish(fmt.Sprintf("example.com/m%d", rapid.IntRange(0, 12).Draw(rt, "module")), parts[:rapid.IntRange(1, 3).Draw(rt, "parts")]...)
					}
				case "break":
					what := rapid.SampledFrom([]string{"", "example.com/m1@v1.0.0", "example.com/m2@v1.0.0 zip"}).Draw(rt, "what")
					p.set(func() {
						p.broken[what] = rapid.SampledFrom([]error{artifact.ErrUnavailable, artifact.ErrRefused}).Draw(rt, "how")
					})
				case "mend":
					p.set(func() { clear(p.broken) })
				case "down":
					p.set(func() { p.down = errors.New("connection refused") })
				case "up":
					p.set(func() { p.down = nil })
				case "kill":
					stop()
					stop = p.run(p.follower(nil))
				case "wait":
					time.Sleep(time.Duration(rapid.IntRange(1, 3000).Draw(rt, "ms")) * time.Millisecond)
				}
			}
			p.set(func() { clear(p.broken); p.down = nil })
			p.await("all here", p.allHeld)
			stop()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.checkCursor()
		})
	})
}

// What is refused is noted, and stops nothing; it is tried again, more and more slowly, also after a restart.
func TestRefusedIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		p := newPlace(t, t.TempDir())
		for i := range 10 {
			p.publish(fmt.Sprintf("example.com/m%d", i), "info", "mod", "zip")
		}
		p.broken["example.com/m4@v1.0.0 zip"] = fmt.Errorf("checksum mismatch: %w", artifact.ErrRefused)
		p.broken["example.com/m5@v1.0.0"] = artifact.ErrPolicy
		f := p.follower(func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&logs, nil)) })
		stop := p.run(f)
		time.Sleep(time.Minute)
		st := f.Status()
		if st.Refused != 1 || st.Failed != 0 || st.Skipped != 1 || len(st.Owed) != 1 || st.Owed[0].Path != "example.com/m4" || !strings.Contains(st.Owed[0].Reason, "mismatch") ||
			st.Behind != 0 || !st.Through.Equal(p.now()) || st.State != StateFollowing {
			t.Errorf("status %+v", st)
		}
		if !p.has("example.com/m4@v1.0.0 mod") || !p.has("example.com/m9@v1.0.0 zip") {
			t.Error("not all else is here")
		}
		time.Sleep(24 * time.Hour)
		if tries := f.Status().Owed[0].Tries; tries < 25 || tries > 80 {
			t.Errorf("%d tries in a day", tries)
		}
		stop()
		if n := strings.Count(logs.String(), "could not be had"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, logs.String())
		}
		p.set(func() { delete(p.broken, "example.com/m4@v1.0.0 zip") })
		f = p.follower(nil)
		stop = p.run(f)
		p.await("right zip", func() bool { return p.has("example.com/m4@v1.0.0 zip") && f.Status().Refused == 0 })
		stop()
		if s := p.saved(); len(s.Owed) != 0 {
			t.Errorf("still owed: %+v", s.Owed)
		}
	})
}

// A version that was owed and has come in is still owed if it has grown meanwhile, and that could not be had.
func TestOwedGrows(t *testing.T) {
	f := newPlace(t, t.TempDir()).follower(nil)
	old := Entry{Path: "example.com/a", Version: "v1.0.0", Timestamp: time.UnixMicro(1), Parts: []string{"info"}}
	grown := Entry{Path: "example.com/a", Version: "v1.0.0", Timestamp: time.UnixMicro(2), Parts: []string{"info", "zip"}}
	for _, end := range []func(){
		func() { f.again(old, nil, false) },
		func() { f.again(old, artifact.ErrRefused, false) },
		func() { f.note(old, nil) },
		func() { f.again(grown, context.Canceled, true) },
	} {
		f.state.Owed = nil
		f.note(old, artifact.ErrUnavailable)
		f.state.Owed[0].trying = true
		f.note(grown, artifact.ErrUnavailable)
		end()
		if owed := f.state.Owed; len(owed) != 1 || len(owed[0].Parts) != 2 || owed[0].Refused || owed[0].trying {
			t.Errorf("owed: %+v", owed)
		}
	}
	if f.note(grown, nil); len(f.state.Owed) > 0 {
		t.Errorf("still owed: %+v", f.state.Owed)
	}
}

// As long as nothing can be had, nothing is passed over, and neither the source nor this node is kept busy.
func TestNothingCanBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		for i := range 100 {
			p.publish(fmt.Sprintf("example.com/m%d", i), "info")
		}
		p.broken[""] = artifact.ErrNoQuorum
		reg := prometheus.NewRegistry()
		f := p.follower(func(c *Config) { c.Metrics = reg })
		stop := p.run(f)
		time.Sleep(time.Hour)
		if gauge(t, reg, "modmirror_feed_failing") != 1 {
			t.Error("the metric does not say that nothing can be had")
		}
		if st := f.Status(); st.State != StateFailing || st.Failed > 60+2*stuckAfter || st.Behind <= 0 || p.questions() > 100 {
			t.Errorf("after an hour, %d questions: %+v", p.questions(), st)
		}
		p.set(func() { clear(p.broken); p.down = errors.New("connection refused") })
		time.Sleep(time.Hour)
		if st := f.Status(); st.State != StateFailing || !strings.Contains(st.Error, "connection refused") {
			t.Errorf("of a source that is down: %+v", st)
		}
		if gauge(t, reg, "modmirror_feed_failing") != 1 {
			t.Error("the metric does not say that the source is down")
		}
		p.set(func() { p.down = nil })
		p.await("all here", p.allHeld)
		p.await("a metric that says so", func() bool { return gauge(t, reg, "modmirror_feed_failing") == 0 })
		p.set(func() { p.down = errors.New("connection refused") })
		p.await("a metric of a source that is down again", func() bool { return gauge(t, reg, "modmirror_feed_failing") == 1 })
		stop()
		if gauge(t, reg, "modmirror_feed_failing") != 0 {
			t.Error("the metric says that it fails of a node that does not follow")
		}
	})
}

// gauge returns the value of a gauge without labels.
func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// A source that is another cluster now, or lost its end, is noticed, and what it has is looked at again.
func TestSourceChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		p.publish("example.com/a", "info")
		p.publish("example.com/b", "info")
		f := p.follower(nil)
		stop := p.run(f)
		p.await("all here", p.allHeld)
		p.set(func() {
			p.id = "C2"
			p.entries = nil
			p.clock = p.clock.Add(-time.Hour) // its clock is behind
		})
		p.publish("example.com/c", "info")
		p.await("what the other cluster has", p.allHeld)
		if st := f.Status(); st.FeedID != "C2" || !strings.Contains(st.Changed, "it is cluster C2, and was C1") {
			t.Errorf("status %+v", st)
		}
		p.publish("example.com/d", "info")
		p.await("d", p.allHeld)
		p.set(func() {
			p.entries = p.entries[:1]
			p.clock = p.entries[0].Timestamp // an old image of its disk
		})
		time.Sleep(goneBack / 2)
		if st := f.Status(); strings.Contains(st.Changed, "lost") {
			t.Errorf("a source that may only lag: %+v", st)
		}
		time.Sleep(goneBack)
		if st := f.Status(); !strings.Contains(st.Changed, "it lost what it had") {
			t.Errorf("status %+v", st)
		}
		p.publish("example.com/e", "info")
		p.await("e", p.allHeld)
		p.set(func() { p.id = "" })
		time.Sleep(time.Minute)
		if st := f.Status(); !strings.Contains(st.Error, "does not say whose feed it is") {
			t.Errorf("of a source without a name: %+v", st)
		}
		stop()
		if s := p.saved(); s.Feed != "C2" || s.Changed == "" {
			t.Errorf("saved: %+v", s)
		}
	})
}

// The feed of the public index has no names, no parts, and may have equal times.
func TestFollowsThePublicIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		p.id = ""
		for i := range 7 {
			p.publish(fmt.Sprintf("example.com/m%d", i))
			p.entries[i].Timestamp = p.entries[i-i%2].Timestamp // in pairs; a page of the fake has 3
		}
		f := p.follower(nil)
		stop := p.run(f)
		p.await("all here", p.allHeld)
		if !p.has("example.com/m6@v1.0.0 zip") || f.Status().Behind != -1 {
			t.Errorf("status %+v", f.Status())
		}
		before := p.questions()
		time.Sleep(time.Minute)
		if n := p.questions() - before; n > 13 {
			t.Errorf("asked %d times in a minute", n)
		}
		stop()
	})
}

// Only the leader follows; another one goes on from its own cursor.
func TestLeaderFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		for i := range 9 {
			p.publish(fmt.Sprintf("example.com/m%d", i), "info")
		}
		leads := false
		f := p.follower(func(c *Config) {
			c.Lead = func() bool { p.mu.Lock(); defer p.mu.Unlock(); return leads }
		})
		stop := p.run(f)
		time.Sleep(time.Minute)
		if p.questions() > 0 || f.Status().State != StateWaiting {
			t.Errorf("a node that does not lead asks %d times: %+v", p.questions(), f.Status())
		}
		p.set(func() { leads = true })
		p.await("all here", p.allHeld)
		p.set(func() { leads = false })
		time.Sleep(time.Minute)
		p.publish("example.com/late", "info")
		time.Sleep(time.Minute)
		if p.allHeld() {
			t.Error("a node that does not lead any more follows")
		}
		p.set(func() { leads = true })
		p.await("all here", p.allHeld)
		stop()
	})
}

// A node that begins to lead goes on from where the one before was, as far as it heard of that, with what was owed; and keeps it
// while it waits, over a restart. What is said of another feed, or to another cluster, is not for it.
func TestGoesOnFromAClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		for i := range 9 {
			p.publish(fmt.Sprintf("example.com/m%d", i), "info")
		}
		p.broken["example.com/m1@v1.0.0"] = artifact.ErrRefused
		first := p.follower(nil)
		if c := first.Claim(); c != nil {
			t.Errorf("before it has followed, it claims %+v", c)
		}
		stop := p.run(first)
		time.Sleep(time.Minute)
		claim := first.Claim()
		stop()
		if claim == nil || claim.Since.Before(p.now()) || len(claim.Owed) != 1 || first.Claim() != nil {
			t.Fatalf("claim %+v, and then %+v", claim, first.Claim())
		}
		other := newPlace(t, t.TempDir()) // another node of the cluster, with the same catalog
		other.entries, other.clock, other.held, other.broken = p.entries, p.clock, p.held, p.broken
		leads := false
		wrong := *claim
		wrong.Feed, wrong.Since = "C9", claim.Since.Add(time.Hour)
		stranger := wrong
		stranger.Feed, stranger.Cluster = claim.Feed, "D9"
		heard := []Claim{stranger, *claim, wrong}
		config := func(c *Config) {
			c.Lead = func() bool { other.mu.Lock(); defer other.mu.Unlock(); return leads }
			c.Heard = func() []Claim { return heard }
		}
		stop = other.run(other.follower(config))
		time.Sleep(time.Minute)
		stop()
		if s := other.saved(); !s.Since.Equal(claim.Since) || len(s.Owed) != 1 {
			t.Fatalf("kept: %+v, want %+v", s, claim)
		}
		heard, leads = nil, true
		f := other.follower(config)
		stop = other.run(f)
		time.Sleep(time.Minute)
		stop()
		if other.asked[0].Since.Before(claim.Since) || f.Status().Refused != 1 {
			t.Errorf("asked first for %+v; status %+v", other.asked[0], f.Status())
		}
	})
}

// A claim with more that is owed than it has room for goes no further than that.
func TestClaimIsBounded(t *testing.T) {
	f := newPlace(t, t.TempDir()).follower(nil)
	f.leading, f.state.Feed, f.state.Since = true, "C1", time.UnixMicro(1000)
	for i := range maxClaimed + 5 {
		f.note(Entry{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0", Timestamp: time.UnixMicro(int64(900 - i))}, artifact.ErrUnavailable)
	}
	c := f.Claim()
	if len(c.Owed) != maxClaimed || !c.Since.Equal(time.UnixMicro(900-4)) {
		t.Errorf("%d are owed, since %v", len(c.Owed), c.Since.UnixMicro())
	}
	for _, o := range f.state.Owed {
		said := slices.ContainsFunc(c.Owed, func(have Owed) bool { return have.Path == o.Path })
		if said == !o.At.Before(c.Since) {
			t.Errorf("%s of %v: said %v, since %v", o.Path, o.At.UnixMicro(), said, c.Since.UnixMicro())
		}
	}
}

// What is owed of a page beyond its first entry that is not done is no reason to claim more than that: whoever believed it would
// pass over the entry.
func TestClaimStopsAtTheCursor(t *testing.T) {
	f := newPlace(t, t.TempDir()).follower(nil)
	f.leading, f.state.Feed, f.state.Since = true, "C1", time.UnixMicro(1000)
	for i := range maxClaimed + 5 {
		f.note(Entry{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0", Timestamp: time.UnixMicro(int64(1001 + i))}, artifact.ErrRefused)
	}
	if c := f.Claim(); !c.Since.Equal(time.UnixMicro(1000)) {
		t.Errorf("claims all before %v, and has all before 1000", c.Since.UnixMicro())
	}
}

// With Once it ends also if more is owed than is noted.
func TestOnceWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		p.publish("example.com/m", "zip")
		f := p.follower(func(c *Config) { c.Once = true })
		p.broken[""] = artifact.ErrRefused
		s := state{Format: stateFormat, Source: p.String(), Feed: p.id, Cluster: "D1", Since: p.now().Add(-time.Microsecond)}
		f.room = 3
		for i := range f.room {
			s.Owed = append(s.Owed, Owed{Path: fmt.Sprintf("example.com/owed%d", i), Version: "v1.0.0", At: s.Since.Add(-time.Hour), Parts: []string{"zip"}})
		}
		root, err := os.OpenRoot(p.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := s.save(root); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := f.Run(ctx); !errors.Is(err, ErrIncomplete) {
			t.Errorf("%v, want %v", err, ErrIncomplete)
		}
	})
}

// Two that save at the same time, as what follows and what tries again do, leave a state that can be read.
func TestSavesDoNotMix(t *testing.T) {
	p := newPlace(t, t.TempDir())
	f := p.follower(nil)
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f.root, f.state = root, state{Format: stateFormat, Source: p.String(), Feed: "C1", Cluster: "D1", Since: p.now()}
	for range 50 {
		f.set(func(*Status) {
			f.dirty = true
			f.state.Owed = append(f.state.Owed, Owed{Path: strings.Repeat("a", len(f.state.Owed))})
		})
		var both sync.WaitGroup
		for range 4 {
			both.Go(func() {
				f.set(func(*Status) { f.dirty = true })
				f.save(true)
			})
		}
		both.Wait()
		if f.dirty {
			t.Fatal("a save failed")
		}
		if s, err := load(root, p.String(), "D1"); err != nil || len(s.Owed) != len(f.state.Owed) {
			t.Fatalf("%d are owed in the file, want %d: %v", len(s.Owed), len(f.state.Owed), err)
		}
	}
}

func TestOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		breaks map[string]error
		down   error
		want   string // "": no error
	}{
		"complete": {},
		"refused":  {breaks: map[string]error{"example.com/m3@v1.0.0 zip": artifact.ErrRefused, "example.com/m4@v1.0.0": artifact.ErrUnavailable}, want: "1 versions were refused, and 1 could not be had"},
		"down":     {down: errors.New("connection refused"), want: "connection refused"},
		"unwanted": {breaks: map[string]error{"example.com/m3@v1.0.0": artifact.ErrPolicy}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlace(t, t.TempDir())
			for i := range 10 {
				p.publish(fmt.Sprintf("example.com/m%d", i), "info", "mod", "zip")
			}
			p.down = tt.down
			for what, err := range tt.breaks {
				p.broken[what] = err
			}
			f := p.follower(func(c *Config) { c.Once = true })
			begin := time.Now()
			err := f.Run(t.Context())
			if err == nil != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || tt.down == nil && err != nil && !errors.Is(err, ErrIncomplete) {
				t.Errorf("%s: %v, want %q", name, err, tt.want)
			}
			if took := time.Since(begin); took > 10*time.Minute {
				t.Errorf("%s: it took %v", name, took)
			}
			if tt.want == "" && !p.has("example.com/m9@v1.0.0 zip") {
				t.Errorf("%s: not all is here", name)
			}
		})
	}
}

// A state that is of no use counts as none; so does that of another source or of another cluster here.
func TestStateOfNoUse(t *testing.T) {
	good := `{"format":1,"source":"https://s.example","feed":"C1","cluster":"D1","since":"2026-01-02T03:04:05.000006Z"}`
	for text, use := range map[string]bool{
		good: true,
		"{":  false,
		"":   false,
		"[]": false,
		strings.Replace(good, `"format":1`, `"format":2`, 1):                     false,
		strings.Replace(good, "s.example", "moved.example", 1):                   true, // the same feed
		strings.Replace(good, `"feed":"C1"`, `"feed":""`, 1):                     true,
		strings.Replace(strings.Replace(good, "C1", "", 1), "s.ex", "other.", 1): false,
		strings.Replace(good, "D1", "D2", 1):                                     false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, StateName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		s, err := load(root, "https://s.example", "D1")
		if (err == nil) != use || s.Since.IsZero() == use || s.Source != "https://s.example" || s.Cluster != "D1" {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
}

// Not more is under way than was asked for.
func TestParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, t.TempDir())
		p.delay = time.Second
		for i := range 9 {
			p.publish(fmt.Sprintf("example.com/m%d", i), "zip")
		}
		f := p.follower(func(c *Config) { c.Zips = 2 })
		stop := p.run(f)
		p.await("all here", p.allHeld)
		stop()
		if p.most != 2 {
			t.Errorf("%d zips at a time, want 2", p.most)
		}
	})
}
