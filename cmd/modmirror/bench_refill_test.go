//go:build bench && linux

package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBenchRefill is what `make bench-refill` runs: a mirror with REFILL (default: 100,000) made-up module versions, whose zips
// have 50 KB on average and some MB, and a new node that joins it, on loopback. Measured is how long that takes until it holds
// the catalog and every blob, and is ready, against copies of the same directory to the same disk that end when all of it is
// durable. REFILL_ROUNDS says how often (default: 3); BENCH_DIR on which disk.
func TestBenchRefill(t *testing.T) {
	b := refillBench{clusterSite: &clusterSite{site: newSite(t)}}
	b.bin = os.Getenv("MODMIRROR_BENCH_BINARY")
	if b.bin == "" {
		t.Fatal("MODMIRROR_BENCH_BINARY is not set: run this by `make bench-refill`")
	}
	number, rounds := numberOf(t, "REFILL", 100_000), numberOf(t, "REFILL_ROUNDS", 3)
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "modmirror-refill-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.dir, b.number = dir, number
	b.source = []string{"--upstream", b.up.URL(), "--sumdb", b.db.Key()}
	b.token = b.newToken("cluster-token")
	b.stock()
	took := map[string][]float64{}
	for range rounds {
		b.round(took)
	}
	base := median(took["cp -r; sync"])
	for _, what := range []string{"cp -r; sync", "tar | tar; sync", "the catalog is here", "a new node is complete", "all of it is verified here"} {
		s := took[what]
		fmt.Printf("%-28s %7.2f s  %7.0f MB/s  %5.2f x cp  (%.2f to %.2f s)\n", what, median(s), float64(b.held.bytes)/1e6/median(s), median(s)/base, slices.Min(s), slices.Max(s))
	}
}

func numberOf(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a positive number", name, v)
	}
	return n
}

func median(s []float64) float64 {
	s = slices.Sorted(slices.Values(s))
	return s[len(s)/2]
}

// refillBench is a cluster whose first node has everything.
type refillBench struct {
	*clusterSite
	number int
	held   tally // blobs of the first node
}

// stock fills the first node, and starts it.
func (b *refillBench) stock() {
	b.t.Helper()
	began := time.Now()
	full := b.addNode()
	full.extra = []string{"--log-level", "warn"}
	stockUsual(b.t, full.dir, b.db, b.number)
	var err error
	if b.held, err = filesBelow(blobFilesOf(full)); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("stocked with %d versions, %d MB of blobs, in %v", b.number, b.held.bytes/1e6, time.Since(began).Round(time.Second))
	b.does("sync", "-f", b.dir)
	b.run(full)
}

// round copies the first node's directory, and fills a new node, once.
func (b *refillBench) round(took map[string][]float64) {
	b.t.Helper()
	note := func(what string, since time.Time) { took[what] = append(took[what], time.Since(since).Seconds()) }
	full := b.nodes[0]
	for what, how := range map[string]string{
		"cp -r; sync":     "cp -r %[1]s %[2]s && sync -f %[2]s",
		"tar | tar; sync": "mkdir %[2]s && tar -C %[1]s -cf - . | tar -C %[2]s -xf - && sync -f %[2]s",
	} {
		to := filepath.Join(b.dir, "copy")
		began := time.Now()
		b.does("sh", "-c", fmt.Sprintf(how, full.dir, to))
		note(what, began)
		b.gone(to)
	}
	n := b.addNode()
	n.extra = full.extra
	began := time.Now()
	b.launch(n)
	b.waits(n, func(s refilled) bool { return s.seq >= int64(b.number) })
	note("the catalog is here", began)
	b.waits(n, func(s refilled) bool { return s.held >= float64(b.number) && s.missing == 0 })
	if err := n.waitReady(time.Minute); err != nil {
		b.t.Fatal(err)
	}
	note("a new node is complete", began)
	b.waits(n, func(s refilled) bool { return s.unproven == 0 })
	note("all of it is verified here", began)
	if have, err := filesBelow(blobFilesOf(n)); err != nil || have != b.held {
		b.t.Fatalf("the new node holds %+v, %v; the first one %+v", have, err, b.held)
	}
	if out, err := b.command(full, "remove", n.name, "--yes"); err != nil {
		b.t.Fatalf("remove: %v\n%s", err, out)
	}
	n.kill()
	b.gone(n.dir)
}

// refilled is how far a node is, from its status and its metrics.
type refilled struct {
	seq                     int64
	held, missing, unproven float64
}

// waits polls a node until ok.
func (b *refillBench) waits(n *clusterNode, ok func(refilled) bool) {
	b.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Minute)
	for {
		s, err := refilledAt(n.url)
		if err == nil && ok(s) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("%+v, %v after half an hour\n%s", s, err, tail(n.output(), 4000))
		}
	}
}

func refilledAt(url string) (s refilled, err error) {
	body, err := bodyOf(http.DefaultClient, url+"/status")
	if err != nil {
		return s, err
	}
	var st status
	if err := json.Unmarshal(body, &st); err != nil {
		return s, err
	}
	body, err = bodyOf(http.DefaultClient, url+"/metrics")
	if err != nil {
		return s, err
	}
	text := string(body)
	s.seq = st.Node.Seq
	s.held, s.missing, s.unproven = metricIn(text, "modmirror_blobs_held_leaves "), metricIn(text, "modmirror_blobs_missing "), metricIn(text, "modmirror_blobs_unproven ")
	return s, nil
}

func (b *refillBench) does(name string, args ...string) {
	b.t.Helper()
	if out, err := exec.CommandContext(b.t.Context(), name, args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (b *refillBench) gone(path string) {
	b.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		b.t.Fatal(err)
	}
}

func blobFilesOf(n *clusterNode) string { return filepath.Join(n.dir, "blobs") }

// tally is how much there is in a directory.
type tally struct {
	files int
	bytes int64
}

func filesBelow(dir string) (n tally, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n.files++
		n.bytes += info.Size()
		return nil
	})
	return n, err
}
