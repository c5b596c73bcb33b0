package mirror

import (
	"context"
	"fmt"
	"io"
	"time"

	"modmirror/mirror/artifact"
)

// How long a peer may take. What is counted is the time that is spent waiting for it, so that a limit of ours on the speed of
// a pull is not held against it.
const (
	pullStall   = 15 * time.Second // without a byte
	pullSlowest = 64 << 10         // bytes a second, on the whole
)

// pullTime returns how long a peer may take for this many bytes.
func pullTime(size int64) time.Duration {
	return pullStall + time.Duration(size/pullSlowest)*time.Second
}

// timedBody reads a body and gives up when its sender is too slow: another peer has the same bytes. A Read that hangs goes on in
// the background until the body ends, which it does soon after its context.
type timedBody struct {
	ctx    context.Context
	chunks chan chunk
	free   chan []byte
	stop   chan struct{}
	left   time.Duration // to wait for the sender
	rest   []byte        // of the last chunk
	buf    []byte        // the whole of it
	err    error
}

type chunk struct {
	b   []byte
	err error
}

// newTimedBody begins to read body. The caller must close it.
func newTimedBody(ctx context.Context, body io.Reader, size int64) *timedBody {
	p := &timedBody{ctx: ctx, chunks: make(chan chunk, 2), free: make(chan []byte, 3), stop: make(chan struct{}), left: pullTime(size)}
	for range cap(p.free) {
		p.free <- make([]byte, 64<<10)
	}
	go p.pump(body)
	return p
}

func (p *timedBody) pump(body io.Reader) {
	for {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.stop:
			return
		}
		n, err := body.Read(b[:cap(b)])
		select {
		case p.chunks <- chunk{b[:n], err}:
		case <-p.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

func (p *timedBody) Read(to []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		if p.buf != nil {
			p.free <- p.buf // there is room: it came from there
			p.buf = nil
		}
		p.next()
	}
	n := copy(to, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *timedBody) next() {
	start, wait := time.Now(), min(p.left, pullStall)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case c := <-p.chunks:
		p.rest, p.buf, p.err = c.b, c.b, c.err
		p.left -= time.Since(start)
	case <-p.ctx.Done():
		p.err = context.Cause(p.ctx)
	case <-timer.C:
		p.err = fmt.Errorf("too slow: no more after another %v: %w", max(wait, 0).Round(time.Second), artifact.ErrUnavailable)
	}
}

// close ends the reading in the background, as soon as the body lets it.
func (p *timedBody) close() { close(p.stop) }
