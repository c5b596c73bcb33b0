package upstream

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// metrics counts what is asked. A nil *metrics counts nothing.
type metrics struct {
	requests *prometheus.CounterVec   // kind, outcome
	seconds  *prometheus.HistogramVec // kind
	bytes    *prometheus.CounterVec   // kind
	inFlight prometheus.Gauge
}

// newMetrics registers the metrics with r. Several lists and sites of one process share them.
func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		return nil
	}
	return &metrics{
		requests: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "modmirror_upstream_requests_total", Help: "Questions to upstreams, by kind and outcome."}, []string{"kind", "outcome"})),
		seconds: register(r, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "modmirror_upstream_seconds", Help: "Time from a question to the end of its answer's use.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 120}}, []string{"kind"})),
		bytes: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "modmirror_upstream_received_bytes_total", Help: "Bytes of answers' bodies."}, []string{"kind"})),
		inFlight: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "modmirror_upstream_in_flight", Help: "Questions under way, those that wait for their turn included."})),
	}
}

// register registers c, or returns what is registered in its place.
func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	err := r.Register(c)
	if are := (prometheus.AlreadyRegisteredError{}); errors.As(err, &are) {
		return are.ExistingCollector.(C)
	}
	if err != nil {
		panic(err) // two parts use one name: a programmer's mistake
	}
	return c
}

// start counts a question; the function it returns counts the end.
func (m *metrics) start(kind string) (done func(bytes int64, err error)) {
	if m == nil {
		return func(int64, error) {}
	}
	begin := time.Now()
	m.inFlight.Inc()
	return func(bytes int64, err error) {
		m.inFlight.Dec()
		m.requests.WithLabelValues(kind, outcome(err)).Inc()
		m.seconds.WithLabelValues(kind).Observe(time.Since(begin).Seconds())
		m.bytes.WithLabelValues(kind).Add(float64(bytes))
	}
}

// outcome names an error in one of a constant set of words.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, artifact.ErrRefused):
		return "refused"
	case errors.Is(err, artifact.ErrMalformed):
		return "malformed"
	case errors.Is(err, artifact.ErrPolicy):
		return "policy"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, fs.ErrNotExist):
		return "absent"
	case errors.Is(err, artifact.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}
