//go:build bench && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// coldRounds is enough where a round takes many seconds.
func (b *bench) coldRounds() int { return min(b.rounds, 3) }

// cold measures the go command with empty caches against servers that have to fetch everything: nginx as a cache, and a
// modmirror, which verifies everything and has it on disk before it answers.
func (b *bench) cold(t *testing.T) {
	origin, err := startNginx(b.ctx, "static", filepath.Join(b.work, "origin"), b.tree, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, origin.stop()) })
	for _, c := range []struct {
		delay  time.Duration
		aim    aim // against a cache that verifies nothing
		direct aim // against no cache at all
	}{{0, ratioAtMost(1.3), aim{}}, {50 * time.Millisecond, ratioAtMost(0.6), ratioAtMost(1)}} {
		upstream := origin.url
		if c.delay > 0 {
			upstream = delayed(t, origin.url, c.delay)
		}
		var took [2]samples // of the peer and of modmirror
		var direct samples  // of the go command without either
		for round := range b.coldRounds() {
			for i, start := range []startFunc{b.startCache, b.startFresh} {
				d, err := b.coldOnce(start, upstream, fmt.Sprintf("cold-%v-%d-%d", c.delay, i, round))
				if err != nil {
					t.Fatal(err)
				}
				took[i] = append(took[i], d.Seconds())
			}
			d, err := b.goDownload(upstream)
			if err != nil {
				t.Fatal(err)
			}
			direct = append(direct, d.Seconds())
		}
		b.add(row{fmt.Sprintf("go mod download all, cold, upstream + %v, s (peer: proxy_cache)", c.delay), took[0], took[1], c.aim})
		b.add(row{fmt.Sprintf("the same, upstream + %v, s (peer: the upstream itself)", c.delay), direct, took[1], c.direct})
	}
}

// startFunc starts a server that holds nothing, with its files in the new directory name of b.work.
type startFunc func(upstream, name string) (*server, error)

func (b *bench) startCache(upstream, name string) (*server, error) {
	return startNginx(b.ctx, "cache", filepath.Join(b.work, name), "", upstream)
}

func (b *bench) startFresh(upstream, name string) (*server, error) {
	return b.startMirror(filepath.Join(b.work, name), upstream)
}

func (b *bench) coldOnce(start startFunc, upstream, name string) (time.Duration, error) {
	defer os.RemoveAll(filepath.Join(b.work, name)) // the rest goes with b.work
	s, err := start(upstream, name)
	if err != nil {
		return 0, err
	}
	syscall.Sync() // what earlier rounds wrote is not this one's business
	took, err := b.goDownload(s.url)
	return took, errors.Join(err, s.stop())
}

// delayed serves what origin does, every answer later by delay.
func delayed(t *testing.T, origin string, delay time.Duration) string {
	t.Helper()
	u, err := url.Parse(origin)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			proxy.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})}
	var g errgroup.Group
	g.Go(func() error { return srv.Serve(ln) })
	t.Cleanup(func() {
		_ = srv.Close() // ends Serve, whose error is known
		_ = g.Wait()
	})
	return "http://" + ln.Addr().String()
}

// crowd measures 64 clients that ask at once for one large zip that nobody has yet.
func (b *bench) crowd(t *testing.T) {
	path, size, err := b.nearest(64e6)
	if err != nil {
		t.Fatal(err)
	}
	var took, memory, fetches [2]samples // of the peer and of modmirror
	for round := range b.coldRounds() {
		for i, start := range []startFunc{b.startCache, b.startFresh} {
			seconds, mb, n, err := b.crowdOnce(t, start, path, size, fmt.Sprint("crowd-", i, "-", round))
			if err != nil {
				t.Fatal(err)
			}
			took[i], memory[i], fetches[i] = append(took[i], seconds), append(memory[i], mb), append(fetches[i], n)
		}
	}
	name := "64 cold GETs of a zip of " + number(float64(size)/1e6) + " MB"
	b.add(row{name + ", s (peer: proxy_cache)", took[0], took[1], ratioAtMost(1.5)})
	b.add(row{name + ", fetches upstream", fetches[0], fetches[1], exactly(1)})
	b.add(row{name + ", peak RSS MB", memory[0], memory[1], below(100)})
}

func (b *bench) crowdOnce(t *testing.T, start startFunc, path string, size int64, name string) (seconds, peak, fetches float64, err error) {
	t.Helper()
	origin, err := startNginx(b.ctx, "static", filepath.Join(b.work, name+"-origin"), b.tree, "")
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, origin.stop()) }()
	s, err := start(origin.counted, name)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	syscall.Sync()
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for range 64 {
		g.Go(func() error { return swallow(ctx, client, s.url+path, size) })
	}
	if err := g.Wait(); err != nil {
		return 0, 0, 0, err
	}
	seconds = time.Since(begin).Seconds()
	n, err := origin.requests(path)
	if err != nil {
		return 0, 0, 0, err
	}
	return seconds, b.memory(t, s, "VmHWM"), float64(n), nil
}

// swallow fetches url and wants size bytes of it.
func swallow(ctx context.Context, client *http.Client, url string, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (n != size || resp.StatusCode != http.StatusOK) {
		err = fmt.Errorf("%s: %s, %d bytes, want %d", url, resp.Status, n, size)
	}
	return err
}
