package main

import (
	"archive/zip"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// rss returns how many MB of memory p has, now or at most.
func rss(t *testing.T, p *process, field string) float64 {
	t.Helper()
	mb, err := memoryOf([]int{p.cmd.Process.Pid}, field)
	if err != nil {
		t.Fatal(err)
	}
	return mb
}

// FAULTS, "a 500 MB zip streams": fetched, checked, stored and served, again and again, in less than 64 MB of memory.
func TestLargeZipStreams(t *testing.T) {
	s := newSite(t)
	s.plain()
	large := module.Version{Path: "example.com/large", Version: "v1.0.0"}
	file := filepath.Join(s.dir, "large.zip")
	want := writeLargeZip(t, file, large, 490)
	sum, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	s.db.Add(large, sum, mirrortest.ModSum([]byte("module example.com/large\n")))
	s.up.Mount("/example.com/large/@v/v1.0.0.zip", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
	}))
	s.add("example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n")
	p := s.start()
	s.want(p, "/example.com/hello/@v/v1.0.0.zip", 200)
	before := rss(t, p, "VmRSS")
	for _, round := range []string{"cold", "warm"} {
		if got := digestOf(t, p.url+"/example.com/large/@v/v1.0.0.zip"); got != want {
			t.Fatalf("%s: other bytes are served", round)
		}
		if most := rss(t, p, "VmHWM"); most-before > 64 {
			t.Errorf("%s: %.0f MB of memory, %.0f before", round, most, before)
		}
	}
}

// writeLargeZip writes a module zip with so many MiB of files that do not compress, and returns its digest.
func writeLargeZip(t *testing.T, file string, m module.Version, mib int) artifact.Digest {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	z := zip.NewWriter(io.MultiWriter(f, h))
	noise := rand.NewChaCha8([32]byte{1})
	for i := range mib {
		w, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%s@%s/%d.bin", m.Path, m.Version, i), Method: zip.Store})
		if err == nil {
			_, err = io.CopyN(w, noise, 1<<20)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := z.Create(m.Path + "@" + m.Version + "/go.mod")
	if err == nil {
		_, err = io.WriteString(w, "module "+m.Path+"\n")
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return artifact.Digest(h.Sum(nil))
}

func digestOf(t *testing.T, url string) artifact.Digest {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return artifact.Digest(h.Sum(nil))
}

// FAULTS 40: idle connections by the thousand, requests that never end, headers without end and paths that nothing is at take
// a bounded amount of memory, and keep nobody else from being answered.
func TestHostileClients(t *testing.T) {
	s := newSite(t)
	s.plain()
	s.add("example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n")
	p := s.start("--max-connections", "500", "--max-connections-per-client", "400")
	addr := strings.TrimPrefix(p.url, "http://")
	good := func(when string) {
		t.Helper()
		for _, file := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
			if status, body := s.get(p, "/example.com/hello/@v/"+file); status != 200 {
				t.Errorf("%s: %s is %d %q", when, file, status, body)
			}
		}
	}
	good("before")
	flood(t, p, 5_000) // fills what is kept of paths with nothing at them
	before := rss(t, p, "VmRSS")

	attacker := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for i := range 3_000 {
		c, err := attacker.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		switch i % 3 {
		case 1:
			io.WriteString(c, "GET /example.com/hello/@v/list HTTP/1.1\r\nHost: a\r\nX: ")
		case 2:
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
		}
	}
	good("with idle connections")
	if status := hugeHeader(t, addr); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 1 MB: %d", status)
	}
	flood(t, p, 15_000)
	good("after the flood")
	if after := rss(t, p, "VmRSS"); after-before > 48 {
		t.Errorf("%.0f MB of memory, %.0f before", after, before)
	}
	if n := metricOf(t, s, p, "modmirror_connections_open"); n > 500 {
		t.Errorf("%v connections are open", n)
	}
	if n := metricOf(t, s, p, "go_goroutines"); n > 2500 {
		t.Errorf("%v goroutines", n)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if <-p.exited; p.err != nil {
		t.Errorf("it does not end in order: %v", p.err)
	}
}

// flood asks p for n random paths, 16 at a time.
func flood(t *testing.T, p *process, n int) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(t.Context())
	for range 16 {
		g.Go(func() error {
			for range n / 16 {
				path := fmt.Sprintf("/example.com/x%x/@v/list", rand.Uint64())
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
				if err != nil {
					return err
				}
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusNotFound {
					return fmt.Errorf("%s: %s, %v", path, resp.Status, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// hugeHeader sends a request with a header of a megabyte and returns the status of the answer.
func hugeHeader(t *testing.T, addr string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Huge", strings.Repeat("a", 1<<20))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// metricOf returns the value of a metric without labels.
func metricOf(t *testing.T, s *site, p *process, name string) float64 {
	t.Helper()
	for line := range strings.Lines(s.want(p, "/metrics", 200)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
