package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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

func (l *local) public(i int) string { return fmt.Sprintf("localhost:%d", l.port+i) }
func (l *local) peer(i int) string   { return fmt.Sprintf("localhost:%d", l.port+100+i) }

// run starts the nodes and waits until ctx ends, or the last of them.
func (l *local) run(ctx context.Context) error {
	if err := os.MkdirAll(l.dir, 0o750); err != nil {
		return err
	}
	token := filepath.Join(l.dir, "cluster-token")
	if err := ensureToken(token); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, l.nodes)
	for i := range l.nodes {
		wg.Go(func() { errs[i] = l.node(ctx, self, token, i) })
	}
	wg.Go(func() { l.introduce(ctx, token) })
	wg.Wait()
	return errors.Join(errs...)
}

// node runs one node until ctx ends, which it is told by SIGTERM.
func (l *local) node(ctx context.Context, self, token string, i int) error {
	var peers []string
	for j := range l.nodes {
		peers = append(peers, l.peer(j))
	}
	name := fmt.Sprintf("node%d", i+1)
	args := append([]string{"serve", "--node-id", name, "--data-dir", filepath.Join(l.dir, name), "--listen", l.public(i),
		"--peer-listen", l.peer(i), "--bootstrap-expect", fmt.Sprint(l.nodes), "--join", strings.Join(peers, ","),
		"--cluster-token-file", token}, l.args...)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is passed on once, not twice
	w := &prefixed{lines: l.out, prefix: name + " | "}
	cmd.Stdout, cmd.Stderr = w, w
	l.out.print(fmt.Sprintf("%s starts", name))
	err := cmd.Run()
	w.flush()
	if ctx.Err() != nil {
		return nil
	}
	l.out.print(fmt.Sprintf("%s has ended (%v); the others go on. To start it again: %s %s", name, cmd.ProcessState, self, strings.Join(args, " ")))
	return fmt.Errorf("%s ended: %w", name, err)
}

// introduce says how to use the cluster once all nodes take requests.
func (l *local) introduce(ctx context.Context, token string) {
	var urls []string
	for i := range l.nodes {
		url := "http://" + l.public(i)
		urls = append(urls, url)
		for !isReady(ctx, url) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	l.out.print(fmt.Sprintf(`
the cluster is up:
  %s
clients:
  go env -w 'GOPROXY=%s'
how it is:
  modmirror cluster status --peer %s --cluster-token-file %s
`, strings.Join(urls, "\n  "), strings.Join(urls, "|"), l.peer(0), token))
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
