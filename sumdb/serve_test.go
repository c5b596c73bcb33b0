package sumdb

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/module"

	"modmirror/sumdb/sumdbtest"
)

func TestSupported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 10, nil)
		l.src.Lie(sumdbtest.Lies{Down: true})
		if w := get(t, l, "/supported"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("no head, source down: %d", w.Code)
		}
		l.src.Lie(sumdbtest.Lies{})
		release := l.src.Hang()
		if w := get(t, l, "/supported"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("no head, source hangs: %d", w.Code)
		}
		l.src.Lie(sumdbtest.Lies{Down: true})
		release()
		synctest.Wait() // the work that the request began outlives it, and must find no head either
		for _, lies := range []sumdbtest.Lies{{WrongKey: true}, {HugeBody: true}, {TilesDown: true}, {TilesMissing: true}, {NoLatest: true}} {
			l.src.Lie(lies)
			if w := get(t, l, "/supported"); w.Code != http.StatusServiceUnavailable {
				t.Errorf("no head, %+v: %d", lies, w.Code)
			}
			if _, err := l.bootstrap(t.Context()); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no head, %+v: bootstrap: %v", lies, err)
			}
			for _, path := range []string{"/latest", "/tile/8/0/000.p/1"} {
				if w := get(t, l, path); w.Code != http.StatusServiceUnavailable && w.Code != http.StatusForbidden && w.Code != http.StatusBadGateway {
					t.Errorf("no head, %+v, %s: %d", lies, path, w.Code)
				}
			}
		}
		l.src.Lie(sumdbtest.Lies{})
		if w := get(t, l, "/supported"); w.Code != http.StatusOK || w.Body.Len() != 0 {
			t.Errorf("no head, source up: %d %s", w.Code, w.Body)
		}
		l.src.Lie(sumdbtest.Lies{Down: true})
		if w := get(t, l, "/supported"); w.Code != http.StatusOK {
			t.Errorf("head, source down: %d", w.Code)
		}
		if w := get(t, l.offline(t), "/supported"); w.Code != http.StatusOK {
			t.Errorf("head, offline: %d", w.Code)
		}
		empty := open(t, Config{Key: l.src.Key(), Catalog: sumdbtest.NewCatalog(l.src.Key()), Offline: true})
		for _, path := range []string{"/supported", "/latest"} {
			if w := get(t, empty, path); w.Code != http.StatusServiceUnavailable {
				t.Errorf("%s, no head, offline: %d", path, w.Code)
			}
		}
	})
}

// What is committed is served and verifies while the database is down; what is new is an outage and not an absence.
func TestDatabaseDown(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept")
	l.src.Lie(sumdbtest.Lies{Down: true})
	for _, db := range []*DB{l.DB, l.offline(t)} {
		wantLines(t, newGoClient(db, l.Key, nil), kept)
	}
	w := get(t, l, "/lookup/example.com/hello@v1.0.0")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := get(t, l.offline(t), "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusNotFound {
		t.Errorf("offline: %d %s", w.Code, w.Body)
	}
}

func TestLookupPaths(t *testing.T) {
	l := newLab(t, 10, nil)
	for _, m := range []string{"github.com/BurntSushi/toml@v0.3.1", "example.com/old@v2.0.0+incompatible", "example.com/p@v0.0.0-20200101000000-0123456789ab", "example.com/v/v2@v2.1.0-RC1"} {
		l.add(mv(m))
	}
	for path, want := range map[string]int{
		"/lookup/github.com/!burnt!sushi/toml@v0.3.1":                    200,
		"/lookup/github.com/%21burnt%21sushi/toml@v0.3.1":                200,
		"/lookup/github.com/BurntSushi/toml@v0.3.1":                      400,
		"/lookup/example.com/old@v2.0.0+incompatible":                    200,
		"/lookup/example.com/old@v2.0.0%2Bincompatible":                  200,
		"/lookup/example.com/p@v0.0.0-20200101000000-0123456789ab":       200,
		"/lookup/example.com/v/v2@v2.1.0-!r!c1":                          200,
		"/lookup/example.com/unknown@v1.0.0":                             404,
		"/lookup/example.com/x@master":                                   400,
		"/lookup/example.com/x@v1.0.0/go.mod":                            400,
		"/lookup/example.com/x@v1":                                       400,
		"/lookup/example.com/x@v1.0.0+meta":                              400,
		"/lookup/example.com/x@v2.0.0":                                   400,
		"/lookup/example.com/x":                                          400,
		"/lookup/":                                                       400,
		"/lookup/@":                                                      400,
		"/lookup/169.254.169.254/latest@v1.0.0":                          400,
		"/lookup/localhost/x@v1.0.0":                                     400,
		"/lookup/example.com/../../admin@v1.0.0":                         400,
		"/lookup/example.com/%2e%2e/x@v1.0.0":                            400,
		"/lookup/example.com//x@v1.0.0":                                  400,
		"/lookup/example.com/x%00@v1.0.0":                                400,
		"/lookup/example.com/x!@v1.0.0":                                  400,
		"/lookup/example.com/" + strings.Repeat("x", 10<<10) + "@v1.0.0": 400,
		"/":            404,
		"":             404,
		"/latest/":     404,
		"/supported/x": 404,
		"/../../admin": 404,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/x", nil)
		var err error
		if r.URL.Path, err = unescape(path); err != nil {
			t.Fatal(err)
		}
		l.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%.80s: %d %.200s, want %d", path, w.Code, w.Body, want)
		}
		if w.Code != http.StatusOK {
			wantPlain(t, w)
		}
	}
}

