//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// database is the checksum database that the go command uses if nobody says anything else.
const database = "sum.golang.org"

// round is what wrk measured in one round, and what the server spent on it.
type round struct {
	perSecond float64 // requests
	bytes     float64 // a second, in MB
	p99       float64 // ms
	cpu       float64 // processor time of the server for one request, µs
}

var measured = regexp.MustCompile(`(?m)^measured requests=(\d+) us=(\d+) bytes=(\d+) errors=(\d+) p50us=(\d+) p99us=(\d+)$`)

// wrk asks s for the paths of file, as fast as it answers, on a number of connections, for as long as d.
func (b *bench) wrk(s *server, file string, connections int, d time.Duration) (round, error) {
	before, err := cpuOf(s.pids)
	if err != nil {
		return round{}, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, d+30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "wrk", "-t2", "-c"+strconv.Itoa(connections), "-d"+d.String(), "--timeout", "20s",
		"--latency", "-s", filepath.Join("testdata", "bench", "paths.lua"), s.url, "--", file)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return round{}, fmt.Errorf("wrk %s: %v\n%s", file, err, out)
	}
	after, err := cpuOf(s.pids)
	if err != nil {
		return round{}, err
	}
	m := measured.FindSubmatch(out)
	if m == nil {
		return round{}, fmt.Errorf("wrk %s: %s", file, out)
	}
	var n [7]float64
	for i := range n[1:] {
		if n[i+1], err = strconv.ParseFloat(string(m[i+1]), 64); err != nil {
			return round{}, err
		}
	}
	requests, us := n[1], n[2]
	if n[4] > 0 || requests == 0 {
		return round{}, fmt.Errorf("wrk %s: errors\n%s", file, out)
	}
	return round{perSecond: requests / us * 1e6, bytes: n[3] / us, p99: n[6] / 1e3, cpu: float64((after - before).Microseconds()) / requests}, nil
}

// goDownload runs `go mod download all` on this project's go.mod without its go.sum, with empty caches and no setting but
// GOPROXY, and returns how long it took.
func (b *bench) goDownload(proxy string) (time.Duration, error) {
	dir, err := os.MkdirTemp(b.work, "client-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	mod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), mod, 0o600); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "all")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY="+proxy, "GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "modcache"),
		"GOENV=off", "GOFLAGS=-modcacherw", "GOSUMDB="+database, "GONOSUMDB=", "GONOPROXY=", "GOPRIVATE=", "GOTOOLCHAIN=local")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("go mod download all from %s: %v\n%s", proxy, err, lastLines(string(out), 8))
	}
	return took, nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
