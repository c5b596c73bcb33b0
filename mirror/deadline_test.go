package mirror

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// timed is a ResponseWriter that notes until when it may be written to.
type timed struct {
	*httptest.ResponseRecorder
	until time.Time
	late  bool // something was written without a deadline
}

func (w *timed) SetWriteDeadline(t time.Time) error { w.until = t; return nil }
func (w *timed) Write(p []byte) (int, error) {
	w.late = w.late || w.until.IsZero()
	return w.ResponseRecorder.Write(p)
}

// FAULTS 28: every answer must be read within a time that its size allows for, whoever sends it.
func TestWriteDeadlines(t *testing.T) {
	const big = 20 << 20
	g := newRig(t, func(c *Config) {
		c.ClientWait = 5 * time.Minute
		c.SumDB = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "head") })
		c.MetricsHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x 1") })
	})
	g.add("example.com/large@v1.0.0\n-- go.mod --\nmodule example.com/large\n" + strings.Repeat("// x\n", 200_000))
	g.list.keep("example.com/long", &seen{answer: newAnswer(make([]byte, 2<<20), typeText, shortCached, ""), at: time.Now(), counted: upstreamOnly})
	zip := module.Version{Path: "example.com/zip", Version: "v1.0.0"}
	d, err := g.store.Create(artifact.MaxZip)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(append(zipHead(zip), make([]byte, big)...)); err != nil {
		t.Fatal(err)
	}
	ref, err := d.Commit()
	if err != nil {
		t.Fatal(err)
	}
	g.index.commit(t, zip.Path, zip.Version)
	man := g.index.manifests[zip]
	man.Zip = ref
	g.index.manifests[zip] = man

	usual := 6 * time.Minute
	for path, want := range map[string]time.Duration{
		helloPath + "v1.0.0.mod": usual, helloPath + "v1.0.0.info": usual, helloPath + "list": usual, helloPath + "nope.mod": usual,
		"/": usual, "/metrics": usual, "/readyz": usual, "/sumdb/s/latest": usual,
		"/example.com/long/@v/list":        time.Minute + 2<<20/(32<<10)*time.Second,
		"/example.com/large/@v/v1.0.0.mod": time.Minute + 30*time.Second,
		"/example.com/zip/@v/v1.0.0.zip":   time.Minute + big/(32<<10)*time.Second,
	} {
		for range 2 { // the second time some are in memory
			w := &timed{ResponseRecorder: httptest.NewRecorder()}
			begin := time.Now()
			g.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if got := w.until.Sub(begin); w.late || got < want || got > want+30*time.Second {
				t.Errorf("%s: %d, %v to read %d bytes, want %v", path, w.Code, got, w.Body.Len(), want)
			}
		}
	}
}
