package wannet

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
)

// Config is of a network. The zero Config is a good one.
type Config struct {
	Seed uint64 // of the losses and of the jitter
}

// Net is a network of hosts in zones. Close it.
type Net struct {
	seed uint64
	ctx  context.Context // ended by Close
	end  context.CancelFunc
	done sync.WaitGroup

	mu    sync.RWMutex
	hosts map[string]*Host    // guarded by mu, as all that follows
	zones map[string]int      // the third byte of their addresses
	sizes map[string]int      // hosts of each
	links map[[2]string]*link // from, to; of zones, and of hosts that have a policy of their own
}

// New returns a network without hosts. It removes what runs that were killed have left on this machine.
func New(c Config) (*Net, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if err := removeLeftovers(); err != nil {
		return nil, err
	}
	n := &Net{seed: c.Seed, hosts: map[string]*Host{}, zones: map[string]int{}, sizes: map[string]int{}, links: map[[2]string]*link{}}
	n.ctx, n.end = context.WithCancel(context.Background())
	return n, nil
}

// Host adds a host to a zone, which is new if no other host is in it. The n-th host of the m-th zone has the address 10.77.m.n.
// Hosts and zones have different names, of letters, digits and dashes.
func (n *Net) Host(name, zone string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[name] != nil || n.zones[name] > 0 || n.hosts[zone] != nil || name == zone {
		return nil, fmt.Errorf("host %q in zone %q: a host or a zone has that name", name, zone)
	}
	m := n.zones[zone]
	if m == 0 {
		m = len(n.zones) + 1
	}
	if m > 254 || n.sizes[zone] > 253 {
		return nil, fmt.Errorf("host %q in zone %q: there are too many", name, zone)
	}
	h := &Host{name: name, zone: zone, addr: netip.AddrFrom4([4]byte{10, 77, byte(m), byte(n.sizes[zone] + 1)}), to: map[netip.Addr]*flow{}}
	if err := h.open(); err != nil {
		return nil, fmt.Errorf("host %q: %w", name, err)
	}
	n.zones[zone] = m
	n.sizes[zone]++
	n.connect(h)
	n.hosts[name] = h
	n.done.Go(func() { n.route(h) })
	return h, nil
}

// connect makes the flows between a new host and the others. The caller has n.mu.
func (n *Net) connect(h *Host) {
	for _, o := range n.hosts {
		for _, pair := range [][2]*Host{{h, o}, {o, h}} {
			from, to := pair[0], pair[1]
			f := &flow{from: from.name, to: to.name, hand: to.hand}
			f.link.Store(n.linkOf([2]string{from.zone, to.zone}))
			from.to[to.addr] = f
		}
	}
}

// linkOf returns the link between two names, a new one with the zero policy if there is none. The caller has n.mu.
func (n *Net) linkOf(pair [2]string) *link {
	if l := n.links[pair]; l != nil {
		return l
	}
	l := newLink(n.seed, pair[0], pair[1])
	n.links[pair] = l
	n.done.Go(func() { l.run(n.ctx, (*flow).arrive) })
	return l
}

// route carries what h sends, until its device is closed.
func (n *Net) route(h *Host) {
	b := make([]byte, 1<<16)
	for {
		size, err := h.tun.Read(b)
		if err != nil {
			return
		}
		p := b[:size]
		if size < 20 || p[0]>>4 != 4 {
			continue // IPv6 looks for routers, which there are none
		}
		to := netip.AddrFrom4([4]byte(p[16:20])) // RFC 791, section 3.1
		n.mu.RLock()
		f := h.to[to]
		n.mu.RUnlock()
		if f != nil {
			f.send(p)
		}
	}
}

// Set says how packets travel from now on from one zone to another, or the same, or from one host to another. A policy of two
// hosts holds in the place of that of their zones. It panics if there is no such zone or host.
func (n *Net) Set(from, to string, p Policy) {
	if err := p.check(); err != nil {
		panic("wannet: " + err.Error())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.named(from, to).set(p)
}

// Both is Set in both directions.
func (n *Net) Both(a, b string, p Policy) {
	n.Set(a, b, p)
	n.Set(b, a, p)
}

// Unset has the policy of their zones hold again from one host to another.
func (n *Net) Unset(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.named(from, to) // that there are such hosts
	a, b := n.hosts[from], n.hosts[to]
	a.to[b.addr].link.Store(n.linkOf([2]string{a.zone, b.zone}))
}

// Policy returns how packets travel from one zone or host to another.
func (n *Net) Policy(from, to string) Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, b := n.hosts[from], n.hosts[to]; a != nil && b != nil {
		return a.to[b.addr].link.Load().get()
	}
	return n.named(from, to).get()
}

// named returns the link from one zone to another, or from one host to another, which has then one of its own. The caller has
// n.mu.
func (n *Net) named(from, to string) *link {
	a, b := n.hosts[from], n.hosts[to]
	switch {
	case a != nil && b != nil && a != b:
		l := n.linkOf([2]string{from, to})
		a.to[b.addr].link.Store(l)
		return l
	case n.zones[from] > 0 && n.zones[to] > 0:
		return n.linkOf([2]string{from, to})
	}
	panic(fmt.Sprintf("wannet: from %q to %q: no such two zones, or two hosts", from, to))
}

// Between returns what hosts of one zone have sent to those of another, or one host to another, since the network is there.
func (n *Net) Between(from, to string) (t Traffic) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, a := range n.hosts {
		for _, f := range a.to {
			if b := n.hosts[f.to]; (from == a.name || from == a.zone) && (to == b.name || to == b.zone) {
				t.Add(f.traffic())
			}
		}
	}
	return t
}

// Across returns what hosts have sent to those of other zones.
func (n *Net) Across() (t Traffic) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, a := range n.hosts {
		for _, f := range a.to {
			if n.hosts[f.to].zone != a.zone {
				t.Add(f.traffic())
			}
		}
	}
	return t
}

// Close ends what runs on the hosts, and removes them.
func (n *Net) Close() error {
	n.end()
	n.mu.Lock()
	hosts := n.hosts
	n.mu.Unlock()
	var first error
	for _, h := range hosts {
		if err := h.close(); err != nil && first == nil {
			first = fmt.Errorf("host %q: %w", h.name, err)
		}
	}
	n.done.Wait()
	return first
}