func unescape(p string) (string, error) {
	return strings.NewReplacer("%21", "!", "%2B", "+", "%2e", ".", "%00", "\x00").Replace(p), nil
}

// wantPlain fails the test unless w is an error of the form that the go command shows.
func wantPlain(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.String()
	bad := func(r rune) bool { return r == utf8.RuneError || r != '\n' && !unicode.IsGraphic(r) }
	if w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || strings.Count(body, "\n") > 8 || len(body) > 648 || strings.HasPrefix(body, "\n") ||
		!strings.HasSuffix(body, "\n") || strings.ContainsFunc(body, bad) || w.Header().Get("Content-Length") != strconv.Itoa(len(body)) {
		t.Errorf("error answer: %v %q", w.Header(), body)
	}
}

func TestMethods(t *testing.T) {
	l := newLab(t, 10, nil)
	l.seed(t, "kept")
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"} {
		w := httptest.NewRecorder()
		l.ServeHTTP(w, httptest.NewRequest(method, "/latest", nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
	srv := httptest.NewServer(l)
	defer srv.Close()
	for _, path := range []string{"/latest", "/lookup/example.com/kept@v1.0.0", "/tile/8/0/000.p/11", "/supported"} {
		g, err := http.Get(srv.URL + path + "?query=ignored")
		if err != nil {
			t.Fatal(err)
		}
		g.Body.Close()
		h, err := http.Head(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		h.Body.Close()
		if g.StatusCode != 200 || h.StatusCode != 200 || g.ContentLength != h.ContentLength || g.Header.Get("Cache-Control") != h.Header.Get("Cache-Control") {
			t.Errorf("%s: GET %d %d, HEAD %d %d", path, g.StatusCode, g.ContentLength, h.StatusCode, h.ContentLength)
		}
	}
}

// An unknown record is looked up, verified, and answered with a committed head that covers it.
func TestLookupReadsThrough(t *testing.T) {
	l := newLab(t, 300, nil)
	l.seed(t, "kept")
	l.src.Grow(300)
	l.add(hello) // record 601
	l.src.Grow(300)
	w := get(t, l, "/lookup/example.com/hello@v1.0.0")
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), "601\n") || !strings.Contains(w.Body.String(), "go.sum database tree\n902\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wantLines(t, newGoClient(l, l.Key, nil), hello)
	before := l.src.Count("")
	get(t, l, "/lookup/example.com/hello@v1.0.0")
	if l.src.Count("") != before {
		t.Error("asked again for what was just answered")
	}
}

// An answer is put together anew when the head moves, so that it takes the best anchor.
func TestComposedAnswersFollowTheHead(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept")
	if w := get(t, l, "/lookup/example.com/kept@v1.0.0"); !strings.Contains(w.Body.String(), "tree\n301\n") {
		t.Fatalf("%s", w.Body)
	}
	l.seed(t, "second") // 302
	l.src.Grow(65536)
	l.seed(t, "newer")
	if w := get(t, l, "/lookup/example.com/kept@v1.0.0"); !strings.Contains(w.Body.String(), "tree\n302\n") { // the anchor now
		t.Errorf("%s", w.Body)
	}
	if w := get(t, l, "/lookup/example.com/newer@v1.0.0"); !strings.Contains(w.Body.String(), "tree\n65839\n") {
		t.Errorf("%s", w.Body)
	}
	// The client's tree is newer than anything that the mirror has; its own right edge is in its cache.
	l.src.Grow(65536)
	off := l.offline(t)
	c := newGoClient(l.src, l.Key, nil)
	c.lookup(kept)
	c.h = off
	for file := range c.cache {
		if strings.Contains(file, "/lookup/") {
			delete(c.cache, file)
		}
	}
	wantLines(t, c, kept)
	if !strings.Contains(string(c.latest), "tree\n131375\n") {
		t.Errorf("client's tree: %s", c.latest)
	}
}

func TestTilePaths(t *testing.T) {
	l := newLab(t, 300, nil)
	l.seed(t, "kept") // 301
	for path, want := range map[string]int{
		"/tile/8/0/000":                               200,
		"/tile/8/0/000.p/1":                           200,
		"/tile/8/0/000.p/255":                         200,
		"/tile/8/0/001.p/45":                          200,
		"/tile/8/0/001.p/44":                          200,
		"/tile/8/1/000.p/1":                           200,
		"/tile/8/0/001.p/46":                          404,
		"/tile/8/0/001":                               404,
		"/tile/8/0/002.p/1":                           404,
		"/tile/8/1/000.p/2":                           404,
		"/tile/8/2/000.p/1":                           404,
		"/tile/8/63/000":                              404,
		"/tile/8/9/000.p/1":                           404,
		"/tile/8/0/x999/x999/x999/999":                404,
		"/tile/8/0/x999/x999/x999/x999/x999/x999/999": 400,
		"/tile/8/data/000":                            404,
		"/tile/8/data/x001/000.p/3":                   404,
		"/tile/30/0/000":                              404,
		"/tile/30/63/000":                             404,
		"/tile/1/0/000":                               404,
		"/tile/31/0/000":                              400,
		"/tile/8/0/0":                                 400,
		"/tile/8/0/000.p/0":                           400,
		"/tile/8/0/000.p/256":                         400,
		"/tile/8/0/000.p/01":                          400,
		"/tile/8/-1/000":                              400,
		"/tile/8/0/-01":                               400,
		"/tile/8/0/x000/000":                          400,
		"/tile/8/0/../0/000":                          400,
		"/tile/":                                      400,
		"/tile/8/0/" + strings.Repeat("x999/", 100) + "999": 400,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/x", nil)
		r.URL.Path = path
		l.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
		if w.Code != 200 {
			wantPlain(t, w)
			continue
		}
		tile, err := parseTilePath(path)
		if err != nil || w.Body.Len() != 32*tile.W || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d bytes, %v", path, w.Body.Len(), err)
		}
	}
}

// Refusing a tile of a height that would take gigabytes costs nothing.
func TestTileGuardDoesNotAllocate(t *testing.T) {
	l := newLab(t, 10, nil)
	for _, path := range []string{"/tile/30/0/000", "/tile/8/data/000", "/tile/30/0/x001/000.p/1000000"} {
		var bytes int
		n := testing.AllocsPerRun(10, func() {
			r := httptest.NewRequest(http.MethodGet, "/x", nil)
			r.URL.Path = path
			w := httptest.NewRecorder()
			l.ServeHTTP(w, r)
			bytes = w.Body.Len()
		})
		if n > 200 || bytes > 1000 {
			t.Errorf("%s: %v allocations, %d bytes", path, n, bytes)
		}
	}
	if l.src.Count("") != 0 {
		t.Error("a source was asked")
	}
}

// A tile that is not held is read through; one beyond the tree has the head refreshed, because a client may know more.
func TestTileReadsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 2000, nil)
		l.seed(t, "kept") // 2001
		if w := get(t, l, "/tile/8/0/003"); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		l.src.Lie(sumdbtest.Lies{Down: true})
		if w := get(t, l, "/tile/8/0/003"); w.Code != http.StatusOK {
			t.Errorf("not stored: %d %s", w.Code, w.Body)
		}
		if w := get(t, l, "/tile/8/0/004"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("within the tree, source down: %d %s", w.Code, w.Body)
		}
		if w := get(t, l.offline(t), "/tile/8/0/004"); w.Code != http.StatusNotFound {
			t.Errorf("within the tree, offline: %d %s", w.Code, w.Body)
		}
		l.checked.Store(0)
		for range 2 {
			if w := get(t, l, "/tile/8/0/010"); w.Code != http.StatusServiceUnavailable {
				t.Errorf("beyond the tree that is known, source down: %d %s", w.Code, w.Body)
			}
		}
		l.src.Lie(sumdbtest.Lies{})
		l.src.Grow(1000)
		l.checked.Store(0)
		if w := get(t, l, "/tile/8/0/010"); w.Code != http.StatusOK {
			t.Errorf("beyond the tree: %d %s", w.Code, w.Body)
		}
		if h, _ := l.committed(t.Context()); h.N != 3001 {
			t.Errorf("head %d", h.N)
		}
		before := l.src.Count("latest")
		for range 10 {
			if w := get(t, l, "/tile/8/0/x001/000"); w.Code != http.StatusNotFound {
				t.Errorf("beyond every tree: %d %s", w.Code, w.Body)
			}
		}
		if n := l.src.Count("latest") - before; n > 1 {
			t.Errorf("/latest asked %d times", n)
		}
	})
}

