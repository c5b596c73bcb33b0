//go:build real

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReal is what `make real` runs: this project's own module graph and a toolchain, through a mirror with its default
// settings, from the real upstream and the real checksum database; then the same from the mirror's data, offline, with a
// client that has nothing cached; then fsck.
func TestReal(t *testing.T) {
	bin := os.Getenv("MODMIRROR_REAL_BINARY")
	if bin == "" {
		t.Fatal("MODMIRROR_REAL_BINARY is not set: run this test by `make real`")
	}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	log := filepath.Join(dir, "mirror.log")

	online, err := startProcess(bin, dir, log, os.Environ(), []string{"--data-dir", data})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { online.kill() }()
	first := realClient(t, online.url)
	if err := online.stop(time.Minute); err != nil {
		t.Fatalf("SIGTERM: %v", err)
	}

	offline, err := startProcess(bin, dir, log, os.Environ(), []string{"--data-dir", data, "--offline"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { offline.kill() }()
	second := realClient(t, offline.url)
	if err := offline.stop(time.Minute); err != nil {
		t.Fatalf("SIGTERM: %v", err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("go.sum differs online and offline:\n%s\n\n%s", first, second)
	}
	out, err := exec.Command(bin, "fsck", "--data-dir", data).CombinedOutput()
	t.Logf("fsck: %s", out)
	if err != nil {
		t.Errorf("fsck: %v", err)
	}
}

// realClient downloads what this project depends on and a toolchain, with empty caches and no setting but GOPROXY, and
// returns the go.sum that this makes.
func realClient(t *testing.T, proxy string) []byte {
	t.Helper()
	dir := t.TempDir()
	env := append(os.Environ(), "GOPROXY="+proxy, "GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "modcache"),
		"GOENV=off", "GOFLAGS=-modcacherw", "GOSUMDB=sum.golang.org", "GONOSUMDB=", "GOPRIVATE=", "GOTOOLCHAIN=local")
	mod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "go.mod"), mod, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(env []string, name string, args ...string) string {
		t.Helper()
		start := time.Now()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = work, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		t.Logf("%s %s: %.1f s", name, strings.Join(args, " "), time.Since(start).Seconds())
		return string(out)
	}
	run(env, "go", "mod", "download", "all")
	if out := run(append(env, "GOTOOLCHAIN=go1.25.0"), "go", "version"); !strings.Contains(out, "\ngo version go1.25.0 ") {
		t.Errorf("GOTOOLCHAIN=go1.25.0 go version = %q", out)
	}
	sum, err := os.ReadFile(filepath.Join(work, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(sum, []byte("\n")); n < 50 {
		t.Errorf("go.sum has %d lines", n)
	}
	return sum
}
