package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"modmirror/mirror/artifact"
)

// reach says how far inside a network an address lies. A redirect may only lead to an address that lies no further
// inside than the one that sent it: the operator chose the upstream, but the upstream chose the redirect.
type reach uint8

const (
	public   reach = iota
	private        // of a company's or provider's inner network
	loopback       // of this machine
	never          // link-local and the like: not for redirects at all
)

// What net/netip does not tell. The last three of the forbidden are where clouds keep an instance's secrets; in front of them
// are addresses that carry an IPv4 address inside, and that nobody routes but the network in question (RFC 8215, RFC 4291).
var (
	innerNets     = prefixes("100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "fec0::/10")
	forbiddenNets = prefixes("0.0.0.0/8", "240.0.0.0/4", "64:ff9b:1::/48", "::/96", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32")
	nat64, sixTo4 = netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2002::/16")
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// reachOf returns the reach of a. Addresses that carry an IPv4 address inside (NAT64, 6to4) have that one's.
func reachOf(a netip.Addr) reach {
	a = a.Unmap().WithZone("")
	if b := a.As16(); a.Is6() {
		switch {
		case nat64.Contains(a):
			return reachOf(netip.AddrFrom4([4]byte(b[12:16])))
		case sixTo4.Contains(a):
			return reachOf(netip.AddrFrom4([4]byte(b[2:6])))
		}
	}
	switch {
	case a.IsLoopback():
		return loopback
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || contains(forbiddenNets, a):
		return never
	case a.IsPrivate() || contains(innerNets, a):
		return private
	}
	return public
}

// hostReach returns the reach that a host's name alone gives away.
func hostReach(host string) reach {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		return reachOf(a)
	}
	switch {
	case artifact.IsNumeric(host):
		return never // 127.1 and the like: a resolver reads it as some address, and nobody writes one like this who means well
	case isLoopbackHost(host):
		return loopback
	}
	return public
}

// isLoopbackHost reports whether host names this machine without asking anybody.
func isLoopbackHost(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// network is how requests get out. Connections for redirects are kept apart from those to the upstreams themselves, and
// by reach, so that none is reused where it could not have been dialed.
type network struct {
	open   http.RoundTripper
	below  [never]http.RoundTripper // by the most that a redirect may reach
	custom bool

	mu    sync.Mutex
	slots map[string]*slots // by origin; guarded by mu
}

func newNetwork(c Config) *network {
	n := &network{slots: make(map[string]*slots)}
	if c.Transport != nil {
		n.open, n.custom = c.Transport, true
		return n
	}
	n.open = newTransport(c, proxy, nil)
	for ceiling := public; ceiling < never; ceiling++ {
		n.below[ceiling] = newTransport(c, nil, within(ceiling))
	}
	return n
}

// within returns a check that a dialer makes of each address that it is about to connect to, after names are resolved: so
// a name that leads elsewhere each time it is asked for gains nothing.
func within(ceiling reach) dialControl {
	return func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || reachOf(ap.Addr()) > ceiling {
			return errInside
		}
		return nil
	}
}

var errInside = errors.New("leads to an address of an inner network")

// proxy is http.ProxyFromEnvironment without its error, whose text is not ours: it must never print the proxy's password.
func proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, errors.New("the proxy in the environment (HTTPS_PROXY or HTTP_PROXY) cannot be used")
	}
	return u, nil
}

// dialControl is called with a socket before it is connected.
type dialControl = func(ctx context.Context, network, address string, c syscall.RawConn) error

