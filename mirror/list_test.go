package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// lister is an Upstream of lists whose answers a test sets.
type lister struct {
	Upstream
	mu     sync.Mutex
	list   string
	latest string
	infos  map[string]string // of queries; nil: latest
	none   bool              // there is no @latest
	err    error
	delay  time.Duration
	asked  int
}

func (l *lister) answer(ctx context.Context, which func() string) ([]byte, error) {
	l.mu.Lock()
	l.asked++
	delay := l.delay
	l.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return []byte(which()), l.err
}

func (l *lister) Versions(ctx context.Context, _ string) ([]byte, error) {
	return l.answer(ctx, func() string { return l.list })
}

func (l *lister) Latest(ctx context.Context, _ string) ([]byte, error) {
	b, err := l.answer(ctx, func() string { return l.latest })
	if err == nil && l.none {
		return nil, notExist("no @latest")
	}
	return b, err
}

func (l *lister) Query(ctx context.Context, _, query string) ([]byte, error) {
	b, err := l.answer(ctx, func() string { return l.latest })
	if err != nil || l.infos == nil {
		return b, err
	}
	if info, ok := l.infos[query]; ok {
		return []byte(info), nil
	}
	return nil, notExist("no %s", query)
}

// bench is a mirror without a network, for tests with a clock of their own.
type bench struct {
	*Mirror
	t     *testing.T
	up    *lister
	index *memIndex
}

func newBench(t *testing.T, up *lister, index *memIndex, options ...func(*Config)) *bench {
	store, err := artifact.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	c := Config{Index: index, Store: store, Checksums: &checksums{}}
	if up != nil {
		c.Upstream = up
	}
	for _, o := range options {
		o(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &bench{m, t, up, index}
}

func (b *bench) want(path string, status int, body string) {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != status || status == 200 && w.Body.String() != body || !strings.Contains(w.Body.String(), body) {
		b.t.Fatalf("GET %s = %d %q, want %d %q", path, w.Code, w.Body, status, body)
	}
}

// asked expects the upstream to have been asked n times since the last call.
func (b *bench) asked(n int) {
	b.t.Helper()
	synctest.Wait()
	b.up.mu.Lock()
	defer b.up.mu.Unlock()
	if b.up.asked != n {
		b.t.Fatalf("the upstream was asked %d times, want %d", b.up.asked, n)
	}
	b.up.asked = 0
}

func (b *bench) set(list, latest string, err error, delay time.Duration) {
	b.up.mu.Lock()
	defer b.up.mu.Unlock()
	b.up.list, b.up.latest, b.up.err, b.up.delay = list, latest, err, delay
}

// commit publishes the go.mod of a version, by whomever.
func (x *memIndex) commit(t *testing.T, path, version string) {
	t.Helper()
	c := &checksums{records: map[module.Version]artifact.Record{}}
	m := module.Version{Path: path, Version: version}
	mod := []byte("module " + path + "\n")
	c.set(m, "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", artifact.ModSum(mod))
	man, err := artifact.NewManifest(m, c.records[m])
	if err != nil {
		t.Fatal(err)
	}
	man.Mod = artifact.RefOf(mod)
	if _, err := x.Publish(t.Context(), artifact.Publication{Manifest: man, Mod: mod}); err != nil {
		t.Fatal(err)
	}
}

const (
	listOf   = "/example.com/m/@v/list"
	latestOf = "/example.com/m/@latest"
)

// PROTOCOL 1, 2: the union of what upstream lists and what was published, sorted, cleaned.
func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.10.0\nv1.2.0 2020-01-01T00:00:00Z\nv2.0.0\nv2.0.0+incompatible\nrubbish\nv1.0.0-20200101000000-0123456789ab\nv1.2.0\n", "", nil, 0)
		b.index.commit(t, "example.com/m", "v1.2.0")
		b.index.commit(t, "example.com/m", "v1.3.0")
		b.index.commit(t, "example.com/m", "v1.0.0-20210101000000-0123456789ab")
		b.want(listOf, 200, "v1.2.0\nv1.3.0\nv1.10.0\nv2.0.0+incompatible\n")
		l := b.index.listings["example.com/m"]
		if got := fmt.Sprint(l.Versions); got != "[v1.2.0 v1.10.0 v2.0.0+incompatible]" || l.Listed.IsZero() || l.Path != "example.com/m" {
			t.Errorf("made known: %+v", l)
		}
		b.set("", "", nil, 0)
		b.want("/example.com/tagless/@v/list", 200, "")
		b.set("", "", fmt.Errorf("x: %w", fs.ErrNotExist), 0)
		b.want("/example.com/unknown/@v/list", 404, "")
		// Upstream deleted it, and it is still listed, because it is still here.
		time.Sleep(2 * time.Minute)
		b.want(listOf, 200, "v1.2.0\nv1.3.0\nv1.10.0\nv2.0.0+incompatible\n")
		b.want("/example.com/tagless/@v/list", 404, "") // nothing of it was published
		// HTML is not a list without versions.
		b.set("<!doctype html>\n", "", nil, 0)
		b.want("/example.com/portal/@v/list", 502, "")
	})
}

