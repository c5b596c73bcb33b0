package mirrortest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
)

// Request is what the upstream was asked, as it arrived.
type Request struct {
	Method string
	Path   string // as in the URL, decoded: "/example.com/!hello/@v/list"
	Query  string
	Host   string
	Header http.Header
}

// Requests returns all requests since the start or the last Reset, in the order in which they arrived.
func (u *Upstream) Requests() []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Request(nil), u.log...)
}

// Count returns how many requests there were for exactly this URL path.
func (u *Upstream) Count(urlPath string) int {
	n := 0
	for _, r := range u.Requests() {
		if r.Path == urlPath {
			n++
		}
	}
	return n
}

// Await blocks until there were n requests for exactly this URL path, or ctx ends.
func (u *Upstream) Await(ctx context.Context, urlPath string, n int) error {
	for {
		u.mu.Lock()
		arrived := u.arrived
		u.mu.Unlock()
		if u.Count(urlPath) >= n {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d requests for %s arrived: %w", u.Count(urlPath), n, urlPath, context.Cause(ctx))
		}
	}
}

// Reset forgets the requests.
func (u *Upstream) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.log = nil
}

// Mount serves everything at and below prefix by h, which sees the path without the prefix, beginning with a slash.
// Of several prefixes the longest counts. A nil h ends it.
func (u *Upstream) Mount(prefix string, h http.Handler) {
	prefix = "/" + strings.Trim(prefix, "/")
	u.mu.Lock()
	defer u.mu.Unlock()
	if h == nil {
		delete(u.mounts, prefix)
		return
	}
	u.mounts[prefix] = h
}

// ServeHTTP answers one request as a GOPROXY does, with the faults that are set.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.log = append(u.log, Request{r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.Header.Clone()})
	close(u.arrived)
	u.arrived = make(chan struct{})
	h := u.route(r.URL.Path)
	u.mu.Unlock()
	h(w, r)
}

// route chooses what answers a request for urlPath. u.mu is held; what it returns runs without.
func (u *Upstream) route(urlPath string) http.HandlerFunc {
	if u.faults.down {
		return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	}
	for _, s := range u.faults.statuses {
		if strings.HasPrefix(urlPath, s.prefix) {
			return s.serve
		}
	}
	for _, x := range u.faults.redirects {
		if strings.HasPrefix(urlPath, x.prefix) {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, x.base+r.URL.EscapedPath(), http.StatusFound)
			}
		}
	}
	if h := u.mounted(urlPath); h != nil {
		return h
	}
	return u.module(strings.TrimPrefix(urlPath, "/"))
}

func (s status) serve(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, h := range s.header {
		w.Header().Set(h[0], h[1])
	}
	w.WriteHeader(s.code)
	fmt.Fprint(w, s.body)
}

func (u *Upstream) mounted(urlPath string) http.HandlerFunc {
	for p := urlPath; p != "/" && p != "."; p = path.Dir(p) {
		if h := u.mounts[p]; h != nil {
			return func(w http.ResponseWriter, r *http.Request) {
				if strings.TrimPrefix(r.URL.Path, p) == "" {
					r = r.Clone(r.Context())
					r.URL.Path += "/"
				}
				http.StripPrefix(p, h).ServeHTTP(w, r)
			}
		}
	}
	return nil
}

// module routes what the GOPROXY protocol knows: <escaped path>/@v/<file> and <escaped path>/@latest.
func (u *Upstream) module(name string) http.HandlerFunc {
	escaped, file, ok := cutLast(name, "/@v/")
	if !ok {
		escaped, ok = strings.CutSuffix(name, "/@latest")
		file = "@latest"
	}
	modPath, err := module.UnescapePath(escaped)
	p := u.projects[modPath]
	if !ok || err != nil || p == nil {
		return notFound("unknown module")
	}
	switch file {
	case "list":
		return text("text/plain; charset=utf-8", p.list())
	case "@latest":
		if r := p.releases[p.latest()]; r != nil {
			return text("application/json", r.data(artifact.Info))
		}
		return notFound("no versions")
	}
	ext := path.Ext(file)
	version, err := module.UnescapeVersion(strings.TrimSuffix(file, ext))
	if err != nil {
		return notFound("malformed version")
	}
	k, ok := map[string]artifact.Kind{".info": artifact.Info, ".mod": artifact.Mod, ".zip": artifact.Zip}[ext]
	if !ok {
		return notFound("unknown file")
	}
	if v, ok := p.aliases[version]; ok && k == artifact.Info {
		version = v
	}
	r := p.releases[version]
	if r == nil || !semver.IsValid(version) {
		return notFound("unknown revision " + version)
	}
	f := u.faults.artifacts[target{module.Version{Path: modPath, Version: version}, k}]
	return f.serve(k, r.data(k), u.faults.release)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func notFound(reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not found: "+reason, http.StatusNotFound) }
}

func text(contentType string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b)
	}
}

// serve returns the handler that sends b, an artifact of kind k, as f wants it. The handler stops to wait when release is closed.
func (f fault) serve(k artifact.Kind, b []byte, release <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b := bytes.Clone(b)
		if f.tamper != nil {
			b = f.tamper(b)
		}
		contentType := map[artifact.Kind]string{artifact.Info: "application/json", artifact.Mod: "text/plain; charset=utf-8", artifact.Zip: "application/zip"}[k]
		if f.html {
			contentType, b = "text/html; charset=utf-8", []byte("<!DOCTYPE html>\n<title>Please log in</title>\n")
		}
		if f.gzip {
			w.Header().Set("Content-Encoding", "gzip")
			b = compress(b)
		}
		w.Header().Set("Content-Type", contentType)
		if !f.unsized {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)+f.length))
		}
		f.send(w, r, b, release)
	}
}

// send writes the body, with pauses and an early end if f has them.
func (f fault) send(w http.ResponseWriter, r *http.Request, b []byte, release <-chan struct{}) {
	flush := func() {
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush()
		}
	}
	if f.unsized {
		flush() // net/http knows the length of a short body by itself
	}
	switch {
	case f.stall && f.stallAt < 0:
		wait(r, release, 0)
		w.Write(b)
	case f.stall:
		n := min(f.stallAt, len(b))
		w.Write(b[:n])
		flush()
		wait(r, release, 0)
		w.Write(b[n:])
	case f.cut:
		w.Write(b[:min(f.cutAt, len(b))])
		flush()
		panic(http.ErrAbortHandler)
	case f.chunk > 0:
		for len(b) > 0 {
			n := min(f.chunk, len(b))
			if _, err := w.Write(b[:n]); err != nil {
				return
			}
			flush()
			b = b[n:]
			wait(r, release, f.every)
		}
	case f.endless:
		w.Write(b)
		zeros := make([]byte, 64<<10)
		for !released(release) {
			if _, err := w.Write(zeros); err != nil {
				return
			}
		}
	case f.length < 0:
		w.Write(b[:max(0, len(b)+f.length)])
	default:
		w.Write(b)
	}
	if f.length > 0 {
		flush()
		panic(http.ErrAbortHandler)
	}
}

// wait blocks until release is closed, the client goes away, or d is over if it is not zero.
func wait(r *http.Request, release <-chan struct{}, d time.Duration) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-release:
	case <-r.Context().Done():
	case <-timer:
	}
}

func released(release <-chan struct{}) bool {
	select {
	case <-release:
		return true
	default:
		return false
	}
}

func compress(b []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	z.Write(b)
	z.Close()
	return buf.Bytes()
}
