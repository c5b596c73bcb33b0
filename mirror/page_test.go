package mirror

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func html(r *http.Request) { r.Header.Set("Accept", "text/html,application/xhtml+xml") }

// The page says how to use the mirror at the address where it was asked for, to browsers and to terminals.
func TestPage(t *testing.T) {
	g := newRig(t, func(c *Config) { c.Version = "v1.2.3" })
	setup := "go env -w GOPROXY=" + g.srv.URL
	a := g.want("/", 200, setup, html)
	csp := a.header.Get("Content-Security-Policy")
	if a.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
		t.Errorf("page has %v", a.header)
	}
	if strings.Contains(a.body, "<script") || strings.Contains(a.body, " style=") || !strings.Contains(a.body, "v1.2.3") || !strings.Contains(a.body, pageCSS) {
		t.Errorf("page is\n%s", a.body)
	}
	for _, edit := range []func(*http.Request){
		func(r *http.Request) {},
		func(r *http.Request) { html(r); r.Header.Set("User-Agent", "curl/8.5.0") },
	} {
		if a := g.want("/", 200, setup, edit); a.header.Get("Content-Type") != "text/plain; charset=utf-8" || strings.Contains(a.body, "<") {
			t.Errorf("for terminals: %+v", a)
		}
	}
	_, port, err := net.SplitHostPort(g.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, odd := range []string{"a;rm-rf$(x)", "a:b:c", ":80", "x:", "-x", "x:99999", "::1", "[127.0.0.1]:80", "fe80::1%eth0", "a_b", strings.Repeat("x", 256)} {
		g.want("/", 200, "GOPROXY=http://localhost:"+port+"\n", func(r *http.Request) { r.Host = odd })
	}
	for _, host := range []string{"mirror.corp:3000", "mirror", "[::1]:80", "[::1]", "10.0.0.1", "10.0.0.1:1"} {
		g.want("/", 200, "GOPROXY=http://"+host+"\n", func(r *http.Request) { r.Host = host })
	}
	for proto, scheme := range map[string]string{"https": "https", "HTTPS": "http", "https,http": "http", "javascript": "http", "": "http"} {
		g.want("/", 200, "GOPROXY="+scheme+"://mirror.corp\n", func(r *http.Request) {
			r.Host = "mirror.corp"
			r.Header.Set("X-Forwarded-Proto", proto)
		})
	}
	r := httptest.NewRequest("GET", "https://mirror.corp/", nil)
	r.TLS = &tls.ConnectionState{}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	if !strings.Contains(w.Body.String(), "GOPROXY=https://mirror.corp\n") {
		t.Errorf("over TLS: %s", w.Body)
	}
	r.Host = ""
	if got := hostOf(r); got != "localhost:3000" {
		t.Errorf("without any address: %s", got)
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
	g.want("/", 200, `href="/status"`, html)
	g.Drain()
	g.want("/readyz", 503, "draining")
	g.want("/", 200, "draining", html)
	g.want(helloPath+"v1.0.0.zip", 200, "") // what comes in meanwhile is answered
}

// The labels are a fixed set: nothing that a client sends becomes a series.
func TestMetrics(t *testing.T) {
	g := newRig(t)
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
