package feed

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// States of a follower.
const (
	StateWaiting   = "another node follows"
	StateFollowing = "following"
	StateFailing   = "failing"
)

// Status is how far a follower is. Numbers of entries are of this process.
type Status struct {
	Source   string    `json:"source"`
	FeedID   string    `json:"feed"`              // the cluster whose feed it is; "": the source does not say
	State    string    `json:"state"`             // following, failing, another node follows, or what it waits for
	Error    string    `json:"error,omitempty"`   // why it is failing
	Through  time.Time `json:"through,omitzero"`  // all that the source had by then is here, but for what is owed
	Behind   int64     `json:"behind"`            // changes of the source that come after that; -1: not known
	LastRead time.Time `json:"lastRead,omitzero"` // when the source answered last
	Entries  int       `json:"entries"`           // that were looked at
	Skipped  int       `json:"skipped"`           // of them, not wanted here
	Refused  int       `json:"refused"`           // versions of which something did not pass the gate
	Failed   int       `json:"failed"`            // versions that could not be had
	Owed     []Owed    `json:"owed,omitempty"`    // the first of both
	Changed  string    `json:"changed,omitempty"` // what happened to the source, if it is not what it was
}

// maxShown is how many of what is owed a status has.
const maxShown = 20

// Status returns how far the follower is.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	for _, o := range f.state.Owed {
		if o.Refused {
			s.Refused++
		} else {
			s.Failed++
		}
	}
	s.Owed = slices.Clone(f.state.Owed)
	slices.SortStableFunc(s.Owed, func(a, b Owed) int { return cmp.Compare(b2i(b.Refused), b2i(a.Refused)) })
	s.Owed = s.Owed[:min(len(s.Owed), maxShown)]
	s.Error = artifact.Truncate(s.Error, maxReason)
	return s
}

func (f *Follower) isFailing() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failing
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tell logs progress now and then, or now.
func (f *Follower) tell(now bool) {
	f.mu.Lock()
	entries := f.status.Entries
	if !now && (entries == f.counted || time.Since(f.told) < tellEvery) {
		f.mu.Unlock()
		return
	}
	f.told, f.counted = time.Now(), entries
	f.mu.Unlock()
	s := f.Status()
	f.log.Info("followed a feed", "source", s.Source, "through", FormatSet(s.Through), "behind", s.Behind, "entries", s.Entries, "refused", s.Refused, "failed", s.Failed)
}

// Outcomes of an entry, the values of a label.
const (
	outcomeDone    = "done"
	outcomeSkipped = "skipped"
	outcomeRefused = "refused"
	outcomeFailed  = "failed"
)

func outcomeOf(refused bool) string {
	if refused {
		return outcomeRefused
	}
	return outcomeFailed
}

type metrics struct {
	entries  *prometheus.CounterVec
	failures prometheus.Counter
}

func newMetrics(r prometheus.Registerer, f *Follower) *metrics {
	const ns, sub = "modmirror", "feed"
	m := &metrics{
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "entries_total",
			Help: "Entries of the feed that is followed, by what became of them; each further try of one counts."}, []string{"outcome"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "failures_total",
			Help: "Times that the feed could not be read, or nothing of it be had."}),
	}
	for _, o := range []string{outcomeDone, outcomeSkipped, outcomeRefused, outcomeFailed} {
		m.entries.WithLabelValues(o)
	}
	if r == nil {
		return m
	}
	gauge := func(name, help string, value func(Status) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, func() float64 { return value(f.Status()) }))
	}
	r.MustRegister(m.entries, m.failures)
	gauge("behind", "Changes of the source that this node has not taken in; -1: not known.", func(s Status) float64 { return float64(s.Behind) })
	gauge("through_timestamp_seconds", "All that the source had by then is here, but for what was refused or failed; 0: nothing is known.", func(s Status) float64 {
		if s.Through.IsZero() {
			return 0
		}
		return float64(s.Through.UnixMicro()) / 1e6
	})
	gauge("leading", "1 if this node is the one of its cluster that follows.", func(s Status) float64 { return float64(b2i(s.State != StateWaiting)) })
	gauge("failing", "1 if this node follows, and could not read the feed, or had nothing of it, the last time that it tried.", func(Status) float64 { return float64(b2i(f.isFailing())) })
	gauge("refused", "Versions of the feed of which something did not pass the gate, and is tried again.", func(s Status) float64 { return float64(s.Refused) })
	gauge("failed", "Versions of the feed that could not be had, and are tried again.", func(s Status) float64 { return float64(s.Failed) })
	return m
}
