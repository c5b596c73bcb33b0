package sumdb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// hashBytes returns n hashes' worth of bytes that depend on seed only, so that fewer are a prefix of more.
func hashBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n*tlog.HashSize)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func put(t testing.TB, s *TileStore, tile tlog.Tile) {
	t.Helper()
	if err := s.Put([]tlog.Tile{tile}, [][]byte{hashBytes(uint64(tile.N), tile.W)}); err != nil {
		t.Fatal(err)
	}
}

// The widest tile is kept, over a restart too, and every narrower width is served from it.
func TestTileWidths(t *testing.T) {
	dir := t.TempDir()
	s := openTiles(t, dir)
	for _, w := range []int{7, 3, 100, 40, 256, 1} {
		put(t, s, tileAtW(0, 1234567, w))
	}
	for range 2 {
		for _, w := range []int{1, 7, 100, 255, 256} {
			b, err := s.Tile(tileAtW(0, 1234567, w))
			if err != nil || !bytes.Equal(b, hashBytes(1234567, w)) || cap(b) != len(b) {
				t.Errorf("width %d: %d bytes, %v", w, len(b), err)
			}
		}
		s = openTiles(t, dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "tile/8/0/x001/x234/567")); err != nil {
		t.Error(err)
	}
	put(t, s, tileAtW(1, 5, 10))
	for _, tile := range []tlog.Tile{tileAtW(1, 5, 11), tileAtW(1, 6, 1), tileAtW(0, 5, 1)} {
		if _, err := s.Tile(tile); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: %v", tile, err)
		}
	}
}

func TestTileStoreRefuses(t *testing.T) {
	s := openTiles(t, t.TempDir())
	for _, tile := range []tlog.Tile{{}, {H: 30, L: 0, N: 0, W: 1}, tileAtW(-1, 0, 1), tileAtW(64, 0, 1), tileAtW(0, -1, 1), tileAtW(0, 1<<60, 1), tileAtW(0, 0, 257), tileAtW(0, 0, 0)} {
		if _, err := s.Tile(tile); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Tile(%v): %v", tile, err)
		}
		if err := s.Put([]tlog.Tile{tile}, [][]byte{make([]byte, 32*max(0, min(tile.W, 300)))}); err == nil {
			t.Errorf("Put(%v): no error", tile)
		}
	}
	if err := s.Put([]tlog.Tile{tileAtW(0, 0, 2)}, [][]byte{make([]byte, 32)}); err == nil {
		t.Error("tile of the wrong size: no error")
	}
}

// What a crash left behind is gone after the next start, and what was stored before it is there.
func TestTileStoreRestarts(t *testing.T) {
	dir := t.TempDir()
	s := openTiles(t, dir)
	put(t, s, tileAtW(0, 1, 9))
	temp := filepath.Join(dir, tileTemp, "7")
	if err := os.WriteFile(temp, []byte("half a tile"), 0o666); err != nil {
		t.Fatal(err)
	}
	s = openTiles(t, dir)
	if _, err := os.Stat(temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary file: %v", err)
	}
	if _, err := s.Tile(tileAtW(0, 1, 9)); err != nil {
		t.Error(err)
	}
}

// The names of databases nest as directories, so one store may lie below another, wherever a name can lead.
func TestTileStoresNest(t *testing.T) {
	dir := t.TempDir()
	s := openTiles(t, dir)
	for _, sub := range []string{"tmp", "temp", "tiles", tileTemp[1:]} {
		if !validName("sum.example.com/" + sub) {
			t.Fatalf("%s is no name", sub)
		}
		put(t, openTiles(t, filepath.Join(dir, sub)), tileAtW(0, 1, 9))
	}
	put(t, s, tileAtW(0, 1, 9))
	openTiles(t, dir)
	for _, sub := range []string{"tmp", "temp", "tiles", tileTemp[1:]} {
		if _, err := openTiles(t, filepath.Join(dir, sub)).Tile(tileAtW(0, 1, 9)); err != nil {
			t.Errorf("%s: %v", sub, err)
		}
	}
	for _, name := range []string{tileTemp, "tile"} {
		if validName("sum.example.com/" + name) {
			t.Errorf("a database may lie in %s", name)
		}
	}
}

