package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// simNet is the network of a simulation. It behaves as TCP does between machines:
//
//   - bytes arrive in order, after the latency of the way; what is lost is sent again, so it arrives late and holds up
//     what comes after it
//   - while the way in a direction is cut nothing arrives there, and nobody is told; once it is open again what waited arrives
//   - a machine whose process dies resets its connections; one without power says nothing, and resets them when it is back
//
// Writes never block, so that nobody waits for simulated time with a mutex held, for which synctest could not tell that he waits.
type simNet struct {
	mu        sync.Mutex
	rng       *rand.Rand              // guarded by mu, as all that follows
	listeners map[string]*simListener // by address
	zones     map[string]string       // by host
	cut       map[way]bool
	slow      map[way]float64 // how probable it is that something is lost
	dark      map[string]bool // hosts without power
	conns     map[*simConn]bool
	ports     int
}

// way is a direction between two hosts.
type way struct{ from, to string }

func newSimNet(seed uint64) *simNet {
	return &simNet{rng: rand.New(rand.NewPCG(seed, 1)), listeners: map[string]*simListener{}, zones: map[string]string{}, cut: map[way]bool{},
		slow: map[way]float64{}, dark: map[string]bool{}, conns: map[*simConn]bool{}}
}

// setCut cuts the way from one host to another, or opens it.
func (n *simNet) setCut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[way{from, to}] = cut
	n.wake()
}

// setLoss makes the way lose a part of what is sent.
func (n *simNet) setLoss(from, to string, part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[way{from, to}] = part
}

// heal ends all cuts and losses.
func (n *simNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.slow)
	n.wake()
}

// wake has all connections look again. The caller holds mu.
func (n *simNet) wake() {
	for c := range n.conns {
		c.in.notify()
	}
}

func (n *simNet) isCut(w way) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[w]
}

// latency returns how long something is on its way.
func (n *simNet) latency(w way) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := 500*time.Microsecond + time.Duration(n.rng.Int64N(int64(time.Millisecond)))
	if n.zones[w.from] != n.zones[w.to] {
		d += 10*time.Millisecond + time.Duration(n.rng.Int64N(int64(5*time.Millisecond)))
	}
	for p := n.slow[w]; p > 0 && n.rng.Float64() < p; {
		d += 200*time.Millisecond + time.Duration(n.rng.Int64N(int64(400*time.Millisecond)))
	}
	return d
}

// host returns a machine on the network, in the place of an earlier one with that address. zone may be empty.
func (n *simNet) host(ip, zone string) *simHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.zones[ip] = zone
	delete(n.dark, ip)
	return &simHost{net: n, ip: ip}
}

// simHost is one life of a machine.
type simHost struct {
	net *simNet
	ip  string

	mu   sync.Mutex
	dead bool // guarded by mu
}

func (h *simHost) isDead() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead
}

// die ends all of the life's connections for itself. With reset the others are told at once, else by revive: the machine has
// no power until then.
func (h *simHost) die(reset bool) (revive func()) {
	h.mu.Lock()
	h.dead = true
	h.mu.Unlock()
	h.net.mu.Lock()
	var others []*simConn
	for c := range h.net.conns {
		if c.host == h {
			c.in.fail(net.ErrClosed)
			c.out.mute()
			others = append(others, c.peer)
			delete(h.net.conns, c)
		}
	}
	for addr, l := range h.net.listeners {
		if l.host == h {
			l.close()
			delete(h.net.listeners, addr)
		}
	}
	h.net.dark[h.ip] = !reset
	h.net.mu.Unlock()
	revive = func() {
		for _, c := range others {
			c.in.fail(syscall.ECONNRESET)
		}
	}
	if reset {
		revive()
	}
	return revive
}

// Listen implements [peer.Network].
func (h *simHost) Listen(addr string) (net.Listener, error) {
	if h.isDead() {
		return nil, syscall.ENETDOWN
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.listeners[addr] != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &simListener{host: h, addr: simAddr(addr), conns: make(chan net.Conn, 256), done: make(chan struct{})}
	h.net.listeners[addr] = l
	return l, nil
}

// Dial implements [peer.Network].
func (h *simHost) Dial(ctx context.Context, addr string) (net.Conn, error) {
	ip, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	for try := 100 * time.Millisecond; ; try *= 2 { // SYN is sent again and again
		wait := time.NewTimer(h.net.latency(way{h.ip, ip}) + h.net.latency(way{ip, h.ip}))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, dialError(ctx.Err())
		}
		if h.isDead() {
			return nil, dialError(syscall.ENETDOWN)
		}
		if !h.net.isCut(way{h.ip, ip}) && !h.net.isCut(way{ip, h.ip}) {
			if c, err := h.connect(addr, ip); !errors.Is(err, errDark) {
				return c, err
			}
		}
		again := time.NewTimer(try)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, dialError(ctx.Err())
		}
	}
}

// errDark is for a host that does not even refuse.
var errDark = errors.New("no power")

