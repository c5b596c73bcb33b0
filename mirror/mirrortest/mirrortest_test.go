package mirrortest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"modmirror/mirror/artifact"
)

const hello = `example.com/Hello@v1.0.0
-- go.mod --
module example.com/Hello

go 1.21
-- hello.go --
package hello

const Answer = 42
`

func start(t *testing.T) *Upstream {
	t.Helper()
	u := New()
	t.Cleanup(u.Close)
	return u
}

func get(t *testing.T, url string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, b
}

// goCommand runs the real go command with nothing of this machine's caches or settings, and returns what it prints.
func goCommand(t *testing.T, goproxy string, args ...string) (string, error) {
	t.Helper()
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = filepath.Join(tmp, "work")
	if err := os.MkdirAll(cmd.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "GOPROXY="+goproxy, "GOPATH="+tmp, "GOMODCACHE="+filepath.Join(tmp, "mod"), "GOENV=off",
		"GONOSUMDB=*", "GONOPROXY=none", "GOPRIVATE=", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GOSUMDB=off")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestGoCommandDownloads(t *testing.T) {
	u := start(t)
	m := u.Add(hello)
	zipSum, modSum := u.Sums(m)
	tree := t.TempDir()
	if err := u.WriteTree(tree); err != nil {
		t.Fatal(err)
	}
	for name, goproxy := range map[string]string{"http": u.URL(), "file": "file://" + filepath.ToSlash(tree)} {
		t.Run(name, func(t *testing.T) {
			out, err := goCommand(t, goproxy, "mod", "download", "-json", m.String())
			if err != nil {
				t.Fatalf("go mod download: %v\n%s", err, out)
			}
			var got struct{ Version, Sum, GoModSum string }
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if got.Version != m.Version || got.Sum != zipSum || got.GoModSum != modSum {
				t.Errorf("the go command saw %+v, Sums = %s, %s", got, zipSum, modSum)
			}
		})
	}
}

func TestGoCommandQueries(t *testing.T) {
	u := start(t)
	u.Add(hello)
	u.Add(strings.Replace(hello, "v1.0.0", "v1.1.0", 1))
	u.Add(strings.Replace(hello, "v1.0.0", "v1.2.0-pre", 1))
	pseudo := u.Add(strings.Replace(hello, "v1.0.0", "v1.1.1-0.20240101120000-0123456789ab", 1))
	u.Alias(pseudo.Path, "main", pseudo.Version)
	u.Alias(pseudo.Path, "0123456789ab", pseudo.Version)
	for query, want := range map[string]string{
		"latest": "v1.1.0", "v1.0": "v1.0.0", "v1": "v1.1.0", "main": pseudo.Version, "0123456789ab": pseudo.Version, "<v1.1.0": "v1.0.0",
	} {
		out, err := goCommand(t, u.URL(), "list", "-m", "-f", "{{.Version}}", pseudo.Path+"@"+query)
		if err != nil || strings.TrimSpace(out) != want {
			t.Errorf("go list -m @%s = %q, %v, want %s", query, out, err, want)
		}
	}
}

func TestToolchainRuns(t *testing.T) {
	u := start(t)
	m := u.AddToolchain("go1.99.0")
	dir := t.TempDir()
	zipFile := filepath.Join(dir, "toolchain.zip")
	if err := os.WriteFile(zipFile, u.Artifact(m, artifact.Zip), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := modzip.Unzip(filepath.Join(dir, "x"), m, zipFile); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "/bin/sh", filepath.Join(dir, "x", "bin", "go"), "version").CombinedOutput()
	if err != nil || string(out) != "go version go1.99.0 linux/amd64\n" {
		t.Errorf("bin/go version = %q, %v", out, err)
	}
	if code, _, list := get(t, u.URL()+"/golang.org/toolchain/@v/list"); code != 200 || string(list) != m.Version+"\n" {
		t.Errorf("list = %d %q", code, list)
	}
}

func TestBytesAreDeterministic(t *testing.T) {
	a, b := New(), New()
	m := a.Add(hello)
	b.Add(hello)
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		if !bytes.Equal(a.Artifact(m, k), b.Artifact(m, k)) || a.Artifact(m, k) == nil {
			t.Errorf("%v differs between two upstreams", k)
		}
	}
	file := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(file, a.Artifact(m, artifact.Zip), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := modzip.CheckZip(m, file); err != nil {
		t.Error(err)
	}
	want, err := dirhash.HashZip(file, dirhash.Hash1)
	if got, _ := a.Sums(m); err != nil || got != want {
		t.Errorf("Sums = %s, HashZip = %s, %v", got, want, err)
	}
}

func TestListsAndUnknownThings(t *testing.T) {
	u := start(t)
	m := u.Add(hello)
	gone := u.Add(strings.Replace(hello, "v1.0.0", "v1.3.0", 1))
	hidden := u.Add(strings.Replace(hello, "v1.0.0", "v1.4.0", 1))
	u.Add(strings.Replace(hello, "v1.0.0", "v1.10.0", 1))
	u.AddPath("example.com/empty")
	u.DeleteVersion(gone)
	u.Unlist(hidden)
	u.Mount("/sumdb/db.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "db:"+r.URL.Path) }))
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"/example.com/!hello/@v/list", 200, "v1.0.0\nv1.10.0\n"},
		{"/example.com/%21hello/@v/list", 200, "v1.0.0\nv1.10.0\n"},
		{"/example.com/empty/@v/list", 200, ""},
		{"/example.com/empty/@latest", 404, "not found: no versions\n"},
		{"/example.com/nothing/@v/list", 404, "not found: unknown module\n"},
		{"/example.com/Hello/@v/list", 404, "not found: unknown module\n"},
		{"/example.com/!hello/@v/v1.3.0.zip", 404, "not found: unknown revision v1.3.0\n"},
		{"/example.com/!hello/@v/v1.4.0.info", 200, string(Info(hidden))},
		{"/example.com/!hello/@v/v1.0.0.mod", 200, string(u.Artifact(m, artifact.Mod))},
		{"/sumdb/db.example/supported", 200, "db:/supported"},
		{"/sumdb/db.example", 200, "db:/"},
		{"/sumdb/other.example/supported", 404, "not found: unknown module\n"},
	} {
		if code, _, body := get(t, u.URL()+tt.path); code != tt.code || string(body) != tt.body {
			t.Errorf("GET %s = %d %q, want %d %q", tt.path, code, body, tt.code, tt.body)
		}
	}
}

