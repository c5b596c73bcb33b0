package sumdb

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/sumdb/sumdbtest"
)

// Age of the head: it counts from the start, is young after each source that confirms the head, and grows while none does.
// A node that asks nobody has none.
func TestHeadAgeMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		l := newLab(t, 300, func(c *Config) { c.Metrics = reg })
		age := func() time.Duration {
			t.Helper()
			at, ok := gauge(t, reg, "modmirror_sumdb_head_checked_timestamp_seconds")
			if !ok {
				t.Fatal("there is no such metric")
			}
			return time.Since(time.UnixMilli(int64(at * 1000))).Round(time.Second)
		}
		for _, step := range []struct {
			wait time.Duration
			down bool
			want time.Duration // the age after a refresh
		}{{time.Minute, true, time.Minute}, {time.Minute, false, 0}, {time.Hour, true, time.Hour}, {time.Hour, false, 0}} {
			time.Sleep(step.wait) // of the bubble
			l.src.Lie(sumdbtest.Lies{Down: step.down})
			if err := l.tick(t.Context()); (err != nil) != step.down {
				t.Errorf("tick with the source down %v: %v", step.down, err)
			}
			if got := age(); got != step.want {
				t.Errorf("after %v, with the source down %v, the head's age is %v, want %v", step.wait, step.down, got, step.want)
			}
		}
		offline := prometheus.NewRegistry()
		l.reopen(t, func(c *Config) { c.Direct, c.Offline, c.Metrics = l.src, true, offline })
		if v, ok := gauge(t, offline, "modmirror_sumdb_head_checked_timestamp_seconds"); ok {
			t.Errorf("offline it is %v", v)
		}
	})
}

// gauge returns the value of a metric that has one series.
func gauge(t *testing.T, reg *prometheus.Registry, name string) (value float64, ok bool) {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue(), true
		}
	}
	return 0, false
}
