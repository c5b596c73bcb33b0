package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// memIndex is an Index in memory: a catalog of one node.
type memIndex struct {
	mu        sync.Mutex
	manifests map[module.Version]artifact.Manifest
	inline    map[artifact.Digest][]byte
	listings  map[string]artifact.Listing
	publishes int // of listings
	publish   error
	first     func(*artifact.Publication) // somebody who publishes first
	asked     func(what string)           // called after an answer was found, before it is returned
}

func newMemIndex() *memIndex {
	return &memIndex{manifests: map[module.Version]artifact.Manifest{}, inline: map[artifact.Digest][]byte{}, listings: map[string]artifact.Listing{}}
}

func (x *memIndex) meanwhile(what string) {
	if x.asked != nil {
		x.asked(what)
	}
}

func (x *memIndex) Manifest(_ context.Context, m module.Version) (artifact.Manifest, error) {
	defer x.meanwhile("manifest")
	x.mu.Lock()
	defer x.mu.Unlock()
	man, ok := x.manifests[m]
	if !ok {
		return man, fmt.Errorf("manifest of %s: %w", m, fs.ErrNotExist)
	}
	return man, nil
}

func (x *memIndex) Inline(_ context.Context, d artifact.Digest) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b, ok := x.inline[d]
	if !ok {
		return nil, fmt.Errorf("inline %s: %w", d, fs.ErrNotExist)
	}
	return b, nil
}

func (x *memIndex) Versions(_ context.Context, path string) ([]string, error) {
	defer x.meanwhile("versions")
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for m := range maps.Keys(x.manifests) {
		if m.Path == path {
			out = append(out, m.Version)
		}
	}
	return out, nil
}

func (x *memIndex) Publish(_ context.Context, p artifact.Publication) (artifact.Manifest, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.publish != nil {
		return artifact.Manifest{}, x.publish
	}
	if x.first != nil {
		other := p
		x.first(&other)
		if err := x.merge(other); err != nil {
			return artifact.Manifest{}, err
		}
	}
	if err := x.merge(p); err != nil {
		return artifact.Manifest{}, err
	}
	return x.manifests[p.Manifest.Module], nil
}

func (x *memIndex) merge(p artifact.Publication) error {
	if err := p.Manifest.Validate(); err != nil {
		return err
	}
	have, ok := x.manifests[p.Manifest.Module]
	if !ok {
		have = p.Manifest
	}
	have, err := have.Merge(p.Manifest)
	if err != nil {
		return err
	}
	x.manifests[p.Manifest.Module] = have
	for _, b := range [][]byte{p.Info, p.Mod} {
		if b != nil {
			x.inline[artifact.DigestOf(b)] = bytes.Clone(b)
		}
	}
	return nil
}

func (x *memIndex) Listing(_ context.Context, path string) (artifact.Listing, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.listings[path]
	if !ok {
		return l, fmt.Errorf("listing of %s: %w", path, fs.ErrNotExist)
	}
	return l, nil
}

func (x *memIndex) PublishListing(_ context.Context, l artifact.Listing) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	known := x.listings[l.Path]
	known.Path = l.Path
	if !l.Listed.IsZero() {
		known.Versions, known.Listed = l.Versions, l.Listed
	}
	if !l.Latested.IsZero() {
		known.Latest, known.Latested = l.Latest, l.Latested
	}
	x.listings[l.Path] = known
	x.publishes++
	return nil
}

// empty reports whether nothing was published at all.
func (x *memIndex) empty() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.manifests) == 0 && len(x.inline) == 0
}

// checksums is a checksum database that vouches for what the upstream had when it was asked to learn it.
type checksums struct {
	mu      sync.Mutex
	records map[module.Version]artifact.Record
	asked   []module.Version
	down    error
}

func (c *checksums) Record(_ context.Context, m module.Version) (artifact.Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, m)
	if c.down != nil {
		return artifact.Record{}, c.down
	}
	r, ok := c.records[m]
	if !ok {
		return r, fmt.Errorf("lookup %s: %w", m, fs.ErrNotExist)
	}
	return r, nil
}

