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
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestSoak is what `make soak` runs: a mirror under a mix of all that clients do, for SOAK (default 30m). Its goroutines must
// come back to what they were before. Its memory is that of its caches, which say what they take and have bounds that follow from
// --cache-memory, of the collector, which lets the heap grow to twice of what is in use, and of what it takes besides: that
// must not grow after a tenth of the time. Everything is on loopback.
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
	p := s.start("--list-ttl", "5s", "--cache-memory", strconv.Itoa(soakMemory))
	before := rest(t, s, p, 0)
	t.Logf("before: %v", before)
	var first, now state
	for part := range 10 {
		soak(t, s, p, total/10)
		if now = rest(t, s, p, 0); part == 9 {
			now = rest(t, s, p, before.goroutines)
		}
		t.Logf("after %v: %v", total/10*time.Duration(part+1), now)
		if part == 0 {
			first = now
		}
	}
	if now.goroutines > before.goroutines {
		t.Errorf("%v goroutines, %v before", now.goroutines, before.goroutines)
	}
	if now.besides > first.besides+8 {
		t.Errorf("%.0f MB are in use besides the caches, %.0f after a tenth of the time", now.besides, first.besides)
	}
	const caches = soakMemory*2.5 + 10 + 17 // as the README says; there are few tiles
	if now.caches > caches {
		t.Errorf("the caches take %.0f MB, more than %v", now.caches, caches)
	}
	if limit := 2*(caches+max(first.besides, 8)) + 24; now.rss > limit {
		t.Errorf("%.0f MB of memory, more than %.0f", now.rss, limit)
	}
	if err := p.stop(time.Minute); err != nil {
		t.Error(err)
	}
	if out, err := exec.CommandContext(t.Context(), s.bin, "fsck", "--data-dir", s.data).CombinedOutput(); err != nil {
		t.Errorf("fsck: %v\n%s", err, out)
	}
}

// soakMemory is the --cache-memory of the soak, in MiB: so little that the caches are full soon.
const soakMemory = 4

// state is what must not grow: goroutines, and memory in MiB.
type state struct {
	goroutines float64
	rss        float64 // that no file stands behind
	caches     float64 // what they say
	besides    float64 // of the heap in use when it was last collected, what is not of the caches
}

func (s state) String() string {
	return fmt.Sprintf("%v goroutines, RssAnon %.1f MiB, caches %.1f MiB, heap besides %.1f MiB", s.goroutines, s.rss, s.caches, s.besides)
}

// rest returns p's state once its idle connections to clients are gone and, unless that is 0, no more than so many goroutines
// are left: those of connections to the upstream end when these have been idle for a while. It waits three minutes at most.
func rest(t *testing.T, s *site, p *process, goroutines float64) state {
	t.Helper()
	const mib = 1 << 20
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var now state
	for range 180 {
		http.DefaultClient.CloseIdleConnections()
		metrics := s.want(p, "/metrics", 200)
		now = state{goroutines: sumMetric(t, metrics, "go_goroutines"), rss: rss(t, p, "RssAnon") * 1e6 / mib,
			caches: (sumMetric(t, metrics, "modmirror_mirror_cache_bytes") + sumMetric(t, metrics, "modmirror_sumdb_cache_bytes")) / mib}
		now.besides = sumMetric(t, metrics, "go_memstats_next_gc_bytes")/2/mib - now.caches
		if sumMetric(t, metrics, "modmirror_connections_open") <= 2 && (now.goroutines <= goroutines || goroutines == 0) {
			break
		}
		<-tick.C
	}
	return now
}

// sumMetric returns the sum of all series of a metric.
func sumMetric(t *testing.T, metrics, name string) (sum float64) {
	t.Helper()
	for line := range strings.Lines(metrics) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(series, "{"); base != name {
			continue
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += f
	}
	return sum
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
			s.up.Reset() // it remembers every request
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
