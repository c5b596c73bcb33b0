package peer

import (
	"cmp"
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// What arrives from nodes of other zones is counted, and only by who receives it: so the sum over all nodes has each byte once.
// It is counted where TCP hands it over, below TLS: handshakes, records and what HTTP adds are in it, the headers of TCP and IP
// and what was sent again are not. A connection belongs to the zone that the node at its other end names once it is let in, with
// all that came before on it. Commands are no nodes and have no zone; what they send is not counted, nor is what was refused.

// Traffic is what a node was sent by those of another zone since it started, in bytes.
type Traffic struct {
	From    string // the zone; "": of nodes that name none, and of those of more zones than are told apart
	Raft    int64  // Raft streams
	Control int64  // small questions and answers
	Blobs   int64  // bulk transfers
}

// maxZones is how many other zones are told apart. A node may name any.
const maxZones = 64

// kind is what a connection is for, by its ALPN protocol.
type kind uint8

const (
	kindRaft kind = iota
	kindControl
	kindBlobs
	numKinds
)

var kindNames = [numKinds]string{"raft", "control", "blobs"}

func kindOf(proto string) kind {
	switch proto {
	case protoRaft:
		return kindRaft
	case protoH2:
		return kindControl
	}
	return kindBlobs
}

// wan counts. The zero value is ready.
type wan struct {
	mu    sync.Mutex
	zones map[string]*[numKinds]atomic.Int64 // guarded by mu; the values are not
	same  atomic.Int64                       // from the own zone, which nobody asks for
}

// counter returns where a node in zone counts what comes from one in from.
func (w *wan) counter(zone, from string, k kind) *atomic.Int64 {
	if zone == from {
		return &w.same
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.zones == nil {
		w.zones = map[string]*[numKinds]atomic.Int64{}
	}
	if w.zones[from] == nil && len(w.zones) >= maxZones {
		from = ""
	}
	if w.zones[from] == nil {
		w.zones[from] = new([numKinds]atomic.Int64)
	}
	return &w.zones[from][k]
}

func (w *wan) all() []Traffic {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Traffic, 0, len(w.zones))
	for from, n := range w.zones {
		out = append(out, Traffic{from, n[kindRaft].Load(), n[kindControl].Load(), n[kindBlobs].Load()})
	}
	slices.SortFunc(out, func(a, b Traffic) int { return cmp.Compare(a.From, b.From) })
	return out
}

// WAN returns what this node was sent by nodes of other zones since it started, by zone.
func (l *Link) WAN() []Traffic { return l.wan.all() }

// received counts the bytes of one read. Those that come before it is known from where are kept until it is.
func (c *conn) received(n int) {
	if n <= 0 {
		return
	}
	c.uncounted.Add(int64(n))
	if to := c.counter.Load(); to != nil {
		to.Add(c.uncounted.Swap(0))
	}
}

// from notes which node is at the other end, once it was let in.
func (c *conn) from(h Hello, k kind) {
	if h.Role == "" || c.counter.Load() != nil {
		return
	}
	to := c.link.wan.counter(c.link.Self().Zone, h.Zone, k)
	if c.counter.CompareAndSwap(nil, to) {
		to.Add(c.uncounted.Swap(0))
	}
}

// connOf returns what the link knows of a connection of one of its clients.
func connOf(tc any) (*conn, kind) {
	if tc, ok := tc.(*tls.Conn); ok {
		if c, ok := tc.NetConn().(*conn); ok {
			return c, kindOf(tc.ConnectionState().NegotiatedProtocol)
		}
	}
	return nil, 0
}

// wanMetrics tells the same as WAN.
type wanMetrics struct{ l *Link }

var descWAN = prometheus.NewDesc(metricPrefix+"wan_bytes_total",
	"Bytes that this node was sent by nodes of another zone, with what TLS adds, by the two zones and what the connection is for. The sum over all nodes has each byte once.",
	[]string{"from", "to", "kind"}, nil)

// Describe implements prometheus.Collector.
func (m wanMetrics) Describe(to chan<- *prometheus.Desc) { to <- descWAN }

// Collect implements prometheus.Collector.
func (m wanMetrics) Collect(to chan<- prometheus.Metric) {
	zone := m.l.Self().Zone
	for _, t := range m.l.WAN() {
		for k, n := range [numKinds]int64{t.Raft, t.Control, t.Blobs} {
			to <- prometheus.MustNewConstMetric(descWAN, prometheus.CounterValue, float64(n), t.From, zone, kindNames[k])
		}
	}
}
