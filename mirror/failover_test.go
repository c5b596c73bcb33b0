package mirror

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/mirror/upstream"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The second of two upstreams is asked in time when the first hangs, with everything as it is by default.
func TestSecondUpstreamWhenTheFirstHangs(t *testing.T) {
	for path, want := range map[string]string{helloPath + "list": "v1.0.0\n", "/example.com/hello/@latest": `{"Version":"v1.0.0"}`} {
		synctest.Test(t, func(t *testing.T) {
			list, err := upstream.Parse("https://a.example|https://b.example", upstream.Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.URL.Host == "a.example" {
					<-r.Context().Done()
					return nil, context.Cause(r.Context())
				}
				return &http.Response{StatusCode: 200, ContentLength: int64(len(want)), Body: io.NopCloser(strings.NewReader(want))}, nil
			})})
			if err != nil {
				t.Fatal(err)
			}
			store, err := artifact.OpenStore(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			m, err := New(Config{Index: newMemIndex(), Store: store, Upstream: list, Checksums: &checksums{}})
			if err != nil {
				t.Fatal(err)
			}
			begin, w := time.Now(), httptest.NewRecorder()
			m.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if took := time.Since(begin); w.Code != 200 || w.Body.String() != want || took != 10*time.Second {
				t.Errorf("%s = %d %q after %v", path, w.Code, w.Body, took)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
