package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"modmirror/mirror/artifact"
)

// flights joins equal work: of all that ask for the same key at the same time, one does it. The work runs on a context
// of its own, bounded by a budget, so that it survives the client who asked first; each client waits as long as it
// likes. At most cap(queue) pieces of work run or wait for a slot at any time.
type flights struct {
	group singleflight.Group
	base  context.Context // ends when Close gives up waiting, or all work is over
	stop  context.CancelFunc

	patience context.Context // ends when Close gives up waiting: the passengers leave
	giveUp   context.CancelFunc

	queue chan struct{}
	log   *slog.Logger

	mu      sync.Mutex // guards closed, and running.Add against running.Wait
	closed  bool
	running sync.WaitGroup
}

func newFlights(queue int, log *slog.Logger) *flights {
	f := &flights{queue: make(chan struct{}, queue), log: log}
	f.base, f.stop = context.WithCancel(context.Background())
	f.patience, f.giveUp = context.WithCancel(context.Background())
	return f
}

// landed is the outcome of a flight for one of its passengers.
type landed[T any] struct {
	value  T
	joined bool // somebody else's work
}

// waitError says that a client's patience ended before the work did. It is a deadline for statusOf.
type waitError struct{ wait time.Duration }

func (e *waitError) Error() string {
	return fmt.Sprintf("not ready after %v; the work goes on, ask again", e.wait)
}
func (e *waitError) Unwrap() error { return context.DeadlineExceeded }

// errClosing is for what can neither begin nor end any more.
var errClosing = fmt.Errorf("the mirror is shutting down: %w", artifact.ErrUnavailable)

// budgetError is the cause of a context whose time for some work is over.
type budgetError struct{ budget time.Duration }

func (e *budgetError) Error() string { return fmt.Sprintf("not done within %v", e.budget) }
func (e *budgetError) Unwrap() error { return context.DeadlineExceeded }

// inTime says who did not answer in time if that is why there is err, the details of which are logged. A developer is
// not helped by the words of our HTTP client.
func (f *flights) inTime(ctx context.Context, who string, err error) error {
	late := (*budgetError)(nil)
	if err == nil || isRefusal(err) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(context.Cause(ctx), &late) {
		return err
	}
	f.log.Info("no answer in time", "who", who, "after", late.budget, "err", err)
	return fmt.Errorf("%s did not answer within %v: %w", who, late.budget, context.DeadlineExceeded)
}

// fly does work under key, or joins whoever does it, and waits for the outcome at most wait and as long as ctx lives.
// The work waits for a place in slots first, with the budget that it then has left.
func fly[T any](ctx context.Context, f *flights, key string, wait, budget time.Duration, slots chan struct{}, work func(context.Context) (T, error)) (landed[T], error) {
	mine := false
	done := f.group.DoChan(key, func() (any, error) {
		mine = true
		return f.run(budget, slots, func(ctx context.Context) (any, error) { return work(ctx) })
	})
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case r := <-done:
		out := landed[T]{joined: !mine}
		if v, ok := r.Val.(T); ok {
			out.value = v
		}
		return out, r.Err
	case <-ctx.Done():
		return landed[T]{}, context.Cause(ctx)
	case <-f.patience.Done(): // what the work still needs to end is not for its passengers to wait for
		return landed[T]{}, errClosing
	case <-timer.C:
		return landed[T]{}, &waitError{wait}
	}
}

// background does work under key like fly, and waits for nothing.
func background(f *flights, key string, budget time.Duration, slots chan struct{}, work func(context.Context) (any, error)) {
	f.group.DoChan(key, func() (any, error) { return f.run(budget, slots, work) })
}

func (f *flights) run(budget time.Duration, slots chan struct{}, work func(context.Context) (any, error)) (v any, err error) {
	if err := f.enter(); err != nil {
		return nil, err
	}
	defer f.leave()
	defer func() {
		if p := recover(); p != nil { // a bug of ours or of a parser must not take the other requests along
			v, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeoutCause(f.base, budget, &budgetError{budget})
	defer cancel()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		if f.base.Err() != nil {
			return nil, errClosing
		}
		return nil, fmt.Errorf("waited %v for other fetches to end: %w", budget, artifact.ErrUnavailable)
	}
	v, err = work(ctx)
	if err != nil && f.base.Err() != nil && errors.Is(err, context.Canceled) {
		return nil, errClosing
	}
	return v, err
}

func (f *flights) enter() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errClosing
	}
	select {
	case f.queue <- struct{}{}:
	default:
		return fmt.Errorf("%d fetches are under way or wait already: %w", cap(f.queue), artifact.ErrUnavailable)
	}
	f.running.Add(1)
	return nil
}

func (f *flights) leave() {
	<-f.queue
	f.running.Done()
}

// How long close waits for work that was cancelled: what hangs in the disk may never end.
const (
	lingering     = 30 * time.Second
	lingeringHung = 2 * time.Second // once the disk is known to have failed
)

// close lets no new work begin and waits for what is under way. When ctx ends it is cancelled, and waited for so long.
// What came of work that ended in time may still be on its way to its passengers when close returns.
func (f *flights) close(ctx context.Context, linger time.Duration) error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		f.running.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		f.giveUp()
	}
	f.stop()
	select {
	case <-done:
	case <-time.After(linger):
		err = fmt.Errorf("some work has not ended %v after it was cancelled: the disk hangs", linger)
	}
	return err
}
