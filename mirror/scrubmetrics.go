package mirror

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// scrubMetrics tells of damaged blobs and of the scrub, each time that it is asked. All labels are constant.
type scrubMetrics struct{ m *Mirror }

var (
	descBad      = prometheus.NewDesc("modmirror_mirror_bad_blobs_total", "Stored blobs that were found damaged, by what was wrong and who found it. Any is worth a look at the disk.", []string{"damage", "by"}, nil)
	descHealed   = prometheus.NewDesc("modmirror_mirror_healed_blobs_total", "Damaged blobs whose right bytes came back, by where from.", []string{"from"}, nil)
	descUnhealed = prometheus.NewDesc("modmirror_mirror_unhealed_blobs", "Damaged blobs whose right bytes are not back.", nil, nil)
	descScrubbed = prometheus.NewDesc("modmirror_mirror_scrub_blobs_total", "Blobs read again by the scrub.", nil, nil)
	descScrubBy  = prometheus.NewDesc("modmirror_mirror_scrub_bytes_total", "Bytes of these.", nil, nil)
	descLeft     = prometheus.NewDesc("modmirror_mirror_scrub_left_bytes", "Bytes that the scrub has still to read in this round.", nil, nil)
	descAge      = prometheus.NewDesc("modmirror_mirror_scrub_oldest_seconds", "How long ago the blob was read that was not read for longest; since the first scrub began as long as some never were.", nil, nil)
	descPeriod   = prometheus.NewDesc("modmirror_mirror_scrub_period_seconds", "Within which every blob is to be read again; 0: only on request.", nil, nil)
	descLate     = prometheus.NewDesc("modmirror_mirror_scrub_late", "1 if the limit on the scrub is too low for the period.", nil, nil)
	descStuck    = prometheus.NewDesc("modmirror_mirror_scrub_stuck", "1 if the scrub waits for a disk that does not answer, or cannot go on for another reason.", nil, nil)
)

func (c scrubMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBad, descHealed, descUnhealed, descScrubbed, descScrubBy, descLeft, descAge, descPeriod, descLate, descStuck} {
		to <- d
	}
}

func (c scrubMetrics) Collect(to chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	ls := c.m.losses
	ls.mu.Lock()
	for by, counts := range ls.bad {
		for _, damage := range []artifact.Damage{artifact.Missing, artifact.WrongBytes, artifact.Unreadable} {
			send(descBad, prometheus.CounterValue, float64(counts[damage]), string(damage), finderNames[by])
		}
	}
	for _, from := range []string{fromNode, fromUpstream} {
		send(descHealed, prometheus.CounterValue, float64(ls.healed[from]), from)
	}
	ls.mu.Unlock()
	s := c.m.ScrubStatus()
	send(descUnhealed, prometheus.GaugeValue, float64(s.Health.Unhealed))
	send(descScrubbed, prometheus.CounterValue, float64(s.Read))
	send(descScrubBy, prometheus.CounterValue, float64(s.ReadFor))
	send(descLeft, prometheus.GaugeValue, float64(s.LeftFor))
	oldest := s.Oldest
	if oldest.IsZero() {
		oldest = c.m.scrub.began()
	}
	age := 0.0
	if !oldest.IsZero() {
		age = time.Since(oldest).Seconds()
	}
	send(descAge, prometheus.GaugeValue, age)
	send(descPeriod, prometheus.GaugeValue, s.Every.Seconds())
	send(descLate, prometheus.GaugeValue, is(s.Late))
	send(descStuck, prometheus.GaugeValue, is(!s.Stuck.IsZero() || s.Broken != ""))
}
