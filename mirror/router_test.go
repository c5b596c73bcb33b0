package mirror

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
)

// untouchable is an Upstream that nobody may ask.
type untouchable struct{ t *testing.T }

func (u untouchable) Fetch(_ context.Context, m module.Version, k artifact.Kind, _ func(io.Reader, int64, string) error) error {
	u.t.Errorf("the upstream was asked for %s %s", m, k)
	return artifact.ErrUnavailable
}

func (u untouchable) ask(what string) ([]byte, error) {
	u.t.Errorf("the upstream was asked for %s", what)
	return nil, artifact.ErrUnavailable
}

func (u untouchable) Versions(_ context.Context, path string) ([]byte, error) { return u.ask(path) }
func (u untouchable) Latest(_ context.Context, path string) ([]byte, error)   { return u.ask(path) }
func (u untouchable) Query(_ context.Context, path, _ string) ([]byte, error) { return u.ask(path) }

// Whatever path is asked for with "Disable-Module-Fetch: true": the status is one that means something, every error keeps
// the rules for errors, and nobody else is asked.
func FuzzServeHTTP(f *testing.F) {
	for _, path := range []string{
		"/", "/healthz", "/readyz", "/status", "/metrics", "/prove/example.com/m@v1.0.0", "/sumdb/x/latest", "/sumdb//x", "/example.com/m/@v/list",
		"/cached-only/example.com/m/@latest", "/example.com/m/@v/v1.0.0.zip", "/example.com/m/@v/main.info", "/example.com/%2e%2e/@v/list", "/127.1/x/@v/list",
		"/example.com/!secret/@v/list", "/%00", "//", "*", "/example.com/m/@v/v1.0.0.info?x=1", "/example.com/m/@v/v1.0.0.mod%0a",
	} {
		f.Add("GET", path)
		f.Add("HEAD", path)
	}
	f.Add("POST", "/")
	up := &untouchable{}
	store, err := artifact.OpenStore(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	defer store.Close()
	index := newMemIndex()
	m, err := New(Config{Index: index, Store: store, Upstream: up, Checksums: &checksums{}, Private: "example.com/Secret"})
	if err != nil {
		f.Fatal(err)
	}
	known := []int{200, 400, 403, 404, 405}
	f.Fuzz(func(t *testing.T, method, raw string) {
		up.t = t
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return // net/http answers these itself
		}
		r := (&http.Request{Method: method, URL: u, Host: "mirror.example", Header: http.Header{"Disable-Module-Fetch": {"true"}}}).WithContext(t.Context())
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		resp := w.Result()
		if !slices.Contains(known, resp.StatusCode) {
			t.Errorf("%q %q = %d %q", method, raw, resp.StatusCode, w.Body)
		}
		if resp.StatusCode >= 400 {
			checkErrorBody(t, raw, resp, w.Body.String(), method)
		}
		if strings.Contains(strings.ToLower(w.Body.String()), "example.com/secret") && !strings.Contains(w.Body.String(), "private") {
			t.Errorf("%q tells of a private module: %q", raw, w.Body)
		}
		if !index.empty() {
			t.Fatalf("%q %q published something", method, raw)
		}
	})
}

// A list is sorted, names nothing twice, has all that was published and all that the upstream listed, but pseudo-versions
// of ours, and says the same when it is settled again.
func FuzzSettleList(f *testing.F) {
	f.Add("v1.0.0\nv1.1.0\n", "v1.0.0 v1.2.0-rc.1")
	f.Add("", "v0.0.0-20201130134442-10cb98267c6c v2.0.0+incompatible v1.0.0")
	f.Add("v1.10.0\nv1.9.0\nv1.9.0\nmaster\n", "v1.9.0")
	f.Fuzz(func(t *testing.T, listed, published string) {
		const path = "example.com/m"
		index := newMemIndex()
		var held []string
		for v := range strings.FieldsSeq(published) {
			if mv := (module.Version{Path: path, Version: v}); module.Check(path, v) == nil && canonical(mv) {
				held = append(held, v)
				index.manifests[mv] = artifact.Manifest{Module: mv}
			}
		}
		m := &Mirror{config: Config{Index: index}}
		upstream := artifact.ParseList([]byte(listed), path)
		s, keep, err := m.settleList(t.Context(), path, &seen{versions: upstream})
		if err != nil || !keep {
			t.Fatalf("settleList = %v, %v", keep, err)
		}
		lines := strings.Fields(string(s.answer.body))
		if !slices.IsSortedFunc(lines, semver.Compare) || len(slices.Compact(slices.Clone(lines))) != len(lines) {
			t.Errorf("%q is not sorted or has doubles", lines)
		}
		for _, v := range append(held, upstream...) {
			if slices.Contains(lines, v) == module.IsPseudoVersion(v) {
				t.Errorf("%q and %s: want all but pseudo-versions", lines, v)
			}
		}
		for _, v := range lines {
			if !slices.Contains(held, v) && !slices.Contains(upstream, v) {
				t.Errorf("%s came from nowhere", v)
			}
		}
		again, _, err := m.settleList(t.Context(), path, s)
		if err != nil || !bytes.Equal(again.answer.body, s.answer.body) {
			t.Errorf("settled again: %q, %v, want %q", again.answer.body, err, s.answer.body)
		}
	})
}
