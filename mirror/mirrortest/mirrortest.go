// Package mirrortest is a fake upstream for tests: a GOPROXY (go.dev/ref/mod#goproxy-protocol) in this process, whose
// modules are written in the test and which lies, stalls, breaks and redirects on demand.
//
// A module version is a txtar archive. The first line of its comment names it, the files are its source. A file
// ".mod" or ".info" replaces what is served as go.mod or info; without them the go.mod of the files is served (or
// "module <path>" if there is none) and an info with the version and a fixed time.
//
//	example.com/hello@v1.0.0
//	-- go.mod --
//	module example.com/hello
//	-- hello.go --
//	package hello
//
// A test starts it, tells it what to do, and looks at what was asked:
//
//	up := mirrortest.New()
//	defer up.Close()
//	m := up.Add("example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n")
//	zip, mod := up.Sums(m) // for a fake checksum database
//	up.Tamper(m, artifact.Zip, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
//	goproxy := up.URL()
//
// Equal archives give equal bytes, always. An Upstream may be used by many goroutines, and changed while it serves.
// After Close nothing of it is left running. What it serves can be written as a tree for a file:// GOPROXY, too.
package mirrortest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"

	"modmirror/mirror/artifact"
)

// Upstream is a fake GOPROXY. Make one with [New].
type Upstream struct {
	mu       sync.Mutex
	projects map[string]*project // by module path; guarded by mu
	mounts   map[string]http.Handler
	faults   faults
	log      []Request
	arrived  chan struct{} // closed and replaced when a request is logged
	server   *httptest.Server
}

// project is all that is known of one module path.
type project struct {
	releases map[string]*release // by version
	aliases  map[string]string   // query → version
}

// release is one module version. Its byte slices are never changed in place.
type release struct {
	artifacts [3][]byte // by kind, see data
	unlisted  bool
}

func (r *release) data(k artifact.Kind) []byte { return r.artifacts[k-artifact.Info] }

// New returns an upstream that knows no modules.
func New() *Upstream {
	return &Upstream{projects: make(map[string]*project), mounts: make(map[string]http.Handler), arrived: make(chan struct{})}
}

// URL starts the upstream on a loopback port, if it is not started yet, and returns its address.
// An Upstream is also an [http.Handler], for a test that wants its own server.
func (u *Upstream) URL() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server == nil {
		u.server = httptest.NewServer(u)
	}
	return u.server.URL
}

// Close releases what is stalled, closes the connections and stops the server. It waits until all that is done.
func (u *Upstream) Close() {
	u.Release()
	u.mu.Lock()
	s := u.server
	u.server = nil
	u.mu.Unlock()
	if s != nil {
		s.CloseClientConnections()
		s.Close()
	}
}

// Add adds the module version that the txtar archive describes and returns its name.
// It panics if the archive describes none: that is a mistake in the test.
func (u *Upstream) Add(archive string) module.Version {
	m, err := u.AddArchive(txtar.Parse([]byte(archive)))
	if err != nil {
		panic(err)
	}
	return m
}

// AddArchive is Add for an archive that may be wrong.
func (u *Upstream) AddArchive(a *txtar.Archive) (module.Version, error) {
	first, _, _ := strings.Cut(strings.TrimSpace(string(a.Comment)), "\n")
	path, version, ok := strings.Cut(strings.TrimSpace(first), "@")
	m := module.Version{Path: path, Version: version}
	if !ok {
		return m, fmt.Errorf("mirrortest: the archive begins with %q, not with module@version", first)
	}
	files := make(map[string]string)
	override := make(map[string][]byte)
	for _, f := range a.Files {
		if f.Name == ".mod" || f.Name == ".info" {
			override[f.Name] = f.Data
			continue
		}
		files[f.Name] = string(f.Data)
	}
	mod := override[".mod"]
	if mod == nil {
		mod = []byte(cmp.Or(files["go.mod"], "module "+modfile.AutoQuote(path)+"\n"))
	}
	zip, err := makeZip(m, files)
	if err != nil {
		return m, fmt.Errorf("mirrortest: %w", err)
	}
	u.AddZip(m, zip, mod, override[".info"])
	return m, nil
}

