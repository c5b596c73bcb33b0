//go:build bench && linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bench is what one run of `make bench` shares. Everything runs on loopback, client and servers on the same processors.
type bench struct {
	t       *testing.T
	ctx     context.Context // ends before the test's own time is up, so that everything is cleaned up
	bin     string
	dir     string // kept between runs: the corpus
	work    string // this run's, on the same disk
	tree    string // the corpus as files
	stocked string // data directory of a modmirror that holds the corpus
	rounds  int
	seconds time.Duration // a round of wrk
	before  float64       // part of the processors that others kept busy before the benchmark began, in percent
	columns [2]string     // heads of the table's columns of results
	table   string        // the file in dir that the table is written to
	rows    []row
}

// TestBench is what `make bench` runs. It needs nginx and wrk (Debian: nginx-light, wrk) and, the first time, the
// upstream that the go command uses. Settings: BENCH_DIR keeps the corpus, BENCH_ROUNDS and BENCH_SECONDS say how long.
func TestBench(t *testing.T) {
	b := newBench(t)
	b.before = b.busy(3 * time.Second)
	begin := time.Now()
	t.Cleanup(func() { b.print(time.Since(begin)) })
	corpus := sync.OnceValue(b.openCorpus)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"small", b.small}, {"zips", b.zips}, {"warm", b.warm}, {"cold", b.cold}, {"crowd", b.crowd}, {"start", b.start}, {"h1", b.h1}, {"attack", b.attack},
	} {
		t.Run(part.name, func(t *testing.T) {
			if err := corpus(); err != nil {
				t.Fatal(err)
			}
			part.run(t)
		})
	}
	t.Run("list", b.list) // this and what follows needs no corpus
	t.Run("catalog", b.catalog)
	t.Run("capacity", b.capacity)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, bin: os.Getenv("MODMIRROR_BENCH_BINARY"), dir: os.Getenv("BENCH_DIR"), rounds: 5, seconds: 3 * time.Second,
		columns: [2]string{"nginx", "modmirror"}, table: "table.md"}
	if b.bin == "" {
		t.Fatal("MODMIRROR_BENCH_BINARY is not set: run this by `make bench`")
	}
	for _, tool := range []string{nginxPath(), "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: on Debian, apt-get install nginx-light wrk", err)
		}
	}
	if b.dir == "" {
		b.dir = filepath.Join(os.TempDir(), "modmirror-bench")
	}
	for name, set := range map[string]func(int){
		"BENCH_ROUNDS":  func(n int) { b.rounds = n },
		"BENCH_SECONDS": func(n int) { b.seconds = time.Duration(n) * time.Second },
	} {
		if v := os.Getenv(name); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				t.Fatalf("%s=%q: want a positive number", name, v)
			}
			set(n)
		}
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.work, err = os.MkdirTemp(b.dir, "run-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, os.RemoveAll(b.work)) })
	ctx, cancel := context.WithTimeout(context.Background(), 55*time.Minute)
	t.Cleanup(cancel)
	b.ctx = ctx
	return b
}

func report(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Printf("%s: %v %v %s\n", r.what, r.peer, r.mirror, r.verdict())
}

// print writes the table to the standard output and next to the corpus.
func (b *bench) print(took time.Duration) {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s, %d processors (%s), %s, %s, %s, modmirror %s. Client and server share the processors. ",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), machine(), runtime.Version(), versionLine(nginxPath(), "-v"), versionLine("wrk", "-v"), versionLine(b.bin, "version"))
	fmt.Fprintf(&out, "Medians (least..most) of %d rounds (go mod download and cold: %d) in turn, %v each for wrk; the whole took %v. ", b.rounds, b.coldRounds(), b.seconds, took.Round(time.Second))
	fmt.Fprintf(&out, "Others kept %.0f %% of the processors busy before and %.0f %% after.\n\n", b.before, b.busy(3*time.Second))
	writeTable(&out, b.columns[0], b.columns[1], b.rows)
	fmt.Printf("\n%s\n", out.Bytes())
	report(b.t, os.WriteFile(filepath.Join(b.dir, b.table), out.Bytes(), 0o644))
}

// versionLine returns what a program says of its version, in short.
func versionLine(name string, args ...string) string {
	out, _ := exec.Command(name, args...).CombinedOutput() // wrk exits with 1
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	line = strings.TrimPrefix(line, "nginx version: ")
	if f := strings.Fields(line); len(f) > 2 {
		line = strings.Join(f[:2], " ")
	}
	return line
}

// idle lets a server come to rest.
func (b *bench) idle(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ctx.Done():
	}
}

// spawn starts modmirror with args and does not wait for it to be ready. stop ends it.
func (b *bench) spawn(t *testing.T, args []string) (s *server, stop func()) {
	t.Helper()
	cmd := exec.Command(b.bin, args...)
	cmd.Dir, cmd.Stderr = b.work, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &server{pids: []int{cmd.Process.Pid}}, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		report(t, cmd.Wait())
	}
}
