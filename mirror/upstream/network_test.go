package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestReachOf(t *testing.T) {
	for want, list := range map[reach][]string{
		public:   {"8.8.8.8", "2001:4860::1", "64:ff9b::808:808", "172.32.0.1", "100.63.255.255", "100.128.0.1"},
		private:  {"10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "198.18.0.1", "fec0::1"},
		loopback: {"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"},
		never:    {"0.0.0.0", "::", "0.1.2.3", "169.254.169.254", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255", "100.100.100.200", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"},
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
