package mirror

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// class says what kind of thing a request asked for, for metrics and logs.
type class uint8

const (
	classBad class = iota
	classInfo
	classMod
	classZip
	classList
	classLatest
	classQuery
	classSumDB
	classPage
	classIndex
	classEvents
	numClass
)

var classNames = [numClass]string{"bad", "info", "mod", "zip", "list", "latest", "query", "sumdb", "page", "index", "events"}

func (c class) String() string { return classNames[c] }

// outcome says how an answer came about.
type outcome uint8

const (
	outcomeHit     outcome = iota // from what is held
	outcomeFetched                // this request caused the fetch
	outcomeJoined                 // another request had caused it
	outcomeStale                  // an older answer, because there was no newer one or not yet
	outcomeMiss                   // there is no such thing
	outcomeRefused                // a failed check, policy, or a request that makes no sense
	outcomeError                  // could not be answered
	outcomeGone                   // the client left before
	numOutcome
)

var outcomeNames = [numOutcome]string{"hit", "fetched", "joined", "stale", "miss", "refused", "error", "gone"}

func (o outcome) String() string { return outcomeNames[o] }

// The stages of an ingest, in their order.
type stage uint8

const (
	stageRecord stage = iota
	stageDownload
	stageCheck
	stageStore
	stagePublish
	numStage
)

var stageNames = [numStage]string{"record", "download", "check", "store", "publish"}

// codes are the statuses that have a series of their own.
var codes = [...]int{200, 206, 304, 400, 403, 404, 405, 416, 500, 502, 503, 504}

// metrics holds the series of one Mirror. Label sets are constant and small, and the counters of requests are looked
// up once: a warm request must not pay for hashing labels.
type metrics struct {
	requests *prometheus.CounterVec // class, outcome, code
	counters [numClass][numOutcome][len(codes) + 1]atomic.Pointer[prometheus.Counter]
	bytes    [numClass]prometheus.Counter
	seconds  [numClass][numOutcome]prometheus.Observer
	inFlight prometheus.Gauge
	stages   [numStage]prometheus.Observer
	failures *prometheus.CounterVec // reason
	stale    *prometheus.CounterVec // class
	caches   *cacheBytes
	ahead    [numAhead]prometheus.Counter

	peerBytes prometheus.Counter
	pulls     [2]prometheus.Counter // failed, done
	passed    prometheus.Counter

	garbage garbageMetrics
}

// What becomes of a go.mod that is looked ahead for.
type aheadEnd uint8

const (
	aheadFetched aheadEnd = iota // brought in; then it is useful or not
	aheadHeld                    // was held, or on its way for a client
	aheadFailed                  // could not be brought in
	aheadDropped                 // forgotten: too many, or no client about
	aheadUseful                  // a client asked for what was brought in
	aheadUnasked                 // no client did, for a while
	numAhead
)

var aheadNames = [numAhead]string{"fetched", "held", "failed", "dropped", "useful", "useless"}

// Reasons of the verification failures, the values of the label.
const (
	failSum      = "checksum" // the bytes are not those of the record
	failContent  = "content"  // the bytes are not those of a module, or too large
	failRecord   = "record"   // the record does not say what it must
	failConflict = "conflict" // other bytes or sums were committed before
	failPeer     = "peer"     // another node's bytes or manifest are not what they must be
	failOther    = "other"
)

