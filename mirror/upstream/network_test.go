package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"modmirror/mirror/artifact"
)

func TestReachOf(t *testing.T) {
	for want, list := range map[reach][]string{
		public:   {"8.8.8.8", "2001:4860::1", "64:ff9b::808:808", "172.32.0.1", "100.63.255.255", "100.128.0.1"},
		private:  {"10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "198.18.0.1", "fec0::1"},
		loopback: {"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"},
		never: {"0.0.0.0", "::", "0.1.2.3", "169.254.169.254", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255", "100.100.100.200", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::",
			"168.63.129.16", "64:ff9b::a83f:8110", "64:ff9b:1::1", "64:ff9b:1::a00:1", "::7f00:1", "::a00:1"},
	} {
		for _, s := range list {
			if got := reachOf(netip.MustParseAddr(s)); got != want {
				t.Errorf("reachOf(%s) = %d, want %d", s, got, want)
			}
		}
	}
	if got := reachOf(netip.Addr{}); got != never {
		t.Errorf("reachOf of no address = %d", got)
	}
}

// Behind a proxy, which resolves names itself, a name is all that can be checked.
func TestHostReach(t *testing.T) {
	for want, list := range map[reach][]string{
		public:   {"example.com", "EXAMPLE.com.", "8.8.8.8", "8.8.8.8.", "localhost.example", "1.example.com"},
		private:  {"10.0.0.1", "10.0.0.1.", "fd12::1"},
		loopback: {"localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.0.0.1.", "::1"},
		never:    {"127.1", "0x7f.1", "0X7F.1.", "2130706433", "0177.0.0.1", "169.254.169.254", "169.254.169.254.", "fe80::1%25eth0"},
	} {
		for _, s := range list {
			if got := hostReach(s); got != want {
				t.Errorf("hostReach(%s) = %d, want %d", s, got, want)
			}
		}
	}
}

// What lies inside of all may be an upstream, if the operator says so; redirects of it reach no further than this machine.
func TestCeilingOfForbiddenUpstream(t *testing.T) {
	req := func(url string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	n := newNetwork(Config{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})})
	if _, ceiling, err := n.roundTrip(req("http://169.254.169.254")); err != nil || ceiling != loopback {
		t.Errorf("by name: ceiling %d, %v", ceiling, err)
	}
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	n = newNetwork(Config{MaxPerHost: 1})
	n.open = &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		return linkLocal{c}, err
	}}
	defer n.close()
	resp, ceiling, err := n.roundTrip(req("http://modules.example"))
	if err != nil || ceiling != loopback {
		t.Fatalf("by address: ceiling %d, %v", ceiling, err)
	}
	resp.Body.Close()
}

// linkLocal is a connection that claims to lead to where clouds keep their secrets.
type linkLocal struct{ net.Conn }

func (linkLocal) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(169, 254, 169, 254), Port: 80}
}

// A mirror that listens everywhere is at each of its machine's addresses.
func TestSelfByInterface(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().Zone() != "" {
			continue
		}
		n++
		u := &url.URL{Scheme: "http", Host: net.JoinHostPort(p.Addr().String(), "3000")}
		for _, self := range []string{":3000", "0.0.0.0:3000", "[::]:3000"} {
			if _, ok := isSelf(u, []string{self}); !ok {
				t.Errorf("%s is not taken for %s", u.Host, self)
			}
		}
		if _, ok := isSelf(u, []string{"127.0.0.1:3000"}); ok {
			t.Errorf("%s is taken for the loopback address", u.Host)
		}
	}
	if n == 0 {
		t.Skip("this machine has no address but loopback")
	}
}

// The address that is dialed decides, not the name; so DNS that changes its answer gains nothing.
func TestRedirectsReachNoFurtherInside(t *testing.T) {
	var asked int
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer srv.Close()
	n := newNetwork(Config{MaxPerHost: 1})
	defer n.close()
	req := func() *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, ceiling := range []reach{public, private} {
		if _, err := n.roundTripBelow(req(), ceiling); !errors.Is(err, errInside) {
			t.Errorf("below %d: %v", ceiling, err)
		}
		if _, err := n.below[ceiling].RoundTrip(req()); !errors.Is(err, errInside) {
			t.Errorf("dialed below %d: %v", ceiling, err)
		}
	}
	if asked != 0 {
		t.Errorf("%d requests arrived", asked)
	}
	resp, ceiling, err := n.roundTrip(req())
	if err != nil || ceiling != loopback {
		t.Fatalf("roundTrip: ceiling %d, %v", ceiling, err)
	}
	resp.Body.Close()

	// A name gives nothing away; the address that it led to does.
	n.open = &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
	}}
	named := req()
	named.URL.Host = "modules.example"
	if resp, ceiling, err = n.roundTrip(named); err != nil || ceiling != loopback {
		t.Fatalf("roundTrip by name: ceiling %d, %v", ceiling, err)
	}
	resp.Body.Close()
	if resp, err = n.roundTripBelow(req(), ceiling); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// resolveTo makes every name have, until the test ends, the IPv4 address that next returns when it is asked for.
func resolveTo(t *testing.T, next func() [4]byte) {
	real := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = real })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nameServer(next)
	}}
}