// The ages of a list: memory, memory while it is refreshed, asked again.
func TestListAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.0.0\n", "", nil, 0)
		b.want(listOf, 200, "v1.0.0\n")
		b.asked(1)
		b.set("v1.0.0\nv1.1.0\n", "", nil, time.Second)
		time.Sleep(59 * time.Second)
		b.want(listOf, 200, "v1.0.0\n")
		b.asked(0)
		time.Sleep(2 * time.Second)
		start := time.Now()
		b.want(listOf, 200, "v1.0.0\n") // at once
		b.want(listOf, 200, "v1.0.0\n")
		if d := time.Since(start); d > 0 {
			t.Errorf("stale-while-revalidate took %v", d)
		}
		time.Sleep(time.Second)
		b.asked(1)
		b.want(listOf, 200, "v1.0.0\nv1.1.0\n")
		time.Sleep(3 * time.Minute)
		b.set("v1.0.0\nv1.1.0\nv1.2.0\n", "", nil, time.Second)
		b.want(listOf, 200, "v1.0.0\nv1.1.0\nv1.2.0\n") // PROTOCOL 40: never older than the window while upstream answers
		b.asked(1)
		if b.index.publishes != 3 {
			t.Errorf("made known %d times, want once for each change", b.index.publishes)
		}
		time.Sleep(time.Minute)
		b.want(listOf, 200, "v1.0.0\nv1.1.0\nv1.2.0\n")
		b.asked(1)
		time.Sleep(time.Minute)
		if b.index.publishes != 3 {
			t.Errorf("made known %d times without a change", b.index.publishes)
		}
	})
}

