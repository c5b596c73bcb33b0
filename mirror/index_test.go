package mirror

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
)

// memFeed is a Feed in memory: times of changes, and which version each is of.
type memFeed struct {
	mu      sync.Mutex
	changes []artifact.Change // guarded by mu, as the rest
	damaged map[int64]bool
	clock   time.Time
	woken   chan struct{}
}

func newMemFeed() *memFeed {
	return &memFeed{damaged: map[int64]bool{}, woken: make(chan struct{}), clock: time.UnixMicro(1e15).UTC()}
}

// add publishes something of a version, some time after the change before.
func (f *memFeed) add(path string, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(max(after, time.Microsecond))
	f.changes = append(f.changes, artifact.Change{Seq: int64(len(f.changes)), At: f.clock,
		Manifest: artifact.Manifest{Module: module.Version{Path: path, Version: "v1.0.0"}, Info: artifact.RefOf([]byte("x"))}})
	close(f.woken)
	f.woken = make(chan struct{})
}

// newest returns the changes that no later one of the same version follows.
func (f *memFeed) newest() (all []artifact.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := map[module.Version]int64{}
	for _, c := range f.changes {
		last[c.Manifest.Module] = c.Seq
	}
	for _, c := range f.changes {
		if last[c.Manifest.Module] == c.Seq {
			all = append(all, c)
		}
	}
	return all
}

func (f *memFeed) Changes(_ context.Context, from int64) iter.Seq2[artifact.Change, error] {
	return func(yield func(artifact.Change, error) bool) {
		for _, c := range f.newest() {
			var err error
			if f.damaged[c.Seq] {
				err = fmt.Errorf("catalog row %q: %w", c.Manifest.Module, artifact.ErrDamaged)
			}
			if c.Seq >= from && !yield(c, err) {
				return
			}
		}
	}
}

func (f *memFeed) SeqAt(_ context.Context, t time.Time) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(sort.Search(len(f.changes), func(i int) bool { return !f.changes[i].At.Before(t) })), nil
}

func (f *memFeed) Clock(context.Context) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clock, nil
}

func (f *memFeed) Cluster() string { return "C1" }

func (f *memFeed) Wake() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.woken
}

// newIndexMirror returns a mirror that serves f.
func newIndexMirror(t *testing.T, f Feed, options ...func(*Config)) *Mirror {
	store, err := artifact.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	c := Config{Index: newMemIndex(), Store: store, Feed: f}
	for _, o := range options {
		o(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

// indexAnswer is what a client has of an answer.
type indexAnswer struct {
	code    int
	entries []feed.Entry
	through time.Time
	behind  int64
	header  http.Header
	body    string
}

func askIndex(t testing.TB, m *Mirror, method, query string) (a indexAnswer) {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest(method, "/index?"+query, nil))
	a.code, a.header, a.body = w.Code, w.Header(), w.Body.String()
	if w.Code != http.StatusOK {
		return a
	}
	a.through, _ = time.Parse(time.RFC3339Nano, a.header.Get(feed.HeaderThrough))
	a.behind, _ = strconv.ParseInt(a.header.Get(feed.HeaderBehind), 10, 64)
	for s := bufio.NewScanner(strings.NewReader(a.body)); s.Scan(); {
		var e feed.Entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		a.entries = append(a.entries, e)
	}
	return a
}

// Whoever reads page by page, with whatever limits, while versions are published and grow: what he has at last is each version,
// as of its last change, and he was given no change twice but for the one that he asked from.
func TestIndexPages(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newMemFeed()
		m := newIndexMirror(t, f)
		publish := func() {
			for range rapid.IntRange(0, 8).Draw(rt, "published") {
				f.add(fmt.Sprintf("example.com/m%d", rapid.IntRange(0, 9).Draw(rt, "module")), time.Duration(rapid.IntRange(0, 3).Draw(rt, "µs"))*time.Microsecond)
			}
		}
		seen := map[string]time.Time{}
		var since, through time.Time
		read := func() int {
			q := feed.Query{Since: since, Limit: rapid.IntRange(1, 4).Draw(rt, "limit")}
			a := askIndex(t, m, http.MethodGet, q.Encode())
			if a.code != http.StatusOK || len(a.entries) > q.Limit {
				rt.Fatalf("%s: %d, %d entries", q.Encode(), a.code, len(a.entries))
			}
			news := 0
			for i, e := range a.entries {
				again := e.Timestamp.Equal(since) && i == 0
				if e.Timestamp.Before(since) || !again && !e.Timestamp.After(through) || e.Timestamp.After(a.through) {
					rt.Fatalf("%s: entry of %v; it was complete through %v, and is through %v", q.Encode(), e.Timestamp, through, a.through)
				}
				if !again {
					news++
				}
				seen[e.Path], since = e.Timestamp, e.Timestamp
			}
			if a.through.Before(through) {
				rt.Fatalf("complete through %v, before through %v", a.through, through)
			}
			if through = a.through; a.behind > 0 && len(a.entries) < q.Limit {
				rt.Fatalf("%d of %d entries, and %d changes behind", len(a.entries), q.Limit, a.behind)
			}
			if q.Limit == 1 && news == 0 && len(a.entries) == 1 { // a page of what he has: he must ask for more, or from behind it
				since = since.Add(time.Microsecond)
				return 1
			}
			return news
		}
		for range rapid.IntRange(1, 12).Draw(rt, "rounds") {
			publish()
			read()
		}
		for read() > 0 {
		}
		for _, c := range f.newest() {
			if at, ok := seen[c.Manifest.Module.Path]; !ok || !at.Equal(c.At) {
				rt.Fatalf("%s was last seen as of %v, and is of %v", c.Manifest.Module, at, c.At)
			}
		}
	})
}

