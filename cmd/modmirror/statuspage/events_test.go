package statuspage

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// next returns the next frame of a stream, "" if it was ended.
func (s *stream) next() string { return string(<-s.frames) }

// pending returns how many frames wait.
func (s *stream) pending() int { return len(s.frames) }

// What happens is told at once and once, to all who follow; what does not change is not told again.
func TestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		p := newPage(t, f)
		defer p.Close()
		a, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		if first := a.next(); !strings.Contains(first, "event: live\n") || !strings.Contains(first, "event: recent\n") {
			t.Errorf("a stream begins with %.200q", first)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := a.pending(); n > 0 {
			t.Errorf("nothing happened, and %d frames were sent: %.200q", n, a.next())
		}
		b, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		if first := b.next(); !strings.Contains(first, "event: live\n") || !strings.Contains(first, "event: recent\n") {
			t.Errorf("a later stream begins with %.200q", first)
		}
		f.happen(Event{ID: "1", At: time.Now(), What: "stored", Module: "example.com/hello", Version: "v1.0.0"})
		begin := time.Now()
		for _, s := range []*stream{a, b} {
			if frame := s.next(); !strings.Contains(frame, "example.com/hello") || strings.Contains(frame, "event: live") {
				t.Errorf("told %.200q", frame)
			}
		}
		if took := time.Since(begin); took > eventsGap {
			t.Errorf("it took %v", took)
		}
		f.change(healthy(5))
		begin = time.Now()
		if frame := a.next(); !strings.Contains(frame, "event: live\n") || strings.Contains(frame, "event: recent") || !strings.Contains(frame, "n5") {
			t.Errorf("told %.200q", frame)
		}
		if took := time.Since(begin); took > eventsEvery+glanceAge {
			t.Errorf("it took %v", took)
		}
	})
}

// However much happens, a stream gets a few frames a second; and when nothing does, a sign of life.
func TestPaceOfNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		p := newPage(t, f)
		defer p.Close()
		s, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		s.next()
		for i := range 100 {
			f.happen(Event{ID: fmt.Sprint(i), Module: "example.com/m"})
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if n := s.pending(); n < 2 || n > int(time.Second/eventsGap)+1 {
			t.Errorf("%d frames in a second", n)
		}
		time.Sleep(eventsGap) // what is left of it
		synctest.Wait()
		for s.pending() > 0 {
			if s.next() == "" {
				t.Fatal("the stream was dropped")
			}
		}
		select {
		case frame := <-s.frames:
			if string(frame) != ": still here\n\n" {
				t.Errorf("when nothing happens, %.200q is sent", frame)
			}
		case <-time.After(beatEvery + eventsEvery):
			t.Error("no sign of life")
		}
	})
}

// Nothing is looked at while nobody follows.
func TestNobodyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		p := newPage(t, f)
		defer p.Close()
		time.Sleep(time.Minute)
		if n := f.looks(); n > 0 {
			t.Errorf("looked %d times before anybody came", n)
		}
		s, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		s.next()
		time.Sleep(time.Minute)
		p.hub.leave(s)
		time.Sleep(2 * eventsEvery)
		before := f.looks()
		if before < 10 || before > 40 {
			t.Errorf("looked %d times in a minute", before)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := f.looks(); n > before {
			t.Errorf("looked %d times after all had left", n-before)
		}
		f.change(healthy(7))
		s, err = p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		if first := s.next(); !strings.Contains(first, "n7") {
			t.Errorf("who comes later is told what was: %.200q", first)
		}
	})
}

