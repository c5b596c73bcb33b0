package peer

import (
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the link's own numbers. Every method works on nil as well.
type metrics struct {
	registry prometheus.Registerer
	refusals *prometheus.CounterVec
	conns    prometheus.GaugeFunc
	expires  prometheus.GaugeFunc
	wan      wanMetrics
}

const metricPrefix = "modmirror_peer_"

func newMetrics(l *Link) (*metrics, error) {
	if l.config.Metrics == nil {
		return nil, nil
	}
	m := &metrics{registry: l.config.Metrics, wan: wanMetrics{l}}
	m.refusals = prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + "refusals_total", Help: "Connections and requests between nodes that were refused, by who dialed and why."}, []string{"dialed", "class"})
	m.conns = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricPrefix + "connections", Help: "Open connections to other nodes."}, func() float64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return float64(len(l.conns))
	})
	kind := map[bool]string{true: filesLabel, false: "token"}[l.config.Credentials.Name() == filesLabel]
	m.expires = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        metricPrefix + "certificate_expires_timestamp_seconds",
		Help:        "Until when the certificate that this node shows to others is valid, in seconds since 1970; 0: it has none. One made from the cluster token is replaced in time by itself, one in files is not.",
		ConstLabels: prometheus.Labels{"credentials": kind},
	}, func() float64 {
		leaf, err := l.config.Credentials.Certificate()
		if err != nil {
			return 0
		}
		return float64(leaf.Leaf.NotAfter.Unix())
	})
	for i, c := range m.all() {
		if err := m.registry.Register(c); err != nil {
			for _, c := range m.all()[:i] {
				m.registry.Unregister(c)
			}
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.refusals, m.conns, m.expires, m.wan}
}

func (m *metrics) close() {
	if m == nil {
		return
	}
	for _, c := range m.all() {
		m.registry.Unregister(c)
	}
}

func (m *metrics) acceptRefused(c Class) {
	if m != nil {
		m.refusals.WithLabelValues("there", string(c)).Inc()
	}
}

func (m *metrics) dialRefused(c Class) {
	if m != nil && c != "" {
		m.refusals.WithLabelValues("here", string(c)).Inc()
	}
}

// refused counts a refusal of this node and logs it: the same from the same host once a minute.
func (l *Link) refused(from string, r *Refusal) {
	l.metrics.acceptRefused(r.Class)
	host, _, err := net.SplitHostPort(from)
	if err != nil {
		host = from
	}
	if l.said.now(host+" "+r.Text, time.Now()) {
		l.log.Warn("a node or program was refused", "from", from, "class", string(r.Class), "err", r.Text)
	}
}

// sayOnce keeps the log from being filled by who comes again and again.
type sayOnce struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

func (s *sayOnce) now(what string, t time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last[what]; ok && t.Sub(last) < time.Minute {
		return false
	}
	if s.last == nil || len(s.last) >= 256 {
		s.last = map[string]time.Time{}
	}
	s.last[what] = t
	return true
}
