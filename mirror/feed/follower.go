package feed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Target is the mirror that is kept up to date.
type Target interface {
	// Acquire brings an artifact in through the gate. It returns nil when the artifact is published here, durably, also if
	// it was before. An error matches [artifact.ErrRefused], ErrConflict or ErrMalformed if what the source has is not to be
	// taken, [io/fs.ErrNotExist] if the source does not have it, [artifact.ErrPolicy] if it is not wanted here; any other
	// one is worth another try.
	Acquire(ctx context.Context, mv module.Version, k artifact.Kind) error
}

// Config is what a [Follower] is made of. Source, Target and Dir are needed.
type Config struct {
	Source   Source
	Target   Target
	Dir      string         // the data directory, for feed.json
	Cluster  func() string  // the cluster of the target; "" as long as that is not known, and nothing is followed
	Lead     func() bool    // whether this node is the one of its cluster that follows; nil: it always is
	Heard    func() []Claim // what other nodes of the cluster claim; nil: there are none
	Parallel int            // entries at a time; 0: 16
	Zips     int            // zips among them at a time; 0: Parallel
	Once     bool           // Run ends when all that the source had is here, or was tried in vain

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil: none
}

const (
	pollWait     = 25 * time.Second // for the first entry of a page
	pollEvery    = 5 * time.Second  // between two pages without entries, of a source that does not wait
	leadEvery    = 500 * time.Millisecond
	saveEvery    = time.Second
	firstBackoff = time.Second
	lastBackoff  = time.Minute
	stuckAfter   = 8               // failures in a row after which the others wait
	goneBack     = 5 * time.Minute // a source that ends earlier than it did is taken for one that lags for so long
	tellEvery    = time.Minute     // progress in the log
	maxOwed      = 10_000
	onceTries    = 3  // of what is owed, before a Follower with Once gives up
	onceFailures = 10 // of asking the source, in a row, before it does
)

// Follower keeps a target up to date with a feed. It reads page by page, and acquires what is in a page, some at a time. The
// cursor is the time of the first entry of the page that is not done: it is kept, with what is owed, in the data directory,
// durably, and never ahead of what the target has. If the process dies, what is true is
//
//	before a page is done   the cursor of an earlier page, or of an entry of this one: the rest is asked for again
//	after it is saved       the new one
//
// In a cluster the leader follows. It tells the others how far it is ([Follower.Claim]), and each keeps that as its own: a new
// leader goes on from there, or from a little before. What it reads again it finds here.
type Follower struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	zips    chan struct{}
	root    *os.Root

	failures int // entries that could not be had, in a row; of follow's goroutine
	room     int // how many versions are owed at most

	saving sync.Mutex // held while the state is written: what follows and what tries again both do

	mu      sync.Mutex // guards all below
	state   state
	leading bool // state is of a node that follows
	failing bool // nothing went on the last time that was tried
	dirty   bool // state is not saved
	saved   time.Time
	status  Status
	back    time.Time // since when the source has ended earlier than it did; zero: it does not
	told    time.Time
	counted int // entries when that was
}

