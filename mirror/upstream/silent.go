package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

const (
	// silentAfter is how many questions in a row have to stay without any answer before an entry counts as silent. One is what a
	// connection that broke looks like, two the same tried again. An upstream that lives, however slow or however many of its
	// answers are errors, answers one of several.
	silentAfter = 3

	silentLeast = 5 * time.Second // a question that had less time than that to be answered says nothing
)

// errBusy is matched by the error of a question that was not asked, because there are too many under way.
var errBusy = errors.New("too many requests")

// watched is a source of which is known whether it answers.
type watched struct {
	source

	mu         sync.Mutex
	unanswered int       // guarded by mu, as what follows; questions in a row
	since      time.Time // when the first of them was asked
	err        error     // of the last
}

func (w *watched) open(ctx context.Context, q question) (*answer, error) {
	begin := time.Now()
	a, err := w.source.open(ctx, q)
	w.note(begin, err)
	return a, err
}

// note remembers what came of a question. An answer of any kind is one; that whoever asked has gone away says nothing.
func (w *watched) note(begin time.Time, err error) {
	e := (*Error)(nil)
	answered := err == nil || !errors.As(err, &e) || e.Status != 0
	if !answered && !e.asked.IsZero() {
		begin = e.asked
	}
	late := errors.Is(err, context.DeadlineExceeded) && time.Since(begin) < silentLeast
	if !answered && (late || errors.Is(err, context.Canceled) || errors.Is(err, errBusy)) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if answered {
		w.unanswered, w.err = 0, nil
		return
	}
	if w.unanswered++; w.unanswered == 1 {
		w.since = begin
	}
	w.err = err
}

// silent returns why the source counts as silent, or nil if it does not.
func (w *watched) silent() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unanswered < silentAfter {
		return nil
	}
	return fmt.Errorf("no answer since %s: %w: %w", w.since.UTC().Format(time.RFC3339), w.err, artifact.ErrUnavailable)
}

// Silent returns why nothing that this list is asked gets an answer, or nil if some did lately, or nothing was asked. An entry
// that a silent one never leads to does not count.
func (l *List) Silent() (err error) {
	for _, e := range l.entries {
		why := e.src.silent()
		if why == nil {
			return nil
		}
		if err == nil {
			err = why
		}
		if !e.fallback {
			break
		}
	}
	return err
}

// Probe asks the silent entries for nothing in particular: whatever one answers, it is not silent any more.
func (l *List) Probe(ctx context.Context) {
	for _, e := range l.entries {
		if e.src.silent() == nil {
			continue
		}
		if a, err := e.src.open(ctx, question{kind: "probe", path: "/"}); err == nil {
			a.body.Close()
		}
	}
}
