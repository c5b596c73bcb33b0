package statuspage

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
)

// fake is a Source that has what a test gives it.
type fake struct {
	mu      sync.Mutex
	looked  int           // at the cluster; guarded by mu, as the rest
	read    int           // module paths
	show    Cluster       // what Cluster returns
	happens []Event       // newest first
	more    chan struct{} // closed by happen
	paths   []string      // sorted
	hold    map[string][]string
	err     error
	block   chan struct{} // Modules waits for it to be closed, if it is there
}

func newFake() *fake {
	return &fake{more: make(chan struct{}), hold: make(map[string][]string), show: healthy(3)}
}

func (f *fake) Cluster(ctx context.Context) Cluster {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked++
	if err := ctx.Err(); err != nil {
		return Cluster{Problems: []string{err.Error()}}
	}
	return f.show
}

func (f *fake) Events() ([]Event, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.happens, f.more
}

// happen makes something happen.
func (f *fake) happen(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.happens = append([]Event{e}, f.happens...)
	close(f.more)
	f.more = make(chan struct{})
}

// change makes the cluster look otherwise.
func (f *fake) change(c Cluster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.show = c
}

func (f *fake) looks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looked
}

func (f *fake) Modules(ctx context.Context, prefix, after string, limit int) (out []string, err error) {
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	i, _ := slices.BinarySearch(f.paths, max(prefix, after))
	for ; i < len(f.paths) && len(out) < limit; i++ {
		if p := f.paths[i]; p > after && strings.HasPrefix(p, prefix) {
			out = append(out, p)
		} else if p > prefix && !strings.HasPrefix(p, prefix) {
			break
		}
	}
	f.read += len(out)
	return out, nil
}

func (f *fake) Versions(_ context.Context, path string) ([]string, error) {
	return slices.Clone(f.hold[path]), f.err
}

func (f *fake) Describe(_ context.Context, path string, versions []string) (out []Version, err error) {
	for _, v := range versions {
		out = append(out, Version{Module: module.Version{Path: path, Version: v}, ModSum: "h1:mod" + v, ZipSum: "h1:zip" + v, Database: "sum.golang.org", Record: 44_212_345,
			Zip: Artifact{strings.Repeat("ab", 32), 1_234_567}, Mod: Artifact{strings.Repeat("cd", 32), 99}, Committed: day, Released: day.Add(-time.Hour),
			Holders: []Holder{{"n1", "eu", true, true}, {"n2", "us", false, true}, {"n3", "", false, false}}})
	}
	return out, f.err
}

var day = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// healthy is a cluster of so many nodes in two zones.
func healthy(nodes int) Cluster {
	c := Cluster{ID: "c", Self: "n1", Leader: "n1", Voters: nodes, Alive: nodes, Versions: 12345, Zones: []Zone{{Name: "eu"}, {Name: "us"}}}
	for i := range nodes {
		z := &c.Zones[i%2]
		z.Nodes = append(z.Nodes, Node{ID: fmt.Sprintf("id%d", i), Name: fmt.Sprintf("n%d", i+1), Role: "voter", Self: i == 0, Says: "healthy", Free: 5e9, Total: 2e10})
	}
	return c
}

func newPage(t *testing.T, f *fake, edit ...func(*Config)) *Page {
	t.Helper()
	c := Config{Source: f, Version: "v1.2.3"}
	for _, e := range edit {
		e(&c)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func ask(h http.Handler, path string, edit ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Accept", "text/html,application/xhtml+xml")
	for _, e := range edit {
		e(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// document is what a page has, as far as the tests look.
type document struct {
	elements []xml.StartElement
	text     string
}

// parsed reads a page, which must be well-formed: the pages are written so that they are XML, too. Nothing in one may be a script or
// a style, in whatever form.
func parsed(t *testing.T, w *httptest.ResponseRecorder) (d document) {
	t.Helper()
	if got := w.Header().Get("Content-Security-Policy"); got != policy {
		t.Errorf("the policy is %q", got)
	}
	for key, want := range map[string]string{"Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"X-Frame-Options": "DENY", "Cache-Control": "no-store"} {
		if got := w.Header().Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	dec := xml.NewDecoder(strings.NewReader(w.Body.String()))
	var text strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, w.Body)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			d.elements = append(d.elements, tok.Copy())
			d.check(t, tok)
		case xml.CharData:
			text.Write(tok)
			text.WriteByte(' ')
		}
	}
	d.text = strings.Join(strings.Fields(text.String()), " ")
	return d
}

func (d document) check(t *testing.T, e xml.StartElement) {
	t.Helper()
	switch e.Name.Local {
	case "style", "iframe", "object", "base":
		t.Errorf("there is a <%s>", e.Name.Local)
	case "script":
		if src := attr(e, "src"); !strings.HasPrefix(src, assetsPrefix) || attr(e, "integrity") == "" {
			t.Errorf("there is a script %v", e.Attr)
		}
	}
	for _, a := range e.Attr {
		name := strings.ToLower(a.Name.Local)
		if strings.HasPrefix(name, "on") || name == "style" || name == "srcdoc" || strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Value)), "javascript:") {
			t.Errorf("<%s> has %s=%q", e.Name.Local, a.Name.Local, a.Value)
		}
	}
}

func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// all returns an attribute of all elements of a name.
func (d document) all(element, name string) (out []string) {
	for _, e := range d.elements {
		if e.Name.Local == element {
			out = append(out, attr(e, name))
		}
	}
	return out
}
