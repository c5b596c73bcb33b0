package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

// start starts a mirror in a process of its own. The test's end kills it.
func (s *site) start(args ...string) *process {
	s.t.Helper()
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "NO_PROXY=*"}
	args = append([]string{"--data-dir", s.data, "--drain-delay", "0s", "--upstream", s.up.URL(), "--sumdb", s.db.Key()}, args...)
	p, err := startProcess(s.bin, s.dir, filepath.Join(s.dir, "mirror.log"), env, args)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.kill)
	return p
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
	resp, err := http.DefaultClient.Do(req)
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
