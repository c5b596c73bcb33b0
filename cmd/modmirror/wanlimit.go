package main

import (
	"context"
	"io"
	"sync"
	"time"

	"modmirror/mirror"
)

// wanLimit bounds what this node takes out of other zones in the background: --wan-limit and --wan-schedule. What a client or a
// commit waits for is never held up by it, but counts: the background makes room for it, down to [wanFloor] of the limit, as who
// takes more than the limit for ever would otherwise keep this node from ever having the rest. It is a bucket of bytes that fills
// with the limit of the moment; what is looked at again every second, so that a limit that changes does so for pulls that wait.
type wanLimit struct {
	limit func(now time.Time) int64 // bytes a second; 0: none

	mu     sync.Mutex // guards all below
	tokens float64    // bytes that the background may take at once; below zero: bytes that it took ahead of their time
	debt   float64    // bytes that somebody waited for, and that the background has yet to make room for
	rate   int64      // the limit since filled
	filled time.Time
}

const (
	wanBurst   = 256 << 10        // bytes
	wanDebt    = 10 * time.Second // for so much, at the limit, the background makes room at most once nobody waits for anything any more
	wanFloor   = 0.1              // the part of the limit that the background has while it makes room
	wanRecheck = time.Second
)

func newWANLimit(c clusterConfig) *wanLimit {
	return &wanLimit{limit: func(now time.Time) int64 { return c.WANSchedule.at(now, int64(c.WANLimit)) }, tokens: wanBurst}
}

// take counts n bytes of the background, and returns how long it has to wait before it takes more.
func (l *wanLimit) take(now time.Time, n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.fill(now) {
		return 0
	}
	l.tokens -= float64(n)
	ahead, meanwhile := max(-l.tokens, 0), l.debt*wanFloor/(1-wanFloor) // bytes; the second come in until there is no debt
	slow := min(ahead, meanwhile)
	return time.Duration((slow/wanFloor + ahead - slow) / float64(l.rate) * float64(time.Second))
}

// note counts n bytes that somebody waits for.
func (l *wanLimit) note(now time.Time, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fill(now) {
		saved := min(max(l.tokens, 0), float64(n))
		l.tokens -= saved
		l.debt += float64(n) - saved
	}
}

// fill is what time does to the bucket, and reports whether there is a limit now. The caller holds mu.
func (l *wanLimit) fill(now time.Time) bool {
	if !l.filled.IsZero() {
		in := float64(l.rate) * max(now.Sub(l.filled), 0).Seconds()
		l.debt = min(l.debt, float64(l.rate)*wanDebt.Seconds())
		paid := min(l.debt, in*(1-wanFloor))
		l.debt -= paid
		l.tokens = min(l.tokens+in-paid, wanBurst)
	}
	l.filled, l.rate = now, l.limit(now)
	if l.rate == 0 {
		l.tokens, l.debt = wanBurst, 0
	}
	return l.rate != 0
}

// wait counts n bytes of the background, and returns when more may be taken.
func (l *wanLimit) wait(ctx context.Context, n int) error {
	for wait := l.take(time.Now(), n); wait > 0; wait = l.take(time.Now(), 0) {
		t := time.NewTimer(min(wait, wanRecheck))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}

// body returns r, which comes out of another zone, as it is to be read. a is the blob's arrival; it may be nil.
func (l *wanLimit) body(r io.Reader, b *mirror.Background, a *arrival) io.Reader {
	return &wanBody{r, l, b, a}
}

// wanBody implements [mirror.Slowed].
type wanBody struct {
	io.Reader
	limit      *wanLimit
	background *mirror.Background // nil: somebody waits for it
	arrival    *arrival           // nil: nobody wants to know
}

func (b *wanBody) Pace(ctx context.Context, n int) error {
	select {
	case <-b.background.Hurried():
		b.limit.note(time.Now(), n)
		return nil
	default:
	}
	if b.arrival != nil {
		b.arrival.held.Store(true)
		defer b.arrival.held.Store(false)
	}
	return b.background.Unhurried(ctx, func(ctx context.Context) error { return b.limit.wait(ctx, n) })
}

// counted returns r, which is spread to this node out of another zone: a commit waits for it.
func (l *wanLimit) counted(r io.Reader) io.Reader { return &wanCounted{r, l} }

type wanCounted struct {
	io.Reader
	limit *wanLimit
}

func (c *wanCounted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.limit.note(time.Now(), n)
	return n, err
}
