package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/mirrortest"
)

// FAULTS 30: five hundred clients want the same cold zip, and the first of them leaves while it is fetched. It is fetched
// once, all others get all of it, and memory does not depend on how many they are. The zip has 4 MB, not 100: what is sent to
// all of them are 2 GB. TestLargeZipStreams has a large one.
func TestCrowdForOneColdZip(t *testing.T) {
	const crowd, path = 500, "/example.com/wanted/@v/v1.0.0.zip"
	s := newSite(t)
	s.plain()
	s.add("example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n")
	wanted := module.Version{Path: "example.com/wanted", Version: "v1.0.0"}
	file := filepath.Join(s.dir, "wanted.zip")
	writeLargeZip(t, file, wanted, 4)
	sum, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s.db.Add(wanted, sum, mirrortest.ModSum([]byte("module example.com/wanted\n")))
	var fetches atomic.Int32
	begun, release := make(chan struct{}, crowd), make(chan struct{})
	s.up.Mount(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fetches.Add(1)
		begun <- struct{}{}
		w.Write(want[:len(want)/2])
		w.(http.Flusher).Flush()
		select {
		case <-release:
			w.Write(want[len(want)/2:])
		case <-r.Context().Done():
		}
	}))
	p := s.start()
	s.want(p, "/example.com/hello/@v/v1.0.0.zip", 200)
	before := rss(t, p, "VmHWM")

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	first := make(chan error, 1)
	go func() { first <- fetchEqual(ctx, p.url+path, want) }()
	<-begun
	g, others := errgroup.WithContext(t.Context())
	for range crowd - 1 {
		g.Go(func() error { return fetchEqual(others, p.url+path, want) })
	}
	awaitMetrics(t, s, p, func(text string) bool { return metricIn(text, "modmirror_mirror_requests_in_flight ") >= crowd+1 }) // and this one
	leave()
	if err := <-first; err == nil {
		t.Error("the first client got an answer")
	}
	gone := `modmirror_mirror_requests_total{class="zip",code="other",outcome="gone"} `
	awaitMetrics(t, s, p, func(text string) bool { return metricIn(text, gone) == 1 })
	close(release)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	if n := metricIn(s.want(p, "/metrics", 200), `modmirror_mirror_requests_total{class="zip",code="200",outcome="joined"} `); n != crowd-1 {
		t.Errorf("%v clients joined the fetch", n)
	}
	if most := rss(t, p, "VmHWM"); most-before > 64 {
		t.Errorf("%.0f MB of memory, %.0f before", most, before)
	}
}

// awaitMetrics waits until what /metrics says is good.
func awaitMetrics(t *testing.T, s *site, p *process, good func(text string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !good(s.want(p, "/metrics", 200)) {
		select {
		case <-ctx.Done():
			t.Fatalf("it never comes about:\n%s", s.want(p, "/metrics", 200))
		case <-tick.C:
		}
	}
}

// metricIn returns the value of the line of metrics that begins with series, 0 if there is none.
func metricIn(metrics, series string) (v float64) {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, series); ok {
			fmt.Sscan(value, &v)
		}
	}
	return v
}

// fetchEqual fetches url and compares what comes with want.
func fetchEqual(ctx context.Context, url string, want []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	rest, part := want, make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(part)
		if n > len(rest) || !bytes.Equal(part[:n], rest[:n]) {
			return fmt.Errorf("%s: %s: other bytes after %d", url, resp.Status, len(want)-len(rest))
		}
		if rest = rest[n:]; err == io.EOF && len(rest) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %d of %d bytes: %w", url, resp.Status, len(want)-len(rest), len(want), err)
		}
	}
}
