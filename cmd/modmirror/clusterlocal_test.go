package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// localRun is one `modmirror cluster local`.
type localRun struct {
	s    *clusterSite
	cmd  *exec.Cmd
	out  *lockedBuffer
	port int
	done chan struct{} // closed when it has ended
	err  error         // how; read after done
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startLocal starts it, with its data below the site's directory.
func startLocal(s *clusterSite, port int, extra ...string) *localRun {
	s.t.Helper()
	r := &localRun{s: s, out: &lockedBuffer{}, port: port, done: make(chan struct{})}
	r.cmd = exec.Command(s.bin, "cluster", "local", "--dir", filepath.Join(s.dir, "local"), "--port", strconv.Itoa(port),
		"--", "--upstream", s.up.URL(), "--sumdb", s.db.Key(), "--drain-delay", "0s")
	r.cmd.Args = append(r.cmd.Args, extra...)
	r.cmd.Env, r.cmd.Dir, r.cmd.Stdout, r.cmd.Stderr = s.env(), s.dir, r.out, r.out
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.done)
	}()
	s.t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGINT)  // it may have ended
		_ = r.cmd.Process.Signal(syscall.SIGTERM) // the second one ends the nodes at once
		<-r.done
		if s.t.Failed() {
			s.t.Logf("cluster local said:\n%s", tail(r.out.String(), 6000))
		}
	})
	return r
}

var localNode = regexp.MustCompile(`(?m)^  node(\d)  (http://\S+)  process (\d+)$`)

// up waits for the introduction. It returns what it says of the nodes.
func (r *localRun) up() (urls []string, pids []int) {
	r.s.t.Helper()
	r.s.await("introduction of the cluster", func() bool { return strings.Contains(r.out.String(), "An interrupt (Ctrl-C)") }, r.out.String)
	for _, m := range localNode.FindAllStringSubmatch(r.out.String(), -1) {
		pid, err := strconv.Atoi(m[3])
		if err != nil {
			r.s.t.Fatal(err)
		}
		urls, pids = append(urls, m[2]), append(pids, pid)
	}
	if len(urls) != 3 || !strings.Contains(r.out.String(), "GOPROXY='"+strings.Join(urls, "|")+"'") {
		r.s.t.Fatalf("the introduction does not name three nodes and the clients' line:\n%s", r.out)
	}
	return urls, pids
}

// ended waits for its end, and returns the exit code. No node may be left.
func (r *localRun) ended() int {
	r.s.t.Helper()
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	select {
	case <-r.done:
	case <-timeout.C:
		r.s.t.Fatalf("it does not end\n%s", r.out)
	}
	for i := range 3 {
		if err := allFree(r.port+i, 1); err != nil {
			r.s.t.Errorf("node%d is left behind: %v", i+1, err)
		}
	}
	var exit *exec.ExitError
	if r.err != nil && !errors.As(r.err, &exit) {
		r.s.t.Fatal(r.err)
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *localRun) signal(sig syscall.Signal) {
	r.s.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.s.t.Fatal(err)
	}
}

// What `make cluster` runs: three nodes for the real go command; one of them killed; an interrupt ends the others with exit
// code 0, and the next run has what this one had.
func TestClusterLocal(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 0)
	s.load()
	port, err := freePorts(103)
	if err != nil {
		t.Fatal(err)
	}
	r := startLocal(s, port)
	urls, pids := r.up()
	var sums []string
	for _, url := range urls {
		sum, err := s.download(url, app)
		if err != nil {
			t.Fatalf("through %s: %v", url, err)
		}
		sums = append(sums, sum)
	}
	if len(slices.Compact(sums)) != 1 || !strings.Contains(sums[0], "example.com/hello v1.0.0 h1:") {
		t.Errorf("go.sum of three downloads: %q", sums)
	}

	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await("word that node1 has ended", func() bool { return strings.Contains(r.out.String(), "node1 has ended: signal: killed") }, r.out.String)
	newer := strings.Replace(app, "v1.0.0", "v1.1.0", 1)
	sum, err := s.download(strings.Join(urls, "|"), newer)
	if err != nil {
		t.Fatalf("without node1: %v", err)
	}
	r.signal(syscall.SIGINT)
	if code := r.ended(); code != 0 {
		t.Errorf("exit code %d after an interrupt, want 0", code)
	}

	s.up.Down(true)
	r = startLocal(s, port)
	urls, _ = r.up()
	s.token = filepath.Join(s.dir, "local", tokenName)
	s.agree(&clusterNode{name: "node1", peer: fmt.Sprintf("localhost:%d", port+100)}) // node1 has missed something
	for _, url := range urls {
		if again, err := s.download(url, newer); err != nil {
			t.Errorf("in the next run, through %s: %v", url, err)
		} else if again != sum {
			t.Errorf("in the next run, through %s: go.sum is\n%s\nwas\n%s", url, again, sum)
		}
	}
	r.signal(syscall.SIGHUP) // the terminal is closed
	if code := r.ended(); code != 0 {
		t.Errorf("exit code %d after a hangup, want 0", code)
	}
}

// A node that cannot start ends all, with what is to be done.
func TestClusterLocalPortTaken(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 0)
	port, err := freePorts(103)
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
	if err != nil {
		t.Fatal(err)
	}
	r := startLocal(s, port)
	s.await("end", func() bool { return strings.Contains(r.out.String(), "stopping the nodes") }, r.out.String)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if code := r.ended(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	want := fmt.Sprintf("--listen localhost:%d: another process uses this address", port+1)
	if out := r.out.String(); !strings.Contains(out, want) || !strings.Contains(out, "modmirror: node2 has ended") {
		t.Errorf("it does not say %q, and which node ended:\n%s", want, out)
	}
}

// Whoever does not want to wait for the nodes interrupts again.
func TestClusterLocalSecondInterrupt(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 0)
	s.load()
	port, err := freePorts(103)
	if err != nil {
		t.Fatal(err)
	}
	r := startLocal(s, port, "--drain-delay", "1h")
	r.up()
	r.signal(syscall.SIGTERM)
	s.await("draining of three nodes", func() bool { return strings.Count(r.out.String(), "msg=draining") == 3 }, r.out.String)
	r.signal(syscall.SIGINT)
	if code := r.ended(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestForShell(t *testing.T) {
	t.Parallel()
	args := []string{"plain", "/a/b:1,c", "http://a|http://b", "it's", "", "$x `y` \"z\"", "a=b"}
	out, err := exec.Command("sh", "-c", "printf '%s\\n' "+forShell(args)).Output()
	if want := strings.Join(args, "\n") + "\n"; err != nil || string(out) != want {
		t.Errorf("the shell reads %s as %q, %v, want %q", forShell(args), out, err, want)
	}
}

// Lines of several nodes are not mixed, however they arrive.
func TestPrefixedLines(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	out := &lines{w: &b}
	p, q := &prefixed{lines: out, prefix: "p | "}, &prefixed{lines: out, prefix: "q | "}
	for _, part := range []struct {
		w    *prefixed
		text string
	}{{p, "one "}, {q, "a\nb\n"}, {p, "line\n\nrest"}} {
		if n, err := part.w.Write([]byte(part.text)); n != len(part.text) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", part.text, n, err)
		}
	}
	p.flush()
	q.flush()
	if want := "q | a\nq | b\np | one line\np | \np | rest\n"; b.String() != want {
		t.Errorf("wrote %q, want %q", b.String(), want)
	}
}
