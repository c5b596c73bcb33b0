package mirror

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"modmirror/mirror/artifact"
)

// Whoever reads while an artifact is on its way in finds nothing of it, or waits and gets all of it: at no step are there
// bytes of it to be had, with whatever request.
func TestReadersDuringIngest(t *testing.T) {
	const path = helloPath + "v1.0.0.zip"
	head := func(r *http.Request) { r.Method = "HEAD" }
	part := func(r *http.Request) { r.Header.Set("Range", "bytes=2-9") }
	for _, step := range []string{"download", "check", "store"} {
		t.Run(step, func(t *testing.T) {
			g := newRig(t)
			whole := string(g.up.Artifact(helloV, artifact.Zip))
			g.add("example.com/hello@v0.9.0\n-- go.mod --\nmodule example.com/hello\n")
			g.want(helloPath+"v0.9.0.mod", 200, "")
			g.settle()
			there, goOn := make(chan struct{}), make(chan struct{})
			g.step = func(s string) {
				if s == step {
					close(there)
					<-goOn
				}
			}
			var readers sync.WaitGroup
			readers.Go(func() { wantWhole(t, g.get(path), whole) })
			<-there
			for range 2 {
				g.want("/cached-only"+path, 404, "")
				g.want("/cached-only"+path, 404, "", head)
				g.want("/cached-only"+path, 404, "", part)
				g.want("/cached-only"+helloPath+"v1.0.0.info", 404, "")
				if a := g.want("/cached-only"+helloPath+"list", 200, ""); a.body != "v0.9.0\n" {
					t.Errorf("the list is %q", a.body)
				}
			}
			readers.Go(func() { wantWhole(t, g.get(path), whole) })
			readers.Go(func() {
				if a := g.get(path, part); a.status != 206 || a.body != whole[2:10] {
					t.Errorf("a part = %d, %d bytes", a.status, len(a.body))
				}
			})
			readers.Go(func() {
				if a := g.get(path, head); a.status != 200 || a.body != "" || a.header.Get("Content-Length") != strconv.Itoa(len(whole)) {
					t.Errorf("HEAD = %d %v", a.status, a.header)
				}
			})
			eventually(t, func() bool { return g.gauge("requests_in_flight") == 4 })
			close(goOn)
			readers.Wait()
			wantWhole(t, g.get("/cached-only"+path), whole)
			if a := g.get("/cached-only" + helloPath + "list"); !strings.Contains(a.body, "v1.0.0\n") {
				t.Errorf("the list is %q", a.body)
			}
			if n := g.up.Count(path); n != 1 {
				t.Errorf("the upstream was asked %d times", n)
			}
		})
	}
}

func wantWhole(t *testing.T, a answered, whole string) {
	t.Helper()
	if a.status != 200 || a.body != whole {
		t.Errorf("%d, %d bytes, want 200, %d", a.status, len(a.body), len(whole))
	}
}