// AddZip adds a module version with exactly these bytes, which may be hostile. A nil info is made up.
func (u *Upstream) AddZip(m module.Version, zip, mod, info []byte) {
	if info == nil {
		info = Info(m)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.project(m.Path)
	p.releases[m.Version] = &release{artifacts: [3][]byte{bytes.Clone(info), bytes.Clone(mod), bytes.Clone(zip)}}
}

// AddPath makes the module path known without any version: its list is empty, not missing.
func (u *Upstream) AddPath(path string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.project(path)
}

// project returns the entry of a module path, which it makes if needed. u.mu is held.
func (u *Upstream) project(path string) *project {
	p := u.projects[path]
	if p == nil {
		p = &project{releases: make(map[string]*release), aliases: make(map[string]string)}
		u.projects[path] = p
	}
	return p
}

// Alias makes query, the name of a branch or the hash of a commit, mean version. The query "latest" sets what @latest says.
func (u *Upstream) Alias(path, query, version string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.project(path).aliases[query] = version
}

// DeleteVersion takes a version away, as if it had never been.
func (u *Upstream) DeleteVersion(m module.Version) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.project(m.Path).releases, m.Version)
}

// Unlist takes a version out of the list; its artifacts stay.
func (u *Upstream) Unlist(m module.Version) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.project(m.Path).releases[m.Version]; r != nil {
		r.unlisted = true
	}
}

// LoadDir adds every *.txt and *.txtar archive in dir and returns their names in the order of the files.
func (u *Upstream) LoadDir(dir string) ([]module.Version, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []module.Version
	for _, e := range names {
		if ext := filepath.Ext(e.Name()); ext != ".txt" && ext != ".txtar" {
			continue
		}
		a, err := txtar.ParseFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return list, err
		}
		m, err := u.AddArchive(a)
		if err != nil {
			return list, fmt.Errorf("%s: %w", e.Name(), err)
		}
		list = append(list, m)
	}
	return list, nil
}

// Artifact returns the bytes of one artifact, without any fault, or nil if there is none.
func (u *Upstream) Artifact(m module.Version, k artifact.Kind) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.projects[m.Path]; p != nil && p.releases[m.Version] != nil {
		return bytes.Clone(p.releases[m.Version].data(k))
	}
	return nil
}

// Sums returns the go.sum hashes of the honest bytes of m, whatever the faults: what a checksum database would say.
// For a zip that cannot be hashed it is the hash of no files, and for an unknown version both are empty.
func (u *Upstream) Sums(m module.Version) (zip, mod string) {
	z := u.Artifact(m, artifact.Zip)
	if z == nil {
		return "", ""
	}
	return ZipSum(z), ModSum(u.Artifact(m, artifact.Mod))
}

// Versions returns all module versions, sorted.
func (u *Upstream) Versions() []module.Version {
	u.mu.Lock()
	defer u.mu.Unlock()
	var list []module.Version
	for path, p := range u.projects {
		for v := range p.releases {
			list = append(list, module.Version{Path: path, Version: v})
		}
	}
	module.Sort(list)
	return list
}

// ModSum returns the go.sum hash of a go.mod file.
func ModSum(mod []byte) string {
	h, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
	if err != nil {
		panic(err) // nothing here can fail
	}
	return h
}

// Info returns the info that is made up for m: its time is that of a pseudo-version, or a fixed one.
func Info(m module.Version) []byte {
	t := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	if module.IsPseudoVersion(m.Version) {
		if pt, err := module.PseudoVersionTime(m.Version); err == nil {
			t = pt
		}
	}
	b, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{m.Version, t})
	if err != nil {
		panic(err) // nothing here can fail
	}
	return b
}

// list returns the body of /@v/list: no pseudo-versions, as the protocol wants it.
func (p *project) list() []byte {
	var vs []string
	for v, r := range p.releases {
		if !r.unlisted && !module.IsPseudoVersion(v) {
			vs = append(vs, v)
		}
	}
	semver.Sort(vs)
	var b bytes.Buffer
	for _, v := range vs {
		b.WriteString(v + "\n")
	}
	return b.Bytes()
}

// latest returns the version that @latest means: the highest release, else pre-release, else pseudo-version; "" if there is none.
func (p *project) latest() string {
	if v, ok := p.aliases["latest"]; ok {
		return v
	}
	rank := func(v string) int {
		switch {
		case module.IsPseudoVersion(v):
			return 0
		case semver.Prerelease(v) != "":
			return 1
		}
		return 2
	}
	best := ""
	for v := range p.releases {
		if best == "" || rank(v) > rank(best) || rank(v) == rank(best) && semver.Compare(v, best) > 0 {
			best = v
		}
	}
	return best
}
