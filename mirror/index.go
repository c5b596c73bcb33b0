package mirror

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
)

// Feed is the catalog by the times of its changes, which are in the order of their places. It answers from this node's state.
type Feed interface {
	// Changes yields what the catalog has from place number from on, in order and without gaps, and ends with the last.
	Changes(ctx context.Context, from int64) iter.Seq2[artifact.Change, error]
	// SeqAt returns the place of the first change of time t or later; how many places there are, if there is none.
	SeqAt(ctx context.Context, t time.Time) (int64, error)
	// Clock returns a time that every change which this node does not have yet is later than.
	Clock(ctx context.Context) (time.Time, error)
	// Cluster names the cluster whose changes they are; "" as long as that is not known. Two with the same name never have
	// different changes at a place.
	Cluster() string
	// Wake returns a channel that is closed when something was applied after the call.
	Wake() <-chan struct{}
}

const (
	indexPath  = "/index"
	maxIndexes = 16  // pages that are being made
	maxWaiting = 256 // clients that wait for an entry; more are answered at once
	drainPoll  = 250 * time.Millisecond
)

var typeLines = []string{"application/x-ndjson"}

// indexPage is an answer to a query.
type indexPage struct {
	lines   []byte
	entries int
	through time.Time // it is complete up to then
	behind  int64     // changes after it
	cluster string
}

// serveIndex answers with what this node's catalog has, by time: see package feed. What is committed and known here is listed,
// also if its bytes are still on their way to this node: who asks for them gets them from another.
func (m *Mirror) serveIndex(w *response, r *http.Request) error {
	if m.config.Feed == nil {
		return notExist("no feed is served here")
	}
	q, err := feed.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("%v: %w", err, ErrBadRequest)
	}
	p, err := m.awaitIndex(r.Context(), q)
	if errors.Is(err, artifact.ErrDamaged) { // the row may name what is private; log and status have it
		err = fmt.Errorf("the feed does not pass over a row of this node's catalog that cannot be read; ask another node of its cluster: %w", artifact.ErrDamaged)
	}
	if err != nil {
		return notAbsent(fmt.Errorf("index: %w", err))
	}
	h := w.Header()
	h[feed.HeaderThrough] = []string{feed.Format(p.through)}
	h[feed.HeaderBehind] = []string{strconv.FormatInt(p.behind, 10)}
	if p.cluster != "" {
		h[feed.HeaderID] = []string{p.cluster}
	}
	sendWithin(w, sendTime(int64(len(p.lines))))
	send(w, r, typeLines, p.lines)
	return nil
}

// awaitIndex returns the page for q, and waits for an entry if q says so and there is none.
func (m *Mirror) awaitIndex(ctx context.Context, q feed.Query) (indexPage, error) {
	end := time.Now().Add(q.Wait)
	for {
		wake := m.config.Feed.Wake()
		p, err := m.indexPage(ctx, q)
		if err != nil || p.entries > 0 || !time.Now().Before(end) || !m.untilChange(ctx, wake, end) {
			return p, err
		}
	}
}

// untilChange waits until the catalog may have changed, and reports whether it is worth looking.
func (m *Mirror) untilChange(ctx context.Context, wake <-chan struct{}, end time.Time) bool {
	select {
	case m.waiting <- struct{}{}:
		defer func() { <-m.waiting }()
	default:
		return false
	}
	late := time.NewTimer(time.Until(end))
	defer late.Stop()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for !m.draining.Load() {
		select {
		case <-wake:
			return true
		case <-tick.C:
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// indexPage returns the page for q as the catalog is now. What it holds of the catalog's end is read first: so the page is
// complete up to there, whatever comes meanwhile.
func (m *Mirror) indexPage(ctx context.Context, q feed.Query) (p indexPage, err error) {
	select {
	case m.indexes <- struct{}{}:
		defer func() { <-m.indexes }()
	case <-ctx.Done():
		return p, context.Cause(ctx)
	}
	f := m.config.Feed
	if p.through, err = f.Clock(ctx); err != nil {
		return p, err
	}
	from, err := f.SeqAt(ctx, q.Since)
	if err != nil {
		return p, err
	}
	total, err := f.SeqAt(ctx, p.through.Add(time.Nanosecond))
	if err != nil {
		return p, err
	}
	p.cluster = f.Cluster()
	return p, m.fill(ctx, &p, q, from, total)
}

// fill adds the entries from a place on. It does not go past a row that is damaged: who follows would never hear of it.
func (m *Mirror) fill(ctx context.Context, p *indexPage, q feed.Query, from, total int64) error {
	limit := q.Limit
	if limit == 0 {
		limit = feed.MaxLimit
	}
	var last time.Time
	for c, err := range m.config.Feed.Changes(ctx, from) {
		damaged := errors.Is(err, artifact.ErrDamaged) && last.After(q.Since) // the next page says it
		if err != nil && !damaged {
			return err
		}
		if damaged || p.entries == limit {
			p.through, p.behind = last, max(total-c.Seq, 1)
			return nil
		}
		if module.MatchPrefixPatterns(m.config.Private, c.Manifest.Module.Path) {
			continue
		}
		if p.lines, err = feed.EntryOf(c, q.Parts).AppendTo(p.lines); err != nil {
			return err
		}
		p.entries++
		last = c.At
	}
	if last.After(p.through) { // it came meanwhile
		p.through = last
	}
	return nil
}
