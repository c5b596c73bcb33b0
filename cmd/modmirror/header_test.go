package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// FAULTS 24: nothing of a client's request goes to the upstream or to the checksum database: what they get is built from
// nothing, to the last header field. Nor does anything of it stand in the log, but the id that a client gives its request.
func TestNoClientHeaderGoesOut(t *testing.T) {
	s := newSite(t)
	s.load()
	p := s.start("--log-level", "debug", "--list-ttl", "1ms", "--not-found-ttl", "1ms")
	for _, path := range []string{
		"/sumdb/" + databaseName + "/lookup/example.com/quote@v1.2.0", // nothing of it is known yet
		"/sumdb/" + databaseName + "/lookup/example.com/nothing@v1.2.0",
		"/sumdb/" + databaseName + "/latest", "/sumdb/" + databaseName + "/supported",
		fmt.Sprintf("/sumdb/%s/tile/8/0/000.p/%d", databaseName, s.db.Size()),
		"/example.com/hello/@v/list", "/example.com/hello/@latest", "/example.com/hello/@v/main.info",
		"/example.com/hello/@v/v1.0.0.info", "/example.com/hello/@v/v1.0.0.mod", "/example.com/hello/@v/v1.0.0.zip",
		"/example.com/hello/@v/v9.0.0.zip", "/cached-only/example.com/hello/@v/v1.1.0.zip", "/example.com/nothing/@v/list",
	} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			req, err := http.NewRequestWithContext(t.Context(), method, p.url+path+"?token=hunter2", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("hunter", "hunter2")
			for _, name := range []string{"Cookie", "Proxy-Authorization", "X-Forwarded-For", "Forwarded", "Referer", "User-Agent", "Accept", "Accept-Language",
				"If-None-Match", "Range", "Origin", "Traceparent", "Te", "Via", "Cache-Control", "Pragma"} {
				req.Header.Set(name, "hunter2")
			}
			req.Header.Set("Disable-Module-Fetch", "false")
			req.Header.Set("X-Request-Id", "from-the-client") // this one is for the log
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode >= 500 {
				t.Errorf("%s %s: %s", method, path, resp.Status)
			}
		}
	}

	seen := make(map[string]int)
	for _, r := range s.up.Requests() {
		for _, class := range []string{"/lookup/", "/latest", "/tile/", "/@v/list", "/@latest", ".info", ".mod", ".zip"} {
			if strings.Contains(r.Path, class) {
				seen[class]++
			}
		}
		names := slices.Sorted(maps.Keys(r.Header))
		if !slices.Equal(names, []string{"Accept-Encoding", "User-Agent"}) || !strings.HasPrefix(r.Header.Get("User-Agent"), "modmirror/") {
			t.Errorf("%s %s: the upstream sees %v", r.Method, r.Path, r.Header)
		}
		if r.Method != http.MethodGet || r.Query != "" || "http://"+r.Host != s.up.URL() {
			t.Errorf("the upstream sees %s %s?%s for host %s", r.Method, r.Path, r.Query, r.Host)
		}
	}
	if len(seen) != 8 {
		t.Errorf("the upstream was asked for %v: not for everything that this test is about", seen)
	}
	s.end(p)
	if log := p.output(); strings.Contains(log, "hunter2") || !strings.Contains(log, "id=from-the-client") {
		t.Errorf("the log has what the client sent, or not its request id:\n%s", p.output())
	}
}
