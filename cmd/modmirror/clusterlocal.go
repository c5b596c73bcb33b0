package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func clusterLocalCommand() *cobra.Command {
	l := local{}
	cmd := &cobra.Command{
		Use:   "local [-- flags of serve]",
		Short: "Run a cluster on this machine, to try it",
		Long: `Local runs several nodes on this machine as one cluster, each in a process of its own, and prints how clients use them.
Kill one, and see that nothing happens. Interrupting the command stops them; the next run goes on with the same data.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := loadSettings(cmd); err != nil {
				return err
			}
			if l.nodes != 1 && l.nodes != 3 && l.nodes != 5 {
				return usageError("--nodes %d: want 1, 3 or 5", l.nodes)
			}
			l.args, l.out = args, &lines{w: cmd.OutOrStdout()}
			return l.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&l.dir, "dir", "./modmirror-cluster", "keep the nodes' data and their secret in this `directory`")
	cmd.Flags().IntVar(&l.nodes, "nodes", 3, "how `many` nodes")
	cmd.Flags().IntVar(&l.port, "port", 3101, "the first node's public `port`; the others follow, and 100 further their internal ones")
	return cmd
}

// local is a cluster on this machine.
type local struct {
	dir   string
	nodes int
	port  int
	args  []string // for every node
	out   *lines
}

func (l *local) name(i int) string   { return fmt.Sprintf("node%d", i+1) }
func (l *local) public(i int) string { return fmt.Sprintf("localhost:%d", l.port+i) }
func (l *local) peer(i int) string   { return fmt.Sprintf("localhost:%d", l.port+100+i) }

// serveArgs is the command line of a node, the same at each start.
func (l *local) serveArgs(token string, i int) []string {
	var peers []string
	for j := range l.nodes {
		peers = append(peers, l.peer(j))
	}
	return append([]string{"serve", "--node-id", l.name(i), "--data-dir", filepath.Join(l.dir, l.name(i)), "--listen", l.public(i),
		"--peer-listen", l.peer(i), "--bootstrap-expect", fmt.Sprint(l.nodes), "--join", strings.Join(peers, ","),
		"--cluster-token-file", token}, l.args...)
}

// run starts the nodes and waits until all have ended: because they are told to, or each for itself. A node that ends before
// all have been ready takes the others with it, because what it has to say would be lost in what they say; later they go on.
func (l *local) run(ctx context.Context) error {
	if err := os.MkdirAll(l.dir, 0o750); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	token := filepath.Join(l.dir, tokenName)
	if err := ensureToken(token); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	stop := stopSignals(ctx)
	defer stop.release()
	running, cancel := context.WithCancelCause(stop.soon)
	defer cancel(nil)
	var up atomic.Bool
	var wg sync.WaitGroup
	pids := make([]int, l.nodes)
	for i := range l.nodes {
		cmd := l.command(running, stop.now, self, token, i)
		if err := cmd.Start(); err != nil {
			cancel(fmt.Errorf("start %s: %w", l.name(i), err))
			break
		}
		pids[i] = cmd.Process.Pid
		wg.Go(func() {
			err := l.wait(running, cmd, i)
			if err != nil && !up.Load() {
				cancel(err)
			}
		})
	}
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	if l.ready(running, all) {
		up.Store(true)
		l.introduce(token, pids)
	}
	select {
	case <-running.Done():
		l.out.print("\nstopping the nodes; an interrupt while that takes ends them at once\n")
	case <-all:
	}
	<-all
	if stop.soon.Err() != nil { // however they ended
		return nil
	}
	return cmp.Or(context.Cause(running), errors.New("all nodes have ended"))
}

// command is a node's process, which is told to stop when ctx ends, and killed when now does.
func (l *local) command(ctx, now context.Context, self, token string, i int) *exec.Cmd {
	cmd := exec.CommandContext(ctx, self, l.serveArgs(token, i)...)
	cmd.Cancel = func() error {
		context.AfterFunc(now, func() { _ = cmd.Process.Kill() }) // it may have ended
		return cmd.Process.Signal(syscall.SIGTERM)
	}
	cmd.WaitDelay = 2 * time.Minute // longer than it takes with the longest --drain-timeout that makes sense here
	cmd.SysProcAttr = ownGroup()    // an interrupt at the terminal is passed on once, not twice
	w := &prefixed{lines: l.out, prefix: l.name(i) + " | "}
	cmd.Stdout, cmd.Stderr = w, w
	return cmd
}

// wait waits for a node's end. That is no error if it was told to.
func (l *local) wait(ctx context.Context, cmd *exec.Cmd, i int) error {
	err := cmd.Wait()
	cmd.Stdout.(*prefixed).flush()
	if ctx.Err() != nil {
		return nil
	}
	l.out.print(fmt.Sprintf("\n%s has ended: %v. To start it again:\n  %s %s\n", l.name(i), cmd.ProcessState, os.Args[0], forShell(cmd.Args[1:])))
	return fmt.Errorf("%s has ended, see above: %w", l.name(i), cmp.Or(err, errors.New("nobody told it to")))
}

// ready waits until every node takes requests. It reports false if that is not to be expected any more.
func (l *local) ready(ctx context.Context, ended <-chan struct{}) bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range l.nodes {
		for !isReady(ctx, "http://"+l.public(i)) {
			select {
			case <-ctx.Done():
				return false
			case <-ended:
				return false
			case <-tick.C:
			}
		}
	}
	return ctx.Err() == nil
}

// introduce says how to use the cluster.
func (l *local) introduce(token string, pids []int) {
	var b strings.Builder
	var urls []string
	fmt.Fprintf(&b, "\nThe cluster is up:\n")
	for i, pid := range pids {
		urls = append(urls, "http://"+l.public(i))
		fmt.Fprintf(&b, "  %s  %s  process %d\n", l.name(i), urls[i], pid)
	}
	fmt.Fprintf(&b, "Clients:\n  export GOPROXY='%s'\n", strings.Join(urls, "|"))
	fmt.Fprintf(&b, "How it is:\n  %s cluster status --peer %s --cluster-token-file %s\n", os.Args[0], l.peer(0), token)
	fmt.Fprintf(&b, "Kill a node, and see that the others go on:\n  kill -9 %d\n", pids[0])
	fmt.Fprintf(&b, "An interrupt (Ctrl-C) stops all; their data stays in %s.\n", l.dir)
	l.out.print(b.String())
}

// stopping are the two ways to end: in order, and at once.
type stopping struct {
	soon, now context.Context
	release   func()
}

// stopSignals ends soon with ctx, or when the terminal is closed, or nobody reads any more what is printed: the nodes would
// else be left behind. A signal after the first one ends now.
func stopSignals(ctx context.Context) stopping {
	soon, cancelSoon := context.WithCancel(ctx)
	now, cancelNow := context.WithCancel(context.WithoutCancel(ctx))
	ask, hup := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(ask, syscall.SIGINT, syscall.SIGTERM)
	signal.Notify(hup, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		for n := 0; ; {
			select {
			case <-now.Done():
				return
			case <-hup:
			case <-ask:
				if n++; n > 1 {
					cancelNow()
				}
			}
			cancelSoon()
		}
	}()
	return stopping{soon, now, func() { signal.Stop(ask); signal.Stop(hup); cancelSoon(); cancelNow() }}
}

func isReady(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// forShell is a command line that can be pasted.
func forShell(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n\"'`$&|;<>()*?[]#~=%!{}\\") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// lines writes whole lines of several writers.
type lines struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lines) print(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.w, s)
}

// prefixed is what one node writes, a line at a time. It is used by one goroutine.
type prefixed struct {
	lines  *lines
	prefix string
	rest   []byte
}

const maxLine = 64 << 10

func (p *prefixed) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		n, line, err := bufio.ScanLines(p.rest, len(p.rest) > maxLine)
		if err != nil || n == 0 {
			return len(b), err
		}
		p.lines.print(p.prefix + string(line))
		p.rest = p.rest[n:]
	}
}

func (p *prefixed) flush() {
	if len(p.rest) > 0 {
		p.lines.print(p.prefix + string(p.rest))
		p.rest = nil
	}
}
