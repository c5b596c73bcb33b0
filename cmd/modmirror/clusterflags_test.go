package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// clusterFlags parses args as serve does.
func clusterFlags(t *testing.T, args ...string) (c clusterConfig) {
	t.Helper()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return c
}

// A node is offline, or has others ask the upstream for it.
func TestOfflineOrNoUpstream(t *testing.T) {
	var c config
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.flags(fs)
	if err := fs.Parse([]string{"--offline", "--no-upstream", "--join", "a", "--cluster-token-file", "f"}); err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "leave one out") {
		t.Errorf("both: %v", err)
	}
}

func TestClusterFlags(t *testing.T) {
	const tok = "--cluster-token-file=f"
	for _, test := range []struct {
		args string
		want string // in the error; "": none
	}{
		{"", ""},
		{"--bootstrap-expect 1", "make a secret"}, // the port is one that others reach
		{"--bootstrap-expect 1 " + tok, ""},
		{"--bootstrap-expect 3 --join a,b,c " + tok, ""},
		{"--bootstrap-expect 5 --join dns:a:1,srv:_x._tcp.b " + tok, ""},
		{"--bootstrap-expect 3 " + tok, "--join must say"},
		{"--bootstrap-expect 2 --join a " + tok, "want 1, 3 or 5"},
		{"--bootstrap-expect -1 --join a " + tok, "want 1, 3 or 5"},
		{"--bootstrap-expect 3 --join a --role replica " + tok, "cannot found"},
		{"--join a --role replica " + tok, ""},
		{"--role king", "want voter or replica"},
		{"--voters 4", "want 3 or 5"},
		{"--voters 5", ""},
		{"--raft-profile fast", "want auto, lan, wan"},
		{"--raft-profile wan", ""},
		{"--leader-priority 1001", "from -1000 to 1000"},
		{"--leader-priority -1", ""},
		{"--on-quorum-loss wait", "want passthrough or fail"},
		{"--on-quorum-loss fail", ""},
		{"--join a", "cluster's secret"},
		{"--join a:0 " + tok, "in --join"},
		{"--join http://a " + tok, "in --join"},
		{"--peer-listen :3001", "make a secret"},
		{"--peer-listen 0.0.0.0:3001", "make a secret"},
		{"--peer-listen 127.0.0.1:3001", ""},
		{"--peer-listen [::1]:3001", ""},
		{"--peer-listen localhost:3001", ""},
		{"--peer-listen localhost", "want host:port"},
		{"--peer-listen localhost:nothing", "is not a port"},
		{"--advertise a:1", "make a secret"},
		{"--advertise a:1 " + tok, ""},
		{"--advertise a " + tok, "want host:port"},
		{"--advertise :1 " + tok, "want host:port"},
		{"--tls-ca a --tls-cert b --tls-key c", ""},
		{"--tls-ca a --tls-cert b", "belong together"},
		{"--tls-key c", "belong together"},
		{"--tls-ca a --tls-cert b --tls-key c " + tok, "leave one out"},
		{"--join a --tls-ca a --tls-cert b --tls-key c", ""},
		{"--node-id a.b-c_1", ""},
		{"--node-id -a", "--node-id"},
		{"--node-id a/b", "--node-id"},
		{"--zone " + strings.Repeat("z", 64), "--zone"},
		{"--no-upstream", "--join"},
		{"--no-upstream --join a " + tok, ""},
		{"--zone " + strings.Repeat("z", 63), ""},
	} {
		c := clusterFlags(t, strings.Fields(test.args)...)
		err := c.validate()
		if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || !errors.Is(err, errUsage)) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

// A node that is told nothing of a cluster can be joined from this machine only.
func TestPeerListen(t *testing.T) {
	for args, want := range map[string]string{
		"":                         "localhost:3001",
		"--node-id a --zone z":     "localhost:3001",
		"--voters 5":               "localhost:3001",
		"--cluster-token-file f":   ":3001",
		"--bootstrap-expect 3":     ":3001",
		"--join a":                 ":3001",
		"--advertise a:1":          ":3001",
		"--tls-ca a":               ":3001",
		"--peer-listen 10.0.0.1:9": "10.0.0.1:9",
	} {
		c := clusterFlags(t, strings.Fields(args)...)
		if got := c.peerListen(); got != want {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
}

func TestByteRate(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1000": 1000, "1B": 1, "1kB": 1000, "1KB": 1000, "20MB": 20e6, "3GB": 3e9, "1KiB": 1 << 10, "512 MiB": 512 << 20, "2GiB": 2 << 30,
		"": -1, "B": -1, "-1": -1, "-1MB": -1, "1.5MB": -1, "1TB": -1, "1mb": -1, "MB": -1, "99999999999999999999": -1, "9000000000GiB": -1,
	} {
		var r byteRate
		err := r.Set(text)
		if want < 0 {
			if err == nil {
				t.Errorf("%q is taken as %d", text, r)
			}
			continue
		}
		if err != nil || int64(r) != want {
			t.Errorf("%q: %d, %v; want %d", text, r, err, want)
		}
		var again byteRate
		if err := again.Set(r.String()); err != nil || again != r {
			t.Errorf("%q is printed as %q, which is %d, %v", text, r.String(), again, err)
		}
	}
}
