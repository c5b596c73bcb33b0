//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// server is one of the servers that are compared, in processes of its own.
type server struct {
	url     string
	counted string // nginx: the same at a URL whose requests are counted
	dir     string // nginx: its files
	pids    []int
	stop    func() error
}

// startNginx starts nginx with the configuration testdata/bench/<name>.conf, in the new directory dir. root is what it
// serves, upstream where it fetches.
func startNginx(ctx context.Context, name, dir, root, upstream string) (*server, error) {
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	counted, err := freeAddress()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	user := "" // whoever runs this
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := filepath.Join(dir, "nginx.conf")
	f, err := os.Create(conf)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tmpl, err := template.ParseFiles(filepath.Join("testdata", "bench", name+".conf"))
	if err != nil {
		return nil, err
	}
	vars := map[string]string{"User": user, "Dir": dir, "Root": root, "Listen": listen, "Counted": counted, "Upstream": strings.TrimPrefix(upstream, "http://")}
	if err := tmpl.Execute(f, vars); err != nil {
		return nil, err
	}
	cmd := exec.Command(nginxPath(), "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{url: "http://" + listen, counted: "http://" + counted, dir: dir}
	s.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		return cmd.Wait()
	}
	if err := awaitStatus(ctx, s.url+"/", 5*time.Second, func(status int) bool { return status != 0 }); err != nil {
		_ = s.stop() // the other error says more
		return nil, fmt.Errorf("nginx with %s: %w", conf, err)
	}
	s.pids = family(cmd.Process.Pid)
	return s, nil
}

// nginxPath finds nginx also where only root's PATH leads.
func nginxPath() string {
	if p, err := exec.LookPath("nginx"); err == nil {
		return p
	}
	return "/usr/sbin/nginx"
}

// requests returns how often the counted URL was asked, with a path that ends in suffix.
func (s *server) requests(suffix string) (int, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "counted.log"))
	return strings.Count(string(b), suffix+" HTTP/"), err
}

// startMirror starts modmirror on a data directory with an upstream, which is its checksum database's source too.
func (b *bench) startMirror(data, upstream string) (*server, error) {
	p, err := startProcess(b.bin, b.work, filepath.Join(b.work, "modmirror.log"), os.Environ(), mirrorArgs(data, upstream))
	if err != nil {
		return nil, err
	}
	return &server{url: p.url, pids: []int{p.cmd.Process.Pid}, stop: func() error { return p.stop(30 * time.Second) }}, nil
}

func mirrorArgs(data, upstream string) []string {
	return []string{"--data-dir", data, "--upstream", upstream, "--sumdb", database + " " + upstream + "/sumdb/" + database,
		"--log-level", "warn", "--drain-delay", "0s"}
}

// awaitStatus asks url until good says that the status is, 0 being no answer.
func awaitStatus(ctx context.Context, url string, limit time.Duration, good func(int) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		status, err := httpStatus(ctx, url)
		if good(status) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: status %d, %v", url, status, err)
		case <-tick.C:
		}
	}
}

func isOK(status int) bool { return status == http.StatusOK }
