package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The headers of the handshake over HTTP, on each request and answer.
const (
	helloHeader   = "Modmirror-Hello"   // base64url of the JSON of a Hello
	toHeader      = "Modmirror-To"      // the node that is meant; none: whoever answers
	refusedHeader = "Modmirror-Refused" // in an answer: the class; the body is the reason
)

type ctxKey uint8

const (
	helloKey ctxKey = iota
	connKey
)

// From returns the node that sent r, in a handler of a Link.
func From(r *http.Request) Hello {
	h, _ := r.Context().Value(helloKey).(Hello)
	return h
}

// Handle serves pattern (as in http.ServeMux) to the other nodes of the cluster, over h2 and http/1.1 alike. The handler
// bounds the body that it reads.
func (l *Link) Handle(pattern string, h http.Handler) { l.mux.Handle(pattern, h) }

// handleOpen is Handle for what nodes may use that have no cluster yet.
func (l *Link) handleOpen(pattern string, h http.Handler) {
	l.mu.Lock()
	l.open[pattern] = true
	l.mu.Unlock()
	l.mux.Handle(pattern, h)
}

func (l *Link) newServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(l.serve),
		ReadHeaderTimeout: l.config.handshake,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    32 << 10,
		HTTP2:             http2Config(),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey, c.(*tls.Conn).NetConn())
		},
		ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
}

func http2Config() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: 512,
		SendPingTimeout:      10 * time.Second, // a peer that is gone without a word is noticed after 20 s
		PingTimeout:          10 * time.Second,
		WriteByteTimeout:     stallTime,
	}
}

// serve checks the handshake of a request, and gives it to its handler.
func (l *Link) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(helloHeader, l.Self().header())
	c, _ := r.Context().Value(connKey).(*conn)
	if ref := l.greeted(r, c); ref != nil {
		l.refused(r.RemoteAddr, ref)
		writeRefusal(w, ref)
		return
	}
	if l.inFlight.Add(1) > maxRequests {
		l.inFlight.Add(-1)
		ref := Refuse(Busy, "this node has more than %d requests of other nodes under way already", maxRequests)
		l.refused(r.RemoteAddr, ref)
		writeRefusal(w, ref)
		return
	}
	defer l.inFlight.Add(-1)
	rc := http.NewResponseController(w)
	body := &movingBody{ReadCloser: r.Body, rc: rc}
	r.Body = body
	defer rc.SetReadDeadline(time.Time{})
	defer body.end()
	l.mux.ServeHTTP(&movingWriter{ResponseWriter: w, rc: rc}, r)
}

// greeted admits a request, and notes who sent it.
func (l *Link) greeted(r *http.Request, c *conn) *Refusal {
	if c == nil {
		return Refuse(Refused, "a request outside of a connection")
	}
	l.mu.Lock()
	busy := c.busy
	l.mu.Unlock()
	if busy {
		return refuseBusy()
	}
	h, err := l.parse(r.Header.Get(helloHeader))
	if err != nil {
		return Refuse(WrongProtocol, "%v: the two nodes run versions that are too different", err)
	}
	to := r.Header.Get(toHeader)
	if to != "" && !isID(to) {
		return Refuse(WrongProtocol, "malformed %s", toHeader)
	}
	if ref := l.admit(r.Context(), h, to, l.needs(r)); ref != nil {
		return ref
	}
	l.mu.Lock()
	c.node = h.Node
	l.mu.Unlock()
	c.from(h, map[bool]kind{true: kindControl, false: kindBlobs}[r.ProtoMajor == 2])
	*r = *r.WithContext(context.WithValue(r.Context(), helloKey, h))
	return nil
}

func (l *Link) needs(r *http.Request) what {
	_, pattern := l.mux.Handler(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case pattern == "GET /v1/hello":
		return asProbe
	case l.open[pattern]:
		return asFresh
	}
	return asMember
}

func writeRefusal(w http.ResponseWriter, r *Refusal) {
	code := http.StatusForbidden
	switch r.Class {
	case OtherNode:
		code = http.StatusMisdirectedRequest
	case Busy:
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set(refusedHeader, string(r.Class))
	w.WriteHeader(code)
	io.WriteString(w, r.Text)
}

func (l *Link) serveHello(w http.ResponseWriter, r *http.Request) {} // the header says it all

// parse is parseHeader, which remembers: the same few hellos come with each request.
func (l *Link) parse(s string) (Hello, error) {
	l.mu.Lock()
	h, ok := l.parsed[s]
	l.mu.Unlock()
	if ok {
		return h, nil
	}
	if s == "" {
		return h, errors.New("there is no hello: this port is for the nodes of the cluster")
	}
	h, err := parseHeader(s)
	if err != nil {
		return h, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parsed) >= maxParsed {
		clear(l.parsed)
	}
	l.parsed[s] = h
	return h, nil
}

// movingBody and movingWriter end a transfer that stands still, or goes on so slowly that it is no transfer. How long it takes
// as a whole is up to the handler.
type movingBody struct {
	io.ReadCloser
	rc *http.ResponseController
	pace

	mu      sync.Mutex
	ended   bool          // guarded by mu; the handler has returned
	reading chan struct{} // guarded by mu; closed at the end of the Read under way; nil: there is none
}

func (b *movingBody) Read(p []byte) (int, error) {
	begin := time.Now()
	read, err := b.begin(begin)
	if err != nil {
		return 0, err
	}
	defer read()
	n, err := b.ReadCloser.Read(p)
	b.moved(n, time.Since(begin))
	return n, err
}

// begin notes that a Read is under way, until read is called.
func (b *movingBody) begin(at time.Time) (read func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, http.ErrBodyReadAfterClose
	}
	b.rc.SetReadDeadline(at.Add(b.patience()))
	reading := make(chan struct{})
	b.reading = reading
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reading = nil
		close(reading)
	}, nil
}

// end ends a Read that a handler has left behind, because the sender was too slow for it: net/http looks at the body before it sends
// the answer, and would wait for that Read first.
func (b *movingBody) end() {
	b.mu.Lock()
	b.ended = true
	reading := b.reading
	if reading != nil {
		b.rc.SetReadDeadline(time.Unix(1, 0))
	}
	b.mu.Unlock()
	if reading == nil {
		return
	}
	<-reading
	b.ReadCloser.Close() // nor does it wait for the rest then: the connection ends with the answer
}

type movingWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
	pace
}

func (w *movingWriter) Write(p []byte) (int, error) {
	begin := time.Now()
	w.rc.SetWriteDeadline(begin.Add(w.patience()))
	n, err := w.ResponseWriter.Write(p)
	w.moved(n, time.Since(begin))
	return n, err
}

// pace is how a transfer goes on: without the time in which the handler did something else.
type pace struct {
	spent time.Duration
	n     int64 // bytes
}

func (p *pace) moved(n int, in time.Duration) {
	p.spent += in
	p.n += int64(n)
}

// patience returns how long the next bytes may take. A trickle of a byte every few seconds would else hold a handler, and what
// that has in memory, for days.
func (p *pace) patience() time.Duration {
	return min(stallTime, stallTime+time.Duration(p.n/slowest)*time.Second-p.spent)
}

// Unwrap is for http.ResponseController.
func (w *movingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
