package mirror

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// nothing is an upstream and a checksum database that have nothing.
type nothing struct{}

func (nothing) no(what any) error {
	return fmt.Errorf("the upstream: %w", notExist("http://127.0.0.1:1/%v: 404 Not Found: not found: nobody has %v", what, what))
}
func (n nothing) Record(_ context.Context, m module.Version) (artifact.Record, error) {
	return artifact.Record{}, n.no(m)
}
func (n nothing) Fetch(_ context.Context, m module.Version, _ artifact.Kind, _ func(io.Reader, int64, string) error) error {
	return n.no(m)
}
func (n nothing) Versions(_ context.Context, path string) ([]byte, error) { return nil, n.no(path) }
func (n nothing) Latest(_ context.Context, path string) ([]byte, error)   { return nil, n.no(path) }
func (n nothing) Query(_ context.Context, path, query string) ([]byte, error) {
	return nil, n.no(path + "@" + query)
}

// FAULTS 40: a hundred thousand names that nobody has leave memory flat, and push out nothing of what there is.
func TestRandomPathsLeaveMemoryFlat(t *testing.T) {
	b := newBench(t, nil, newMemIndex(), func(c *Config) {
		c.ListBytes, c.Upstream, c.Checksums = 64<<10, nothing{}, nothing{}
	})
	b.list.keep("example.com/m", &seen{answer: newAnswer([]byte("v1.0.0\n"), typeText, shortCached, ""), at: time.Now().Add(time.Hour)})
	modules := 0
	ask := func(paths int) int64 {
		w := &response{ResponseWriter: &discard{make(http.Header)}}
		for range paths / 4 {
			modules++
			for _, file := range []string{"@v/list", "@latest", "@v/main.info", "@v/v1.0.0.mod"} {
				r := &http.Request{Method: "GET", URL: &url.URL{Path: fmt.Sprintf("/example.com/x%d/%s", modules, file)}}
				if err := b.route(w, r, "id"); !isAbsent(err) {
					t.Fatalf("%s: %v", file, err)
				}
			}
		}
		return heap()
	}
	for i := range 20_000 { // what look-ahead remembers of clients is full, too
		b.ahead.wanted(module.Version{Path: fmt.Sprintf("example.com/y%d", i), Version: "v1.0.0"})
	}
	before := ask(20_000)
	if grown := ask(100_000) - before; grown > 1<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	if n, bytes := b.negative.size(); bytes > negativeBytes || n < 10_000 {
		t.Errorf("%d names are remembered, in %d bytes", n, bytes)
	}
	b.want(listOf, 200, "v1.0.0\n")
	if n, _ := b.list.memory.size(); n != 1 {
		t.Errorf("%d lists are in memory, want one", n)
	}
}
