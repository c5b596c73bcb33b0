package main

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
)

// While a node opens, it says what it does and what keeps it; its process is healthy, and not ready.
func TestFrontWhileOpening(t *testing.T) {
	var f front
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 && (w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store") {
			t.Errorf("%s: headers %v", path, w.Header())
		}
		return w.Code, w.Body.String()
	}
	if code, body := get("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	for _, path := range []string{"/readyz", "/example.com/m/@v/list"} {
		if code, body := get(path); code != 503 || body != "this mirror is starting: opening its files\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	f.say("it looks for %d others", 2)
	f.blame(errors.New("they refuse it"))
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "looks for 2 others") || !strings.Contains(body, "last: they refuse it") {
		t.Errorf("with a hurdle: %d %q", code, body)
	}
	f.say("it goes on")
	if _, body := get("/readyz"); strings.Contains(body, "last:") {
		t.Errorf("after the hurdle: %q", body)
	}
}
