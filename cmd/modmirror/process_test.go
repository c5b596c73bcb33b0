package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// process is one `modmirror serve` in a process of its own.
type process struct {
	url    string
	client *http.Client // that reaches it; nil: the default one
	cmd    *exec.Cmd
	log    string        // file with its standard error
	exited chan struct{} // closed when it has ended
	err    error         // how it ended; read after exited
}

// startProcess runs bin serve with args on a free loopback port, and returns when /readyz says 200.
func startProcess(bin, dir, logFile string, env, args []string) (*process, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := launch(bin, dir, logFile, addr, env, args)
	if err != nil {
		return nil, err
	}
	if err := p.waitReady(30 * time.Second); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// launch runs bin serve with args at addr, and does not wait until it is ready.
func launch(bin, dir, logFile, addr string, env, args []string) (*process, error) {
	return launchAt(nil, bin, dir, logFile, addr, env, args)
}

// place is a machine of its own, where processes run that are not on the loopback of this one.
type place interface {
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
	Client() *http.Client // on that machine
}

// launchAt is launch at a place; nil: here.
func launchAt(at place, bin, dir, logFile, addr string, env, args []string) (*process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{url: "http://" + addr, log: logFile, exited: make(chan struct{})}
	if !slices.Contains(args, "--peer-listen") { // many run on this machine at the same time
		args = append([]string{"--peer-listen", "127.0.0.1:0"}, args...)
	}
	args = append([]string{"serve", "--listen", addr}, args...)
	if at == nil {
		p.cmd = exec.Command(bin, args...)
	} else {
		p.cmd, p.client = at.Command(context.Background(), bin, args...), at.Client()
	}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr, p.cmd.Stdout = dir, env, out, out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// nextPort is the last port that freeAddress handed out. It begins where no other run of these tests is likely to.
var nextPort atomic.Int32

func init() { nextPort.Store(20_000 + rand.Int32N(10_000)) }

// freeAddress returns an address at which nobody listens, and that it returns to nobody else: a process that finds its port
// taken would end, and whoever waits for it would be answered by another test's. The ports lie below those that a system
// gives to outgoing connections.
func freeAddress() (string, error) {
	var err error
	for range 100 {
		port := 20_000 + nextPort.Add(1)%10_000
		var ln net.Listener
		if ln, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return ln.Addr().String(), ln.Close()
		}
	}
	return "", err
}

// freePorts returns the first of n ports in a row, each as with freeAddress.
func freePorts(n int) (int, error) {
	var err error
	for range 100 {
		first := int(nextPort.Add(int32(n))) - n + 1
		if first%10_000+n > 10_000 { // the numbers begin anew there
			continue
		}
		first = 20_000 + first%10_000
		if err = allFree(first, n); err == nil {
			return first, nil
		}
	}
	return 0, err
}

func allFree(first, n int) error {
	for port := range n {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+port))
		if err != nil {
			return err
		}
		if err := ln.Close(); err != nil {
			return err
		}
	}
	return nil
}

// waitReady asks /readyz until it says 200, the process ends, or the time is up.
func (p *process) waitReady(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if status, _ := statusBy(ctx, p.http(), p.url+"/readyz"); status == http.StatusOK {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("modmirror serve ended: %v\n%s", p.err, p.output())
		case <-ctx.Done():
			return fmt.Errorf("modmirror serve is not ready after %v\n%s", limit, p.output())
		case <-tick.C:
		}
	}
}

// http returns a client that reaches the process.
func (p *process) http() *http.Client { return cmp.Or(p.client, http.DefaultClient) }

func (p *process) output() string {
	b, _ := os.ReadFile(p.log) // what there is of it
	return string(b)
}

// kill ends the process without a chance to do anything.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// stop drains the process and reports how it ended.
func (p *process) stop(limit time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return p.err
	case <-timer.C:
		p.kill()
		return fmt.Errorf("did not end within %v of SIGTERM\n%s", limit, p.output())
	}
}

// httpStatus returns the status of a GET, 0 if there was no answer.
func httpStatus(ctx context.Context, url string) (int, error) {
	return statusBy(ctx, http.DefaultClient, url)
}

func statusBy(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