// A store that is opened to be read only changes nothing, not even what a crash left behind, and makes no directory.
func TestTilesReadOnly(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept")
	dir := l.tiles.root.Name()
	r, err := l.Record(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, tileTemp, "7"), []byte("half a tile"), 0o666); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(t.TempDir(), "absent")
	before := listing(t, dir)
	for _, dir := range []string{dir, absent} {
		s, err := OpenTilesReadOnly(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.sync = func(*os.File) error { t.Error("fsync"); return nil }
		err = CheckOffline(s, h.Tree, r)
		if dir != absent && err != nil {
			t.Errorf("CheckOffline: %v", err)
		}
		if dir == absent && (err == nil || errors.Is(err, artifact.ErrRefused) || !regexp.MustCompile(`tile/8/\S+ is not held`).MatchString(err.Error())) {
			t.Errorf("CheckOffline without a store: %v", err)
		}
		if err := s.Put([]tlog.Tile{tileAtW(0, 9, 9)}, [][]byte{hashBytes(9, 9)}); !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("Put: %v", err)
		}
	}
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	if _, err := os.Stat(absent); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory made: %v", err)
	}
	if _, err := OpenTilesReadOnly(filepath.Join(dir, tileTemp, "7")); err == nil {
		t.Error("a file is a store")
	}
}

// listing returns the names below dir, with their sizes and times.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&out, name, fi.Mode(), fi.Size(), fi.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Every file and every directory on the way is fsynced before Put returns, the file before it gets its name.
func TestPutIsDurable(t *testing.T) {
	dir := t.TempDir()
	s := openTiles(t, dir)
	var mu sync.Mutex
	synced := make(map[string]bool)
	s.sync = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		rel, _ := filepath.Rel(dir, f.Name())
		synced[rel] = true
		if rel == tileTemp+"/1" {
			if _, err := os.Stat(filepath.Join(dir, "tile/8/0/x002/345")); err == nil {
				t.Error("renamed before it was fsynced")
			}
		}
		return f.Sync()
	}
	put(t, s, tileAtW(0, 2345, 9))
	for _, name := range []string{tileTemp + "/1", "tile", "tile/8", "tile/8/0", "tile/8/0/x002"} {
		if !synced[name] {
			t.Errorf("%s not fsynced: %v", name, synced)
		}
	}
	clear(synced)
	put(t, s, tileAtW(0, 2346, 9))
	if !synced["tile/8/0/x002"] || len(synced) != 2 {
		t.Errorf("second tile: %v", synced)
	}
	clear(synced)
	put(t, s, tileAtW(0, 2346, 5))
	if len(synced) != 0 {
		t.Errorf("tile that is held: %v", synced)
	}
}

// The directories of a batch are fsynced side by side, so that they share a commit of the file system's journal.
func TestDirectoriesAreFsyncedTogether(t *testing.T) {
	s := openTiles(t, t.TempDir())
	var mu sync.Mutex
	inside, both := 0, make(chan struct{})
	s.sync = func(f *os.File) error {
		if !isDir(f) {
			return f.Sync()
		}
		mu.Lock()
		if inside++; inside == 2 {
			close(both)
		}
		mu.Unlock()
		select {
		case <-both:
			return f.Sync()
		case <-time.After(10 * time.Second):
			t.Errorf("no other fsync joins that of %s", f.Name())
			return f.Sync()
		}
	}
	put(t, s, tileAtW(0, 2345, 9))
}

