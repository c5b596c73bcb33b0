package feed

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"modmirror/mirror/artifact"
)

// Waits between two tries of what is owed. What was refused is likely to be refused again.
const (
	firstRetry   = 2 * time.Second
	lastRetry    = 10 * time.Minute
	lastRefused  = time.Hour
	retryEvery   = 200 * time.Millisecond
	maxReason    = 400
	retryAtATime = 2
)

// owe adds an entry to what is owed, or to what is known of it. It reports whether there is room. The caller holds mu.
func (f *Follower) owe(e Entry, err error, refused bool, now time.Time) bool {
	i := slices.IndexFunc(f.state.Owed, func(o Owed) bool { return o.module() == e.Module() })
	if i < 0 {
		if len(f.state.Owed) >= f.room {
			return false
		}
		f.state.Owed = append(f.state.Owed, Owed{Path: e.Path, Version: e.Version, First: now})
		i = len(f.state.Owed) - 1
		f.log.Warn("a version of the feed could not be had; it is tried again, and the others go on",
			"module", e.Path, "version", e.Version, "refused", refused, "err", artifact.Truncate(err.Error(), maxReason))
	}
	o := &f.state.Owed[i]
	if !o.At.After(e.Timestamp) {
		o.At, o.Parts = e.Timestamp, e.Parts
	}
	o.Refused, o.Reason = refused, artifact.Truncate(err.Error(), maxReason)
	o.Tries++
	o.run++
	o.trying = false
	last := lastRetry
	if refused {
		last = lastRefused
	}
	wait := min(firstRetry<<min(o.Tries-1, 20), last)
	if f.config.Once {
		wait = min(wait, firstRetry)
	}
	o.next = now.Add(wait/2 + rand.N(wait/2+1))
	f.dirty = true
	return true
}

// forgive takes an entry off what is owed: it is here, or not wanted. A newer one of the version stays, as it may have more
// parts. The caller holds mu.
func (f *Follower) forgive(e Entry) {
	before := len(f.state.Owed)
	f.state.Owed = slices.DeleteFunc(f.state.Owed, func(o Owed) bool { return o.module() == e.Module() && !o.At.After(e.Timestamp) })
	f.dirty = f.dirty || len(f.state.Owed) < before
}

func (f *Follower) hasRoom() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.state.Owed) < f.room
}

// triedAll reports whether all that is owed was tried in vain often enough for now.
func (f *Follower) triedAll() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !slices.ContainsFunc(f.state.Owed, func(o Owed) bool { return o.trying || o.run < onceTries })
}

// retry tries what is owed again, a few at a time, until ctx ends.
func (f *Follower) retry(ctx context.Context) {
	slots := make(chan struct{}, retryAtATime)
	for pause(ctx, retryEvery) {
		for ctx.Err() == nil { // what is cut off by its end is due again at once
			e, ok := f.due()
			if !ok {
				break
			}
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				f.again(e, f.acquire(ctx, e), ctx.Err() != nil)
			}()
		}
		f.save(false)
	}
	for range retryAtATime {
		slots <- struct{}{}
	}
}

// due returns something that is to be tried now.
func (f *Follower) due() (Entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for i := range f.state.Owed {
		if o := &f.state.Owed[i]; !o.trying && !now.Before(o.next) {
			o.trying = true
			return o.entry(), true
		}
	}
	return Entry{}, false
}

// again notes the end of another try.
func (f *Follower) again(e Entry, err error, cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.state.Owed, func(o Owed) bool { return o.module() == e.Module() })
	switch {
	case i < 0: // an entry of the feed was faster
	case cut && err != nil, !f.state.Owed[i].At.Equal(e.Timestamp): // not tried to the end, or a newer entry of it came meanwhile
		f.state.Owed[i].trying = false
	case err == nil:
		f.forgive(e)
		f.metrics.entries.WithLabelValues(outcomeDone).Inc()
		f.log.Info("a version of the feed that could not be had before is here", "module", e.Path, "version", e.Version)
	default:
		f.owe(e, err, isRefusal(err), time.Now())
	}
}