func newMetrics(reg prometheus.Registerer, caches map[string]func() (int, int64)) (*metrics, error) {
	const ns, sub = "modmirror", "mirror"
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "requests_total",
			Help: "Requests by what was asked, how the answer came about, and HTTP status."}, []string{"class", "outcome", "code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "requests_in_flight",
			Help: "Requests being answered."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "verification_failures_total",
			Help: "Artifacts that were refused because a check failed. Any is worth a look at the log."}, []string{"reason"}),
		stale: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "stale_answers_total",
			Help: "Lists and @latest answered with an older state because the upstream did not answer."}, []string{"class"}),
		caches: &cacheBytes{prometheus.NewDesc(ns+"_"+sub+"_cache_bytes", "Bytes that each cache takes in memory.", []string{"cache"}, nil), caches},
	}
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "response_bytes_total",
		Help: "Bytes of bodies sent."}, []string{"class"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "request_seconds",
		Help:    "Time from the request to the end of the answer.",
		Buckets: []float64{.0001, .0005, .002, .01, .05, .2, 1, 5, 20, 60, 300}}, []string{"class", "outcome"})
	stages := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "ingest_seconds",
		Help: "Time of each stage of an ingest.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 300}}, []string{"stage"})
	for c := range numClass {
		m.bytes[c] = bytes.WithLabelValues(c.String())
		for o := range numOutcome {
			m.seconds[c][o] = seconds.WithLabelValues(c.String(), o.String())
		}
	}
	ahead := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "look_ahead_total",
		Help: "Go.mod files looked ahead for, by what became of them. What was fetched becomes useful or useless later."}, []string{"end"})
	for end, name := range aheadNames {
		m.ahead[end] = ahead.WithLabelValues(name)
	}
	more := append(m.newPeerMetrics(ns, sub), m.garbage.make(ns, sub)...)
	for s, name := range stageNames {
		m.stages[s] = stages.WithLabelValues(name)
	}
	for _, reason := range []string{failSum, failContent, failRecord, failConflict, failPeer, failOther} {
		m.failures.WithLabelValues(reason)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range append(more, m.requests, m.inFlight, m.failures, m.stale, m.caches, bytes, seconds, stages, ahead) {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// cacheBytes tells how much memory each cache takes.
type cacheBytes struct {
	desc *prometheus.Desc
	of   map[string]func() (entries int, bytes int64)
}

func (c *cacheBytes) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

func (c *cacheBytes) Collect(to chan<- prometheus.Metric) {
	for name, size := range c.of {
		_, bytes := size()
		to <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(bytes), name)
	}
}

// newPeerMetrics makes the series that a node among others has.
func (m *metrics) newPeerMetrics(ns, sub string) []prometheus.Collector {
	m.peerBytes = prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "peer_bytes_total",
		Help: "Bytes of blobs that came from other nodes and passed the gate."})
	m.passed = prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "uncommitted_answers_total",
		Help: "Artifacts that were verified and sent without being committed, for want of a quorum."})
	pulls := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "pulls_total",
		Help: "Blobs pulled from other nodes, by outcome."}, []string{"outcome"})
	m.pulls = [2]prometheus.Counter{pulls.WithLabelValues("failed"), pulls.WithLabelValues("done")}
	return []prometheus.Collector{m.peerBytes, m.passed, pulls}
}

// pulled counts a pull.
func (m *metrics) pulled(err error) {
	if err != nil {
		m.pulls[0].Inc()
	} else {
		m.pulls[1].Inc()
	}
}

// observe counts one answered request.
func (m *metrics) observe(c class, o outcome, status int, sent int64, took time.Duration) {
	m.bytes[c].Add(float64(sent))
	m.seconds[c][o].Observe(took.Seconds())
	i := len(codes)
	for j, code := range codes {
		if code == status {
			i = j
			break
		}
	}
	p := &m.counters[c][o][i]
	counter := p.Load()
	if counter == nil {
		label := "other"
		if i < len(codes) {
			label = strconv.Itoa(codes[i])
		}
		series := m.requests.WithLabelValues(c.String(), o.String(), label)
		counter = &series
		p.Store(counter)
	}
	(*counter).Inc()
}

// stageDone records how long a stage that began at start took, and returns the begin of the next.
func (m *metrics) stageDone(s stage, start time.Time) time.Time {
	now := time.Now()
	m.stages[s].Observe(now.Sub(start).Seconds())
	return now
}
