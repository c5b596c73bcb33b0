package main

import (
	"net/netip"
	"testing"
)

func TestAdvertised(t *testing.T) {
	for _, test := range []struct{ listen, advertise, join, want string }{
		{"", "name:5", "", "name:5"},
		{":3001", "name:5", "localhost:3001", "name:5"},
		{"10.1.2.3:3001", "", "", "10.1.2.3:3001"},
		{"host:3001", "", "other:3001", "host:3001"},
		{"localhost:0", "", "", ""},                                                    // where it listens in the end
		{":3001", "", "localhost:3001", "localhost:3001"},                              // the name in --join that means this machine
		{"0.0.0.0:3001", "", "localhost:3001,localhost:3002", "localhost:3001"},        // of several processes on it, by the port
		{"[::]:3002", "", "localhost:3001,localhost:3002", "localhost:3002"},           // the same
		{":3001", "", "nothing,srv:_x._tcp.invalid.,localhost:3001", "localhost:3001"}, // what cannot be looked up here is passed over
	} {
		args := []string{"--peer-listen", test.listen, "--advertise", test.advertise, "--join", test.join}
		got, err := advertised(t.Context(), clusterFlags(t, args...))
		if err != nil || got != test.want {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

func TestOnlyOne(t *testing.T) {
	set := func(list ...string) map[netip.Addr]bool {
		own := make(map[netip.Addr]bool)
		for _, s := range list {
			own[netip.MustParseAddr(s)] = true
		}
		return own
	}
	for _, test := range []struct {
		own  map[netip.Addr]bool
		want string
	}{
		{set("127.0.0.1", "::1"), ""},
		{set("127.0.0.1", "10.0.0.1", "fe80::1", "169.254.1.1", "2001:db8::1"), "10.0.0.1"},
		{set("10.0.0.1", "192.168.0.1"), ""},
	} {
		got := onlyOne(test.own)
		if got.IsValid() != (test.want != "") || got.IsValid() && got.String() != test.want {
			t.Errorf("%v: %v, want %q", test.own, got, test.want)
		}
	}
}
