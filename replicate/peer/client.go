package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"
)

// Request is what one node asks of another.
type Request struct {
	Node   string // who is meant; empty: whoever answers at Addr
	Addr   string // host:port
	Method string // empty: GET
	Path   string // with its query
	Header http.Header
	Body   io.Reader // nil: none
	Size   int64     // of Body, if it is known and Body is not a *bytes.Reader; 0: unknown
	Bulk   bool      // over http/1.1 in a pool of its own: for bodies that are large
}

func (l *Link) newTransports() (control, bulk *http.Transport) {
	var h2, h1 http.Protocols
	h2.SetHTTP2(true)
	h1.SetHTTP1(true)
	dial := func(proto string, stall time.Duration) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, addr string) (net.Conn, error) {
			tc, err := l.dialTLS(ctx, addr, proto, stall)
			if err != nil {
				return nil, err // not a nil *tls.Conn in an interface
			}
			return tc, nil
		}
	}
	control = &http.Transport{
		Protocols: &h2, DialTLSContext: dial(protoH2, 0), HTTP2: http2Config(),
		MaxConnsPerHost: 2, // requests share one; without a bound each of many at once would begin a handshake
		IdleConnTimeout: idleTime, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
	}
	bulk = &http.Transport{
		Protocols: &h1, DialTLSContext: dial(protoHTTP, stallTime),
		MaxConnsPerHost: 16, MaxIdleConnsPerHost: 4, MaxIdleConns: 64, IdleConnTimeout: stallTime / 2,
		DisableCompression: true, MaxResponseHeaderBytes: 64 << 10, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
	}
	return control, bulk
}

// Do asks a node. The error is a *Refusal, or has one inside, if one of the two does not speak to the other. Any other
// status is for the caller to judge. A control request whose context has no deadline has one of 30 seconds, body
// included; a bulk transfer ends when nothing moves for that long. The caller closes the body.
func (l *Link) Do(ctx context.Context, q Request) (*http.Response, error) {
	cancel := context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok && !q.Bulk {
		ctx, cancel = context.WithTimeout(ctx, callTime)
	}
	resp, err := l.do(ctx, q)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("ask %s for %s: %w", q.Addr, q.Path, err)
	}
	resp.Body = &callBody{resp.Body, cancel}
	return resp, nil
}

func (l *Link) do(ctx context.Context, q Request) (*http.Response, error) {
	var c *conn // on which the answer came
	var k kind
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(g httptrace.GotConnInfo) { c, k = connOf(g.Conn) }})
	r, err := http.NewRequestWithContext(ctx, q.Method, "https://"+q.Addr+q.Path, q.Body)
	if err != nil {
		return nil, err
	}
	if q.Size > 0 {
		r.ContentLength = q.Size
	}
	for k, v := range q.Header {
		r.Header[k] = v
	}
	r.Header.Set(helloHeader, l.Self().header())
	if q.Node != "" {
		r.Header.Set(toHeader, q.Node)
	}
	transport := l.control
	if q.Bulk {
		transport = l.bulk
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return nil, l.diagnose(ctx, err, q.Addr)
	}
	h, err := l.answered(resp, q)
	if err != nil {
		resp.Body.Close()
		l.metrics.dialRefused(ClassOf(err))
		return nil, err
	}
	if c != nil {
		c.from(h, k)
	}
	return resp, nil
}

// diagnose finds out why a request has failed. The reason that the other end gives after the dialer's part of a handshake
// can be lost inside of net/http, so it is asked for once more, without that.
func (l *Link) diagnose(ctx context.Context, err error, addr string) error {
	op, isOp := errors.AsType[*net.OpError](err)
	if r := l.refusedDial(err, addr); ClassOf(r) != "" || ctx.Err() != nil || l.ctx.Err() != nil || isOp && op.Op == "dial" {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tc, derr := l.dialTLS(ctx, addr, protoHTTP, 0)
	if derr == nil {
		defer tc.NetConn().Close()
		deadline, _ := ctx.Deadline()
		tc.SetDeadline(deadline)
		io.WriteString(tc, "GET /v1/hello HTTP/1.1\r\nHost: "+addr+"\r\n\r\n")
		_, derr = tc.Read(make([]byte, 1))
	}
	if derr != nil && ClassOf(l.refusedDial(derr, addr)) != "" {
		return l.refusedDial(derr, addr)
	}
	return err
}

// answered checks the handshake of an answer, and returns who gave it.
func (l *Link) answered(resp *http.Response, q Request) (Hello, error) {
	if c := resp.Header.Get(refusedHeader); c != "" {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
		r := Refuse(Class(c), "%s", b)
		r.By = q.Addr
		if err := r.check(); err != nil {
			return Hello{}, err
		}
		return Hello{}, r
	}
	h, err := l.parse(resp.Header.Get(helloHeader))
	if err != nil {
		return h, Refuse(WrongProtocol, "the node at %s does not say who it is (%v): the two nodes run versions that are too different", q.Addr, err)
	}
	w := asMember
	if isOpenPath(q.Path) {
		w = asFresh
	}
	if r := l.answers(h, q.Node, q.Addr, w); r != nil {
		return h, r
	}
	return h, nil
}

func isOpenPath(p string) bool {
	p, _, _ = strings.Cut(p, "?")
	return p == "/v1/hello" || p == "/v1/join" || strings.HasPrefix(p, "/v1/form")
}

// StatusError is an answer that is not a success.
type StatusError struct {
	Code int
	Text string // what the other node says
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Code, http.StatusText(e.Code), strings.TrimSpace(e.Text))
}

// Call is Do for an answer of at most limit bytes. A status other than 2xx is a *StatusError.
func (l *Link) Call(ctx context.Context, q Request, body []byte, limit int64) ([]byte, error) {
	if body != nil {
		q.Body = bytes.NewReader(body)
	}
	resp, err := l.Do(ctx, q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("the answer has more than %d bytes", limit)
	}
	if err == nil && resp.StatusCode/100 != 2 {
		err = &StatusError{resp.StatusCode, string(b[:min(len(b), maxText)])}
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", q.Addr, q.Path, err)
	}
	return b, nil
}

// callBody frees the request's timer with its body.
type callBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *callBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
