// Package faultproxy puts a bad network between processes on one machine. Each node is reached at the address of a proxy in front
// of it, which it advertises in the place of its own; a [Net] says how bytes travel from each node to each other one, and
// can be told otherwise at any time:
//
//	n := faultproxy.New(who)
//	defer n.Close()
//	addr, err := n.Listen("n1", "127.0.0.1:3001") // n1 listens there, and advertises addr
//	n.Split([]string{"n1"}, []string{"n2", "n3"}) // n1 and the others lose each other's packets
//	n.Set("n1", "n2", faultproxy.Link{Latency: 50 * time.Millisecond, Loss: 0.3})
//	n.Heal()
//
// What TCP makes of lost packets is what happens here: bytes are late or do not arrive, and are never missing between others.
package faultproxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Link is how bytes travel from one node to another. The zero Link is a perfect one.
type Link struct {
	Cut     bool          // connections between the two are reset, and new ones are: a firewall that rejects, a host that is down
	Stall   bool          // no byte arrives, nobody is told: all packets are lost. Connections stay, and what was sent arrives after it
	Latency time.Duration // how long bytes travel
	Loss    float64       // the chance that bytes that travel together are lost and sent again
	Rate    int64         // bytes a second; 0: no limit
}

const (
	resend = 200 * time.Millisecond // after how long what was lost is sent again
	chunk  = 16 << 10               // bytes that travel together
	window = 64                     // chunks that are under way on a connection, at most
)

// Net is a network of named nodes.
type Net struct {
	who  func(net.Conn) string
	ctx  context.Context // ended by Close
	end  context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	links   map[[2]string]Link // guarded by mu; from, to
	changed chan struct{}      // guarded by mu; closed when links changes
}

// New returns a network without nodes. who says which node has opened a connection; "" is one to which all links are perfect.
func New(who func(net.Conn) string) *Net {
	n := &Net{who: who, links: make(map[[2]string]Link), changed: make(chan struct{})}
	n.ctx, n.end = context.WithCancel(context.Background())
	return n
}

// Close ends all connections and waits until nothing of the network is left.
func (n *Net) Close() {
	n.end()
	n.done.Wait()
}

// Listen returns the address at which the node with that name, who listens at target, is reached through the network.
func (n *Net) Listen(name, target string) (addr string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	n.done.Go(func() {
		<-n.ctx.Done()
		_ = ln.Close() // nobody connects any more
	})
	n.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.done.Go(func() { n.carry(c.(*net.TCPConn), name, target) })
		}
	})
	return ln.Addr().String(), nil
}

// Set says how bytes travel from one node to another from now on.
func (n *Net) Set(from, to string, l Link) {
	n.change(func() { n.links[[2]string{from, to}] = l })
}

// Split has no byte arrive from a node of one group at one of another.
func (n *Net) Split(groups ...[]string) {
	n.change(func() {
		for i, g := range groups {
			others := slices.Concat(slices.Concat(groups[:i]...), slices.Concat(groups[i+1:]...))
			for _, from := range g {
				for _, to := range others {
					n.links[[2]string{from, to}] = Link{Stall: true}
				}
			}
		}
	})
}

// Heal makes all links perfect.
func (n *Net) Heal() {
	n.change(func() { clear(n.links) })
}

func (n *Net) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// link returns how bytes travel now, and a channel that is closed when that may be otherwise.
func (n *Net) link(from, to string) (Link, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[[2]string{from, to}], n.changed
}

// pipe is one connection through the network.
type pipe struct {
	n       *Net
	ctx     context.Context // ended when it is
	end     context.CancelFunc
	a, b    string // who opened it, and to whom
	up, out *net.TCPConn
}

// carry carries c, which somebody opened to the node with that name.
func (n *Net) carry(c *net.TCPConn, name, target string) {
	p := &pipe{n: n, a: n.who(c), b: name, up: c}
	p.ctx, p.end = context.WithCancel(n.ctx)
	defer p.end()
	defer c.Close()
	if p.pass(p.a, p.b) != nil || p.pass(p.b, p.a) != nil { // neither the first packet nor the answer to it
		reset(c)
		return
	}
	out, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", target)
	if err != nil {
		reset(c)
		return
	}
	p.out = out.(*net.TCPConn)
	defer out.Close()
	var both sync.WaitGroup
	both.Go(func() { p.pump(p.out, p.up, p.a, p.b) })
	both.Go(func() { p.pump(p.up, p.out, p.b, p.a) })
	n.done.Go(p.watch)
	both.Wait()
}

// reset closes c so that the other end is told at once.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // a connection that is closed already needs none
	_ = c.Close()
}

// watch ends the connection when it is cut, and closes both ends of it when it is over.
func (p *pipe) watch() {
	for {
		there, changed := p.n.link(p.a, p.b)
		back, _ := p.n.link(p.b, p.a)
		if there.Cut || back.Cut {
			reset(p.up)
			reset(p.out)
			p.end()
		}
		select {
		case <-changed:
		case <-p.ctx.Done():
			_ = p.up.Close() // who reads from it ends
			_ = p.out.Close()
			return
		}
	}
}

// pass returns when a byte may arrive at to, or an error if none will on this connection.
func (p *pipe) pass(from, to string) error {
	for {
		l, changed := p.n.link(from, to)
		if l.Cut {
			return fmt.Errorf("from %s to %s: cut", from, to)
		}
		if !l.Stall {
			return nil
		}
		select {
		case <-changed:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}

// parcel is bytes under way, and when they arrive.
type parcel struct {
	b   []byte
	due time.Time
}

// pump takes what from sends to to, as the link lets it.
func (p *pipe) pump(dst, src *net.TCPConn, from, to string) {
	parcels := make(chan parcel, window)
	p.n.done.Go(func() {
		defer close(parcels)
		for {
			b := make([]byte, chunk)
			k, err := src.Read(b)
			if k > 0 {
				select {
				case parcels <- parcel{b[:k], p.due(from, to)}:
				case <-p.ctx.Done():
					return
				}
			}
			if err != nil { // what it was, the other end sees by what it misses
				return
			}
		}
	})
	for c := range parcels {
		if p.wait(from, to, c) != nil {
			p.end()
			return
		}
		if _, err := dst.Write(c.b); err != nil {
			p.end()
			return
		}
	}
	if p.pass(from, to) != nil || dst.CloseWrite() != nil { // nor is anybody told of the end before
		p.end()
	}
}

// due returns when bytes that are sent now arrive.
func (p *pipe) due(from, to string) time.Time {
	l, _ := p.n.link(from, to)
	at := time.Now().Add(l.Latency)
	for rand.Float64() < l.Loss {
		at = at.Add(resend)
	}
	return at
}

// wait waits until bytes arrive.
func (p *pipe) wait(from, to string, c parcel) error {
	if l, _ := p.n.link(from, to); l.Rate > 0 {
		if at := time.Now().Add(time.Duration(len(c.b)) * time.Second / time.Duration(l.Rate)); at.After(c.due) {
			c.due = at
		}
	}
	if d := time.Until(c.due); d > 0 {
		select {
		case <-time.After(d):
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	return p.pass(from, to)
}