func dialError(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

// connect makes a connection to who listens now.
func (h *simHost) connect(addr, ip string) (net.Conn, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	switch {
	case n.dark[ip]:
		return nil, errDark
	case l == nil:
		return nil, dialError(syscall.ECONNREFUSED)
	}
	n.ports++
	local := simAddr(fmt.Sprintf("%s:%d", h.ip, 20000+n.ports%40000))
	there, back := newHalf(n, way{h.ip, ip}), newHalf(n, way{ip, h.ip})
	a := &simConn{host: h, in: back, out: there, local: local, remote: l.addr}
	b := &simConn{host: l.host, in: there, out: back, local: l.addr, remote: local}
	a.peer, b.peer = b, a
	select {
	case l.conns <- b:
	default:
		return nil, dialError(syscall.ECONNREFUSED)
	}
	n.conns[a], n.conns[b] = true, true
	return a, nil
}

type simAddr string

func (a simAddr) Network() string { return "tcp" }
func (a simAddr) String() string  { return string(a) }

type simListener struct {
	host  *simHost
	addr  simAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *simListener) close() { l.once.Do(func() { close(l.done) }) }

func (l *simListener) Close() error {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	if l.host.net.listeners[string(l.addr)] == l {
		delete(l.host.net.listeners, string(l.addr))
	}
	l.close()
	return nil
}

func (l *simListener) Addr() net.Addr { return l.addr }

// half is one direction of a connection.
type half struct {
	net  *simNet
	way  way
	wake chan struct{} // has room for one; there is something new for the reader

	mu       sync.Mutex
	queue    []packet  // guarded by mu, as all that follows
	last     time.Time // when the last of the queue arrives
	ended    bool      // the writer has closed
	muted    bool      // the writer is dead: nothing more arrives
	err      error     // of the reader
	deadline time.Time
}

type packet struct {
	at   time.Time
	data []byte // nil: the end
}

func newHalf(n *simNet, w way) *half { return &half{net: n, way: w, wake: make(chan struct{}, 1)} }

func (h *half) notify() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// fail makes all reads fail, also those of what has arrived.
func (h *half) fail(err error) {
	h.mu.Lock()
	if h.err == nil {
		h.err = err
	}
	h.mu.Unlock()
	h.notify()
}

func (h *half) mute() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = true
}

func (h *half) send(data []byte) {
	at := time.Now().Add(h.net.latency(h.way))
	h.mu.Lock()
	if h.muted || h.ended {
		h.mu.Unlock()
		return
	}
	if at.Before(h.last) {
		at = h.last
	}
	h.last, h.ended = at, data == nil
	h.queue = append(h.queue, packet{at, data})
	h.mu.Unlock()
	h.notify()
}

func (h *half) read(p []byte) (int, error) {
	for {
		n, wait, err := h.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		var timer <-chan time.Time
		var t *time.Timer
		if !wait.IsZero() {
			t = time.NewTimer(time.Until(wait))
			timer = t.C
		}
		select {
		case <-h.wake:
		case <-timer:
		}
		if t != nil {
			t.Stop()
		}
	}
}

// take returns what has arrived, or until when to wait for it; zero: until there is something new.
func (h *half) take(p []byte) (n int, wait time.Time, err error) {
	cut := h.net.isCut(h.way)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.err != nil:
		return 0, wait, h.err
	case !h.deadline.IsZero() && !now.Before(h.deadline):
		return 0, wait, os.ErrDeadlineExceeded
	}
	wait = h.deadline
	if len(h.queue) == 0 || cut {
		return 0, wait, nil
	}
	first := &h.queue[0]
	if now.Before(first.at) {
		if wait.IsZero() || first.at.Before(wait) {
			wait = first.at
		}
		return 0, wait, nil
	}
	if first.data == nil {
		return 0, wait, io.EOF
	}
	n = copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		h.queue = h.queue[1:]
	}
	return n, wait, nil
}

// simConn is one end of a connection.
type simConn struct {
	host          *simHost
	peer          *simConn
	in, out       *half
	local, remote simAddr

	mu       sync.Mutex
	closed   bool      // guarded by mu
	deadline time.Time // guarded by mu; of writes
}

func (c *simConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.in.read(p)
	if err != nil && err != io.EOF {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

func (c *simConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	c.in.mu.Lock()
	failed := c.in.err
	c.in.mu.Unlock()
	switch {
	case c.closed:
		err = net.ErrClosed
	case failed != nil:
		err = failed
	case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		return 0, &net.OpError{Op: "write", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
	}
	if len(p) > 0 {
		c.out.send(append([]byte{}, p...))
	}
	return len(p), nil
}

func (c *simConn) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.out.send(nil)
	c.in.fail(net.ErrClosed)
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return c.local }
func (c *simConn) RemoteAddr() net.Addr { return c.remote }

func (c *simConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	c.in.deadline = t
	c.in.mu.Unlock()
	c.in.notify()
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}
