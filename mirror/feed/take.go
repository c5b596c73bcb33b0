package feed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"modmirror/mirror/artifact"
)

// taken is what became of one entry of a page.
type taken struct {
	index int
	err   error
}

// take acquires what a page lists, some entries at a time, and moves the cursor behind those at its beginning that are done.
// An error means that nothing can be had now, one entry after the other: the rest of the page is asked for again. Only the
// first of it is passed over each time, or a few that really cannot be had would hold the others up for ever.
func (f *Follower) take(ctx context.Context, p page) error {
	if p.atEnd() && len(p.entries) == 0 {
		f.reached(p, 0)
		return nil
	}
	done := make([]bool, len(p.entries))
	results := make(chan taken, f.config.Parallel)
	next, active, low := 0, 0, 0
	var stuck error
	for {
		for stuck == nil && ctx.Err() == nil && next < len(p.entries) && active < f.config.Parallel {
			i := next
			go func() { results <- taken{i, f.acquire(ctx, p.entries[i])} }()
			next, active = next+1, active+1
		}
		if active == 0 {
			break
		}
		r := <-results
		active--
		if ctx.Err() != nil && r.err != nil {
			continue // it was not tried to the end
		}
		if !isFailure(r.err) {
			f.failures = 0
		} else if f.failures++; f.failures >= stuckAfter && (stuck != nil || r.index > low) {
			stuck = r.err
			continue
		} else if f.failures >= stuckAfter {
			stuck = r.err
		}
		if done[r.index] = f.note(p.entries[r.index], r.err); !done[r.index] {
			stuck = r.err
		}
		for low < len(done) && done[low] {
			low++
		}
		f.reached(p, low)
		f.save(false)
		f.tell(false)
	}
	return stuck
}

// isFailure reports whether err may be about more than one entry: what was refused, or is not wanted, is so by itself.
func isFailure(err error) bool {
	return err != nil && !isRefusal(err) && !errors.Is(err, artifact.ErrPolicy)
}

// acquire brings in all that an entry says is published.
func (f *Follower) acquire(ctx context.Context, e Entry) (err error) {
	defer func() {
		if p := recover(); p != nil { // a bug must not stop the others
			err = errors.Join(err, fmt.Errorf("panic: %v", p))
		}
	}()
	for _, k := range e.Kinds() {
		err = errors.Join(err, f.acquirePart(ctx, e, k))
	}
	return err
}

func (f *Follower) acquirePart(ctx context.Context, e Entry, k artifact.Kind) error {
	if k == artifact.Zip {
		select {
		case f.zips <- struct{}{}:
			defer func() { <-f.zips }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return f.config.Target.Acquire(ctx, e.Module(), k)
}

// reached moves the cursor to entry number low of a page, which is the first that is not done.
func (f *Follower) reached(p page, low int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, through := f.state.Since, f.state.Through
	if low < len(p.entries) {
		since = p.entries[low].Timestamp
		if low > 0 {
			through = p.entries[low-1].Timestamp
		}
	} else {
		since = p.end(since)
		if p.through.After(through) {
			through = p.through
		} else if p.through.IsZero() && low > 0 {
			through = p.entries[low-1].Timestamp
		}
	}
	f.dirty = f.dirty || !since.Equal(f.state.Since)
	f.state.Since, f.state.Through, f.status.Through = since, through, through
	if p.behind >= 0 {
		f.status.Behind = p.behind + int64(len(p.entries)-low)
	}
}

// note counts the end of an entry, and reports whether the cursor may pass it: it is done, or it is owed.
func (f *Follower) note(e Entry, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Entries++
	switch {
	case err == nil:
		f.forgive(e)
		f.metrics.entries.WithLabelValues(outcomeDone).Inc()
		return true
	case errors.Is(err, artifact.ErrPolicy):
		f.status.Skipped++
		f.forgive(e)
		f.metrics.entries.WithLabelValues(outcomeSkipped).Inc()
		return true
	}
	refused := isRefusal(err)
	f.metrics.entries.WithLabelValues(outcomeOf(refused)).Inc()
	return f.owe(e, err, refused, time.Now())
}
