//go:build soak && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestSoak is what `make soak` runs: a mirror under a mix of all that clients do, for SOAK (default 30m), whose memory and
// goroutines must come back to what they were after a tenth of that time. Everything is on loopback.
func TestSoak(t *testing.T) {
	total := 30 * time.Minute
	if v := os.Getenv("SOAK"); v != "" {
		var err error
		if total, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	s := newSite(t)
	s.plain()
	for i := range 200 {
		s.add(fmt.Sprintf("example.com/m%d@v1.0.0\n-- go.mod --\nmodule example.com/m%d\n-- a.go --\npackage a\n", i, i))
	}
	p := s.start("--list-ttl", "5s")
	soak(t, s, p, total/10)
	base := rest(t, s, p)
	soak(t, s, p, total-total/10)
	end := rest(t, s, p)
	t.Logf("after a tenth: %+v, at the end: %+v", base, end)
	if end.goroutines > base.goroutines+20 {
		t.Errorf("%v goroutines, %v after a tenth of the time", end.goroutines, base.goroutines)
	}
	if end.heap > base.heap+24 {
		t.Errorf("%.0f MB of memory, %.0f after a tenth of the time", end.heap, base.heap)
	}
	if err := p.stop(time.Minute); err != nil {
		t.Error(err)
	}
	if out, err := exec.CommandContext(t.Context(), s.bin, "fsck", "--data-dir", s.data).CombinedOutput(); err != nil {
		t.Errorf("fsck: %v\n%s", err, out)
	}
}

// state is what must not grow: goroutines, and MB of memory that no file stands behind.
type state struct{ goroutines, heap float64 }

// rest returns p's state once its idle connections are gone.
func rest(t *testing.T, s *site, p *process) state {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 60 {
		if metricOf(t, s, p, "modmirror_connections_open") <= 2 {
			break
		}
		<-tick.C
	}
	return state{metricOf(t, s, p, "go_goroutines"), rss(t, p, "RssAnon")}
}

// soak has clients of every kind at work for d.
func soak(t *testing.T, s *site, p *process, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	known := func() string { return fmt.Sprintf("/example.com/m%d", rand.IntN(200)) }
	for _, kind := range []struct {
		path   func() string
		status int
		pause  time.Duration
	}{
		{func() string { return known() + "/@v/v1.0.0.mod" }, 200, 0},
		{func() string { return known() + "/@v/v1.0.0.info" }, 200, 0},
		{func() string { return known() + "/@v/v1.0.0.zip" }, 200, 0},
		{func() string { return known() + "/@v/list" }, 200, 0},
		{func() string { return "/sumdb/" + databaseName + "/lookup" + known() + "@v1.0.0" }, 200, 0},
		{func() string { return fmt.Sprintf("/example.com/x%x/@v/list", rand.Uint64()) }, 404, time.Millisecond},
		{func() string { return fmt.Sprintf("/example.com/x%x/@v/v1.0.0.mod", rand.Uint64()) }, 404, time.Millisecond},
		{func() string { return "/127.0.0.1/@v/list" }, 400, time.Millisecond},
		{func() string { return "/metrics" }, 200, 50 * time.Millisecond},
	} {
		for range 2 {
			g.Go(func() error {
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				for ctx.Err() == nil {
					if err := askFor(ctx, client, p.url+kind.path(), kind.status); err != nil && ctx.Err() == nil {
						return err
					}
					pause(ctx, kind.pause)
				}
				return nil
			})
		}
	}
	g.Go(func() error { // what is new comes in all the time
		for ctx.Err() == nil {
			m := s.add(fmt.Sprintf("example.com/n%x@v1.0.0\n-- go.mod --\nmodule example.com/n\n-- a.go --\npackage a\n", rand.Uint64()))
			for _, file := range []string{"info", "mod", "zip"} {
				if err := askFor(ctx, http.DefaultClient, p.url+"/"+m.Path+"/@v/v1.0.0."+file, 200); err != nil && ctx.Err() == nil {
					return err
				}
			}
			pause(ctx, 100*time.Millisecond)
		}
		return nil
	})
	g.Go(func() error { // clients that go away in the middle
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Microsecond)
			err := askFor(short, http.DefaultClient, p.url+known()+"/@v/v1.0.0.zip", 200)
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func askFor(ctx context.Context, client *http.Client, url string, status int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != status {
		return fmt.Errorf("%s: %s, want %d", url, resp.Status, status)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}
