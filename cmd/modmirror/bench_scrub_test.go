//go:build bench && linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// TestBenchScrub is what `make bench-scrub` runs: how long a client waits for a blob that has rotted, how fast a scrub is, and what it
// costs while it waits. It needs no tools but sha256sum and dd.
func TestBenchScrub(t *testing.T) {
	var rows []row
	add := func(r row) {
		rows = append(rows, r)
		fmt.Printf("%s: %v %v\n", r.what, r.peer, r.mirror)
	}
	const rounds = 5
	sizes := []int{50_000, 7_340_000, 64_200_000}
	s := newClusterSite(t, 3)
	s.plain()
	var zips []module.Version
	for i, size := range sizes {
		zips = append(zips, s.addSized(fmt.Sprintf("example.com/zip%d", i), size))
	}
	s.run()
	s.voters(3)
	single := newSite(t)
	single.plain()
	for i, size := range sizes {
		single.addSized(fmt.Sprintf("example.com/zip%d", i), size)
	}
	alone := single.start()
	for i, m := range zips {
		path := artifactPath(m, artifact.Zip)
		ref := artifact.RefOf([]byte(s.want(s.nodes[0].process, path, 200)))
		single.want(alone, path, 200)
		n := s.nodes[1]
		s.await("blob at "+n.name, func() bool { return intactBlob(storedBlob(n.dir, ref)) }, n.output)
		s.want(n.process, path, 200)
		var whole, peer, upstream samples
		for range rounds {
			whole = append(whole, timed(t, n.url+path))
			tearBlob(t, storedBlob(n.dir, ref))
			peer = append(peer, timed(t, n.url+path))
			tearBlob(t, storedBlob(single.data, ref))
			upstream = append(upstream, timed(t, alone.url+path))
		}
		what := fmt.Sprintf("GET of a zip of %.3g MB that has rotted, healed from ", float64(sizes[i])/1e6)
		if sizes[i] <= 64<<10 {
			what = fmt.Sprintf("GET of a zip of %.3g MB, in memory, whose blob has rotted, healed from ", float64(sizes[i])/1e6)
		}
		add(row{what + "a peer, ms (compared with an intact one)", whole, peer, aim{}})
		add(row{what + "the upstream, ms (compared with an intact one)", whole, upstream, aim{}})
	}

	var files []string
	total := 0.0
	for i := range 30 {
		m := single.addSized(fmt.Sprintf("example.com/many%d", i), 7_340_000)
		single.want(alone, artifactPath(m, artifact.Zip), 200)
	}
	files = storedBlobs(t, single.data)
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			total += float64(fi.Size())
		}
	}
	single.end(alone)
	port, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	alone = single.start("--peer-listen", port)
	var sum, scrub samples
	for range rounds {
		for _, f := range files { // memory is not asked
			if out, err := exec.Command("dd", "if="+f, "iflag=nocache", "count=0", "status=none").CombinedOutput(); err != nil {
				t.Fatalf("dd: %v\n%s", err, out)
			}
		}
		begin := time.Now()
		if out, err := exec.Command("sha256sum", files...).CombinedOutput(); err != nil {
			t.Fatalf("sha256sum: %v\n%s", err, out)
		}
		sum = append(sum, total/1e6/time.Since(begin).Seconds())
		scrub = append(scrub, total/1e6/single.scrubOnce(alone, port).Seconds())
	}
	add(row{fmt.Sprintf("scrub of %.0f MB in %d blobs, MB/s (compared with sha256sum)", total/1e6, len(files)), sum, scrub, ratioAtLeast(0.9)})
	single.end(alone)

	var off, on samples
	for range rounds {
		off = append(off, single.idleCost("--scrub-every", "0"))
		on = append(on, single.idleCost())
	}
	add(row{"an idle node, CPU, % of one core (compared with --scrub-every 0)", off, on, aim{}})
	fmt.Println()
	writeTable(os.Stdout, "compared with", "modmirror", rows)
}

// addSized adds a module whose zip has about so many bytes, which cannot be compressed.
func (s *site) addSized(path string, size int) module.Version {
	m := module.Version{Path: path, Version: "v1.0.0"}
	data := make([]byte, size-600)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", path)))).Read(data) // never fails
	mod := fmt.Sprintf("module %s\n\ngo 1.21\n", path)
	s.up.AddZip(m, mirrortest.Zip(m, map[string]string{"go.mod": mod, "data.bin": string(data)}), []byte(mod), nil)
	zip, sum := s.up.Sums(m)
	s.db.Add(m, zip, sum)
	return m
}

func storedBlob(data string, ref artifact.Ref) string {
	h := ref.Digest.String()
	return filepath.Join(data, "blobs", "sha256", h[:2], h)
}

// tearBlob changes a bit so that a node that runs reads the blob again.
func tearBlob(t *testing.T, file string) {
	t.Helper()
	rotBlob(t, file)
	if err := os.Chtimes(file, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// timed returns how many milliseconds a GET takes that must be answered well.
func timed(t *testing.T, url string) float64 {
	t.Helper()
	begin := time.Now()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 || n != resp.ContentLength {
		t.Fatalf("GET %s: %s, %d bytes, %v", url, resp.Status, n, err)
	}
	return float64(time.Since(begin).Microseconds()) / 1e3
}

// scrubOnce has a node scrub, and returns how long that took, by its own word.
func (s *site) scrubOnce(p *process, peer string) time.Duration {
	s.t.Helper()
	out, code := s.command("scrub", "--json", "--peer", peer, "--data-dir", s.data)
	if code != 0 {
		s.t.Fatalf("scrub: %d\n%s", code, out)
	}
	var st status
	if err := json.Unmarshal([]byte(s.want(p, "/status", 200)), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Scrub.Ended.Sub(st.Scrub.Done)
}

// idleCost returns what a node costs while nobody asks for anything, in percent of a processor.
func (s *site) idleCost(args ...string) float64 {
	s.t.Helper()
	p := s.start(args...)
	defer s.end(p)
	pids := []int{p.cmd.Process.Pid}
	time.Sleep(2 * time.Second) // it has just started
	const span = 4 * time.Second
	before, err := cpuOf(pids)
	if err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(span) // what it costs to wait
	after, err := cpuOf(pids)
	if err != nil {
		s.t.Fatal(err)
	}
	return 100 * (after - before).Seconds() / span.Seconds()
}