// PROTOCOL 40: an upstream that fails, or takes too long, leaves the older answer, of any age, also after a restart.
func TestListStale(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		delay time.Duration
		took  time.Duration
	}{
		"fails":     {err: artifact.ErrUnavailable},
		"malformed": {err: artifact.ErrMalformed},
		"hangs":     {delay: time.Hour, took: 3 * time.Second},
		"slow":      {err: artifact.ErrUnavailable, delay: 10 * time.Second, took: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &lister{}, newMemIndex())
				b.set("v1.0.0\n", `{"Version":"v1.0.0"}`, nil, 0)
				b.want(listOf, 200, "v1.0.0\n")
				b.want(latestOf, 200, `{"Version":"v1.0.0"}`)
				b.asked(2)
				b.set("", "", c.err, c.delay)
				for range 2 { // the second time as after a restart
					time.Sleep(100 * time.Hour)
					start := time.Now()
					b.want(listOf, 200, "v1.0.0\n")
					b.want(latestOf, 200, `{"Version":"v1.0.0"}`)
					if d := time.Since(start); d != 2*c.took {
						t.Errorf("took %v, want %v", d, 2*c.took)
					}
					time.Sleep(30 * time.Second) // until the failure is known
					b.want(listOf, 200, "v1.0.0\n")
					b = newBench(t, b.up, b.index)
				}
				// What was never seen cannot be answered, within a bound.
				start := time.Now()
				status := 503
				switch name {
				case "hangs":
					status = 504
				case "malformed":
					status = 502
				}
				b.want("/example.com/other/@v/list", status, "")
				if d := time.Since(start); d > 20*time.Second {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// A list that another node stamped with a time to come is refreshed like one of now.
func TestListOfFastClock(t *testing.T) {
	for path, answers := range map[string][2]string{
		helloPath + "list":           {"v1.0.0\n", "v1.1.0\n"},
		"/example.com/hello/@latest": {`{"Version":"v1.0.0"}`, `{"Version":"v1.1.0"}`},
	} {
		synctest.Test(t, func(t *testing.T) {
			index := newMemIndex()
			ahead := time.Now().Add(time.Hour)
			if err := index.PublishListing(t.Context(), artifact.Listing{Path: helloV.Path, Versions: []string{"v1.0.0"}, Listed: ahead,
				Latest: []byte(`{"Version":"v1.0.0"}`), Latested: ahead}); err != nil {
				t.Fatal(err)
			}
			b := newBench(t, &lister{err: artifact.ErrUnavailable, list: "v1.1.0\n", latest: `{"Version":"v1.1.0"}`}, index)
			b.want(path, 200, answers[0])
			b.up.mu.Lock()
			b.up.err = nil
			b.up.mu.Unlock()
			time.Sleep(2 * time.Minute)
			b.want(path, 200, answers[1])
		})
	}
}

// A failing upstream is not asked by every request, and is asked again soon.
func TestListFailedWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.0.0\n", "", nil, 0)
		b.want(listOf, 200, "v1.0.0\n")
		time.Sleep(time.Hour)
		b.set("", "", artifact.ErrUnavailable, 0)
		b.asked(1)
		for range 10 {
			b.want(listOf, 200, "v1.0.0\n")
		}
		b.asked(1)
		b.set("v1.0.0\nv1.1.0\n", "", nil, 0)
		time.Sleep(failedWait)
		b.want(listOf, 200, "v1.0.0\nv1.1.0\n")
	})
}

// A version that is published shows up in a list at once, whether or not the upstream lists it.
func TestListAfterPublish(t *testing.T) {
	g := newRig(t)
	g.add("example.com/hello@v1.1.0\n-- go.mod --\nmodule example.com/hello\n")
	g.up.Unlist(module.Version{Path: "example.com/hello", Version: "v1.1.0"})
	g.want(helloPath+"list", 200, "v1.0.0\n")
	g.want(helloPath+"v1.1.0.mod", 200, "")
	if a := g.want(helloPath+"list", 200, ""); a.body != "v1.0.0\nv1.1.0\n" {
		t.Errorf("list = %q", a.body)
	}
	if n := g.up.Count(helloPath + "list"); n != 1 {
		t.Errorf("upstream asked %d times", n)
	}
}

// A version that is published while a list is made is in that list.
func TestPublishDuringList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.0.0\n", "", nil, 0)
		b.publishAfterLook("v1.1.0")
		b.want(listOf, 200, "v1.0.0\n") // it was asked for before
		synctest.Wait()
		b.want(listOf, 200, "v1.0.0\nv1.1.0\n")
		b.asked(1)
	})
}

// publishAfterLook publishes a version once somebody has asked the catalog for the versions, and before it is told.
func (b *bench) publishAfterLook(version string) {
	b.index.asked = func(what string) {
		if what == "versions" {
			b.index.asked = nil
			b.index.commit(b.t, "example.com/m", version)
			go b.published(b.t.Context(), module.Version{Path: "example.com/m", Version: version})
			time.Sleep(time.Millisecond)
		}
	}
}

// A version that is published while "no such module" is made is not hidden by it.
func TestPublishDuringMiss(t *testing.T) {
	for path, body := range map[string]string{listOf: "v1.1.0\n", latestOf: `{"Version":"v1.1.0"}`} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, &lister{}, newMemIndex())
			b.set("", "", notExist("no such module"), 0)
			b.publishAfterLook("v1.1.0")
			w := httptest.NewRecorder()
			b.ServeHTTP(w, httptest.NewRequest("GET", path, nil)) // it was asked for before
			synctest.Wait()
			b.want(path, 200, body)
		})
	}
}

