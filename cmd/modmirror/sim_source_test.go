package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/sumdb/sumdbtest"
)

// simKey is one artifact.
type simKey struct {
	Module module.Version
	Kind   artifact.Kind
}

func (k simKey) String() string { return k.Module.String() + " " + k.Kind.String() }

// path is the URL path of the artifact.
func (k simKey) path() string {
	p, err := module.EscapePath(k.Module.Path)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("/%s/@v/%s.%v", p, k.Module.Version, map[artifact.Kind]string{artifact.Info: "info", artifact.Mod: "mod", artifact.Zip: "zip"}[k.Kind])
}

// simSource is the upstream with its checksum database. Both lie when they are told to.
type simSource struct {
	up   *mirrortest.Upstream
	main *sumdbtest.Database
	fork *sumdbtest.Database // another history with the same key; nil: none
	host *simHost
	http *http.Server

	mu      sync.Mutex
	rng     *rand.Rand      // guarded by mu, as all that follows
	lying   float64         // how probable it is that an artifact is answered with a lie
	stalls  float64         // or not at all
	down    bool            // everything is 503
	forked  map[string]bool // hosts that are shown the other history
	modules []module.Version
	asked   map[string]int // requests, by host
	paths   map[string]int // requests since countPaths, by path
	portal  map[string]int // by host, the status with which a portal answers all that it asks; none: there is none
}

const (
	simUpstream = "192.0.2.1"
	simDatabase = "sum.example.com/sim"
)

func newSimSource(n *simNet, seed uint64) *simSource {
	s := &simSource{up: mirrortest.New(), main: sumdbtest.New(simDatabase), host: n.host(simUpstream, "upstream"),
		rng: rand.New(rand.NewPCG(seed, 3)), forked: map[string]bool{}, asked: map[string]int{}, paths: map[string]int{}, portal: map[string]int{}}
	s.main.Grow(200)
	s.http = &http.Server{Handler: s}
	return s
}

func (s *simSource) serve() error {
	ln, err := s.host.Listen(simUpstream + ":80")
	if err != nil {
		return err
	}
	go s.http.Serve(ln)
	return nil
}

// publish makes a new module version, of which the database knows as well.
func (s *simSource) publish(m module.Version, requires []module.Version, size int, bigMod bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n-- go.mod --\nmodule %s\n\ngo 1.21\n", m, m.Path)
	for _, r := range requires {
		fmt.Fprintf(&b, "\nrequire %s %s\n", r.Path, r.Version)
	}
	if bigMod {
		for i := range artifact.MaxInline / 50 {
			fmt.Fprintf(&b, "\n// line %d of a go.mod file that is a blob: it is long\n", i)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&b, "-- a.go --\npackage a\n\nconst A = \"")
	for range size {
		b.WriteByte('a' + byte(s.rng.IntN(26)))
	}
	b.WriteString("\"\n")
	s.up.Add(b.String())
	zip, mod := s.up.Sums(m)
	s.main.Add(m, zip, mod)
	if s.fork != nil {
		s.fork.Add(m, zip, mod)
	}
	s.main.Grow(s.rng.IntN(40))
	s.modules = append(s.modules, m)
}

// versions returns all module versions that there are.
func (s *simSource) versions() []module.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]module.Version{}, s.modules...)
}

// split shows another history, which begins to differ at the present, to some hosts, and grows both.
func (s *simSource) split(hosts []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fork == nil {
		s.fork = s.main.Fork(s.main.Size() - 1)
		for _, m := range s.modules {
			zip, mod := s.up.Sums(m)
			s.fork.Add(m, zip, mod)
		}
		s.fork.Grow(s.rng.IntN(30) + 1)
		s.main.Grow(s.rng.IntN(30) + 1)
	}
	for _, h := range hosts {
		s.forked[h] = true
	}
}

// hasForked reports whether there ever was another history.
func (s *simSource) hasForked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fork != nil
}

func (s *simSource) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// countPaths returns how often each path was asked for since the last call.
func (s *simSource) countPaths() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := s.paths
	s.paths = map[string]int{}
	return paths
}

// heal makes all of it honest.
func (s *simSource) heal() {
	s.set(func() { s.lying, s.stalls, s.down = 0, 0, false; clear(s.forked) })
	s.main.Lie(sumdbtest.Lies{})
}

// lie is what is done to one answer.
type lie int

const (
	honest lie = iota
	wrongByte
	truncated
	otherZip // other bytes with the same sum
	absent
	broken
	html
	lies
)

// ServeHTTP implements [http.Handler].
func (s *simSource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	s.mu.Lock()
	stall, down, forked, how := s.rng.Float64() < s.stalls, s.down, s.forked[host] && s.fork != nil, honest
	if s.rng.Float64() < s.lying {
		how = 1 + lie(s.rng.IntN(int(lies)-1))
	}
	if how == honest && s.rng.IntN(2) == 0 {
		how = otherZip // that is no lie
	}
	at := s.rng.IntN(1 << 20)
	fork, portal := s.fork, s.portal[host]
	s.asked[host]++
	s.paths[r.URL.Path]++
	s.mu.Unlock()
	if stall {
		<-r.Context().Done()
		return
	}
	if portal != 0 {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(portal)
		fmt.Fprint(w, "<!DOCTYPE html>\n<title>Please log in</title>\n")
		return
	}
	if down {
		http.Error(w, "down for maintenance", http.StatusServiceUnavailable)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/sumdb/"+simDatabase); ok {
		db := s.main
		if forked {
			db = fork
		}
		r = r.Clone(r.Context())
		r.URL.Path = rest
		db.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	s.up.ServeHTTP(rec, r)
	s.answer(w, r, rec, how, at)
}

func (s *simSource) answer(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder, how lie, at int) {
	body := rec.Body.Bytes()
	if rec.Code != http.StatusOK || strings.HasSuffix(r.URL.Path, "/list") || strings.HasSuffix(r.URL.Path, "@latest") {
		how = honest
	}
	length := len(body)
	switch {
	case how == wrongByte && len(body) > 0:
		body = bytes.Clone(body)
		body[at%len(body)] ^= 1
	case how == truncated && len(body) > 0:
		body = body[:at%len(body)]
	case how == otherZip && strings.HasSuffix(r.URL.Path, ".zip"):
		body = mirrortest.Repack(body)
		length = len(body)
	case how == absent:
		http.Error(w, "not found: no such version", http.StatusNotFound)
		return
	case how == broken:
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	case how == html:
		body = []byte("<!DOCTYPE html>\n<title>Please log in</title>\n")
		length = len(body)
	}
	w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
	w.Header().Set("Content-Length", fmt.Sprint(length))
	w.WriteHeader(rec.Code)
	w.Write(body)
	if len(body) < length {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// transport is how a machine reaches the upstream.
func (h *simHost) transport() *http.Transport {
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, addr string) (net.Conn, error) { return h.Dial(ctx, addr) },
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 20 * time.Second, DisableCompression: true,
	}
}
