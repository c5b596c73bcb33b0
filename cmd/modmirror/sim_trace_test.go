package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// simTrace is what happened in a simulation, in order: faults, responses, and what the nodes logged.
//
//	12.345 n2  fault: power cut
//	12.345 c1  n3 /example.com/m4/@v/v1.0.0.zip: 200 sha256:1f… committed
type simTrace struct {
	begin time.Time

	mu    sync.Mutex
	lines []string // guarded by mu
}

func newSimTrace() *simTrace { return &simTrace{begin: time.Now()} }

func (t *simTrace) add(who, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	at := time.Since(t.begin).Seconds()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fmt.Sprintf("%9.3f %-8s %s", at, who, strings.ReplaceAll(text, "\n", " | ")))
}

// logger returns the log of one life of a node.
func (t *simTrace) logger(who string) *slog.Logger {
	w := traceWriter{t, who}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

type traceWriter struct {
	t   *simTrace
	who string
}

func (w traceWriter) Write(b []byte) (int, error) {
	w.t.add(w.who, "  %s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// tail returns the last n lines that are no logs of nodes.
func (t *simTrace) tail(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for i := len(t.lines) - 1; i >= 0 && len(out) < n; i-- {
		if !strings.HasPrefix(t.lines[i][19:], "  ") {
			out = append([]string{t.lines[i]}, out...)
		}
	}
	return strings.Join(out, "\n")
}

// save writes all of it to a file, and returns its name.
func (t *simTrace) save(seed uint64) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := os.CreateTemp("", fmt.Sprintf("modmirror-sim-%d-*.log", seed))
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.WriteString(strings.Join(t.lines, "\n") + "\n")
	return f.Name(), err
}
