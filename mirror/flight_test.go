package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Who waits for work that takes its time to end is answered before it has ended.
func TestCloseAnswersFirst(t *testing.T) {
	stubborn, asked := make(chan struct{}), make(chan struct{})
	g := newRig(t, func(c *Config) {
		c.Upstream = source{fetch: func(context.Context, module.Version, artifact.Kind, func(io.Reader, int64, string) error) error {
			close(asked)
			<-stubborn
			return artifact.ErrUnavailable
		}}
	})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		g.want(helloPath+"v1.0.0.zip", 503, "shutting down")
	}()
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan error)
	go func() { closed <- g.Close(ctx) }()
	<-answered
	close(stubborn)
	if err := <-closed; !errors.Is(err, context.Canceled) {
		t.Errorf("Close = %v", err)
	}
}

// The number of fetches and of those that wait for one is bounded; what is held does not wait behind them.
func TestQueue(t *testing.T) {
	g := newRig(t, func(c *Config) { c.MaxFetches, c.MaxQueue = 1, 2 })
	a := g.add("example.com/a@v1.0.0\n-- go.mod --\nmodule example.com/a\n")
	g.add("example.com/b@v1.0.0\n-- go.mod --\nmodule example.com/b\n")
	g.want(helloPath+"v1.0.0.mod", 200, "")
	g.up.Stall(a, artifact.Mod, 1)
	var wg sync.WaitGroup
	wg.Go(func() { g.want("/example.com/a/@v/v1.0.0.mod", 200, "") })
	if err := g.up.Await(t.Context(), "/example.com/a/@v/v1.0.0.mod", 1); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { g.want("/example.com/b/@v/v1.0.0.mod", 200, "") })
	eventually(t, func() bool { return len(g.flights.queue) == 2 })
	g.want("/example.com/a/@v/v1.0.0.info", 503, "under way")
	g.want(helloPath+"v1.0.0.mod", 200, "")
	g.start(func(c *Config) { c.MaxQueue = 2 })
	g.want(helloPath+"v1.0.0.mod", 200, "")
	g.up.Heal()
	wg.Wait()
}

// Close waits for fetches; when its context ends it cancels them. What is held is served all the time.
func TestClose(t *testing.T) {
	g := newRig(t)
	g.want(helloPath+"v1.0.0.mod", 200, "")
	g.up.Stall(helloV, artifact.Zip, 1)
	var wg sync.WaitGroup
	for range 3 { // the first, and two who joined: all get an answer, though there is nothing to answer with
		wg.Go(func() {
			if a := g.want(helloPath+"v1.0.0.zip", 503, "shutting down"); a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
	if err := g.up.Await(t.Context(), helloPath+"v1.0.0.zip", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return g.gauge("requests_in_flight") == 3 })
	g.want("/readyz", 200, "ready")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("time is up")
	cancel(why)
	if err := g.Close(ctx); !errors.Is(err, why) {
		t.Errorf("Close = %v", err)
	}
	wg.Wait()
	g.want("/readyz", 503, "draining")
	g.want("/healthz", 200, "ok")
	g.want(helloPath+"v1.0.0.mod", 200, "")
	g.want(helloPath+"v1.0.0.info", 503, "shutting down")
	g.nothingPending()
}

// Who waits for work that was over before Close had to give up gets what came of it, also if Close is faster than the news.
func TestCloseInTime(t *testing.T) {
	f := newFlights(1, slog.New(slog.DiscardHandler))
	work, end := make(chan struct{}), make(chan struct{})
	got := make(chan error)
	go func() {
		l, err := fly(t.Context(), f, "key", time.Minute, time.Minute, make(chan struct{}, 1), func(context.Context) (string, error) {
			close(work)
			<-end
			return "done", nil
		})
		if err == nil && l.value != "done" {
			err = fmt.Errorf("value %q", l.value)
		}
		got <- err
	}()
	<-work
	f.stop() // the last that close does; the work is still to be over, so that nothing is left to chance
	select {
	case err := <-got:
		t.Fatalf("the passenger left with %v", err)
	default:
	}
	close(end)
	if err := <-got; err != nil {
		t.Errorf("the passenger got %v", err)
	}
}

// Work that was cancelled by Close says why it ended.
func TestCancelledWork(t *testing.T) {
	f := newFlights(1, slog.New(slog.DiscardHandler))
	_, err := f.run(time.Minute, make(chan struct{}, 1), func(ctx context.Context) (any, error) {
		f.stop()
		return nil, fmt.Errorf("fetch: %w", ctx.Err())
	})
	if err != errClosing {
		t.Errorf("run = %v, want %v", err, errClosing)
	}
	if _, err := f.run(time.Minute, make(chan struct{}), nil); err != errClosing {
		t.Errorf("run without a slot = %v, want %v", err, errClosing)
	}
}

func (g *rig) nothingPending() {
	g.t.Helper()
	if n := len(g.flights.queue) + len(g.small) + len(g.zips) + len(g.checks); n != 0 {
		g.t.Errorf("%d places are still taken", n)
	}
}