// New returns a follower. It starts nothing.
func New(c Config) (*Follower, error) {
	if c.Source == nil || c.Target == nil || c.Dir == "" || c.Cluster == nil {
		return nil, errors.New("feed: Source, Target, Dir and Cluster are needed")
	}
	if c.Parallel <= 0 {
		c.Parallel = 16
	}
	if c.Zips <= 0 || c.Zips > c.Parallel {
		c.Zips = c.Parallel
	}
	if c.Lead == nil {
		c.Lead = func() bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &Follower{config: c, log: c.Log, zips: make(chan struct{}, c.Zips), room: maxOwed}
	f.status = Status{Source: c.Source.String(), State: StateWaiting, Behind: -1}
	f.metrics = newMetrics(c.Metrics, f)
	return f, nil
}

// ErrIncomplete means that a follower with Once did not get all that the source has.
var ErrIncomplete = errors.New("not all that the source has is here")

// Run follows until ctx ends, or, with Once, until all is here. Otherwise it returns nil only then.
func (f *Follower) Run(ctx context.Context) (err error) {
	if f.root, err = os.OpenRoot(f.config.Dir); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	defer f.root.Close()
	for ctx.Err() == nil {
		if !f.config.Lead() || f.config.Cluster() == "" {
			f.set(func(s *Status) { s.State = StateWaiting })
			if f.config.Cluster() != "" {
				f.listen()
			}
			pause(ctx, leadEvery)
			continue
		}
		if done, err := f.lead(ctx); done || err != nil {
			return err
		}
	}
	return nil
}

// lead follows as long as this node is the one that does. With Once it is done at the end of the feed.
func (f *Follower) lead(ctx context.Context) (done bool, err error) {
	s, err := load(f.root, f.config.Source.String(), f.config.Cluster())
	if err != nil {
		f.log.Warn("the cursor of the feed is of no use, all of it is looked at again", "file", StateName, "err", err)
	}
	heard := f.config.Heard != nil && s.adopt(f.config.Heard())
	f.mu.Lock()
	f.state, f.dirty, f.leading = s, heard, true
	f.status.FeedID, f.status.Through, f.status.Changed = s.Feed, s.Through, s.Changed
	f.mu.Unlock()
	f.log.Info("following a feed", "source", f.config.Source.String(), "feed", s.Feed, "since", FormatSet(s.Since), "owed", len(s.Owed))
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { f.watchLead(ctx, cancel) })
	background.Go(func() { f.retry(ctx) })
	done, err = f.follow(ctx)
	cancel()
	background.Wait()
	f.save(true)
	f.set(func(*Status) { f.leading, f.failing = false, false })
	return done, err
}

// watchLead ends what this node does as soon as another one is to do it.
func (f *Follower) watchLead(ctx context.Context, cancel context.CancelFunc) {
	for f.config.Lead() && pause(ctx, leadEvery) {
	}
	cancel()
}

// follow reads page after page until ctx ends; with Once until the end of the feed, and all that is owed was tried.
func (f *Follower) follow(ctx context.Context) (done bool, err error) {
	failures, idle := 0, false
	for ctx.Err() == nil {
		if !f.hasRoom() {
			if f.config.Once && f.triedAll() {
				return f.settle(ctx)
			}
			f.set(func(s *Status) {
				s.State, f.failing = fmt.Sprintf("waiting: %d versions could not be had, and no more are noted", f.room), true
			})
			pause(ctx, saveEvery)
			continue
		}
		begin := time.Now()
		p, err := f.next(ctx, idle)
		took := time.Since(begin)
		if err == nil {
			err = f.take(ctx, p)
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			if failures++; f.config.Once && failures >= onceFailures {
				return false, fmt.Errorf("follow %s: %w", f.config.Source, err)
			}
			f.failed(err, failures)
			pause(ctx, min(firstBackoff<<min(failures-1, 10), lastBackoff))
			continue
		}
		failures = 0
		f.set(func(*Status) { f.failing = false })
		idle = p.atEnd()
		f.save(idle)
		f.tell(false)
		if idle && f.config.Once {
			return f.settle(ctx)
		}
		if idle && (p.id == "" || len(p.entries) == 0 && took < pollEvery) { // it does not wait, or not now
			pause(ctx, pollEvery)
		}
	}
	return false, nil
}

// next asks for the page that the cursor is at. At the end of the feed it waits for an entry.
func (f *Follower) next(ctx context.Context, idle bool) (page, error) {
	f.mu.Lock()
	q := Query{Since: f.state.Since, Limit: MaxLimit, Parts: true}
	f.mu.Unlock()
	if idle && !f.config.Once {
		q.Wait = pollWait
	}
	ctx, cancel := context.WithTimeout(ctx, q.Wait+time.Minute)
	defer cancel()
	p, err := read(ctx, f.config.Source, q)
	if err != nil {
		return p, err
	}
	if changed, err := f.changed(p); err != nil {
		return p, err
	} else if changed {
		return f.next(ctx, false)
	}
	f.set(func(s *Status) { s.State, s.Error, s.LastRead = StateFollowing, "", time.Now() })
	return p, nil
}