// After a failed fsync nothing is claimed to be durable any more; what was stored stays readable.
func TestFsyncFailureStopsWrites(t *testing.T) {
	s := openTiles(t, t.TempDir())
	put(t, s, tileAtW(0, 1, 9))
	if err := s.Err(); err != nil {
		t.Errorf("Err of a sound store: %v", err)
	}
	s.sync = func(*os.File) error { return syscall.EIO }
	bad := func(n int64) error {
		return s.Put([]tlog.Tile{tileAtW(0, n, 9)}, [][]byte{hashBytes(uint64(n), 9)})
	}
	if err := bad(2); !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, syscall.EIO) {
		t.Errorf("Put: %v", err)
	}
	s.sync = (*os.File).Sync
	if err := bad(3); !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, syscall.EIO) {
		t.Errorf("Put after that: %v", err)
	}
	if _, err := s.Tile(tileAtW(0, 1, 9)); err != nil {
		t.Errorf("Tile: %v", err)
	}
	if err := s.Err(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Err: %v", err)
	}
}

// Any change of the disk that fails is the last one, and so is one that hangs; what was stored stays readable.
func TestTileFaultsStopWrites(t *testing.T) {
	for name, fail := range map[string]struct {
		begin func(s *TileStore, dir string) (end func())
		want  string
	}{
		"create": {func(_ *TileStore, dir string) func() {
			temp := filepath.Join(dir, tileTemp)
			if err := os.Remove(temp); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Mkdir(temp, 0o777); err != nil {
					t.Fatal(err)
				}
			}
		}, "create a file"},
		"hang": {func(s *TileStore, _ string) func() {
			s.hung = time.Millisecond
			s.sync = func(f *os.File) error {
				for s.Err() == nil {
					runtime.Gosched()
				}
				return f.Sync() // it comes back, too late
			}
			return func() { s.sync = (*os.File).Sync }
		}, "hanging for 1ms"},
		"another part's disk": {func(s *TileStore, _ string) func() { s.StopWrites(errors.New("the log failed")); return func() {} }, "the log failed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openTiles(t, dir)
			put(t, s, tileAtW(0, 1, 9))
			faults := make(chan error, 9)
			s.OnFault(func(err error) { faults <- err })
			end := fail.begin(s, dir)
			bad := func(n int64) {
				t.Helper()
				err := s.Put([]tlog.Tile{tileAtW(0, n, 9)}, [][]byte{hashBytes(uint64(n), 9)})
				if !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), fail.want) {
					t.Errorf("Put: %v, want %q", err, fail.want)
				}
			}
			bad(2)
			end()
			bad(3)
			if err := s.setCursor(cursor{}); !errors.Is(err, artifact.ErrUnavailable) {
				t.Errorf("setCursor: %v", err)
			}
			if _, err := s.Tile(tileAtW(0, 1, 9)); err != nil {
				t.Errorf("Tile: %v", err)
			}
			if name != "another part's disk" {
				if err := <-faults; !strings.Contains(err.Error(), fail.want) {
					t.Errorf("OnFault(%v)", err)
				}
			}
			if len(faults) > 0 {
				t.Errorf("OnFault(%v)", <-faults)
			}
		})
	}
}

// Who needs the tile that another one hangs with in the disk is told so, and does not wait with it.
func TestNobodyWaitsForAHangingTile(t *testing.T) {
	s := openTiles(t, t.TempDir())
	s.hung = 50 * time.Millisecond
	gate, hangs, over := make(chan struct{}), make(chan struct{}, 9), make(chan error, 1)
	s.sync = func(f *os.File) error { hangs <- struct{}{}; <-gate; return f.Sync() }
	tile, data := []tlog.Tile{tileAtW(0, 2, 9)}, [][]byte{hashBytes(2, 9)}
	go func() { over <- s.Put(tile, data) }()
	<-hangs
	if err := s.Put(tile, data); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "hanging") {
		t.Errorf("Put of the same tile: %v", err)
	}
	close(gate)
	if err := <-over; !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Put that hung: %v", err)
	}
}