// A bad tile from the source is neither served nor stored.
func TestTileReadThroughIsAuthenticated(t *testing.T) {
	l := newLab(t, 2000, nil)
	l.seed(t, "kept")
	good, err := l.src.Get(t.Context(), "/tile/8/0/003", tileBytes)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{good[0] ^ 1}, good[1:]...)
	l.src.Lie(sumdbtest.Lies{Tiles: map[string][]byte{"tile/8/0/003": bad}})
	if w := get(t, l, "/tile/8/0/003"); w.Code != http.StatusForbidden {
		t.Errorf("%d", w.Code)
	}
	if _, err := l.tiles.Tile(tileAt(0, 3)); err == nil {
		t.Error("stored")
	}
}

// A client whose requests go to one node and then to another, with other heads served and other tiles held, never fails.
func TestClientBetweenNodes(t *testing.T) {
	l := newLab(t, 1000, nil)
	nodes := []*DB{l.DB, open(t, Config{Key: l.src.Key(), Catalog: l.cat, Direct: l.src}), open(t, Config{Key: l.src.Key(), Catalog: l.cat, Direct: l.src})}
	var next atomic.Uint64
	balancer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nodes[next.Add(1)%uint64(len(nodes))].ServeHTTP(w, r)
	})
	c := newGoClient(balancer, l.Key, nil)
	var ms []module.Version
	for i := range 200 {
		if i%5 == 0 || len(ms) == 0 {
			m := mv(fmt.Sprintf("example.com/m%d@v1.0.0", i))
			l.add(m)
			l.src.Grow(rand.N(400))
			if r := want(t, nodes[rand.N(len(nodes))], m); rand.N(2) == 0 {
				if err := l.cat.Publish(m, r); err != nil {
					t.Fatal(err)
				}
			}
			ms = append(ms, m)
		}
		if i%20 == 0 {
			clear(c.cache) // the module cache is gone, the client's tree is not
		}
		for range 5 {
			wantLines(t, c, ms[rand.N(len(ms))])
		}
	}
}

