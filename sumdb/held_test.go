package sumdb

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// A tile that is damaged on disk is not served, and is replaced from a source.
func TestDamagedTileHeals(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept")
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { b[100] ^= 1; return b },
		func(b []byte) []byte { return b[:len(b)-32] },
		func(b []byte) []byte { return nil },
		func(b []byte) []byte { return append(b, make([]byte, 64)...) },
	} {
		name := keyOf(tileAt(0, 1)).path()
		b, err := l.tiles.root.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.tiles.root.WriteFile(name, damage(b), 0o666); err != nil {
			t.Fatal(err)
		}
		off := l.offline(t)
		for _, path := range []string{"/tile/8/0/001.p/45", "/tile/8/0/001.p/1", "/tile/8/0/001"} { // the last: beyond the tree, as far as one can tell
			if w := get(t, off, path); w.Code != http.StatusServiceUnavailable {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		if w := get(t, off, "/tile/8/0/002"); w.Code != http.StatusNotFound {
			t.Errorf("tile that never was: %d %s", w.Code, w.Body)
		}
		if _, err := off.Tiles.Tile(tileAtW(0, 1, 45)); !errors.Is(err, artifact.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Tile: %v", err)
		}
		if w := get(t, off, "/lookup/example.com/kept@v1.0.0"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("lookup: %d %s", w.Code, w.Body)
		}
		h, _ := l.committed(t.Context())
		r, _ := l.Record(t.Context(), kept)
		if err := CheckOffline(off.Tiles, h.Tree, r); !errors.Is(err, artifact.ErrDamaged) {
			t.Errorf("CheckOffline: %v", err)
		}
		on := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: openTiles(t, l.tiles.root.Name()), Direct: l.src})
		if w := get(t, on, "/tile/8/0/001.p/45"); w.Code != http.StatusOK {
			t.Errorf("online: %d %s", w.Code, w.Body)
		}
		wantLines(t, newGoClient(on, l.Key, nil), kept)
		wantLines(t, newGoClient(l.offline(t), l.Key, nil), kept)
	}
}

// With "Disable-Module-Fetch" answers come from what is held, or are 404, and nobody is asked, in the background neither.
func TestOnlyHeld(t *testing.T) {
	l := newLab(t, 300, nil)
	asked := 0
	try := func(db *DB, value string, want map[string]int) {
		t.Helper()
		for path, status := range want {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Header.Set("Disable-Module-Fetch", value)
			w := httptest.NewRecorder()
			db.ServeHTTP(w, r)
			if w.Code != status {
				t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, status)
			}
		}
		if n := l.src.Count(""); n != asked || len(db.queue) != 0 {
			t.Errorf("%d requests, %d heads to check, want none", n-asked, len(db.queue))
			asked = n
		}
	}
	const kept, second, unknown = "/lookup/example.com/kept@v1.0.0", "/lookup/example.com/second@v1.0.0", "/lookup/example.com/hello@v1.0.0"
	try(l.DB, "true", map[string]int{"/supported": 503, "/latest": 404, kept: 404, "/tile/8/0/000": 404})

	l.seed(t, "kept") // 301
	l.add(hello)
	l.src.Grow(2000)
	uncommitted := mv("example.com/uncommitted@v1.0.0")
	l.add(uncommitted)
	want(t, l.DB, uncommitted) // 2303
	drain(t, l.DB)
	asked = l.src.Count("")
	for _, yes := range []string{"true", "1", "TRUE"} {
		try(l.DB, yes, map[string]int{"/supported": 200, "/latest": 200, kept: 200, unknown: 404, "/lookup/example.com/uncommitted@v1.0.0": 200,
			"/tile/8/0/001.p/45": 200, "/tile/8/0/003": 404, "/tile/8/0/099": 404})
	}
	try(open(t, Config{Key: l.Key, Catalog: l.cat, Direct: l.src}), "true", map[string]int{ // another node's tiles
		"/supported": 200, "/latest": 404, kept: 404, unknown: 404, "/tile/8/0/001.p/45": 404})

	name := keyOf(tileAt(0, 1)).path()
	if err := l.tiles.root.WriteFile(name, []byte("damage"), 0o666); err != nil {
		t.Fatal(err)
	}
	damaged := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: openTiles(t, l.tiles.root.Name()), Direct: l.src})
	try(damaged, "true", map[string]int{kept: 503, "/tile/8/0/001.p/45": 503})

	for _, no := range []string{"false", "", "maybe"} { // back to normal, all of it
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, unknown, nil)
		r.Header.Set("Disable-Module-Fetch", no)
		if l.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Errorf("%q: %d %s", no, w.Code, w.Body)
		}
	}
}

