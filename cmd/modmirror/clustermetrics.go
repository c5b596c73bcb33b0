package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// clusterMetrics tells what this node sees of its cluster, each time that it is asked.
type clusterMetrics struct{ n *node }

var (
	descMembers = prometheus.NewDesc("modmirror_cluster_members", "Members of the cluster, by role and whether they answer this node.", []string{"role", "alive"}, nil)
	descLeader  = prometheus.NewDesc("modmirror_cluster_has_leader", "1 if this node knows a leader.", nil, nil)
	descLag     = prometheus.NewDesc("modmirror_cluster_lag_leaves", "How many changes of manifests this node is behind the member that is furthest.", nil, nil)
	descMissing = prometheus.NewDesc("modmirror_blobs_missing", "Blobs that the catalog names and this node is known to lack.", nil, nil)
	descBytes   = prometheus.NewDesc("modmirror_blobs_missing_bytes", "Bytes of these.", nil, nil)
	descBad     = prometheus.NewDesc("modmirror_cluster_bad_answers_total", "Answers of other nodes that were none: malformed, or about something else.", nil, nil)
	descHeld    = prometheus.NewDesc("modmirror_blobs_held_leaves", "This node holds every blob of the changes before this one.", nil, nil)
)

func (c clusterMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descMembers, descLeader, descLag, descMissing, descBytes, descHeld, descBad} {
		to <- d
	}
}

func (c clusterMetrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m := c.n.front.mirror.Load()
	if m == nil { // still opening
		return
	}
	v := c.n.view(context.Background())
	counts := map[[2]string]int{{"voter", "true"}: 0, {"voter", "false"}: 0, {"nonvoter", "true"}: 0, {"nonvoter", "false"}: 0}
	far := v.Seq
	for _, m := range v.Nodes {
		role, alive := "nonvoter", "false"
		if m.Voter {
			role = "voter"
		}
		if m.Alive {
			alive = "true"
		}
		counts[[2]string{role, alive}]++
		far = max(far, m.Seq)
	}
	for labels, n := range counts {
		gauge(descMembers, float64(n), labels[:]...)
	}
	leader := 0.0
	if v.Leader != "" {
		leader = 1
	}
	gauge(descLeader, leader)
	gauge(descLag, float64(far-v.Seq))
	p := m.Progress()
	gauge(descMissing, float64(p.Missing))
	gauge(descBytes, float64(p.Bytes))
	gauge(descHeld, float64(p.Watermark))
	to <- prometheus.MustNewConstMetric(descBad, prometheus.CounterValue, float64(c.n.badAnswers.Load()))
}