// Of two publications that meet, the slower one does not undo what the faster one made known.
func TestPublishTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.0.0\n", "", nil, 0)
		b.want(listOf, 200, "v1.0.0\n")
		publish := func(version string) {
			b.index.commit(t, "example.com/m", version)
			b.published(t.Context(), module.Version{Path: "example.com/m", Version: version})
		}
		b.index.asked = func(what string) {
			if what == "versions" {
				b.index.asked = nil
				go publish("v1.2.0")
				time.Sleep(time.Second)
			}
		}
		publish("v1.1.0")
		synctest.Wait()
		b.set("", "", artifact.ErrUnavailable, 0)
		for range 2 { // from memory, and as what is better than nothing
			b.want(listOf, 200, "v1.0.0\nv1.1.0\nv1.2.0\n")
			time.Sleep(6 * time.Hour)
		}
	})
}

// What another node publishes is in a list at the latest when it is refreshed, also if the upstream fails then.
func TestStaleListHasPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("v1.0.0\n", "", nil, 0)
		b.want(listOf, 200, "v1.0.0\n")
		b.index.commit(t, "example.com/m", "v1.1.0")
		b.set("", "", artifact.ErrUnavailable, 0)
		time.Sleep(time.Hour)
		b.want(listOf, 200, "v1.0.0\nv1.1.0\n")
	})
}

// An older answer is better than none when there can be no newer one: the queue is full, or the mirror shuts down.
func TestStaleWithoutRefresh(t *testing.T) {
	for name, prevent := range map[string]func(b *bench) (undo func()){
		"queue full": func(b *bench) func() {
			for range cap(b.flights.queue) {
				b.flights.queue <- struct{}{}
			}
			return func() {
				for range cap(b.flights.queue) {
					<-b.flights.queue
				}
			}
		},
		"closed": func(b *bench) func() {
			if err := b.Close(b.t.Context()); err != nil {
				b.t.Error(err)
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &lister{}, newMemIndex())
				b.set("v1.0.0\n", `{"Version":"v1.0.0"}`, nil, 0)
				for range 2 { // the second time, memory is empty
					b.want(listOf, 200, "v1.0.0\n")
					b.want(latestOf, 200, `{"Version":"v1.0.0"}`)
					time.Sleep(5 * time.Minute)
					undo := prevent(b)
					b.want(listOf, 200, "v1.0.0\n")
					b.want(latestOf, 200, `{"Version":"v1.0.0"}`)
					b.want("/example.com/other/@v/list", 503, "")
					undo()
					b = newBench(t, b.up, b.index)
				}
			})
		})
	}
}

// A list that is too long for the catalog is kept in part, the newest versions; a long one is kept whole.
func TestLongList(t *testing.T) {
	var long, longer strings.Builder
	for i := range 30_001 {
		fmt.Fprintf(&long, "v0.0.%d\n", i+1)
	}
	for i := range 50_000 {
		fmt.Fprintf(&longer, "v0.10.%d\n", i+1)
	}
	for body, first := range map[string]string{long.String(): "v0.0.1", longer.String(): ""} {
		up := &lister{list: body}
		b := newBench(t, up, newMemIndex())
		b.want(listOf, 200, body)
		b = newBench(t, nil, b.index) // offline
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest("GET", listOf, nil))
		got := w.Body.String()
		if w.Code != 200 || !strings.HasSuffix(body, got) || !strings.HasPrefix(got, "v0.") || len(got) < maxListing-20 && len(got) != len(body) || len(got) > maxListing {
			t.Errorf("a list of %d bytes: %d, %d bytes %.20q", len(body), w.Code, len(got), got)
		}
		if first != "" && got != body {
			t.Errorf("a list of %d bytes is cut to %d", len(body), len(got))
		}
	}
}

// "No such version" is believed for a minute at most, whatever is configured.
func TestNegativeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex(), func(c *Config) { c.NegativeTTL = time.Hour })
		b.set("", "", notExist("x"), 0)
		b.want(listOf, 404, "")
		b.want("/example.com/m/@v/main.info", 404, "")
		b.set("v1.0.0\n", `{"Version":"v1.0.0"}`, nil, 0)
		time.Sleep(59 * time.Second)
		b.want(listOf, 404, "")
		time.Sleep(2 * time.Second)
		b.want(listOf, 200, "v1.0.0\n")
		b.want("/example.com/m/@v/main.info", 200, `{"Version":"v1.0.0"}`)
	})
}