// An anchor is answered only if its edge is held: a client whose tree is that of the newest head asks for it. Until it is
// held, the newest head is the answer, and the edge is fetched in the background.
func TestAnchorNeedsItsEdge(t *testing.T) {
	l := newLab(t, 100, nil)
	kept := l.seed(t, "kept") // 101
	l.src.Grow(200)
	l.seed(t, "second") // 302: the edge is tile 0/001.p/46
	l.src.Grow(65536)
	l.seed(t, "newer") // 65839
	if err := l.tiles.root.Remove(keyOf(tileAt(0, 1)).path()); err != nil {
		t.Fatal(err)
	}
	tiles := openTiles(t, l.tiles.root.Name())
	narrow, err := l.src.Get(t.Context(), "/tile/8/0/001.p/46", tileBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := tiles.Put([]tlog.Tile{tileAtW(0, 1, 46)}, [][]byte{narrow}); err != nil {
		t.Fatal(err)
	}
	off := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: tiles, Offline: true})
	if w := get(t, off, "/lookup/example.com/kept@v1.0.0"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "tree\n65839\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wantLines(t, newGoClient(off, l.Key, l.src.Head(65839)), kept)

	on := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: tiles, Direct: l.src})
	r := httptest.NewRequest(http.MethodGet, "/lookup/example.com/kept@v1.0.0", nil)
	r.Header.Set("Disable-Module-Fetch", "true")
	if on.ServeHTTP(httptest.NewRecorder(), r); len(on.queue) != 0 {
		t.Error("a request that must not fetch has an edge fetched")
	}
	if w := get(t, on, "/lookup/example.com/kept@v1.0.0"); !strings.Contains(w.Body.String(), "tree\n65839\n") {
		t.Errorf("%s", w.Body)
	}
	if o := drain(t, on); len(o) != 1 || o[0] != "consistent" {
		t.Errorf("heads checked: %q", o)
	}
	on.composed.put("/lookup/example.com/kept@v1.0.0", composed{module: kept}, 0)
	if w := get(t, on, "/lookup/example.com/kept@v1.0.0"); !strings.Contains(w.Body.String(), "tree\n302\n") {
		t.Errorf("%s", w.Body)
	}
}

// Where one tile is damaged and others are not held, the damage counts: that is no known absence.
func TestDamagedAndAbsentTiles(t *testing.T) {
	l := newLab(t, 70000, nil)
	l.seed(t, "kept")
	now, err := l.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	edge := []tlog.Tile{tileAt(0, now.N>>8), tileAt(1, now.N>>16), tileAt(2, 0)}
	for _, damaged := range edge {
		dir := t.TempDir()
		if err := os.CopyFS(dir, l.tiles.root.FS()); err != nil {
			t.Fatal(err)
		}
		tiles := openTiles(t, dir)
		for _, tile := range edge {
			if err := tiles.root.Remove(keyOf(tile).path()); err != nil {
				t.Fatal(err)
			}
		}
		if err := tiles.root.WriteFile(keyOf(damaged).path(), []byte("damage"), 0o666); err != nil {
			t.Fatal(err)
		}
		off := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: tiles, Offline: true})
		if w := get(t, off, "/tile/8/0/005"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%v damaged: %d %s", damaged, w.Code, w.Body)
		}
	}
}

// An anchor is preferred only while its edge is held in the shape of the newest head; else the newest does as well.
func TestAnchorWithoutEdge(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept") // 301: the edge is tile 0/001.p/45
	l.src.Grow(65536)
	l.seed(t, "newer") // fetches tile 0/001 in full
	l.DB = l.reopen(t, func(*Config) {})
	path := keyOf(tileAt(0, 1)).path()
	if err := l.tiles.root.Remove(path); err != nil {
		t.Fatal(err)
	}
	narrow := openTiles(t, l.tiles.root.Name())
	b, _ := l.src.Get(t.Context(), "/tile/8/0/001.p/45", tileBytes)
	if err := narrow.Put([]tlog.Tile{tileAtW(0, 1, 45)}, [][]byte{b}); err != nil {
		t.Fatal(err)
	}
	db := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: narrow, Offline: true})
	now, err := db.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := db.anchor(t.Context(), now, anchorBits)
	if err != nil || a.N != 301 || db.edgeHeld(t.Context(), a, now, false) {
		t.Errorf("anchor %d, %v: its edge is not held", a.N, err)
	}
	wantLines(t, newGoClient(db, l.Key, nil), kept)
}

// Another node moved the head, and this one, which cannot reach a source, lacks the tiles of the new one: it answers with
// what it holds.
func TestNodeBehind(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept") // 301
	behind := open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: openTiles(t, l.tiles.root.Name())})
	l.DB = open(t, Config{Key: l.src.Key(), Catalog: l.cat, Direct: l.src}) // with another store
	l.src.Grow(300)
	l.seed(t, "second") // 602
	l.src.Grow(65536)
	l.seed(t, "newer") // 66139
	wantLines(t, newGoClient(behind, l.Key, nil), kept)
	if w := get(t, behind, "/latest"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "tree\n301\n") {
		t.Errorf("latest: %d %s", w.Code, w.Body)
	}
	if w := get(t, behind, "/lookup/example.com/newer@v1.0.0"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("lookup: %d %s", w.Code, w.Body)
	}
	online := open(t, Config{Key: l.Key, Catalog: l.cat, Direct: l.src})
	for path, want := range map[string]string{"/latest": "tree\n66139\n", "/lookup/example.com/kept@v1.0.0": "tree\n602\n"} {
		if w := get(t, online, path); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