// changed reports whether the source is not what it was, and the cursor was set back for that: it is another cluster, or it ends
// for good before what was read of it. Nothing is lost by that here, and what is here is not fetched again.
func (f *Follower) changed(p page) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.state
	if s.Feed == "" && p.id != "" {
		s.Feed, f.dirty = p.id, true
	}
	switch {
	case p.id == "" && s.Feed != "":
		return false, malformed("the source does not say whose feed it is, and before it was that of %s", s.Feed)
	case p.id != s.Feed:
		s.Changed = fmt.Sprintf("since %s it is cluster %s, and was %s: restored from a backup, recovered, or another one", FormatSet(time.Now()), p.id, s.Feed)
		s.Feed, s.Since, s.Through = p.id, time.Time{}, time.Time{}
	case p.through.IsZero() || s.Since.IsZero() || !p.through.Before(s.Since.Add(-time.Microsecond)):
		f.back = time.Time{}
		f.status.FeedID = s.Feed
		return false, nil
	case f.back.IsZero():
		f.back = time.Now()
		return false, nil
	case time.Since(f.back) < goneBack:
		return false, nil
	default:
		s.Changed = fmt.Sprintf("since %s it ends at %s, and was read up to %s: it lost what it had", FormatSet(f.back), FormatSet(p.through), FormatSet(s.Since))
		s.Since, s.Through = p.through.Add(time.Microsecond), p.through
	}
	f.back, f.dirty = time.Time{}, true
	f.status.FeedID, f.status.Through, f.status.Changed = s.Feed, s.Through, s.Changed
	f.log.Warn("the source of the feed is not what it was; what it has is looked at again", "source", f.config.Source.String(), "err", s.Changed, "since", FormatSet(s.Since))
	return true, nil
}

// failed notes that the source cannot be read, or that nothing of it can be had.
func (f *Follower) failed(err error, failures int) {
	f.set(func(s *Status) { s.State, s.Error, f.failing = StateFailing, err.Error(), true })
	f.metrics.failures.Inc()
	if failures == 1 || failures%10 == 0 {
		f.log.Warn("the feed cannot be followed for now", "source", f.config.Source.String(), "tries", failures, "err", err)
	}
}

// settle waits until all that is owed was tried often enough, and says whether something is left.
func (f *Follower) settle(ctx context.Context) (done bool, err error) {
	for !f.triedAll() && pause(ctx, leadEvery/10) {
	}
	if ctx.Err() != nil {
		return false, nil
	}
	f.tell(true)
	if st := f.Status(); st.Refused+st.Failed > 0 {
		return true, fmt.Errorf("%d versions were refused, and %d could not be had: %w", st.Refused, st.Failed, ErrIncomplete)
	}
	return true, nil
}

// save keeps the state, if it has changed: now and then, or now.
func (f *Follower) save(now bool) {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	if !f.dirty || !now && time.Since(f.saved) < saveEvery {
		f.mu.Unlock()
		return
	}
	s := f.state
	s.Owed = append([]Owed(nil), s.Owed...)
	f.dirty, f.saved = false, time.Now()
	f.mu.Unlock()
	if err := s.save(f.root); err != nil {
		f.log.Warn("cannot keep the cursor of the feed", "file", StateName, "err", err)
		f.mu.Lock()
		f.dirty = true
		f.mu.Unlock()
	}
}

func (f *Follower) set(change func(*Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

// pause waits, and reports whether ctx lets it go on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isRefusal reports whether another try is not likely to have another end.
func isRefusal(err error) bool {
	if errors.Is(err, artifact.ErrUnavailable) {
		return false
	}
	for _, class := range []error{artifact.ErrRefused, artifact.ErrConflict, artifact.ErrMalformed, fs.ErrNotExist} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}