func newTransport(c Config, proxy func(*http.Request) (*url.URL, error), control dialControl) *http.Transport {
	d := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second, ControlContext: endSilent(control)}
	return &http.Transport{
		Proxy:                  proxy,
		DialContext:            d.DialContext,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    min(c.MaxPerHost, 16),
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// roundTrip sends req to an upstream of the operator's choice and returns what its redirects may reach.
func (n *network) roundTrip(req *http.Request) (*http.Response, reach, error) {
	var mu sync.Mutex
	ceiling := min(hostReach(req.URL.Hostname()), loopback)
	proxied := n.custom
	if !proxied {
		u, err := proxy(req)
		proxied = err != nil || u != nil
	}
	if !proxied {
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if ap, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
				mu.Lock()
				defer mu.Unlock()
				ceiling = min(reachOf(ap.Addr()), loopback)
			}
		}}))
	}
	resp, err := n.open.RoundTrip(req)
	mu.Lock()
	defer mu.Unlock()
	return resp, ceiling, err
}

// roundTripBelow sends req to where a redirect leads, if that is an address within the ceiling. Behind a proxy, which
// resolves names itself, only a literal address can be checked. A refusal matches errInside.
func (n *network) roundTripBelow(req *http.Request, ceiling reach) (*http.Response, error) {
	if hostReach(req.URL.Hostname()) > ceiling {
		return nil, errInside
	}
	if n.custom {
		return n.open.RoundTrip(req)
	}
	if u, err := proxy(req); err != nil || u != nil {
		return n.open.RoundTrip(req)
	}
	return n.below[ceiling].RoundTrip(req)
}

// close ends the connections that nobody uses.
func (n *network) close() {
	for _, rt := range append(n.below[:], n.open) {
		if t, ok := rt.(*http.Transport); ok && !n.custom {
			t.CloseIdleConnections()
		}
	}
}

// slots bounds the requests to one host.
type slots struct{ all, large chan struct{} }

func (n *network) slotsOf(origin string, most int) *slots {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.slots[origin]
	if s == nil {
		s = &slots{all: make(chan struct{}, most), large: make(chan struct{}, max(1, most/2))}
		n.slots[origin] = s
	}
	return s
}

// enter waits for a slot until ctx ends; the error says which limit was in the way. A large request takes one of the few for
// large ones first.
func (s *slots) enter(ctx context.Context, large bool) (leave func(), err error) {
	if large {
		select {
		case s.large <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %d zips from this host are under way already", errBusy, cap(s.large))
		}
	}
	unlarge := func() {
		if large {
			<-s.large
		}
	}
	select {
	case s.all <- struct{}{}:
		return sync.OnceFunc(func() { <-s.all; unlarge() }), nil
	case <-ctx.Done():
		unlarge()
		return nil, fmt.Errorf("%w: %d requests to this host are under way already", errBusy, cap(s.all))
	}
}

// isSelf reports whether u is one of the addresses at which this mirror listens, and which. It asks no name server.
func isSelf(u *url.URL, self []string) (string, bool) {
	for _, addr := range self {
		host, p, err := net.SplitHostPort(addr)
		if err == nil && p == port(u) && sameHost(u.Hostname(), host) {
			return addr, true
		}
	}
	return "", false
}

// sameHost reports whether host is where a listener at listen answers.
func sameHost(host, listen string) bool {
	host, listen = strings.ToLower(host), strings.ToLower(listen)
	if host == listen {
		return true
	}
	h, err := netip.ParseAddr(host)
	l, lerr := netip.ParseAddr(listen)
	if err == nil && lerr == nil && h.Unmap() == l.Unmap() {
		return true
	}
	if listen == "localhost" && err == nil {
		return h == netip.MustParseAddr("127.0.0.1") || h == netip.IPv6Loopback()
	}
	if host == "localhost" && lerr == nil && l.IsLoopback() {
		return true
	}
	if listen != "" && (lerr != nil || !l.IsUnspecified()) {
		return false
	}
	return isLoopbackHost(host) || isThisMachine(host, h)
}

// isThisMachine reports whether host, or its address a, belongs to this machine.
func isThisMachine(host string, a netip.Addr) bool {
	if name, err := os.Hostname(); err == nil && strings.EqualFold(name, host) {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, i := range addrs {
		if p, err := netip.ParsePrefix(i.String()); err == nil && p.Addr().Unmap() == a.Unmap() {
			return true
		}
	}
	return false
}