// A full disk fails what does not fit, and no more than that.
func TestFullDiskIsNotFinal(t *testing.T) {
	s := openTiles(t, t.TempDir())
	s.sync = func(*os.File) error { return syscall.ENOSPC }
	tile, data := []tlog.Tile{tileAtW(0, 2, 9)}, [][]byte{hashBytes(2, 9)}
	if err := s.Put(tile, data); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Put: %v", err)
	}
	if _, err := s.Tile(tile[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Tile: %v, want none", err)
	}
	s.sync = (*os.File).Sync
	if err := s.Put(tile, data); err != nil {
		t.Errorf("Put with room again: %v", err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// A tile that got its name in a batch that failed is not durable, whoever reads it meanwhile: it is fsynced before Put says
// so. And after a fault that is final, nothing that is in memory makes Put say so.
func TestTileDoesNotVouch(t *testing.T) {
	dir := t.TempDir()
	s := openTiles(t, dir)
	a, b := tileAtW(0, 1, 9), tileAtW(1, 2, 9)
	put(t, s, tileAtW(0, 7, 9)) // so that the directory is there
	batch := []tlog.Tile{a, b}
	data := [][]byte{hashBytes(1, 9), hashBytes(2, 9)}
	var mu sync.Mutex
	var synced []string
	files := 0
	s.sync = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		rel, _ := filepath.Rel(dir, f.Name())
		if !isDir(f) {
			if files++; files == 2 {
				return syscall.ENOSPC
			}
		}
		synced = append(synced, rel)
		return nil
	}
	if err := s.Put(batch, data); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Put: %v", err)
	}
	if _, err := s.Tile(a); err != nil { // whichever of the two it is
		batch, data = batch[1:], data[1:]
	} else {
		batch, data = batch[:1], data[:1]
	}
	if _, err := s.Tile(batch[0]); err != nil {
		t.Fatalf("neither file has its name: %v", err)
	}
	synced = nil
	if err := s.Put(batch, data); err != nil || len(synced) == 0 {
		t.Errorf("Put of a tile that a failed batch left = %v, with fsyncs of %q", err, synced)
	}
	synced = nil
	if err := s.Put(batch, data); err != nil || len(synced) != 0 {
		t.Errorf("Put of a durable tile = %v, with fsyncs of %q", err, synced)
	}
	c := tileAtW(0, 3, 9)
	s.sync = func(f *os.File) error {
		if isDir(f) {
			return syscall.EIO
		}
		return nil
	}
	if err := s.Put([]tlog.Tile{c}, [][]byte{hashBytes(3, 9)}); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Put: %v", err)
	}
	s.sync = (*os.File).Sync
	for _, tile := range append(batch, c) {
		if _, err := s.Tile(tile); err != nil {
			t.Errorf("Tile(%v): %v", tile, err)
		}
		if err := s.Put([]tlog.Tile{tile}, [][]byte{hashBytes(uint64(tile.N), 9)}); !errors.Is(err, syscall.EIO) || !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("Put(%v) after a fault: %v", tile, err)
		}
	}
}

// After a fault what is held is served as before, and nothing new is.
func TestFaultDoesNotEndReads(t *testing.T) {
	l := newLab(t, 300, nil)
	kept := l.seed(t, "kept")
	l.tiles.sync = func(*os.File) error { return syscall.EIO }
	if err := l.tiles.Put([]tlog.Tile{tileAtW(0, 9, 9)}, [][]byte{hashBytes(9, 9)}); err == nil {
		t.Fatal("no fault")
	}
	l.tiles.hot = newCache[tileKey, []byte](hotTiles)
	wantLines(t, newGoClient(l, l.Key, nil), kept)
	l.add(hello)
	if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("new record: %d %s", w.Code, w.Body)
	}
}

// Who keeps other files on the disk is told of the fault, once, and also if it comes first.
func TestTilesOnFault(t *testing.T) {
	s := openTiles(t, t.TempDir())
	faults := make(chan error, 9)
	s.OnFault(func(err error) { faults <- err })
	fail := func(n int64, err error) {
		s.sync = func(*os.File) error { return err }
		if err := s.Put([]tlog.Tile{tileAtW(0, n, 9)}, [][]byte{hashBytes(uint64(n), 9)}); !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("Put: %v", err)
		}
	}
	fail(1, syscall.ENOSPC)
	fail(2, syscall.EIO)
	fail(3, syscall.EROFS)
	if err := <-faults; !errors.Is(err, syscall.EIO) || err != s.Err() {
		t.Errorf("OnFault(%v), want %v", err, s.Err())
	}
	s.OnFault(func(err error) { faults <- err })
	if err := <-faults; err != s.Err() {
		t.Errorf("OnFault(%v) of a store that has failed, want %v", err, s.Err())
	}
	if len(faults) > 0 {
		t.Error("OnFault is called twice")
	}
}