func TestLoadDir(t *testing.T) {
	u := New()
	dir := t.TempDir()
	for name, text := range map[string]string{"a.txt": hello, "b.txtar": "example.com/b@v0.1.0\n-- .mod --\nmodule other\n-- .info --\n{}\n-- b.go --\npackage b\n", "c.md": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := u.LoadDir(dir)
	want := []module.Version{{Path: "example.com/Hello", Version: "v1.0.0"}, {Path: "example.com/b", Version: "v0.1.0"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("LoadDir = %v, %v, want %v", got, err, want)
	}
	if mod, info := u.Artifact(want[1], artifact.Mod), u.Artifact(want[1], artifact.Info); string(mod) != "module other\n" || string(info) != "{}\n" {
		t.Errorf("overrides served as %q and %q", mod, info)
	}
	if err := os.WriteFile(filepath.Join(dir, "d.txt"), []byte("nothing\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := u.LoadDir(dir); err == nil || !strings.Contains(err.Error(), "d.txt") {
		t.Errorf("LoadDir of a malformed archive: %v", err)
	}
}

func TestRequestsAreRecorded(t *testing.T) {
	u := start(t)
	u.Add(hello)
	get(t, u.URL()+"/example.com/%21hello/@v/list?x=1")
	get(t, u.URL()+"/nothing")
	reqs := u.Requests()
	if len(reqs) != 2 || reqs[0].Path != "/example.com/!hello/@v/list" || reqs[0].Query != "x=1" || reqs[0].Header.Get("Accept-Encoding") != "identity" {
		t.Errorf("Requests = %+v", reqs)
	}
	if n := u.Count("/nothing"); n != 1 {
		t.Errorf("Count = %d, want 1", n)
	}
	if u.Reset(); len(u.Requests()) != 0 {
		t.Error("requests stay after Reset")
	}
}