func (c *checksums) set(m module.Version, zip, mod string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zip, m.Path, m.Version, mod)
	c.records[m] = artifact.Record{Database: "sum.example", ID: int64(len(c.records)), Text: []byte(text), TreeSize: 1000}
}

func (c *checksums) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked)
}

// proxies asks HTTP proxies in their order. It is the least that an Upstream must be, with the errors of upstream.List: a
// body that breaks off is an outage, whatever its reader makes of it.
type proxies struct {
	urls   []string
	client http.Client
}

func (p *proxies) do(ctx context.Context, path string, accept func(io.Reader, int64, string) error) error {
	var errs []error
	for _, url := range p.urls {
		err := p.try(ctx, url, path, accept)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
		if !isAbsent(err) && !errors.Is(err, artifact.ErrRefused) && !errors.Is(err, artifact.ErrMalformed) {
			break
		}
	}
	return errors.Join(errs...)
}

func (p *proxies) try(ctx context.Context, url, path string, accept func(io.Reader, int64, string) error) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url+path, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", err, artifact.ErrUnavailable)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case 200:
		body := &breaking{r: resp.Body}
		if err := accept(body, resp.ContentLength, url); body.err == nil || err == nil {
			return err
		}
		return body.err
	case 404, 410:
		return fmt.Errorf("%s%s: %s: %w", url, path, resp.Status, fs.ErrNotExist)
	case 403, 451:
		return fmt.Errorf("%s%s: %s: %w", url, path, resp.Status, artifact.ErrPolicy)
	}
	return fmt.Errorf("%s%s: %s: %w", url, path, resp.Status, artifact.ErrUnavailable)
}

// breaking is a body whose errors say that the source is unavailable.
type breaking struct {
	r   io.Reader
	err error
}

func (b *breaking) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = fmt.Errorf("after some bytes: %w: %w", err, artifact.ErrUnavailable)
		err = b.err
	}
	return n, err
}

func (p *proxies) read(ctx context.Context, req Request) (b []byte, err error) {
	err = p.do(ctx, req.Path(), func(body io.Reader, _ int64, _ string) (err error) {
		b, err = io.ReadAll(io.LimitReader(body, 1<<20))
		return err
	})
	return b, err
}

func (p *proxies) Fetch(ctx context.Context, m module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
	return p.do(ctx, Request{Op: OpArtifact, Module: m, Kind: k}.Path(), accept)
}

func (p *proxies) Versions(ctx context.Context, path string) ([]byte, error) {
	return p.read(ctx, Request{Op: OpList, Module: module.Version{Path: path}})
}

func (p *proxies) Latest(ctx context.Context, path string) ([]byte, error) {
	return p.read(ctx, Request{Op: OpLatest, Module: module.Version{Path: path}})
}

func (p *proxies) Query(ctx context.Context, path, query string) ([]byte, error) {
	return p.read(ctx, Request{Op: OpQuery, Module: module.Version{Path: path, Version: query}})
}

