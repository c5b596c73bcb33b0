package peer

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// logs keeps what was logged, and wakes who waits for it.
type logs struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func newLogs() *logs { return &logs{more: make(chan struct{})} }

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	close(l.more)
	l.more = make(chan struct{})
	return len(b), nil
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// wait returns the first line that has all of want in it.
func (l *logs) wait(t *testing.T, want ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		l.mu.Lock()
		more := l.more
		for _, line := range l.lines {
			if containsAll(line, want...) {
				l.mu.Unlock()
				return line
			}
		}
		all := strings.Join(l.lines, "")
		l.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("no line in the log has %q in it:\n%s", want, all)
		}
	}
}

func containsAll(s string, want ...string) bool {
	for _, w := range want {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// testNode is a node that has only a link.
type testNode struct {
	*Link
	logs  *logs
	hello atomic.Pointer[Hello]
}

func (n *testNode) set(change func(*Hello)) {
	h := *n.hello.Load()
	change(&h)
	n.hello.Store(&h)
}

func (n *testNode) addr() string { return n.Addr().String() }

var testToken = NewToken()

// start opens a link for the node with that id; change may be nil.
func start(t testing.TB, id string, change func(*Config, *Hello)) *testNode {
	t.Helper()
	n := &testNode{logs: newLogs()}
	h := Hello{Cluster: "c1", Node: id, Name: "name-" + id, Boot: "boot-" + id, Starts: 1, Zone: "z1", Role: "voter", Version: "v1"}
	c := Config{Listen: "127.0.0.1:0", Log: n.logs.logger(), Self: func() Hello { return *n.hello.Load() }}
	if change != nil {
		change(&c, &h)
	}
	if c.Credentials == nil {
		c.Credentials = FromToken(testToken, id)
	}
	n.hello.Store(&h)
	l, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	n.Link = l
	t.Cleanup(func() { l.Close() })
	return n
}

// until calls ok until it is true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		if !pause(ctx, 5*time.Millisecond) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}

func formFile(t testing.TB) string { return filepath.Join(t.TempDir(), "formed.json") }
