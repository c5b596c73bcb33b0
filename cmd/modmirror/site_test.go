package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/mirrortest"
	"modmirror/sumdb/sumdbtest"
)

// site is an upstream with its checksum database, and a directory for the data of a mirror in front of them.
type site struct {
	t    *testing.T
	up   *mirrortest.Upstream
	db   *sumdbtest.Database
	dir  string // of the mirror's process: its log, and data
	data string
	bin  string // the mirror; by default this very test binary, see TestMain
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, up: mirrortest.New(), db: sumdbtest.New(databaseName), dir: dir, data: filepath.Join(dir, "data"),
		bin: filepath.Join(filepath.SplitList(os.Getenv("PATH"))[0], "modmirror")}
	t.Cleanup(s.up.Close)
	s.up.Mount("/sumdb/"+databaseName, s.db)
	return s
}

// add adds a module version in txtar form to the upstream, and to the database.
func (s *site) add(archive string) module.Version {
	s.t.Helper()
	m := s.up.Add(archive)
	zip, mod := s.up.Sums(m)
	s.db.Add(m, zip, mod)
	return m
}

// load adds the modules that the scripts have.
func (s *site) load() {
	s.t.Helper()
	if err := loadModules(s.up, s.db); err != nil {
		s.t.Fatal(err)
	}
}

// start starts a mirror in a process of its own. The test's end kills it.
func (s *site) start(args ...string) *process {
	s.t.Helper()
	p, err := startProcess(s.bin, s.dir, filepath.Join(s.dir, "mirror.log"), s.env(), append(s.flags(), args...))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.kill)
	return p
}

func (s *site) env() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "NO_PROXY=*"}
}

func (s *site) flags() []string {
	return []string{"--data-dir", s.data, "--drain-delay", "0s", "--upstream", s.up.URL(), "--sumdb", s.db.Key()}
}

// refuses runs a mirror that must end by itself, with one line that says why. It returns that line.
func (s *site) refuses(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, slices.Concat([]string{"serve", "--listen", "127.0.0.1:0", "--log-level", "error"}, s.flags(), args)...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	text := strings.TrimSuffix(string(out), "\n")
	if ctx.Err() != nil || err == nil || cmd.ProcessState.ExitCode() != 1 || strings.Contains(text, "\n") || !strings.HasPrefix(text, "modmirror: ") {
		s.t.Errorf("modmirror serve: %v, %v; want exit code 1 and one line that says why:\n%s", err, context.Cause(ctx), out)
	}
	return text
}

// get asks p, and returns the status and the body.
func (s *site) get(p *process, path string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := p.http().Do(req)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", path, err, p.output())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, string(b)
}

// want asks p and fails the test unless the status is the wanted one. It returns the body.
func (s *site) want(p *process, path string, status int) string {
	s.t.Helper()
	got, body := s.get(p, path)
	if got != status {
		s.t.Fatalf("%s: %d %q, want %d", path, got, body, status)
	}
	return body
}

// says asks p, which must answer with the wanted status and with text in the body. It returns the body.
func (s *site) says(p *process, path string, status int, text string) string {
	s.t.Helper()
	got, body := s.get(p, path)
	if got != status || !strings.Contains(body, text) {
		s.t.Errorf("GET %s: %d %.600q, want %d with %q", path, got, body, status, text)
	}
	return body
}

// becomes waits for an answer with the wanted status.
func (s *site) becomes(p *process, path string, status int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got, body := s.get(p, path)
		if got == status {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("GET %s stays %d %q, want %d", path, got, body, status)
		case <-tick.C:
		}
	}
}

// end ends p in order.
func (s *site) end(p *process) {
	s.t.Helper()
	if err := p.stop(time.Minute); err != nil {
		s.t.Fatalf("SIGTERM: %v", err)
	}
}

// fsck checks the data of a stopped mirror.
func (s *site) fsck() (string, error) {
	cmd := exec.CommandContext(s.t.Context(), s.bin, "fsck", "--data-dir", s.data)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// wantClean is fsck that must find nothing.
func (s *site) wantClean() {
	s.t.Helper()
	if out, err := s.fsck(); err != nil {
		s.t.Errorf("fsck: %v\n%s", err, out)
	}
}

// asked returns how many requests the upstream got whose path has part in it.
func (s *site) asked(part string) int {
	n := 0
	for _, r := range s.up.Requests() {
		if strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

// plain makes the mirror a binary without a race detector, which costs memory of its own.
func (s *site) plain() {
	s.t.Helper()
	s.bin = filepath.Join(s.dir, "modmirror")
	cmd := exec.CommandContext(s.t.Context(), "go", "build", "-o", s.bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("go build: %v\n%s", err, out)
	}
}
