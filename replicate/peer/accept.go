package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The protocols of the port, by ALPN (RFC 7301).
const (
	protoRaft = "modmirror-raft/1"
	protoH2   = "h2"
	protoHTTP = "http/1.1"
)

// conn is a TCP connection that the link knows of.
type conn struct {
	net.Conn
	link  *Link
	stall time.Duration // >0: a connection of the bulk client, which may not stand still for longer
	once  sync.Once

	uncounted atomic.Int64                 // bytes that came and are in no counter yet
	counter   atomic.Pointer[atomic.Int64] // nil: it is not known from which zone they come

	peer string // guarded by link.mu, as all that follows: certificate and host, counted in perPeer
	node string
	busy bool // one too many: what it asks is refused
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.once.Do(func() { c.link.forget(c) })
	return c.Conn.Close()
}

// Each read and write of a bulk transfer gives both directions time again: an upload may take longer than the wait for its
// answer.
func (c *conn) Read(b []byte) (int, error) {
	if c.stall > 0 {
		c.SetDeadline(time.Now().Add(c.stall))
	}
	n, err := c.Conn.Read(b)
	c.received(n)
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if c.stall > 0 {
		c.SetDeadline(time.Now().Add(c.stall))
	}
	return c.Conn.Write(b)
}

// track begins to know nc; nil if the link is closed or holds too many.
func (l *Link) track(nc net.Conn, accepted bool) *conn {
	c := &conn{Conn: nc, link: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || accepted && len(l.conns) >= maxConns {
		return nil
	}
	l.conns[c] = struct{}{}
	if accepted {
		l.pending = append(l.pending, c)
	}
	return c
}

func (l *Link) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.settle(c)
	if c.peer != "" {
		if l.perPeer[c.peer]--; l.perPeer[c.peer] == 0 {
			delete(l.perPeer, c.peer)
		}
		c.peer = ""
	}
}

// settle notes that c is through the handshake, or gone. The caller holds mu.
func (l *Link) settle(c *conn) {
	if i := slices.Index(l.pending, c); i >= 0 {
		l.pending = slices.Delete(l.pending, i, i+1)
	}
}

// acceptAll takes connections until the port is closed. Handshakes run beside each other. When there are too many, the
// oldest has to go: an honest one takes milliseconds, so that is one which somebody keeps open on purpose.
func (l *Link) acceptAll() {
	for wait := 5 * time.Millisecond; ; {
		nc, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) || err != nil && l.ctx.Err() != nil {
			return
		}
		if err != nil { // too many open files, most likely
			l.log.Warn("cannot take a connection from another node", "err", err)
			if !pause(l.ctx, wait) {
				return
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = 5 * time.Millisecond
		c := l.track(nc, true)
		if c == nil {
			l.refused(nc.RemoteAddr().String(), Refuse(Busy, "there are %d connections already, the most that this node holds", maxConns))
			nc.Close()
			continue
		}
		l.wg.Go(func() { l.shake(c) })
		if old := l.oldest(); old != nil {
			l.refused(old.RemoteAddr().String(), Refuse(Busy, "a handshake was cut off: it was the oldest of more than %d at the same time", maxHandshakes))
			old.Close()
		}
	}
}

func (l *Link) oldest() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) <= maxHandshakes {
		return nil
	}
	return l.pending[0]
}

// shake makes the handshake of an accepted connection and gives it to who speaks its protocol.
func (l *Link) shake(c *conn) {
	ctx, cancel := context.WithTimeout(l.ctx, l.config.handshake)
	defer cancel()
	var a attempt
	tc := tls.Server(c, l.serverTLS(&a))
	if err := tc.HandshakeContext(ctx); err != nil {
		if r := refusedAccept(err, a, l.config.Credentials.Name(), l.config.now()); r != nil {
			l.refused(c.RemoteAddr().String(), r)
		} else {
			l.log.Debug("a handshake was cut off", "from", c.RemoteAddr().String(), "err", err)
		}
		l.linger(ctx, c)
		return
	}
	state := tc.ConnectionState()
	busy := l.admitConn(c, state.PeerCertificates[0].Subject.CommonName)
	switch state.NegotiatedProtocol {
	case protoRaft:
		l.acceptRaft(ctx, c, tc, busy)
	case protoH2, protoHTTP:
		l.mu.Lock()
		l.settle(c)
		l.mu.Unlock()
		if !l.web.give(ctx, tc) {
			tc.Close()
		}
	default:
		l.refused(c.RemoteAddr().String(), Refuse(WrongProtocol, "the other end names no protocol (ALPN): it is no node, or one of a version too different"))
		tc.Close()
	}
}

// linger closes c in such a way that the other end can still read what was sent last: if it had to say more that nobody
// reads, closing at once would throw the reason away.
func (l *Link) linger(ctx context.Context, c *conn) {
	defer c.Close()
	if t, ok := c.Conn.(*net.TCPConn); ok {
		t.CloseWrite()
	}
	deadline, _ := ctx.Deadline()
	if soon := time.Now().Add(time.Second); deadline.IsZero() || soon.Before(deadline) {
		deadline = soon
	}
	c.SetReadDeadline(deadline)
	io.Copy(io.Discard, io.LimitReader(c.Conn, 64<<10))
}

// admitConn counts c for who showed the certificate with that name, and reports whether that one has too many.
func (l *Link) admitConn(c *conn, name string) bool {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return true // closed in between
	}
	c.peer = name + "@" + host
	l.perPeer[c.peer]++
	c.busy = l.perPeer[c.peer] > maxPerPeer
	return c.busy
}

func refuseBusy() *Refusal {
	return Refuse(Busy, "this node has more than %d connections to that one already: close some, or see which program keeps them open", maxPerPeer)
}

func (l *Link) offered(h *tls.ClientHelloInfo) attempt {
	a := attempt{old: !slices.Contains(h.SupportedVersions, tls.VersionTLS13), odd: true}
	a.name, _ = strings.CutSuffix(h.ServerName, serverSuffix)
	if a.name == h.ServerName {
		a.name = "" // no node
	}
	for _, p := range h.SupportedProtos {
		a.odd = a.odd && p != protoRaft && p != protoH2 && p != protoHTTP
	}
	return a
}

// handoff is a net.Listener of connections that are through the handshake.
type handoff struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{ch: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

func (h *handoff) give(ctx context.Context, c net.Conn) bool {
	select {
	case h.ch <- c:
		return true
	case <-h.done:
	case <-ctx.Done():
	}
	return false
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handoff) Addr() net.Addr { return h.addr }

// pause waits for d, and reports false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
