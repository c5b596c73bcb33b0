//go:build real

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReal is what `make real` runs: this project's own module graph and a toolchain, through a mirror with its default
// settings, from the real upstream and the real checksum database; what the go command makes of a small project, next to
// what it makes of it with that upstream itself; then the first again from the mirror's data, offline, with a client that
// has nothing cached; then fsck.
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
	realProject(t, online.url)
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

// PROTOCOL 42: the go command updates, tidies, verifies and installs the same through the mirror as with the upstream
// that is linked into it, byte for byte.
func realProject(t *testing.T, mirror string) {
	t.Helper()
	direct := os.Getenv("MODMIRROR_REAL_UPSTREAM")
	if direct == "" {
		t.Fatal("MODMIRROR_REAL_UPSTREAM is not set: run this test by `make real`")
	}
	want, got := realWork(t, direct), realWork(t, mirror)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s through the mirror:\n%s\nwith the upstream itself:\n%s", name, got[name], text)
		}
	}
	if !strings.Contains(got["go.sum"], "golang.org/x/text ") || !strings.Contains(got["list"], "github.com/spf13/pflag v1.0.5 [v1.") {
		t.Errorf("the project is not what this test is about:\n%v", got)
	}
}

// realWork returns the files and words that a day's work on a small project ends in.
func realWork(t *testing.T, proxy string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	files := map[string]string{
		"go.mod": "module example.com/work\n\ngo 1.21\n\nrequire (\n\tgithub.com/spf13/pflag v1.0.5\n\tgolang.org/x/text v0.3.0\n)\n",
		"work.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"github.com/spf13/pflag\"\n\t\"golang.org/x/text/language\"\n)\n\n" +
			"func main() { fmt.Println(pflag.NArg(), language.English) }\n",
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := append(os.Environ(), "GOPROXY="+proxy, "GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "modcache"),
		"GOENV=off", "GOFLAGS=-modcacherw -mod=mod -trimpath", "GOSUMDB=sum.golang.org", "GONOSUMDB=", "GOPRIVATE=", "GOTOOLCHAIN=local")
	result := make(map[string]string)
	for _, step := range []struct{ name, args string }{
		{"tidy", "mod tidy"},
		{"list", "list -m -u -retracted all"},
		{"get", "get -u ./..."},
		{"tidy again", "mod tidy"},
		{"verify", "mod verify"},
		{"build", "build -o work.bin ."},
		{"install", "install golang.org/x/example/hello@latest"},
	} {
		cmd := exec.Command("go", strings.Fields(step.args)...)
		cmd.Dir, cmd.Env = work, env
		var stderr strings.Builder // says what is downloaded, in the order of the moment
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("GOPROXY=%s go %s: %v\n%s", proxy, step.args, err, &stderr)
		}
		result[step.name] = string(out)
	}
	for name, file := range map[string]string{
		"go.mod": filepath.Join(work, "go.mod"), "go.sum": filepath.Join(work, "go.sum"), "work.bin": filepath.Join(work, "work.bin"),
		"hello": filepath.Join(dir, "gopath", "bin", "hello"),
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if name == "work.bin" || name == "hello" {
			sum := sha256.Sum256(b)
			b = []byte(hex.EncodeToString(sum[:]))
		}
		result[name] = string(b)
	}
	return result
}