func TestSet(t *testing.T) {
	a, b := sumdbtest.New("sum.example.com"), sumdbtest.New("sum.example.com/team/x")
	both, onlyB := mv("example.com/both@v1.0.0"), mv("example.com/b@v1.0.0")
	add(a, both)
	b.Add(both, sumdbtest.Sum("other"), sumdbtest.Sum("other mod"))
	add(b, onlyB)
	cat := sumdbtest.NewCatalog(a.Key(), b.Key())
	dbA := open(t, Config{Key: a.Key(), Catalog: cat, Direct: a})
	dbB := open(t, Config{Key: b.Key(), Catalog: cat, Direct: b})
	s, err := NewSet(dbA, dbB)
	if err != nil {
		t.Fatal(err)
	}
	for m, want := range map[module.Version]string{both: dbA.Name(), onlyB: dbB.Name()} {
		if r, err := s.Record(t.Context(), m); err != nil || r.Database != want {
			t.Errorf("Record(%s) = %+v, %v", m, r, err)
		}
	}
	if _, err := s.Record(t.Context(), mv("example.com/no@v1.0.0")); statusOf(err) != http.StatusNotFound {
		t.Errorf("unknown: %v", err)
	}
	counts := a.Count("") + b.Count("")
	for path, want := range map[string]int{
		"/sum.example.com/supported":                          200,
		"/sum.example.com/team/x/supported":                   200,
		"/sum.example.com/lookup/example.com/b@v1.0.0":        404,
		"/sum.example.com/team/x/lookup/example.com/b@v1.0.0": 200,
		"/sum.example.com/team/supported":                     404,
		"/evil.example/latest":                                404,
		"/evil.example/supported":                             404,
		"/sum.example.com.evil.example/supported":             404,
		"/sum.example.com":                                    404,
		"/sum.example.com/../../admin":                        404,
		"/":                                                   404,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/x", nil)
		r.URL.Path = "/sumdb" + path
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
	if n := a.Count("") + b.Count("") - counts; n != 0 {
		t.Errorf("%d requests, want none: all is known", n)
	}
	a.Lie(sumdbtest.Lies{Down: true})
	if _, err := s.Record(t.Context(), mv("example.com/new@v1.0.0")); statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("first database down: %v", err)
	}
	if _, err := NewSet(dbA, dbA); err == nil {
		t.Error("one name twice: no error")
	}
	if _, err := (&Set{}).Record(t.Context(), both); statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("empty set: %v", err)
	}
}

// The policy of now counts, also for what was answered before.
func TestPrivateLater(t *testing.T) {
	var private atomic.Bool
	l := newLab(t, 3, func(c *Config) { c.Private = func(string) bool { return private.Load() } })
	l.add(hello)
	for _, want := range []int{200, 403} {
		if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != want {
			t.Errorf("%d, want %d", w.Code, want)
		}
		private.Store(true)
	}
}
