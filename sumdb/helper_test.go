package sumdb

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// open opens a DB with a store in a temporary directory, unless c names one, and closes it with the test.
func open(t testing.TB, c Config) *DB {
	t.Helper()
	if c.Tiles == nil {
		c.Tiles = openTiles(t, t.TempDir())
	}
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openTiles(t testing.TB, dir string) *TileStore {
	t.Helper()
	s, err := OpenTiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// lab is a test database, a catalog, a store and a DB on top of them.
type lab struct {
	*DB
	src   *sumdbtest.Database
	cat   *sumdbtest.Catalog
	tiles *TileStore
}

// newLab returns a lab whose database has size records. Its DB has the database as its Direct source, and what change says.
func newLab(t testing.TB, size int, change func(*Config)) *lab {
	t.Helper()
	src := sumdbtest.New("sum.example.com")
	src.Grow(size)
	l := &lab{src: src, cat: sumdbtest.NewCatalog(src.Key()), tiles: openTiles(t, t.TempDir())}
	l.DB = l.reopen(t, func(c *Config) {
		c.Direct = src
		if change != nil {
			change(c)
		}
	})
	return l
}

// reopen opens another DB on the lab's catalog and store. It has no source unless change sets one.
func (l *lab) reopen(t testing.TB, change func(*Config)) *DB {
	t.Helper()
	c := Config{Key: l.src.Key(), Catalog: l.cat, Tiles: l.tiles, LookupBudget: 10 * time.Second}
	change(&c)
	return open(t, c)
}

// add logs a record for path@version with sums of its own.
func (l *lab) add(m module.Version) { add(l.src, m) }

func add(d *sumdbtest.Database, m module.Version) {
	d.Add(m, sumdbtest.Sum(m.String()), sumdbtest.Sum(m.String()+"/go.mod"))
}

// want fails the test unless db has the record of m with the sums that add gave it. It returns the record.
func want(t testing.TB, db *DB, m module.Version) artifact.Record {
	t.Helper()
	r, err := db.Record(t.Context(), m)
	if err != nil {
		t.Fatalf("Record(%s): %v", m, err)
	}
	zip, mod, err := r.Sums(m)
	if err != nil || zip != sumdbtest.Sum(m.String()) || mod != sumdbtest.Sum(m.String()+"/go.mod") {
		t.Fatalf("sums of %s = %s, %s, %v", m, zip, mod, err)
	}
	return r
}

// get asks h for path with GET.
func get(t testing.TB, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(t.Context()))
	return w
}

// drain has every queued head checked, as Run would.
func drain(t testing.TB, db *DB) (outcomes []string) {
	t.Helper()
	for {
		select {
		case h := <-db.queue:
			o, err := db.check(t.Context(), h)
			if err != nil {
				o += ": " + err.Error()
			}
			outcomes = append(outcomes, o)
		default:
			return outcomes
		}
	}
}

// goClient is the go command's end: x/mod's client over a handler, with its config and cache in memory.
type goClient struct {
	h   http.Handler
	key string

	mu       sync.Mutex
	latest   []byte
	cache    map[string][]byte
	security string
	asked    []string
}

func newGoClient(h http.Handler, key string, latest []byte) *goClient {
	return &goClient{h: h, key: key, latest: latest, cache: make(map[string][]byte)}
}

// lookup is a run of the go command: a client of its own, on the config and the cache that are there.
func (c *goClient) lookup(m module.Version) ([]string, error) {
	cl := xsumdb.NewClient(c)
	zip, err := cl.Lookup(m.Path, m.Version)
	if err != nil {
		return nil, err
	}
	mod, err := cl.Lookup(m.Path, m.Version+"/go.mod")
	return append(zip, mod...), err
}

func (c *goClient) ReadRemote(path string) ([]byte, error) {
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	c.mu.Lock()
	c.asked = append(c.asked, path)
	c.mu.Unlock()
	if w.Code != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.Bytes(), nil
}

func (c *goClient) ReadConfig(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if file == "key" {
		return []byte(c.key), nil
	}
	return c.latest, nil
}

func (c *goClient) WriteConfig(file string, old, new []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(c.latest, old) {
		return xsumdb.ErrWriteConflict
	}
	c.latest = new
	return nil
}

func (c *goClient) ReadCache(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.cache[file]; ok {
		return b, nil
	}
	return nil, os.ErrNotExist
}

func (c *goClient) WriteCache(file string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cache[file] = slices.Clone(data)
}

func (c *goClient) Log(string) {}

func (c *goClient) SecurityError(msg string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.security += msg
}

// wantLines fails the test unless a run of the go command verifies m.
func wantLines(t testing.TB, c *goClient, m module.Version) {
	t.Helper()
	lines, err := c.lookup(m)
	if err != nil {
		t.Fatalf("go client: %s: %v\nasked %q", m, err, c.asked)
	}
	if len(lines) != 2 || !strings.HasPrefix(lines[0], m.Path+" "+m.Version+" h1:") || !strings.HasPrefix(lines[1], m.Path+" "+m.Version+"/go.mod h1:") {
		t.Fatalf("go client: %s has lines %q", m, lines)
	}
	if c.security != "" {
		t.Fatalf("go client: %s", c.security)
	}
}

func mv(s string) module.Version {
	p, v, _ := strings.Cut(s, "@")
	return module.Version{Path: p, Version: v}
}

// background runs db.Run until the test ends.
func background(t testing.TB, db *DB) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// lockedBuffer is a log that many may write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func recordHash(text string) []byte {
	h := tlog.RecordHash([]byte(text))
	return h[:]
}

// tileAt returns the full tile n of a level.
func tileAt(level int, n int64) tlog.Tile {
	return tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth}
}

func tileAtW(level int, n int64, width int) tlog.Tile {
	return tlog.Tile{H: tileHeight, L: level, N: n, W: width}
}
