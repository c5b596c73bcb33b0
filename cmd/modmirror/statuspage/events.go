package statuspage

import (
	"bytes"
	"context"
	"net/http"
	"net/netip"
	"reflect"
	"sync"
	"time"
)

const (
	eventsEvery = 2 * time.Second        // between two looks at the cluster
	eventsGap   = 250 * time.Millisecond // between two events at least, however much happens
	beatEvery   = 15 * time.Second       // a sign of life, so that nobody between takes the stream for dead
	streamQueue = 8                      // frames that may wait for a reader
	streamWrite = 10 * time.Second       // for a frame to be taken by the connection
	streamLife  = time.Hour              // then the browser comes again, maybe to another node
)

// hub feeds all streams of events.
type hub struct {
	page  *Page
	slots *slots // of streams

	mu      sync.Mutex
	streams map[*stream]bool // guarded by mu
	fed     bool             // guarded by mu; feed runs
	closed  bool             // guarded by mu
	latest  []byte           // guarded by mu; what a new stream begins with; nil: nothing is known yet
	stop    context.Context  // ended by close
	end     context.CancelFunc
	feeding sync.WaitGroup
}

// stream is one reader. Its channel is closed by the hub, which drops it then.
type stream struct {
	frames chan []byte
	client netip.Addr
}

func newHub(p *Page, s *slots) *hub {
	h := &hub{page: p, slots: s, streams: make(map[*stream]bool)}
	h.stop, h.end = context.WithCancel(context.Background())
	return h
}

// join adds a reader, and starts the feeding if it is the first.
func (h *hub) join(client netip.Addr) (*stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, &failure{http.StatusServiceUnavailable, "this mirror is about to stop; the page goes on at another node"}
	}
	switch h.slots.take(client) {
	case full:
		return nil, &failure{http.StatusServiceUnavailable, "too many pages follow this node at the same time; reload the page to see news"}
	case fullOfClient:
		return nil, &failure{http.StatusTooManyRequests, "too many pages at your address follow this node at the same time; reload the page to see news"}
	}
	s := &stream{make(chan []byte, streamQueue), client}
	h.streams[s] = true
	if h.latest != nil {
		s.frames <- h.latest
	}
	if !h.fed {
		h.fed = true
		h.feeding.Go(h.feed)
	}
	return s, nil
}

// leave removes a reader, unless it was dropped.
func (h *hub) leave(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(s)
}

// drop removes a reader if it is there. The caller holds mu.
func (h *hub) drop(s *stream) {
	if h.streams[s] {
		delete(h.streams, s)
		h.slots.free(s.client)
	}
}

// publish hands a frame to every reader. Who has not taken the last few is dropped: it comes again, and begins with what is
// true then. It reports whether there is anybody left.
func (h *hub) publish(frame, latest []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if latest != nil {
		h.latest = latest
	}
	for s := range h.streams {
		if frame == nil {
			break
		}
		select {
		case s.frames <- frame:
		default:
			h.drop(s)
			close(s.frames)
		}
	}
	if len(h.streams) == 0 {
		h.fed, h.latest = false, nil // what is known now is old when the next one comes
	}
	return h.fed
}

// close ends all streams and waits for the feeding.
func (h *hub) close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		h.end()
		for s := range h.streams {
			h.drop(s)
			close(s.frames)
		}
	}
	h.mu.Unlock()
	h.feeding.Wait()
}

// news is what was told last.
type news struct {
	cluster Cluster
	events  []Event
	told    bool
}

// feed looks at what the pages show and tells what has changed, as long as there are readers.
func (h *hub) feed() {
	tick := time.NewTicker(eventsEvery)
	defer tick.Stop()
	var last news
	beat := time.Now()
	for {
		events, more := h.page.config.Source.Events()
		frame, latest := h.tell(h.stop, &last, h.page.shown(events))
		if frame == nil && time.Since(beat) >= beatEvery {
			frame = []byte(": still here\n\n")
		}
		if frame != nil {
			beat = time.Now()
		}
		if !h.publish(frame, latest) {
			return
		}
		select {
		case <-h.stop.Done():
			return
		case <-tick.C:
			continue
		case <-more:
		}
		select {
		case <-h.stop.Done():
			return
		case <-time.After(eventsGap):
		}
	}
}

// tell returns a frame with what has changed since last, nil if nothing has, and one with all for those who come later.
func (h *hub) tell(ctx context.Context, last *news, events []Event) (frame, latest []byte) {
	c, err := h.page.glance.cluster(ctx, h.page)
	if err != nil {
		return nil, nil // it takes long; the next look comes soon
	}
	now := h.page.now().UTC()
	var parts, all bytes.Buffer
	for _, part := range []struct {
		name string
		data any
		same bool
	}{
		{"live", live{now, c}, reflect.DeepEqual(c, last.cluster)},
		{"recent", recent{now, events}, reflect.DeepEqual(events, last.events)},
	} {
		one := h.page.event(part.name, part.data)
		all.Write(one)
		if !part.same || !last.told {
			parts.Write(one)
		}
	}
	*last = news{c, events, true}
	if parts.Len() > 0 {
		frame = parts.Bytes()
	}
	return frame, all.Bytes()
}

// event is a template as an event that has its name.
func (p *Page) event(name string, data any) []byte {
	var html, out bytes.Buffer
	if err := p.html.ExecuteTemplate(&html, name, data); err != nil {
		return nil // the page itself says so
	}
	out.WriteString("event: " + name + "\n")
	text := bytes.ReplaceAll(html.Bytes(), []byte{'\r'}, []byte{' '}) // it ends a line, too
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			out.WriteString("data: ")
			out.Write(line)
			out.WriteByte('\n')
		}
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// serveEvents sends events until the reader leaves.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) error {
	s, err := p.hub.join(p.client(r))
	if err != nil {
		return err
	}
	defer p.hub.leave(s)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform")
	h.Set("X-Accel-Buffering", "no") // a proxy before this server must not wait for the end
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	life := time.NewTimer(streamLife)
	defer life.Stop()
	for frame, ok := []byte("retry: 3000\n\n"), true; ok; {
		if !sendFrame(w, frame) {
			return nil
		}
		select {
		case frame, ok = <-s.frames:
		case <-life.C:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
	return nil
}

// sendFrame sends a frame at once. A reader that does not take it in time is gone.
func sendFrame(w http.ResponseWriter, frame []byte) bool {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(streamWrite)) // not every writer has deadlines
	if _, err := w.Write(frame); err != nil {
		return false
	}
	return rc.Flush() == nil
}
