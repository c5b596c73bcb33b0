package main

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// clusterMetrics tells what this node sees of its cluster, each time that it is asked.
type clusterMetrics struct{ n *node }

var (
	descMembers = prometheus.NewDesc("modmirror_cluster_members", "Members of the cluster, by role and whether they answer this node.", []string{"role", "alive"}, nil)
	descLeader  = prometheus.NewDesc("modmirror_cluster_has_leader", "1 if this node knows a leader.", nil, nil)
	descLag     = prometheus.NewDesc("modmirror_cluster_lag_leaves", "How many changes of manifests this node is behind the leader; while none is known, behind the member that is furthest.", nil, nil)
	descMissing = prometheus.NewDesc("modmirror_blobs_missing", "Blobs that the catalog names and this node is known to lack.", nil, nil)
	descBytes   = prometheus.NewDesc("modmirror_blobs_missing_bytes", "Bytes of these.", nil, nil)
	descOldest  = prometheus.NewDesc("modmirror_blobs_missing_seconds", "For how long the oldest of these is missing; 0: none is.", nil, nil)
	descBad     = prometheus.NewDesc("modmirror_cluster_bad_answers_total", "Answers of other nodes that were none: malformed, or about something else.", nil, nil)
	descUnprov  = prometheus.NewDesc("modmirror_blobs_unproven", "Blobs that are durable here and whose go.sum hash this node has yet to compare, before anybody gets them.", nil, nil)
	descUnprovB = prometheus.NewDesc("modmirror_blobs_unproven_bytes", "Bytes of these.", nil, nil)
	descHeld    = prometheus.NewDesc("modmirror_blobs_held_leaves", "This node holds every blob of the changes before this one.", nil, nil)
	descChanges = prometheus.NewDesc("modmirror_cluster_leader_changes_total", "How often this node has seen another node take the lead.", nil, nil)
	descTrip    = prometheus.NewDesc("modmirror_cluster_round_trip_seconds", "The shortest of the last times in which another member answered this node. There is no series of one that has not answered.", []string{"node"}, nil)
	descDiffer  = prometheus.NewDesc("modmirror_cluster_roots_differ", "Members whose catalog has another root than this node's at the same place.", nil, nil)

	descThrough  = prometheus.NewDesc("modmirror_cluster_complete_timestamp_seconds", "Every artifact that was committed until then is on this node. There is no series while that is not known.", nil, nil)
	descZone     = prometheus.NewDesc("modmirror_cluster_zone_complete_timestamp_seconds", "Every artifact that was committed until then is on one of the nodes of the zone that answer this node. There is no series while that is not known.", []string{"zone"}, nil)
	descZoneLag  = prometheus.NewDesc("modmirror_cluster_zone_lag_leaves", "How many changes of manifests a zone is behind the leader: the one of its nodes that is the least, of those that answer this node.", []string{"zone"}, nil)
	descZoneSize = prometheus.NewDesc("modmirror_cluster_zone_members", "Members of a zone, by whether they answer this node.", []string{"zone", "alive"}, nil)
	descUnder    = prometheus.NewDesc("modmirror_cluster_under_replicated_blobs", "Committed blobs that are not on every member, or in no node of some zone, as far as the members have said: at least and at most so many. There is no series of what is not known.", []string{"missing_in", "bound"}, nil)
)

var clusterDescs = []*prometheus.Desc{descMembers, descLeader, descLag, descMissing, descBytes, descOldest, descUnprov, descUnprovB, descHeld, descBad, descChanges, descDiffer, descTrip,
	descThrough, descZone, descZoneLag, descZoneSize, descUnder}

func (c clusterMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range clusterDescs {
		to <- d
	}
}

// collecting sends what is collected.
type collecting chan<- prometheus.Metric

func (to collecting) gauge(d *prometheus.Desc, v float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (to collecting) counter(d *prometheus.Desc, v int64) {
	to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
}

// time sends a time, if it is known.
func (to collecting) time(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		to.gauge(d, float64(t.UnixMilli())/1000, labels...)
	}
}

func (c clusterMetrics) Collect(out chan<- prometheus.Metric) {
	m := c.n.front.mirror.Load()
	if m == nil { // still opening
		return
	}
	to := collecting(out)
	v := c.n.view(context.Background())
	v.collectMembers(to)
	v.collectZones(to)
	p := m.Progress()
	to.gauge(descMissing, float64(p.Missing))
	to.gauge(descBytes, float64(p.Bytes))
	to.gauge(descUnprov, float64(p.Unproven))
	to.gauge(descUnprovB, float64(p.UnprovenBytes))
	to.gauge(descHeld, float64(p.Watermark))
	oldest := 0.0
	if p.Missing > 0 {
		oldest = time.Since(p.Since).Seconds()
	}
	to.gauge(descOldest, oldest)
	to.counter(descBad, c.n.badAnswers.Load())
	_, changes, _ := c.n.replica.Leader()
	to.counter(descChanges, changes)
	for _, seen := range c.n.table.Load().All() {
		if seen.Trip > 0 {
			to.gauge(descTrip, seen.Trip.Seconds(), seen.Name)
		}
	}
}

func (v clusterView) collectMembers(to collecting) {
	counts := map[[2]string]int{{"voter", "true"}: 0, {"voter", "false"}: 0, {"nonvoter", "true"}: 0, {"nonvoter", "false"}: 0}
	differ := 0
	for _, m := range v.Nodes {
		role := "nonvoter"
		if m.Voter {
			role = "voter"
		}
		counts[[2]string{role, strconv.FormatBool(m.Alive)}]++
		if m.Roots == rootsDiffer {
			differ++
		}
		if m.ID == v.From {
			to.time(descThrough, m.Complete)
		}
	}
	for labels, n := range counts {
		to.gauge(descMembers, float64(n), labels[:]...)
	}
	leader := 0.0
	if v.Leader != "" {
		leader = 1
	}
	to.gauge(descLeader, leader)
	to.gauge(descLag, float64(v.Far-v.Seq))
	to.gauge(descDiffer, float64(differ))
}

// collectZones sends what is known of each zone: there are as many as members name.
func (v clusterView) collectZones(to collecting) {
	for _, z := range v.Zones {
		to.time(descZone, z.Complete, z.Zone)
		if z.Lag != nil {
			to.gauge(descZoneLag, float64(*z.Lag), z.Zone)
		}
		to.gauge(descZoneSize, float64(z.Alive), z.Zone, "true")
		to.gauge(descZoneSize, float64(z.Nodes-z.Alive), z.Zone, "false")
	}
	for missingIn, b := range map[string]bound{"member": v.Under.Members, "zone": v.Under.Zones} {
		to.gauge(descUnder, float64(b.Least), missingIn, "least")
		if b.Most != nil {
			to.gauge(descUnder, float64(*b.Most), missingIn, "most")
		}
	}
}
