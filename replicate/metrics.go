package replicate

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// metrics are the node's own numbers. Every method works on nil as well.
type metrics struct {
	registry prometheus.Registerer
	all      []prometheus.Collector

	commands   *prometheus.CounterVec
	batchSize  prometheus.Histogram
	batchBytes prometheus.Histogram
}

const metricPrefix = "modmirror_replicate_"

func newMetrics(n *Node) *metrics {
	if n.config.Metrics == nil {
		return nil
	}
	m := &metrics{registry: n.config.Metrics}
	m.commands = prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + "commands_total", Help: "Commands applied to the catalog, by what became of them."}, []string{"result"})
	m.batchSize = prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricPrefix + "entry_commands", Help: "Commands in one entry that this node proposed.", Buckets: prometheus.ExponentialBuckets(1, 2, 10)})
	m.batchBytes = prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricPrefix + "entry_bytes", Help: "Size of an entry that this node proposed.", Buckets: prometheus.ExponentialBuckets(256, 4, 7)})
	m.all = []prometheus.Collector{m.commands, m.batchSize, m.batchBytes, statusCollector{n}}
	return m
}

// register is called once the node can answer for its status.
func (m *metrics) register() error {
	if m == nil {
		return nil
	}
	for i, c := range m.all {
		if err := m.registry.Register(c); err != nil {
			m.all = m.all[:i]
			return err
		}
	}
	return nil
}

func (m *metrics) close() {
	if m == nil {
		return
	}
	for _, c := range m.all {
		m.registry.Unregister(c)
	}
}

func (m *metrics) applied(err error) {
	if m != nil {
		m.commands.WithLabelValues(outcome(err)).Inc()
	}
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "applied"
	case errors.Is(err, artifact.ErrConflict):
		return "conflict"
	case errors.Is(err, artifact.ErrStale):
		return "stale"
	case errors.Is(err, artifact.ErrRefused):
		return "refused"
	}
	return "other"
}

func (m *metrics) proposed(commands, bytes int) {
	if m != nil {
		m.batchSize.Observe(float64(commands))
		m.batchBytes.Observe(float64(bytes))
	}
}

// statusCollector turns Status into gauges when it is asked.
type statusCollector struct{ n *Node }

var gauges = []struct {
	desc  *prometheus.Desc
	value func(st Status) float64
}{
	{gauge("leader", "1 if this node leads."), func(st Status) float64 { return flag(st.Role == "leader") }},
	{gauge("has_leader", "1 if this node knows a leader."), func(st Status) float64 { return flag(st.Leader != "") }},
	{gauge("term", "Raft term."), func(st Status) float64 { return float64(st.Term) }},
	{gauge("applied_index", "Index of the last entry in the catalog."), func(st Status) float64 { return float64(st.Applied) }},
	{gauge("leaves", "Changes of manifests so far (leaves of the Merkle tree)."), func(st Status) float64 { return float64(st.Seq) }},
	{gauge("manifests", "Module versions in the catalog."), func(st Status) float64 { return float64(st.Manifests) }},
	{gauge("clock_ahead_seconds", "By how much the newest time of the catalog is ahead of this node's clock."), func(st Status) float64 { return max(time.Until(st.Clock).Seconds(), 0) }},
	{gauge("conflicts", "Refused manifests that are kept as evidence."), func(st Status) float64 { return float64(st.Conflicts) }},
	{gauge("frozen_databases", "Checksum databases frozen by a fork that nobody acknowledged."), func(st Status) float64 { return float64(len(st.Frozen)) }},
	{gauge("catalog_bytes", "Size of the catalog."), func(st Status) float64 { return float64(st.CatalogBytes) }},
	{gauge("log_bytes", "Size of the raft log's file."), func(st Status) float64 { return float64(st.LogBytes) }},
	{gauge("damaged", "1 if a row or a page of the catalog was found to be damaged."), func(st Status) float64 { return flag(st.Damage != "") }},
	{gauge("refused", "1 after the cluster has refused this node."), func(st Status) float64 { return flag(st.Refused != "") }},
	{gauge("diverged", "1 after this node was found to hold something else than the majority."), func(st Status) float64 { return flag(st.Diverged != "") }},
	{gauge("commit_index", "Index up to which entries are committed, as far as this node knows."), func(st Status) float64 { return float64(st.CommitIndex) }},
	{gauge("wan_profile", "1 as long as raft is as patient as between datacenters."), func(st Status) float64 { return flag(far(st.Profile)) }},
	{gauge("fault", "1 after a disk fault has stopped this node's writes."), func(st Status) float64 { return flag(st.Fault != "" && !st.Full) }},
	{gauge("disk_full", "1 as long as this node cannot write because its disk is full."), func(st Status) float64 { return flag(st.Full) }},
}

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(metricPrefix+name, help, nil, nil)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (c statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range gauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := c.n.Status(ctx)
	if err != nil {
		return
	}
	for _, g := range gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(st))
	}
}
