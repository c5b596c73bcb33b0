package mirror

import (
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// newcomer is an upstream with one go.mod and an info that says when it was published.
type newcomer struct {
	*lister
	mod string
}

func (n *newcomer) Fetch(_ context.Context, _ module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
	if k != artifact.Mod {
		return notExist("no %s here", k)
	}
	return accept(strings.NewReader(n.mod), int64(len(n.mod)), "newcomer")
}

// PROTOCOL 20, FAULTS trap "checksum database lag": a version that the database does not know yet is waited for, in the very
// request that asks for it.
func TestJustPublished(t *testing.T) {
	const mod = "module example.com/new\n"
	mv := module.Version{Path: "example.com/new", Version: "v1.0.0"}
	age := func(d time.Duration) func() string {
		return func() string {
			return fmt.Sprintf(`{"Version":"v1.0.0","Time":%q}`, time.Now().Add(-d).UTC().Format(time.RFC3339))
		}
	}
	for what, c := range map[string]struct {
		info   func() string // "": the upstream does not know it
		learns time.Duration // when the database knows it; 0: never
		status int
		within time.Duration // the answer comes in this time and not in less than half of it
	}{
		"the database lags for 40 s":      {age(time.Minute), 40 * time.Second, 200, time.Minute},
		"the author's clock is ahead":     {age(-time.Hour), 40 * time.Second, 200, time.Minute},
		"the database never learns":       {age(time.Minute), 0, 503, 150 * time.Second},
		"the version is old":              {age(48 * time.Hour), 0, 404, 0},
		"the version is of another world": {age(-48 * time.Hour), 0, 404, 0},
		"the upstream does not have it":   {func() string { return "" }, 0, 404, 0},
		"the upstream talks rubbish":      {func() string { return "<html>" }, 0, 404, 0},
		"the upstream has another":        {func() string { return `{"Version":"v1.0.1"}` }, 0, 404, 0},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &newcomer{&lister{infos: map[string]string{}}, mod}
				if info := c.info(); info != "" {
					up.infos["v1.0.0"] = info
				}
				sums := &checksums{records: map[module.Version]artifact.Record{}}
				b := newBench(t, up.lister, newMemIndex(), func(c *Config) { c.Upstream, c.Checksums = up, sums })
				if c.learns > 0 {
					time.AfterFunc(c.learns, func() { sums.set(mv, artifact.ModSum([]byte("zip")), artifact.ModSum([]byte(mod))) })
				}
				begin := time.Now()
				w := httptest.NewRecorder()
				b.ServeHTTP(w, httptest.NewRequest("GET", "/example.com/new/@v/v1.0.0.mod", nil))
				if took := time.Since(begin); w.Code != c.status || took > c.within || took < c.within/2 {
					t.Errorf("%d %q after %v, want %d within %v", w.Code, w.Body, took, c.status, c.within)
				}
				if w.Code == 503 && (w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "published moments ago")) {
					t.Errorf("%v %s", w.Header(), w.Body)
				}
				if n := sums.count(); n > 15 {
					t.Errorf("the database was asked %d times", n)
				}
				// Nothing of it sticks: once the database knows the version, it is served, no later than a minute after.
				sums.set(mv, artifact.ModSum([]byte("zip")), artifact.ModSum([]byte(mod)))
				time.Sleep(time.Minute)
				w = httptest.NewRecorder()
				b.ServeHTTP(w, httptest.NewRequest("GET", "/example.com/new/@v/v1.0.0.mod", nil))
				if w.Code != 200 || w.Body.String() != mod {
					t.Errorf("a minute later: %d %q", w.Code, w.Body)
				}
			})
		})
	}
}
