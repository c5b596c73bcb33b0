package mirror

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// slowMods is an upstream of go.mod files, each of which it sends when it is told to.
type slowMods struct {
	mods  map[string][]byte        // by module path
	send  map[string]chan struct{} // closed: the go.mod is sent
	end   map[string]chan struct{} // closed: a fetch that was cancelled ends; nil: at once
	sums  *checksums
	mu    sync.Mutex
	asked map[string]int
	gone  map[string]int // fetches that were cancelled
}

func newSlowMods(mods map[string]string) *slowMods {
	s := &slowMods{mods: map[string][]byte{}, send: map[string]chan struct{}{}, end: map[string]chan struct{}{}, asked: map[string]int{}, gone: map[string]int{},
		sums: &checksums{records: map[module.Version]artifact.Record{}}}
	for name, text := range mods {
		p := "example.com/" + name
		s.mods[p], s.send[p] = []byte("module "+p+"\n"+text), make(chan struct{})
		s.sums.set(module.Version{Path: p, Version: "v1.0.0"}, "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", artifact.ModSum(s.mods[p]))
	}
	return s
}

func (s *slowMods) fetch(ctx context.Context, m module.Version, _ artifact.Kind, accept func(io.Reader, int64, string) error) error {
	s.note(s.asked, m.Path)
	select {
	case <-s.send[m.Path]:
	case <-ctx.Done():
		s.note(s.gone, m.Path)
		if end := s.end[m.Path]; end != nil {
			<-end
		}
		return ctx.Err()
	}
	return accept(bytes.NewReader(s.mods[m.Path]), int64(len(s.mods[m.Path])), "x")
}

func (s *slowMods) note(where map[string]int, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	where[path]++
}

// check waits until all is at rest, and fails the test unless name was asked for and given up so often.
func (s *slowMods) check(t *testing.T, name string, asked, gone int) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := "example.com/" + name; s.asked[p] != asked || s.gone[p] != gone {
		t.Errorf("%s was fetched %d times and given up %d times, want %d, %d", name, s.asked[p], s.gone[p], asked, gone)
	}
}

// newAheadBench is a mirror in front of an upstream where old, which is sent at once, requires others.
func newAheadBench(t *testing.T) (*bench, *slowMods, *rig) {
	up := newSlowMods(map[string]string{"old": "require example.com/a v1.0.0\nrequire example.com/b v1.0.0\n", "a": "", "b": "", "other": ""})
	reg := prometheus.NewRegistry()
	b := newBench(t, nil, newMemIndex(), func(c *Config) {
		c.Upstream, c.Checksums, c.Metrics = source{fetch: up.fetch}, up.sums, reg
	})
	close(up.send["example.com/old"])
	b.want(modPath("old"), 200, string(up.mods["example.com/old"]))
	up.check(t, "a", 1, 0)
	up.check(t, "b", 1, 0)
	return b, up, &rig{t: t, reg: reg}
}

// ask asks for the go.mod of name, and returns what returns the status of the answer.
func (b *bench) ask(name string) (status func() int) {
	w, done := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(done)
		b.ServeHTTP(w, httptest.NewRequest("GET", modPath(name), nil))
	}()
	synctest.Wait()
	return func() int { <-done; return w.Code }
}

// Without clients, what is on its way is given up, but not what a client has joined.
func TestLookAheadIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, up, metrics := newAheadBench(t)
		up.end["example.com/a"] = make(chan struct{})
		time.Sleep(aheadIdle - time.Second)
		joined := b.ask("b")
		up.check(t, "b", 1, 0)
		time.Sleep(aheadIdle - 1)
		up.check(t, "a", 1, 0) // the client who asked for b may want it next
		time.Sleep(time.Nanosecond)
		up.check(t, "a", 1, 1)
		time.Sleep(10 * aheadIdle)
		up.check(t, "b", 1, 0)
		close(up.send["example.com/b"])
		if status := joined(); status != 200 {
			t.Errorf("a client who joined is answered %d", status)
		}

		later := b.ask("a") // while the other has not quite ended
		up.check(t, "a", 2, 1)
		close(up.send["example.com/a"])
		if status := later(); status != 200 {
			t.Errorf("a client who asks for what was given up is answered %d", status)
		}
		close(up.end["example.com/a"])
		synctest.Wait()
		for end, want := range map[string]float64{"dropped": 1, "failed": 0, "useful": 1} {
			if n := metrics.metric("look_ahead_total", end); n != want {
				t.Errorf("%s: %v, want %v", end, n, want)
			}
		}
		if n := len(b.ahead.aloft); n != 0 || len(b.ahead.places) != 0 || b.ahead.active != 0 {
			t.Errorf("%d are still on their way", n)
		}
	})
}

// A client who came before the fetch was on its way counts as one who joined it.
func TestLookAheadOfWhatIsWantedAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, up, _ := newAheadBench(t)
		other := module.Version{Path: "example.com/other", Version: "v1.0.0"}
		b.ahead.wanted(other)
		b.ahead.enqueue([]module.Version{other})
		b.ahead.dispatch()
		time.Sleep(2 * aheadIdle)
		up.check(t, "other", 1, 0)
		close(up.send["example.com/other"])
	})
}

// The end of a fetch that was given up leaves the next one for the same go.mod to be given up, too.
func TestLookAheadIsGivenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, up, _ := newAheadBench(t)
		up.mu.Lock() // as note does before up.end is read
		up.end["example.com/a"] = make(chan struct{})
		up.mu.Unlock()
		time.Sleep(aheadIdle)
		up.check(t, "a", 1, 1) // and has not ended
		b.ahead.wanted(module.Version{Path: "example.com/other", Version: "v1.0.0"})
		b.ahead.enqueue([]module.Version{{Path: "example.com/a", Version: "v1.0.0"}})
		b.ahead.dispatch()
		up.check(t, "a", 2, 1)
		close(up.end["example.com/a"])
		synctest.Wait()
		time.Sleep(aheadIdle)
		up.check(t, "a", 2, 2)
	})
}

// Close waits for nothing that nobody waits for.
func TestCloseGivesUpLookAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, up, _ := newAheadBench(t)
		joined := b.ask("b")
		closed := make(chan error)
		go func() { closed <- b.Close(context.Background()) }()
		up.check(t, "a", 1, 1)
		up.check(t, "b", 1, 0)
		close(up.send["example.com/b"])
		if err, status := <-closed, joined(); err != nil || status != 200 {
			t.Errorf("Close = %v; a client who joined is answered %d", err, status)
		}
	})
}
