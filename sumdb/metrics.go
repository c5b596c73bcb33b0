package sumdb

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// metrics of one database. Label values come from fixed sets, but for the database's name, which the operator gives.
type metrics struct {
	reg prometheus.Registerer

	requests   *prometheus.CounterVec   // to sources, by class and outcome
	seconds    *prometheus.HistogramVec // of requests to sources, by class
	records    *prometheus.CounterVec   // asked for, by where they come from, or why not
	served     *prometheus.CounterVec   // answers to clients, by class and status
	witnessed  *prometheus.CounterVec   // heads checked, by outcome
	badTiles   prometheus.Counter
	badPeers   prometheus.Counter
	damaged    prometheus.Counter
	mended     prometheus.Counter
	badRecords prometheus.Counter
	extraLines prometheus.Counter
	forks      prometheus.Counter
	advances   prometheus.Counter
	rollbacks  prometheus.Counter
	behind     prometheus.Gauge
	size       prometheus.Gauge
	cached     prometheus.GaugeFunc
	checked    prometheus.GaugeFunc // nil: no source is ever asked

	good map[string]prometheus.Counter // of served, by class, with the status 200: looked up once; never changed
}

// newMetrics registers the metrics of a database. checked says when a source last confirmed the head; nil: none is asked.
func newMetrics(reg prometheus.Registerer, database string, cached func() int64, checked func() time.Time) (*metrics, error) {
	labels := prometheus.Labels{"database": database}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "modmirror", Subsystem: "sumdb", Name: name, Help: help, ConstLabels: labels}
	}
	m := &metrics{
		reg:      reg,
		requests: prometheus.NewCounterVec(counter("source_requests_total", "Requests to sources of the checksum database."), []string{"class", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "modmirror", Subsystem: "sumdb", Name: "source_seconds", Help: "Time that requests to sources took.",
			ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.002, 3, 10),
		}, []string{"class"}),
		records:    prometheus.NewCounterVec(counter("records_total", "Records asked for, by where they came from or why there is none."), []string{"outcome"}),
		served:     prometheus.NewCounterVec(counter("answers_total", "Answers to clients."), []string{"class", "status"}),
		witnessed:  prometheus.NewCounterVec(counter("heads_checked_total", "Signed tree heads met and checked for consistency in the background."), []string{"outcome"}),
		badTiles:   prometheus.NewCounter(counter("bad_tiles_total", "Reads of tiles that did not lead to the signed root.")),
		badPeers:   prometheus.NewCounter(counter("bad_peer_tiles_total", "Reads of tiles from other nodes that did not lead to the signed root.")),
		damaged:    prometheus.NewCounter(counter("damaged_tiles_total", "Stored tiles that the scrub found damaged. Any is worth a look at the disk.")),
		mended:     prometheus.NewCounter(counter("healed_tiles_total", "Those of them whose right ones took their place.")),
		badRecords: prometheus.NewCounter(counter("bad_records_total", "Lookup answers that were malformed or did not verify.")),
		extraLines: prometheus.NewCounter(counter("unknown_head_lines_total", "Signed tree heads with lines that this version does not know.")),
		forks:      prometheus.NewCounter(counter("forks_total", "Pairs of signed tree heads met that contradict each other.")),
		advances:   prometheus.NewCounter(counter("head_advances_total", "Times that the committed tree head moved.")),
		rollbacks:  prometheus.NewCounter(counter("head_older_total", "Times that all sources had an older tree head than the committed one.")),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "modmirror", Subsystem: "sumdb", Name: "tiles_behind", Help: "Committed changes whose tiles this node does not hold yet, as far as it knows.", ConstLabels: labels,
		}),
		size: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "modmirror", Subsystem: "sumdb", Name: "head_records", Help: "Records in the newest tree head that this node saw committed.", ConstLabels: labels,
		}),
		cached: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "modmirror", Subsystem: "sumdb", Name: "cache_bytes", Help: "Bytes of memory that records, heads and tiles take.", ConstLabels: labels,
		}, func() float64 { return float64(cached()) }),
	}
	if checked != nil {
		m.checked = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "modmirror", Subsystem: "sumdb", Name: "head_checked_timestamp_seconds", ConstLabels: labels,
			Help: "When a source last confirmed the committed tree head to this node, in seconds since 1970; if none has since the start, that of the start.",
		}, func() float64 { return float64(checked().UnixMilli()) / 1000 })
	}
	m.good = make(map[string]prometheus.Counter)
	for _, class := range []string{"supported", "latest", "lookup", "tile"} {
		m.good[class] = m.served.WithLabelValues(class, "200")
	}
	for i, c := range m.all() {
		if reg == nil {
			break
		}
		if err := reg.Register(c); err != nil {
			for _, c := range m.all()[:i] {
				reg.Unregister(c)
			}
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	all := []prometheus.Collector{m.requests, m.seconds, m.records, m.served, m.witnessed, m.badTiles, m.badPeers, m.damaged, m.mended, m.badRecords, m.extraLines, m.forks, m.advances, m.rollbacks, m.behind, m.size, m.cached}
	if m.checked != nil {
		all = append(all, m.checked)
	}
	return all
}

func (m *metrics) unregister() {
	if m.reg != nil {
		for _, c := range m.all() {
			m.reg.Unregister(c)
		}
	}
}

func (m *metrics) fetched(s *source, path string, err error, d time.Duration) {
	class := string(classOf(path))
	if s.peer {
		class = "peer"
	}
	m.requests.WithLabelValues(class, outcome(err)).Inc()
	m.seconds.WithLabelValues(class).Observe(d.Seconds())
}

// answered counts an answer to a client.
func (m *metrics) answered(class string, status int) {
	if c := m.good[class]; c != nil && status == http.StatusOK {
		c.Inc()
		return
	}
	m.served.WithLabelValues(class, strconv.Itoa(status)).Inc()
}

func (m *metrics) looked(how string, err error) {
	if err != nil {
		how = outcome(err)
	}
	m.records.WithLabelValues(how).Inc()
}

func (m *metrics) witness(outcome string) { m.witnessed.WithLabelValues(outcome).Inc() }

// outcome returns err as one of a fixed set of words.
func outcome(err error) string {
	for _, o := range []struct {
		err  error
		word string
	}{
		{artifact.ErrPolicy, "policy"},
		{artifact.ErrRefused, "refused"},
		{artifact.ErrMalformed, "malformed"},
		{context.DeadlineExceeded, "timeout"},
		{context.Canceled, "canceled"},
		{artifact.ErrUnavailable, "unavailable"},
		{fs.ErrNotExist, "absent"},
	} {
		if errors.Is(err, o.err) {
			return o.word
		}
	}
	if err != nil {
		return "failed"
	}
	return "ok"
}