// nameServer returns a connection to a name server of which resolveTo tells. It speaks DNS as over TCP (RFC 1035, section
// 4.2.2) on one end of a pipe.
func nameServer(next func() [4]byte) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		for {
			var size uint16
			if binary.Read(server, binary.BigEndian, &size) != nil {
				return
			}
			q := make([]byte, size)
			if _, err := io.ReadFull(server, q); err != nil {
				return
			}
			end := 12 // of the question: the header, the labels, the root, type and class
			for q[end] != 0 {
				end += 1 + int(q[end])
			}
			end += 5
			a := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
			if binary.BigEndian.Uint16(q[end-4:]) == 1 {
				a[7] = 1
				a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				addr := next()
				a = append(a, addr[:]...)
			}
			if _, err := server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
				return
			}
		}
	}()
	return client, nil
}

// FAULTS 17, 19: a name that leads inside is no better than an address there.
func TestRedirectToNameOfInside(t *testing.T) {
	var asked int
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer srv.Close()
	resolveTo(t, func() [4]byte { return [4]byte{127, 0, 0, 1} })
	n := newNetwork(Config{MaxPerHost: 1})
	defer n.close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for ceiling, want := range map[reach]error{public: errInside, private: errInside, loopback: nil} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://modules.example.:"+port, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := n.roundTripBelow(r, ceiling)
		if !errors.Is(err, want) {
			t.Errorf("below %d: %v, want %v", ceiling, err, want)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
	if asked != 1 {
		t.Errorf("%d requests arrived, want that of whoever is inside already", asked)
	}
}

// FAULTS 19: one name leads to a good address when it is first asked for, and inside at the next connection. What decides
// is what is dialed then. The public address is not really dialed: the test stops behind the check.
func TestNameThatChangesItsAddress(t *testing.T) {
	passed := errors.New("the check was passed")
	for _, inside := range [][4]byte{{10, 0, 0, 1}, {127, 0, 0, 1}, {169, 254, 169, 254}} {
		answers := [][4]byte{{8, 8, 8, 8}, inside, {8, 8, 8, 8}}
		resolveTo(t, func() (a [4]byte) { a, answers = answers[0], answers[1:]; return a })
		n := newNetwork(Config{MaxPerHost: 1})
		defer n.close()
		n.below[public] = newTransport(Config{MaxPerHost: 1}, nil, func(ctx context.Context, network, address string, c syscall.RawConn) error {
			if err := within(public)(ctx, network, address, c); err != nil {
				return err
			}
			return fmt.Errorf("%s: %w", address, passed)
		})
		for i, want := range []error{passed, errInside, passed} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", "https://modules.example.:8443", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.roundTripBelow(r, public); !errors.Is(err, want) {
				t.Errorf("%v, connection %d: %v, want %v", inside, i, err, want)
			}
		}
	}
}

// The same from the question to the error, with what can be dialed in a test: an upstream of this machine redirects to a
// name that is on this machine, too, and then is where clouds keep their secrets.
func TestRedirectToNameThatChangesItsAddress(t *testing.T) {
	home, m := start(t)
	secure := httptest.NewTLSServer(home)
	defer secure.Close()
	_, port, err := net.SplitHostPort(secure.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	resolveTo(t, func() [4]byte {
		if asked.Add(1) == 1 {
			return [4]byte{127, 0, 0, 1}
		}
		return [4]byte{169, 254, 169, 254}
	})
	home.Redirect(modPath, "https://example.com:"+port+"/moved") // the name that httptest has a certificate for
	home.Mount("/moved"+modPath, text(home.Artifact(m, artifact.Mod)))
	l := parse(t, home.URL(), Config{})
	trust(l, secure)
	if _, err := fetch(t, l, m, artifact.Mod); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, l, m, artifact.Mod); err != nil || asked.Load() != 1 {
		t.Errorf("over the same connection: %v; the name server was asked %d times", err, asked.Load())
	}
	l.Close()
	home.Reset()
	_, err = fetch(t, l, m, artifact.Mod)
	checkMatches(t, "over another connection", err, "malformed")
	if err == nil || !strings.Contains(err.Error(), errInside.Error()) || asked.Load() != 2 {
		t.Errorf("over another connection: %v; the name server was asked %d times", err, asked.Load())
	}
	if n := len(home.Requests()); n != 1 {
		t.Errorf("%d requests arrived, want the one that is redirected", n)
	}
}

// text serves b.
func text(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
}

// A proxy of the environment that does not answer is not named with its password. The environment is read once in a
// process, so this needs one of its own.
func TestProxyErrorHidesPassword(t *testing.T) {
	const child = "MODMIRROR_TEST_PROXY"
	if os.Getenv(child) != "" {
		_, err := parse(t, "https://modules.example", Config{}).Versions(t.Context(), anyModule.Path)
		fmt.Println("error:", err)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyErrorHidesPassword$")
	cmd.Env = append(os.Environ(), child+"=1", "HTTPS_PROXY=http://user:s3cret@127.0.0.1:1", "NO_PROXY=")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "error: https://modules.example/") || strings.Contains(string(out), "s3cret") {
		t.Errorf("%v:\n%s", err, out)
	}
}
