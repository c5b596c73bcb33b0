package sumdb

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// ops is what x/mod's server needs to answer what a DB has answered with the head.
type ops struct {
	*lab
	head []byte
}

func (o ops) Signed(context.Context) ([]byte, error) { return o.head, nil }

func (o ops) ReadRecords(ctx context.Context, id, n int64) ([][]byte, error) {
	r, err := o.Catalog.Record(ctx, o.name, mv("example.com/kept@v1.0.0"))
	if err == nil && (r.ID != id || n != 1) {
		err = fmt.Errorf("record %d, want %d", r.ID, id)
	}
	return [][]byte{r.Text}, err
}

func (o ops) Lookup(ctx context.Context, m module.Version) (int64, error) {
	r, err := o.Catalog.Record(ctx, o.name, m)
	return r.ID, err
}

func (o ops) ReadTileData(_ context.Context, t tlog.Tile) ([]byte, error) { return o.tiles.Tile(t) }

// Good answers are those of x/mod's server, the first time and when they are ready.
func TestRepliesAreThoseOfXMod(t *testing.T) {
	l := newLab(t, 300, nil)
	l.seed(t, "kept")
	msg, err := l.cat.TreeHead(t.Context(), l.name, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	oracle := xsumdb.NewServer(ops{l, msg})
	for _, path := range []string{"/latest", "/lookup/example.com/kept@v1.0.0", "/tile/8/0/000", "/tile/8/0/000.p/7", "/tile/8/0/001.p/45", "/tile/8/1/000.p/1"} {
		first := get(t, l, path) // before the oracle, for which the tile has to be held
		want := get(t, oracle, path)
		for i, w := range []*httptest.ResponseRecorder{first, get(t, l, path)} {
			if w.Code != http.StatusOK || want.Code != http.StatusOK || w.Body.String() != want.Body.String() {
				t.Errorf("%s, time %d: %d %.80q, want %d %.80q", path, i, w.Code, w.Body, want.Code, want.Body)
			}
			if got, want := w.Header().Get("Content-Type"), want.Header().Get("Content-Type"); got != want {
				t.Errorf("%s, time %d: Content-Type %q, want %q", path, i, got, want)
			}
			if n := w.Header().Get("Content-Length"); n != strconv.Itoa(want.Body.Len()) {
				t.Errorf("%s, time %d: Content-Length %s, want %d", path, i, n, want.Body.Len())
			}
			head := httptest.NewRecorder()
			l.ServeHTTP(head, httptest.NewRequest(http.MethodHead, path, nil))
			if head.Code != http.StatusOK || head.Body.Len() != 0 || fmt.Sprint(head.Header()) != fmt.Sprint(w.Header()) {
				t.Errorf("%s, time %d: HEAD: %d, %d bytes, %v, want %v", path, i, head.Code, head.Body.Len(), head.Header(), w.Header())
			}
		}
	}
}

// sizeIn returns the size of the tree whose head goes with the lookup answer w.
func sizeIn(t *testing.T, l *lab, w *httptest.ResponseRecorder) int64 {
	t.Helper()
	_, msg, _ := strings.Cut(w.Body.String(), "\n\n")
	n, err := note.Open([]byte(msg), note.VerifierList(l.verifier))
	if err != nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	tree, err := tlog.ParseTree([]byte(n.Text))
	if err != nil {
		t.Fatal(err)
	}
	return tree.N
}

// An answer that is ready is put together anew for each newer head, and a fork does not take it away.
func TestReadyLookupFollowsTheHead(t *testing.T) {
	l := newLab(t, 100, nil)
	l.seed(t, "kept")
	const path = "/lookup/example.com/kept@v1.0.0"
	for _, name := range []string{"second", "third"} {
		now, err := l.committed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n := sizeIn(t, l, get(t, l, path)); n != now.N {
				t.Errorf("answered with the head of %d records, want %d", n, now.N)
			}
		}
		l.src.Grow(10)
		l.seed(t, name)
	}

	l, _, fork := forked(t)
	l.src.AnswerAs(fork)
	before := get(t, l, path)
	if err := l.refresh(t.Context()); err == nil || l.Frozen(t.Context()) == nil {
		t.Fatalf("the fork was not met: %v", err)
	}
	if w := get(t, l, path); w.Code != http.StatusOK || w.Body.String() != before.Body.String() {
		t.Errorf("frozen: %d %s, want %s", w.Code, w.Body, before.Body)
	}
	if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("frozen, not known before: %d %s", w.Code, w.Body)
	}
}

// damagedCatalog cannot say what it holds.
type damagedCatalog struct {
	Catalog
	damaged bool
}

func (c *damagedCatalog) TreeHead(ctx context.Context, db string, below int64) ([]byte, error) {
	if c.damaged {
		return nil, fmt.Errorf("head: %w", artifact.ErrDamaged)
	}
	return c.Catalog.TreeHead(ctx, db, below)
}

// An answer that is ready is not sent unless the catalog says that its head is the newest.
func TestReadyLookupNeedsTheCatalog(t *testing.T) {
	l := newLab(t, 100, nil)
	l.seed(t, "kept")
	cat := &damagedCatalog{Catalog: l.cat}
	db := open(t, Config{Key: l.Key, Catalog: cat, Tiles: l.tiles})
	for _, want := range []int{200, 503, 200} {
		cat.damaged = want == 503
		if w := get(t, db, "/lookup/example.com/kept@v1.0.0"); w.Code != want {
			t.Errorf("damaged %v: %d %s, want %d", cat.damaged, w.Code, w.Body, want)
		}
	}
}

// What is kept of answers is counted with all that it holds on to: not the rest of a URL, however long.
func TestReadyAnswersAreBounded(t *testing.T) {
	l := newLab(t, 300, nil)
	l.seed(t, "kept")
	const rounds, size = 64, 1 << 20
	ask := func(path string) {
		whole := path + "?" + strings.Repeat("x", size)
		r := &http.Request{Method: http.MethodGet, Header: http.Header{}}
		r.URL = httptest.NewRequest(http.MethodGet, "/", nil).URL
		r.URL.Path = whole[:len(path)]
		w := httptest.NewRecorder()
		if l.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var paths []string
	for i := range rounds {
		m := mv(fmt.Sprintf("example.com/m%d@v1.0.0", i))
		l.add(m)
		want(t, l.DB, m)
		paths = append(paths, "/lookup/"+m.Path+"@"+m.Version, fmt.Sprintf("/tile/8/0/000.p/%d", i+1))
	}
	before := heap()
	for _, path := range paths {
		ask(path)
	}
	if grown := heap() - before; grown > rounds*size/4 {
		t.Errorf("%d bytes more in use after %d requests", grown, len(paths))
	}
	kept, ok := l.composed.get(paths[0])
	if !ok || len(l.tilePaths.items) != rounds {
		t.Fatalf("%d answers and %d tiles are ready", len(l.composed.items), len(l.tilePaths.items))
	}
	if l.composed.used < rounds*int64(len(kept.reply.body)+len(paths[0])+composedCost+entryCost) || l.composed.used > l.composed.max {
		t.Errorf("%d answers count as %d bytes", rounds, l.composed.used)
	}
	runtime.KeepAlive(l)
}