func TestIndexAnswers(t *testing.T) {
	f := newMemFeed()
	for i := range 5 {
		f.add(fmt.Sprintf("example.com/m%d", i), time.Second)
	}
	f.add("corp.example/secret", time.Second)
	f.add("example.com/m0", time.Second) // its zip
	m := newIndexMirror(t, f, func(c *Config) { c.Private = "corp.example" })
	a := askIndex(t, m, http.MethodGet, "")
	if len(a.entries) != 5 || a.entries[4].Path != "example.com/m0" || a.entries[0].Path != "example.com/m1" || strings.Contains(a.body, "secret") {
		t.Errorf("entries %+v", a.entries)
	}
	h := a.header
	if a.behind != 0 || !a.through.Equal(f.clock) || h.Get("Cache-Control") != "no-store" || h.Get(feed.HeaderID) != "C1" || h.Get("Content-Length") != strconv.Itoa(len(a.body)) ||
		h.Get("Content-Type") != "application/x-ndjson" || h.Get("Etag") != "" {
		t.Errorf("header %v", h)
	}
	two := askIndex(t, m, http.MethodGet, "limit=2&parts=1")
	if len(two.entries) != 2 || two.behind != 4 || !two.through.Equal(two.entries[1].Timestamp) || len(two.entries[0].Parts) != 1 {
		t.Errorf("two entries: %+v", two)
	}
	if head := askIndex(t, m, http.MethodHead, ""); head.code != http.StatusOK || head.body != "" || head.header.Get("Content-Length") != h.Get("Content-Length") {
		t.Errorf("HEAD: %+v", head)
	}
	if bad := askIndex(t, m, http.MethodGet, "limit=0"); bad.code != http.StatusBadRequest || !strings.Contains(bad.body, "want a number from 1 to 2000") {
		t.Errorf("a bad limit: %d %s", bad.code, bad.body)
	}
	if post := askIndex(t, m, http.MethodPost, ""); post.code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", post.code)
	}
	if none := askIndex(t, newIndexMirror(t, nil), http.MethodGet, ""); none.code != http.StatusNotFound {
		t.Errorf("without a feed: %d", none.code)
	}
}

// A page ends before a row that is damaged, and none begins there: who follows would never hear of the version.
func TestIndexStopsAtDamage(t *testing.T) {
	f := newMemFeed()
	for i := range 4 {
		f.add(fmt.Sprintf("example.com/m%d", i), time.Second)
	}
	f.damaged[2] = true
	m := newIndexMirror(t, f)
	a := askIndex(t, m, http.MethodGet, "")
	if len(a.entries) != 2 || a.behind != 2 || !a.through.Equal(a.entries[1].Timestamp) {
		t.Errorf("%+v", a)
	}
	for _, since := range []int{1, 2, 3} { // 1: who has read all before comes back at the time of his last entry
		f.damaged[3] = since == 3
		a := askIndex(t, m, http.MethodGet, feed.Query{Since: f.changes[since].At}.Encode())
		if a.code != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "ask another node") || strings.Contains(a.body, "example.com") {
			t.Errorf("from the damage on: %d %v %s", a.code, a.header, a.body)
		}
	}
}

// Who waits is answered as soon as there is an entry, or when the time is over, or the mirror stops.
func TestIndexWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newMemFeed()
		m := newIndexMirror(t, f)
		begin := time.Now()
		if a := askIndex(t, m, http.MethodGet, "wait=30s"); len(a.entries) != 0 || a.code != http.StatusOK || time.Since(begin) != 30*time.Second {
			t.Errorf("at the end of the wait, after %v: %+v", time.Since(begin), a)
		}
		got := make(chan indexAnswer, 1)
		wait := func(q feed.Query) {
			q.Wait = feed.MaxWait
			go func() { got <- askIndex(t, m, http.MethodGet, q.Encode()) }()
			synctest.Wait()
		}
		begin = time.Now()
		wait(feed.Query{})
		f.add("example.com/m", 0)
		if a := <-got; len(a.entries) != 1 || time.Since(begin) > 0 {
			t.Errorf("after an entry came: %+v", a)
		}
		begin = time.Now()
		for range maxWaiting {
			m.waiting <- struct{}{}
		}
		if a := askIndex(t, m, http.MethodGet, "wait=30s&since=2100-01-01T00:00:00Z"); a.code != http.StatusOK || time.Since(begin) > 0 {
			t.Errorf("with too many that wait, after %v: %+v", time.Since(begin), a)
		}
		<-m.waiting
		wait(feed.Query{Since: f.clock.Add(1)})
		m.Drain()
		if a := <-got; len(a.entries) != 0 || a.code != http.StatusOK || time.Since(begin) > time.Second {
			t.Errorf("when the mirror stops, after %v: %+v", time.Since(begin), a)
		}
	})
}
