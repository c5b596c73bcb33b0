package main

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// zoneCounts counts what came to this node from other zones.
type zoneCounts struct {
	pulled atomic.Int64 // blobs that it took
	spread atomic.Int64 // blobs that were spread to it
}

var descFar = prometheus.NewDesc("modmirror_blobs_from_other_zones_total", "Blobs that came to this node out of another zone, by how: it pulled them, or they were spread to it before they were published.", []string{"how"}, nil)

// Describe implements prometheus.Collector.
func (c *zoneCounts) Describe(to chan<- *prometheus.Desc) { to <- descFar }

// Collect implements prometheus.Collector.
func (c *zoneCounts) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(descFar, prometheus.CounterValue, float64(c.pulled.Load()), "pulled")
	to <- prometheus.MustNewConstMetric(descFar, prometheus.CounterValue, float64(c.spread.Load()), "spread")
}