// A tile that is being written is not durable yet, so reading it does not make it so.
func TestTileWhileBusy(t *testing.T) {
	s := openTiles(t, t.TempDir())
	put(t, s, tileAtW(0, 7, 9)) // so that the directories are there
	a := tileAtW(0, 1, 9)
	entered, leave := make(chan bool), make(chan bool)
	s.sync = func(f *os.File) error {
		if isDir(f) {
			entered <- true
			<-leave
			return errors.New("no fsync")
		}
		return f.Sync()
	}
	done := make(chan error)
	go func() { done <- s.Put([]tlog.Tile{a}, [][]byte{hashBytes(1, 9)}) }()
	<-entered
	if b, err := s.Tile(a); err != nil || !bytes.Equal(b, hashBytes(1, 9)) {
		t.Errorf("Tile: %v", err)
	}
	if _, ok := s.hot.get(keyOf(a)); ok {
		t.Error("a tile that is being written counts as durable")
	}
	close(leave)
	if err := <-done; err == nil {
		t.Error("Put: no error")
	}
}

// A record whose tiles cannot be stored is not handed out.
func TestRecordNeedsDurableTiles(t *testing.T) {
	l := newLab(t, 300, nil)
	l.add(hello)
	l.tiles.sync = func(*os.File) error { return syscall.ENOSPC }
	if r, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Record = %+v, %v", r, err)
	}
	if c := l.cat.Commits(); len(c) != 0 {
		t.Errorf("heads %v committed without tiles", c)
	}
	l = newLab(t, 3000, nil) // the same once there is a head
	l.add(hello)
	l.src.Grow(1000)
	if _, err := l.bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.tiles.sync = func(*os.File) error { return syscall.ENOSPC }
	if r, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Record = %+v, %v", r, err)
	}
}

// Writers and readers of the same tiles: widths only grow, and nothing but a prefix of the tile is ever read.
func TestTileStoreConcurrently(t *testing.T) {
	s := openTiles(t, t.TempDir())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 60 {
				var tiles []tlog.Tile
				var data [][]byte
				for range 3 {
					tile := tileAtW(0, r.Int64N(4), 1+r.IntN(256))
					tiles, data = append(tiles, tile), append(data, hashBytes(uint64(tile.N), tile.W))
				}
				if err := s.Put(tiles, data); err != nil {
					t.Error(err)
				}
				for i, tile := range tiles {
					if b, err := s.Tile(tile); err != nil || !bytes.Equal(b, data[i]) {
						t.Errorf("%v: %v", tile, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// The tiles in memory are bounded, and so is every other cache.
func TestCachesAreBounded(t *testing.T) {
	s := openTiles(t, t.TempDir())
	s.hot.max = 100 << 10
	for n := range int64(50) {
		put(t, s, tileAt(0, n))
	}
	if s.hot.used > s.hot.max || len(s.hot.items) > 13 || len(s.hot.items) < 11 || s.hot.order.Len() != len(s.hot.items) {
		t.Errorf("%d bytes, %d tiles", s.hot.used, len(s.hot.items))
	}
	if _, err := s.Tile(tileAt(0, 0)); err != nil {
		t.Errorf("evicted tile: %v", err)
	}
	c := newCache[int, int](10 * entryCost)
	for i := range 1000 {
		c.put(i%37, i, int64(i%3)*entryCost)
		c.put(i%37, i, int64(i%5)*entryCost)
		if c.used > c.max || c.used < 0 || len(c.items) > 10 {
			t.Fatalf("%d: used %d, %d items", i, c.used, len(c.items))
		}
	}
	c.put(1, 1, 0)
	c.put(1, 2, 100*entryCost)
	if v, ok := c.get(1); ok {
		t.Errorf("value that is too large: kept %d", v)
	}
}
