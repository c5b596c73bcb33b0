package peer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// countingNet counts what TCP hands over to a node.
type countingNet struct {
	tcp
	read atomic.Int64
}

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

type countingListener struct {
	net.Listener
	read *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l.read}, nil
}

func (n *countingNet) Listen(addr string) (net.Listener, error) {
	l, err := n.tcp.Listen(addr)
	return countingListener{l, &n.read}, err
}

func (n *countingNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := n.tcp.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return countingConn{c, &n.read}, nil
}

// startIn starts a node in a zone, with a network that counts.
func startIn(t *testing.T, id, zone string) (*testNode, *countingNet, *prometheus.Registry) {
	net, reg := &countingNet{}, prometheus.NewRegistry()
	return start(t, id, func(c *Config, h *Hello) { c.Network, c.Metrics, h.Zone = net, reg, zone }), net, reg
}

func sum(all []Traffic) (n int64) {
	for _, t := range all {
		n += t.Raft + t.Control + t.Blobs
	}
	return n
}

// Every byte between two zones is counted, by who receives it and by nobody else, from the first of the handshake on.
func TestWANBytes(t *testing.T) {
	a, aNet, aReg := startIn(t, "a", "z1")
	b, bNet, bReg := startIn(t, "b", "z2")
	const size = 1 << 20
	blob := bytes.Repeat([]byte("x"), size)
	b.Handle("POST /v1/echo", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	b.Handle("GET /v1/blob", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(blob) }))
	b.Handle("PUT /v1/blob", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	call := func(q Request, body []byte) {
		t.Helper()
		q.Node, q.Addr = "b", b.addr()
		if _, err := a.Call(t.Context(), q, body, 2*size); err != nil {
			t.Fatal(err)
		}
	}
	call(Request{Method: "POST", Path: "/v1/echo"}, blob[:20_000])
	call(Request{Path: "/v1/blob", Bulk: true}, nil)
	for range 2 {
		call(Request{Method: "PUT", Path: "/v1/blob", Bulk: true}, blob)
	}
	out, in := openStream(t, a, b)
	if _, err := out.Write(blob[:100_000]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		at                   *testNode
		net                  *countingNet
		from                 string
		raft, control, blobs int64
	}{{a, aNet, "z2", 0, 20_000, size}, {b, bNet, "z1", 100_000, 20_000, 2 * size}} {
		until(t, "all that came is counted", func() bool { return sum(end.at.WAN()) == end.net.read.Load() })
		all := end.at.WAN()
		if len(all) != 1 || all[0].From != end.from {
			t.Fatalf("counted %+v", all)
		}
		for what, n := range map[string][2]int64{"raft": {all[0].Raft, end.raft}, "control": {all[0].Control, end.control}, "blobs": {all[0].Blobs, end.blobs}} {
			if n[0] < n[1] || n[0] > n[1]+n[1]/20+8_000 { // what TLS, HTTP and handshakes add
				t.Errorf("from %s came %d bytes of %s, want a little more than %d", end.from, n[0], what, n[1])
			}
		}
	}
	const name = "modmirror_peer_wan_bytes_total"
	for reg, want := range map[*prometheus.Registry]string{aReg: "from=z2 kind=blobs to=z1", bReg: "from=z1 kind=blobs to=z2"} {
		if problems, err := testutil.GatherAndLint(reg, name); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
		if all := labelsIn(t, reg, name); len(all) != int(numKinds) || !slices.Contains(all, want) {
			t.Errorf("series %q, want %q among them", all, want)
		}
	}
}

// labelsIn returns the labels of each series of a metric.
func labelsIn(t *testing.T, reg *prometheus.Registry, name string) (all []string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			if f.GetName() == name {
				all = append(all, strings.Join(labels, " "))
			}
		}
	}
	return all
}

// What nodes of the same zone send each other, and what commands ask, is no traffic between zones.
func TestWANCountsNothingElse(t *testing.T) {
	a, _, _ := startIn(t, "a", "z1")
	b, bNet, _ := startIn(t, "b", "z1")
	command, _, _ := startIn(t, "c", "")
	command.set(func(h *Hello) { h.Role = "" })
	b.Handle("GET /v1/blob", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1<<20)) }))
	for _, from := range []*testNode{a, command} {
		if _, err := from.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/blob", Bulk: true}, nil, 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if bNet.read.Load() == 0 {
		t.Error("nothing came at all")
	}
	for _, n := range []*testNode{a, b} {
		if all := n.WAN(); len(all) != 0 {
			t.Errorf("%s counted %+v", n.Self().Node, all)
		}
	}
}

// A node can name any zone; the labels of the metrics are bounded all the same, and no byte is lost.
func TestWANZonesAreBounded(t *testing.T) {
	var w wan
	for i := range 10 * maxZones {
		w.counter("z", fmt.Sprint("z", i), kindBlobs).Add(1)
	}
	all := w.all()
	if len(all) > maxZones+1 || sum(all) != 10*maxZones {
		t.Errorf("%d zones with %d bytes", len(all), sum(all))
	}
	if i := slices.IndexFunc(all, func(t Traffic) bool { return t.From == "" }); i < 0 || all[i].Blobs != 9*maxZones {
		t.Errorf("the rest is %+v", all)
	}
	if w.counter("z", "z", kindRaft).Add(1); sum(w.all()) != 10*maxZones {
		t.Error("the own zone is counted")
	}
}
