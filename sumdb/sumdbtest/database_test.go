package sumdbtest_test

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"

	"modmirror/mirror/artifact"
	"modmirror/sumdb"
	"modmirror/sumdb/sumdbtest"
)

var (
	_ sumdb.Source  = (*sumdbtest.Database)(nil)
	_ sumdb.Source  = (*sumdbtest.Files)(nil)
	_ sumdb.Catalog = (*sumdbtest.Catalog)(nil)
)

var hello = module.Version{Path: "example.com/Hello", Version: "v1.0.0"}

// The HTTP side answers at / and below /sumdb/<name>/, and counts.
func TestHTTP(t *testing.T) {
	d := sumdbtest.New("sum.example.com/x")
	d.Grow(300)
	d.Add(hello, sumdbtest.Sum("a"), sumdbtest.Sum("b"))
	srv := httptest.NewServer(d)
	defer srv.Close()
	for _, base := range []string{srv.URL, srv.URL + "/sumdb/sum.example.com/x"} {
		for path, want := range map[string]int{
			"/supported": 200, "/latest": 200, "/lookup/example.com/!hello@v1.0.0": 200, "/lookup/example.com/other@v1.0.0": 404,
			"/tile/8/0/001.p/45": 200, "/tile/8/0/001.p/46": 404, "/tile/8/1/000.p/1": 200, "/x": 404,
		} {
			r, err := http.Get(base + path)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("%s: %d %s, want %d", path, r.StatusCode, b, want)
			}
		}
	}
	if d.Count("lookup") != 4 || d.Count("tile") != 6 || d.Count("supported") != 2 {
		t.Errorf("counts: %d lookups, %d tiles, %d supported", d.Count("lookup"), d.Count("tile"), d.Count("supported"))
	}
}

// The catalog takes what is proven and nothing else.
func TestCatalogRules(t *testing.T) {
	ctx := t.Context()
	d := sumdbtest.New("sum.example.com")
	d.Add(hello, sumdbtest.Sum("a"), sumdbtest.Sum("b"))
	d.Grow(300)
	c := sumdbtest.NewCatalog(d.Key())
	other := d.Fork(1)
	other.Add(module.Version{Path: "example.com/other", Version: "v1.0.0"}, sumdbtest.Sum("c"), sumdbtest.Sum("d"))
	other.Grow(300)
	for _, step := range []struct {
		what string
		msg  []byte
		base int64
		want error
	}{
		{"unsigned", []byte("go.sum database tree\n1\nx\n"), 0, artifact.ErrRefused},
		{"first with a base", d.Head(100), 5, artifact.ErrStale},
		{"first", d.Head(100), 0, nil},
		{"again", d.Head(100), 0, nil},
		{"base is not the newest", d.Head(200), 0, artifact.ErrStale},
		{"larger without proof", d.Head(200), 100, artifact.ErrRefused},
		{"smaller without proof", d.Head(50), 100, artifact.ErrRefused},
		{"same size, other root", other.Head(100), 100, artifact.ErrRefused},
	} {
		if err := c.CommitTreeHead(ctx, d.Name(), step.msg, step.base, nil); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.what, err, step.want)
		}
	}
	r := artifact.Record{Database: d.Name(), Text: []byte(sumdbtest.Text(hello, sumdbtest.Sum("a"), sumdbtest.Sum("b"))), TreeSize: 100, Proof: d.Prove(100, 0)}
	bad := r
	bad.Proof = d.Prove(100, 1)
	for _, m := range []struct {
		r  artifact.Record
		ok bool
	}{{bad, false}, {artifact.Record{Database: d.Name(), Text: r.Text, TreeSize: 99, Proof: d.Prove(99, 0)}, false}, {r, true}} {
		if err := c.Publish(hello, m.r); (err == nil) != m.ok {
			t.Errorf("Publish: %v", err)
		}
	}
	f := artifact.Fork{Database: d.Name(), A: d.Head(100), B: other.Head(100)}
	v, err := note.NewVerifier(d.Key())
	if err != nil || f.Check(v) != nil {
		t.Fatal("no fork")
	}
	if _, err := c.Fork(ctx, d.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Fork: %v", err)
	}
	if err := c.CommitFork(ctx, f); err != nil {
		t.Fatal(err)
	}
	if err := c.CommitTreeHead(ctx, d.Name(), d.Head(200), 100, nil); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("frozen: %v", err)
	}
}
