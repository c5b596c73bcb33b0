package main

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What a member has the cluster commit for one version, and is the zip of another one, is refused with the reason, also after a restart,
// and found by fsck; the other one is served.
func TestForgedPublication(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, name := range []string{"before", "kept", "later"} { // fsck goes by their names
		s.add("example.com/" + name + "@v1.0.0\n-- go.mod --\nmodule example.com/" + name + "\n")
	}
	p := s.start()
	s.want(p, "/example.com/kept/@v/v1.0.0.zip", 200)
	s.want(p, "/example.com/before/@v/v1.0.0.mod", 200)
	s.want(p, "/example.com/later/@v/v1.0.0.mod", 200)
	if err := p.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	s.wantClean()
	c := config{DataDir: s.data, Offline: true, SumDB: []string{s.db.Key()}, ListTTL: time.Minute, NotFoundTTL: time.Second}
	n, err := openNode(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	manifest := func(path string) artifact.Manifest {
		man, err := n.replica.Manifest(t.Context(), module.Version{Path: path, Version: "v1.0.0"})
		if err != nil {
			t.Fatal(err)
		}
		return man
	}
	soon(t, "a leader", func() bool { return n.isLeader() == nil })
	for _, path := range []string{"example.com/before", "example.com/later"} {
		forged := manifest(path)
		forged.Zip = manifest("example.com/kept").Zip
		if _, err := n.replica.Publish(t.Context(), artifact.Publication{Manifest: forged}); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]int{"/example.com/before/@v/v1.0.0.zip": 403, "/example.com/kept/@v/v1.0.0.zip": 200, "/cached-only/example.com/later/@v/v1.0.0.zip": 403}
	for path, status := range want {
		w := httptest.NewRecorder()
		n.mirror.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != status || status == 403 && !strings.Contains(w.Body.String(), "example.com/kept@v1.0.0/") {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	out, err := s.fsck()
	for path, bad := range map[string]bool{"example.com/before": true, "example.com/kept": false, "example.com/later": true} {
		if err == nil || strings.Contains(out, path+"@v1.0.0 zip: ") != bad {
			t.Errorf("fsck of %s: %v\n%s", path, err, out)
		}
	}
	p = s.start("--offline")
	for path, status := range want {
		s.want(p, path, status)
	}
}
