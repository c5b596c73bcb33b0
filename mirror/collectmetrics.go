package mirror

import "github.com/prometheus/client_golang/prometheus"

// garbageMetrics tell what the collector of garbage does.
type garbageMetrics struct {
	passes    [2]prometheus.Counter // not done, done
	collected [2]prometheus.Counter // blobs, bytes; as all below
	removed   [2]prometheus.Counter
	leftovers [2]prometheus.Gauge
	trash     [2]prometheus.Gauge
	last      prometheus.Gauge
}

// make makes the series, and returns them to be registered.
func (g *garbageMetrics) make(ns, sub string) (all []prometheus.Collector) {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
		all = append(all, c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		c := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
		all = append(all, c)
		return c
	}
	g.collected = [2]prometheus.Counter{
		counter("garbage_collected_total", "Blobs that nothing names any more, or ever did, and that were moved to the trash."),
		counter("garbage_collected_bytes_total", "Bytes of these.")}
	g.removed = [2]prometheus.Counter{
		counter("garbage_removed_total", "Blobs that were removed from the trash for good."),
		counter("garbage_removed_bytes_total", "Bytes of these.")}
	g.leftovers = [2]prometheus.Gauge{
		gauge("garbage_leftovers", "Blobs that nothing names and that are kept for now, as of the last pass."),
		gauge("garbage_leftover_bytes", "Bytes of these.")}
	g.trash = [2]prometheus.Gauge{
		gauge("garbage_trash_blobs", "Blobs in the trash, as of the last pass."),
		gauge("garbage_trash_bytes", "Bytes of these.")}
	g.last = gauge("garbage_last_pass_timestamp_seconds", "When the last pass was done. 0: none was since the start.")
	passes := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "garbage_passes_total",
		Help: "Passes of the collector of garbage, by outcome. While there is no leader none is done."}, []string{"outcome"})
	g.passes = [2]prometheus.Counter{passes.WithLabelValues("failed"), passes.WithLabelValues("done")}
	return append(all, passes)
}

// collected counts a pass. One that failed may have done some of its work.
func (m *metrics) collected(found Garbage, err error) {
	g := &m.garbage
	add := func(c [2]prometheus.Counter, a Amount) { c[0].Add(float64(a.Blobs)); c[1].Add(float64(a.Bytes)) }
	set := func(c [2]prometheus.Gauge, a Amount) { c[0].Set(float64(a.Blobs)); c[1].Set(float64(a.Bytes)) }
	add(g.collected, found.Collected)
	add(g.removed, found.Removed)
	if err != nil {
		g.passes[0].Inc()
		return
	}
	g.passes[1].Inc()
	g.last.Set(float64(found.Time.Unix()))
	set(g.leftovers, found.Leftovers)
	set(g.trash, found.Trash)
}
