package main

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// conns bounds the connections of the public port: of all clients, and of each address. Where one more would be too many,
// the connection that has been without a request for longest is closed to make room: that of the client itself if it has
// too many, else one of the address with most of these. Who holds connections open without asking anything, or asks so
// slowly that a request never is complete, so loses to who asks. Only if all are busy is the new one refused.
//
// Closing a connection between two requests is something that every HTTP client has to expect (RFC 9112 section 9.3.1).
type conns struct {
	net.Listener
	max, perClient int

	open    prometheus.Gauge
	evicted prometheus.Counter // closed to make room
	refused prometheus.Counter

	mu      sync.Mutex
	all     map[net.Conn]*connection // guarded by mu
	clients map[netip.Addr]*client   // guarded by mu
}

// client is one address. All fields are guarded by conns.mu.
type client struct {
	open    int
	waiting list.List // of *connection: without a request, the longest first
}

// connection is one connection of a client. Its fields are guarded by conns.mu.
type connection struct {
	net.Conn
	addr    netip.Addr
	waiting *list.Element // in the client's list; nil while a request is answered
}

// newConns bounds the connections of ln. The server must report the state of each to [conns.state].
func newConns(ln net.Listener, max, perClient int, reg prometheus.Registerer) *conns {
	c := &conns{
		Listener: ln, max: max, perClient: perClient,
		all: make(map[net.Conn]*connection), clients: make(map[netip.Addr]*client),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "modmirror_connections_open", Help: "Connections of clients.",
		}),
	}
	closed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "modmirror_connections_closed_total", Help: "Connections closed because there were too many: idle ones, to make room (evicted), or new ones (refused).",
	}, []string{"reason"})
	c.evicted, c.refused = closed.WithLabelValues("evicted"), closed.WithLabelValues("refused")
	reg.MustRegister(c.open, closed)
	return c
}

// Accept implements [net.Listener]. It returns the connection as it is, so that the server can send files over it.
func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		victim, ok := c.admit(conn)
		if victim != nil {
			c.evicted.Inc()
			_ = victim.Close() // the server finds out, and says so to state
		}
		if ok {
			return conn, nil
		}
		c.refused.Inc()
		_ = conn.Close() // nobody has heard of it yet
	}
}

// admit counts conn in, if it can. The victim is counted out and must be closed.
func (c *conns) admit(conn net.Conn) (victim net.Conn, ok bool) {
	addr := addrOf(conn.RemoteAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	from := c.clients[addr]
	switch {
	case from != nil && from.open >= c.perClient:
		victim = c.evict(from)
	case len(c.all) >= c.max:
		victim = c.evict(c.laziest())
	}
	if victim == nil && (from != nil && from.open >= c.perClient || len(c.all) >= c.max) {
		return nil, false
	}
	if from = c.clients[addr]; from == nil { // or its last connection was the victim
		from = new(client)
		c.clients[addr] = from
	}
	from.open++
	entry := &connection{Conn: conn, addr: addr}
	entry.waiting = from.waiting.PushBack(entry)
	c.all[conn] = entry
	c.open.Set(float64(len(c.all)))
	return victim, true
}

// laziest returns the client with the most connections without a request; nil if no connection is without. The caller
// holds mu.
func (c *conns) laziest() *client {
	var most *client
	for _, cl := range c.clients {
		if cl.waiting.Len() > 0 && (most == nil || cl.waiting.Len() > most.waiting.Len()) {
			most = cl
		}
	}
	return most
}

// evict counts out the connection of cl that has waited for longest, and returns it; nil if there is none. The caller
// holds mu.
func (c *conns) evict(cl *client) net.Conn {
	if cl == nil || cl.waiting.Len() == 0 {
		return nil
	}
	entry := cl.waiting.Front().Value.(*connection)
	c.forget(entry)
	return entry.Conn
}

// forget counts entry out. The caller holds mu.
func (c *conns) forget(entry *connection) {
	cl := c.clients[entry.addr]
	if entry.waiting != nil {
		cl.waiting.Remove(entry.waiting)
	}
	if cl.open--; cl.open == 0 {
		delete(c.clients, entry.addr)
	}
	delete(c.all, entry.Conn)
	c.open.Set(float64(len(c.all)))
}

// state is the server's ConnState hook.
func (c *conns) state(conn net.Conn, s http.ConnState) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := c.all[conn]
	if entry == nil {
		return // evicted
	}
	switch s {
	case http.StateActive: // all of a request's header has come
		if entry.waiting != nil {
			c.clients[entry.addr].waiting.Remove(entry.waiting)
			entry.waiting = nil
		}
	case http.StateIdle:
		if entry.waiting == nil {
			entry.waiting = c.clients[entry.addr].waiting.PushBack(entry)
		}
	case http.StateClosed, http.StateHijacked:
		c.forget(entry)
	}
}

// addrOf returns who the client is that has the remote address hostport; those without one are one client. Of IPv6 it is the
// network of 64 bits, which one host has to itself.
func addrOf(hostport string) netip.Addr {
	ap, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err != nil {
			return a
		}
		return p.Addr()
	}
	return a
}
