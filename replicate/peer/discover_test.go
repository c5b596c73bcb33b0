package peer

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

type resolverFunc func() []string

func (f resolverFunc) LookupHost(context.Context, string) ([]string, error) { return f(), nil }
func (f resolverFunc) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, nil
}

type fakeDNS map[string][]string

func (d fakeDNS) LookupHost(_ context.Context, host string) ([]string, error) {
	if len(d[host]) == 0 {
		return nil, errors.New("no such host")
	}
	return d[host], nil
}

func (d fakeDNS) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	var out []*net.SRV
	for _, h := range d[name] {
		out = append(out, &net.SRV{Target: h + ".", Port: 4001})
	}
	if service != "" || proto != "" || len(out) == 0 {
		return "", nil, errors.New("no such service")
	}
	return name, out, nil
}

func TestSeeds(t *testing.T) {
	s, err := ParseSeeds([]string{"b:1", "a", "[::1]:5", "dns:all.example.com", "dns:all.example.com:77", "srv:_m._tcp.example.com", "b:1", "dns:gone.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	dns := fakeDNS{"all.example.com": {"10.0.0.2", "10.0.0.1", "fd00::1"}, "_m._tcp.example.com": {"n1.example.com", "n2.example.com"}}
	got, err := s.Resolve(t.Context(), dns)
	want := []string{"10.0.0.1:3001", "10.0.0.1:77", "10.0.0.2:3001", "10.0.0.2:77", "[::1]:5", "[fd00::1]:3001", "[fd00::1]:77", "a:3001", "b:1", "n1.example.com:4001", "n2.example.com:4001"}
	if !slices.Equal(got, want) {
		t.Errorf("Resolve = %q, want %q", got, want)
	}
	if err == nil || !strings.Contains(err.Error(), "gone.example.com") || strings.Contains(err.Error(), "all.example.com") {
		t.Errorf("Resolve: error %v, want one that names gone.example.com alone", err)
	}
	dns["gone.example.com"] = []string{"10.0.0.9"} // a name is looked up again each time
	if got, err := s.Resolve(t.Context(), dns); err != nil || !slices.Contains(got, "10.0.0.9:3001") {
		t.Errorf("Resolve again = %q, %v", got, err)
	}
}

func TestParseSeedsRefuses(t *testing.T) {
	for _, e := range []string{"", ":1", "a:0", "a:65536", "a:b", "dns:", "srv:", "http://a:1", "a b:1", "[::1", "srv:a/b", "dns:a@b", "a:"} {
		if s, err := ParseSeeds([]string{e}); err == nil || !strings.Contains(err.Error(), "--join") {
			t.Errorf("ParseSeeds(%q) = %v, %v, want an error that names --join", e, s, err)
		}
	}
}
