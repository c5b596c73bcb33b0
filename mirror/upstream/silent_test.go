package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror/artifact"
)

// hosts is a network of which each host answers with a status, or fails.
type hosts struct {
	mu    sync.Mutex
	says  map[string]any // guarded by mu; int, error, or nothing: it waits for the context
	asked []string       // guarded by mu
}

func (h *hosts) set(host string, v any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.says[host] = v
}

func (h *hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	v := h.says[r.URL.Host]
	h.asked = append(h.asked, r.URL.String())
	h.mu.Unlock()
	switch v := v.(type) {
	case int:
		return &http.Response{StatusCode: v, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(""))}, nil
	case error:
		return nil, v
	}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Of a list from which nothing comes, three times in a row, it is known; any answer of an entry that it leads to ends that.
func TestSilent(t *testing.T) {
	for _, test := range []struct {
		name   string
		list   string
		says   []any // of a for the questions in a row, of b always the last
		silent bool
	}{
		{"nothing was asked", "https://a.example", []any{200}, false},
		{"refused three times", "https://a.example", []any{syscall.ECONNREFUSED, syscall.ECONNREFUSED, syscall.ECONNREFUSED, 0}, true},
		{"refused twice", "https://a.example", []any{syscall.ECONNREFUSED, syscall.ECONNREFUSED, 0}, false},
		{"an answer in between, though an error", "https://a.example", []any{syscall.ECONNREFUSED, syscall.ECONNREFUSED, 503, syscall.ECONNREFUSED, 0}, false},
		{"the next is never asked", "https://a.example,https://b.example", []any{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, 200}, true},
		{"the next answers", "https://a.example|https://b.example", []any{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, 404}, false},
		{"neither does the next", "https://a.example|https://b.example", []any{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH}, true},
	} {
		h := &hosts{says: map[string]any{}}
		l := parse(t, test.list, Config{Transport: h})
		last := len(test.says) - 1
		h.set("b.example", test.says[last])
		for _, v := range test.says[:last] {
			h.set("a.example", v)
			l.Latest(t.Context(), "example.com/m")
		}
		err := l.Silent()
		if (err != nil) != test.silent || err != nil && !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil {
			continue
		}
		h.set("a.example", syscall.ECONNREFUSED)
		if l.Probe(t.Context()); l.Silent() == nil {
			t.Errorf("%s: not silent after a question that has no answer", test.name)
		}
		h.set("a.example", 404)
		if l.Probe(t.Context()); l.Silent() != nil {
			t.Errorf("%s: silent after an answer: %v", test.name, l.Silent())
		}
		if last := h.asked[len(h.asked)-1]; !strings.HasSuffix(last, ".example/") {
			t.Errorf("%s: it is asked for %s", test.name, last)
		}
	}
}

// Time that was too short to be answered, somebody who went away, and too many questions at once say nothing of an upstream; a
// silence that lasts does.
func TestSilentForHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hosts{says: map[string]any{}}
		l := parse(t, "https://a.example", Config{Transport: h, MaxPerHost: 1})
		ask := func(end func() (context.Context, context.CancelFunc)) {
			ctx, cancel := end()
			defer cancel()
			if _, err := l.Latest(ctx, "example.com/m"); err == nil {
				t.Error("an answer of a silent upstream")
			}
		}
		within := func(d time.Duration) func() (context.Context, context.CancelFunc) {
			return func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), d) }
		}
		for range 5 {
			ask(within(silentLeast - time.Second))
			ask(func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(20*time.Second, cancel)
				return ctx, cancel
			})
		}
		var wg sync.WaitGroup
		for range 8 { // of which one is asked
			wg.Go(func() { ask(within(time.Minute)) })
		}
		wg.Wait()
		if err := l.Silent(); err != nil {
			t.Error(err)
		}
		for range silentAfter - 1 {
			ask(within(silentLeast))
		}
		if err := l.Silent(); err == nil || !strings.Contains(err.Error(), "https://a.example/example.com/m/@latest") {
			t.Errorf("after %d questions in a row: %v", silentAfter, err)
		}
		begin := time.Now()
		if l.Probe(t.Context()); time.Since(begin) > time.Minute {
			t.Errorf("a probe takes %v", time.Since(begin))
		}
	})
}