// Who does not read is dropped, and nobody waits for it.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		p := newPage(t, f)
		defer p.Close()
		slow, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		quick, err := p.hub.join(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		quick.next()
		for i := range 3 * streamQueue {
			f.happen(Event{ID: fmt.Sprint(i), Module: fmt.Sprintf("example.com/m%d", i)})
			if frame := quick.next(); !strings.Contains(frame, fmt.Sprintf("example.com/m%d", i)) {
				t.Fatalf("the quick one is told %.200q", frame)
			}
		}
		for range streamQueue {
			if slow.next() == "" {
				t.Fatal("what waited is gone")
			}
		}
		if _, ok := <-slow.frames; ok {
			t.Error("the slow one was not dropped")
		}
		p.hub.leave(slow) // as its handler does
		if n := len(p.hub.streams); n != 1 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// There are so many streams and no more, and after Close none.
func TestStreamsAreBounded(t *testing.T) {
	p := newPage(t, newFake(), func(c *Config) { c.Streams = 3 })
	srv := httptest.NewServer(p)
	defer srv.Close()
	var open []*http.Response
	for i := range 5 {
		resp := follow(t, srv.URL)
		if want := map[bool]int{true: 200, false: 503}[i < 3]; resp.StatusCode != want {
			t.Errorf("stream %d: %s", i, resp.Status)
		}
		if resp.StatusCode == 503 {
			b, _ := io.ReadAll(resp.Body)
			if resp.Header.Get("Retry-After") == "" || !strings.Contains(string(b), "too many") {
				t.Errorf("the refusal is %v %q", resp.Header, b)
			}
			continue
		}
		if resp.Header.Get("Content-Type") != "text/event-stream" || !strings.Contains(resp.Header.Get("Cache-Control"), "no-store") || resp.Header.Get("X-Accel-Buffering") != "no" {
			t.Errorf("stream has %v", resp.Header)
		}
		open = append(open, resp)
	}
	r := bufio.NewReader(open[0].Body)
	if line, err := r.ReadString('\n'); line != "retry: 3000\n" || err != nil {
		t.Errorf("a stream begins with %q, %v", line, err)
	}
	open[1].Body.Close() // this one leaves, and another one has its place
	deadline := time.Now().Add(10 * time.Second)
	for again := follow(t, srv.URL); again.StatusCode != 200; again = follow(t, srv.URL) {
		if time.Now().After(deadline) {
			t.Fatalf("the place of one that left is not free: %s", again.Status)
		}
	}
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	for _, resp := range []*http.Response{open[0], open[2]} {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Errorf("a stream ends with %v", err)
		}
	}
	<-closed
	if resp := follow(t, srv.URL); resp.StatusCode != 503 {
		t.Errorf("after Close: %s", resp.Status)
	}
	if resp, err := http.Get(srv.URL + "/"); err != nil || resp.StatusCode != 200 {
		t.Errorf("the page after Close: %v %v", resp, err)
	}
	p.Close() // once more is no harm
}

// One client has a quarter of the streams, whatever else it does; the others have the rest. Its place is free when one of them ends.
func TestStreamsOfOneClient(t *testing.T) {
	p := newPage(t, newFake(), func(c *Config) { c.Streams = 8; c.Client = fromHeader })
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	var first *stream
	for i := range 2 {
		s, err := p.hub.join(one)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		first = s
	}
	w := ask(p, "/events", func(r *http.Request) { r.Header.Set("From", one.String()) })
	if w.Code != 429 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "your address") {
		t.Errorf("the third stream of a client: %d %v %q", w.Code, w.Header(), w.Body)
	}
	if _, err := p.hub.join(other); err != nil {
		t.Errorf("another client: %v", err)
	}
	p.hub.leave(first)
	p.hub.leave(first) // which was dropped before its handler leaves
	if _, err := p.hub.join(one); err != nil {
		t.Errorf("one ended, and another begins: %v", err)
	}
	if _, err := p.hub.join(one); err == nil {
		t.Error("one ended, and two begin")
	}
}

// fromHeader is who a request says that it is from.
func fromHeader(r *http.Request) netip.Addr {
	a, _ := netip.ParseAddr(r.Header.Get("From"))
	return a
}

func follow(t *testing.T, url string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// A connection that takes nothing is given up, though frames for it still have room.
func TestStuckConnection(t *testing.T) {
	f := newFake()
	p := newPage(t, f)
	w := &stuck{ResponseRecorder: httptest.NewRecorder()}
	done := make(chan struct{})
	go func() { p.ServeHTTP(w, httptest.NewRequest("GET", "/events", nil)); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream goes on")
	}
	if w.until.IsZero() || time.Until(w.until) > streamWrite {
		t.Errorf("a frame may take until %v", w.until)
	}
}

// stuck is a connection whose reader does not read: a write ends with its deadline.
type stuck struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (s *stuck) SetWriteDeadline(t time.Time) error { s.until = t; return nil }
func (s *stuck) Write([]byte) (int, error) {
	return 0, &net.OpError{Op: "write", Err: io.ErrNoProgress}
}

// HEAD says what a stream would be, and is none.
func TestHeadOfEvents(t *testing.T) {
	p := newPage(t, newFake())
	w := ask(p, "/events", func(r *http.Request) { r.Method = "HEAD" })
	if w.Code != 200 || w.Body.Len() > 0 || w.Header().Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
}
