package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What is for people is answered by Pages, and nothing else is.
func TestPages(t *testing.T) {
	paths := []string{"/", "/search?q=x", "/events", "/modules/example.com/hello", "/assets/page.css"}
	g := newRig(t)
	for _, path := range paths {
		g.want(path, 404, "")
	}
	during := int64(-1)
	g.start(func(c *Config) {
		c.Pages = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			during = g.serving.Load()
			if r.URL.Path == "/search" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprintf(w, "page %s", r.URL.Path)
		})
	})
	for _, path := range paths {
		status, serving := 200, int64(1)
		switch path {
		case "/search?q=x":
			status = 503
		case "/events":
			serving = 0 // the scrub does not wait for its end
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if want := "page " + strings.TrimSuffix(path, "?q=x"); w.Code != status || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %d %q", path, w.Code, w.Body, status, want)
		}
		if during != serving {
			t.Errorf("%s counts as %d requests, want %d", path, during, serving)
		}
	}
	if n := g.serving.Load(); n != 0 {
		t.Errorf("%d requests are being answered", n)
	}
	for _, path := range []string{"/searching", "/events/", "/modules", "/assets", "//"} {
		if a := g.get(path); a.status != 404 && a.status != 400 {
			t.Errorf("%s: %d %q", path, a.status, a.body)
		}
	}
	g.want(helloPath+"v1.0.0.zip", 200, "")
	for labels, n := range map[[3]string]float64{{"page", "hit", "200"}: 3, {"page", "error", "503"}: 1, {"events", "hit", "200"}: 1} {
		if got := g.metric("requests_total", labels[:]...); got != n {
			t.Errorf("requests %v = %v, want %v", labels, got, n)
		}
	}
}

func TestOperations(t *testing.T) {
	g := newRig(t)
	g.want("/healthz", 200, "ok")
	g.want("/readyz", 200, "ready")
	g.want("/status", 404, "")
	g.want("/metrics", 404, "")
	g.want("/sumdb/sum.golang.org/supported", 404, "")
	g.start(func(c *Config) {
		c.Status = func(context.Context) any { return map[string]int{"nodes": 1} }
		c.MetricsHandler = promhttp.HandlerFor(g.reg, promhttp.HandlerOpts{})
		c.Ready = func(_ context.Context, writes bool) error {
			if writes {
				return errors.New("frozen by a fork")
			}
			return nil
		}
	})
	if a := g.want("/status", 200, `"nodes": 1`); a.header.Get("Content-Type") != "application/json" {
		t.Errorf("status has %v", a.header)
	}
	g.want("/readyz", 200, "ready")
	g.want("/readyz?writes", 503, "frozen by a fork")
	g.want("/metrics", 200, "")
	g.Drain()
	g.want("/readyz", 503, "draining")
	g.want(helloPath+"v1.0.0.zip", 200, "") // what comes in meanwhile is answered
}

// The labels are a fixed set: nothing that a client sends becomes a series.
func TestMetrics(t *testing.T) {
	g := newRig(t, func(c *Config) {
		c.Pages = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "page") })
	})
	for _, p := range []string{helloPath + "list", helloPath + "v1.0.0.info", helloPath + "v1.0.0.info", helloPath + "v0.9.0.mod", "/x%00", "/nope", "/", "/healthz"} {
		g.get(p)
	}
	for _, want := range []struct {
		n      float64
		labels []string
	}{
		{1, []string{"list", "fetched", "200"}}, {1, []string{"info", "fetched", "200"}}, {1, []string{"info", "hit", "200"}},
		{1, []string{"mod", "miss", "404"}}, {1, []string{"bad", "miss", "404"}}, {1, []string{"bad", "refused", "400"}}, {2, []string{"page", "hit", "200"}},
	} {
		if got := g.metric("requests_total", want.labels...); got != want.n {
			t.Errorf("requests %v = %v, want %v", want.labels, got, want.n)
		}
	}
	for _, stage := range []string{"record", "download", "check", "store", "publish"} {
		if n := g.metric("ingest_seconds", stage); n != 1 {
			t.Errorf("stage %s observed %v times", stage, n)
		}
	}
	if n := g.gauge("requests_in_flight"); n != 0 {
		t.Errorf("in flight: %v", n)
	}
	families, err := g.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			for _, l := range s.GetLabel() {
				if strings.Contains(l.GetValue(), "example") {
					t.Errorf("%s has the label %v", f.GetName(), l)
				}
			}
		}
	}
	if _, err := New(g.config); err == nil {
		t.Error("two mirrors share a registry")
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("New works without anything")
	}
	if _, err := New(Config{Index: newMemIndex(), Upstream: &lister{}}); err == nil {
		t.Error("New works without a checksum database")
	}
}