// rig is a Mirror with everything around it.
type rig struct {
	*Mirror
	t     *testing.T
	up    *mirrortest.Upstream
	index *memIndex
	sums  *checksums
	store *artifact.Store
	dir   string
	reg   *prometheus.Registry
	logs  *lockedBuffer
	srv   *httptest.Server
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const hello = "example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- hello.go --\npackage hello\n"

var helloV = module.Version{Path: "example.com/hello", Version: "v1.0.0"}

// newRig starts a mirror in front of an upstream that has hello.
func newRig(t *testing.T, options ...func(*Config)) *rig {
	g := &rig{t: t, up: mirrortest.New(), index: newMemIndex(), sums: &checksums{records: map[module.Version]artifact.Record{}},
		dir: t.TempDir(), logs: new(lockedBuffer)}
	t.Cleanup(g.up.Close)
	g.add(hello)
	g.start(options...)
	return g
}

// add adds a module version to the upstream and to the checksum database.
func (g *rig) add(archive string) module.Version {
	m := g.up.Add(archive)
	zip, mod := g.up.Sums(m)
	g.sums.set(m, zip, mod)
	return m
}

// start starts a mirror on what is there, as after a restart of the process.
func (g *rig) start(options ...func(*Config)) {
	var err error
	if g.store, err = artifact.OpenStore(g.dir); err != nil {
		g.t.Fatal(err)
	}
	g.reg = prometheus.NewRegistry()
	c := Config{Index: g.index, Upstream: &proxies{urls: []string{g.up.URL()}}, Checksums: g.sums, Store: g.store, Metrics: g.reg,
		Log: slog.New(slog.NewTextHandler(g.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, o := range options {
		o(&c)
	}
	if g.Mirror, err = New(c); err != nil {
		g.t.Fatal(err)
	}
	srv, m, store := httptest.NewServer(g.Mirror), g.Mirror, g.store
	g.srv = srv
	g.t.Cleanup(func() {
		g.up.Release()
		srv.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			g.t.Errorf("Close: %v", err)
		}
		store.Close()
	})
}

// answered is what a client got.
type answered struct {
	status int
	body   string
	header http.Header
}

// get asks the mirror without waiting for a connection; edit may change the request.
func (g *rig) get(path string, edit ...func(*http.Request)) answered {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), "GET", g.srv.URL+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, e := range edit {
		e(r)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		g.t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatalf("GET %s: %v", path, err)
	}
	if resp.StatusCode >= 400 {
		checkErrorBody(g.t, path, resp, string(b), r.Method)
	}
	return answered{resp.StatusCode, string(b), resp.Header}
}

// checkErrorBody holds every error in every test to the rules for errors.
func checkErrorBody(t *testing.T, path string, resp *http.Response, body, method string) {
	t.Helper()
	if got := resp.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
		t.Errorf("%s: error has the type %q", path, got)
	}
	if resp.StatusCode == 416 || method == "HEAD" {
		return
	}
	lines := strings.Split(body, "\n")
	if len(body) > 600 || len(lines) > 8 || lines[0] == "" || len(lines) < 3 || !strings.HasPrefix(lines[len(lines)-2], "request id: ") {
		t.Errorf("%s: error has %d bytes, %d lines:\n%s", path, len(body), len(lines), body)
	}
	if strings.Contains(body, "127.0.0.1") || strings.ContainsFunc(strings.ReplaceAll(body, "\n", ""), func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Errorf("%s: error shows an address or control characters:\n%q", path, body)
	}
	if cc := resp.Header.Get("Cache-Control"); cc != "no-store" && (resp.StatusCode != 404 || cc != "public, max-age=30") {
		t.Errorf("%s: error has Cache-Control %q", path, cc)
	}
	if resp.StatusCode >= 502 && resp.Header.Get("Retry-After") == "" {
		t.Errorf("%s: %s without Retry-After", path, resp.Status)
	}
}

// want asks and expects a status and, unless empty, a part of the body.
func (g *rig) want(path string, status int, part string, edit ...func(*http.Request)) answered {
	g.t.Helper()
	a := g.get(path, edit...)
	if a.status != status || !strings.Contains(a.body, part) {
		g.t.Fatalf("GET %s = %d %q, want %d %q", path, a.status, a.body, status, part)
	}
	return a
}

// metric returns the sum of all series of a counter whose labels have these values.
func (g *rig) metric(name string, labels ...string) float64 {
	g.t.Helper()
	families, err := g.reg.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "modmirror_mirror_"+name {
			continue
		}
		for _, s := range f.GetMetric() {
			var values []string
			for _, l := range s.GetLabel() {
				values = append(values, l.GetValue())
			}
			has := func(l string) bool { return slices.Contains(values, l) }
			if !slices.ContainsFunc(labels, func(l string) bool { return !has(l) }) {
				sum += s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// nothingStored fails the test if any byte came in.
func (g *rig) nothingStored() {
	g.t.Helper()
	if !g.index.empty() {
		g.t.Errorf("published: %+v", g.index.manifests)
	}
	for ref := range g.store.All() {
		g.t.Errorf("stored: %v", ref)
	}
}