// PROTOCOL 36: what we and then a client's cache believe is together no older than a minute.
func TestAbsentCached(t *testing.T) {
	for ttl, want := range map[time.Duration]string{
		time.Millisecond: "public, max-age=30", 30 * time.Second: "public, max-age=30", 45 * time.Second: "public, max-age=15",
		45*time.Second + 1: "public, max-age=14", 59*time.Second + 1: "no-store", time.Hour: "no-store",
	} {
		b := newBench(t, &lister{}, newMemIndex(), func(c *Config) { c.NegativeTTL = ttl })
		b.set("", "", notExist("x"), 0)
		for _, path := range []string{listOf, "/example.com/m/@v/main.info"} {
			w := httptest.NewRecorder()
			b.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if got := w.Header().Get("Cache-Control"); w.Code != 404 || got != want {
				t.Errorf("%s with %v = %d, Cache-Control %q, want %q", path, ttl, w.Code, got, want)
			}
		}
	}
}

// A module that upstream does not know is asked for again after a while, and a list in between does not wait for it.
func TestListNegative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("", "", fmt.Errorf("x: %w", fs.ErrNotExist), 0)
		b.want(listOf, 404, "")
		b.want(listOf, 404, "")
		b.asked(1)
		b.set("v1.0.0\n", "", nil, 0)
		time.Sleep(29 * time.Second)
		b.want(listOf, 404, "")
		time.Sleep(2 * time.Second)
		b.want(listOf, 200, "v1.0.0\n")
	})
}

// A branch is resolved anew after the TTL; there is no stale answer.
func TestQueryAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("", `{"Version":"v1.0.0"}`, nil, 0)
		b.want("/example.com/m/@v/main.info", 200, `{"Version":"v1.0.0"}`)
		b.want("/example.com/m/@v/main.info", 200, `{"Version":"v1.0.0"}`)
		b.asked(1)
		time.Sleep(time.Minute)
		b.set("", "", artifact.ErrUnavailable, 0)
		b.want("/example.com/m/@v/main.info", 503, "")
		b.set("", `{"Version":"v1.1.0"}`, nil, 0)
		b.want("/example.com/m/@v/main.info", 200, `{"Version":"v1.1.0"}`)
	})
}

// What is fetched ends with its budget, although the client would wait longer.
func TestFetchBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("", "", nil, time.Hour)
		start := time.Now()
		b.want("/example.com/m/@v/main.info", 504, "example.com/m@main: the upstream did not answer within 2m30s\n")
		b.want("/example.com/m/@v/list", 504, "example.com/m list: the upstream did not answer within 20s\n")
		start = start.Add(20 * time.Second)
		if d := time.Since(start); d != 150*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

// brokenIndex is a catalog that cannot answer.
type brokenIndex struct{ *memIndex }

var errBroken = errors.New("disk gone")

func (brokenIndex) Manifest(context.Context, module.Version) (artifact.Manifest, error) {
	return artifact.Manifest{}, errBroken
}
func (brokenIndex) Versions(context.Context, string) ([]string, error) { return nil, errBroken }
func (brokenIndex) Listing(context.Context, string) (artifact.Listing, error) {
	return artifact.Listing{}, errBroken
}

// A catalog that cannot answer is not an empty catalog.
func TestBrokenIndex(t *testing.T) {
	for _, offline := range []bool{false, true} {
		g := newRig(t, func(c *Config) {
			c.Index = brokenIndex{newMemIndex()}
			if offline {
				c.Upstream = nil
			}
		})
		for _, p := range []string{"v1.0.0.mod", "v1.0.0.zip", "list", "../@latest"} {
			p = strings.Replace(helloPath+p, "@v/../", "", 1)
			g.want("/cached-only"+p, 500, "internal error")
			if offline || !strings.Contains(p, "latest") { // which needs no catalog while upstream answers
				g.want(p, 500, "internal error")
			}
		}
	}
}
