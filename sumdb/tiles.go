package sumdb

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

const (
	tileHeight = 8                              // the only height in use
	tileWidth  = 1 << tileHeight                // hashes in a full tile
	tileBytes  = tileWidth * tlog.HashSize      // bytes of a full tile
	hotTiles   = 64 << 20                       // bytes of tiles kept in memory
	tileTemp   = ".tmp"                         // directory of files not yet renamed; no element of a database's name
	tileWrites = 8                              // files of one batch that are written and fsynced at the same time
	maxTree    = artifact.MaxTreeSize           // records
	maxLevel   = (52 + tileHeight) / tileHeight // levels that a tree of maxTree records has at most
)

// TileStore is a directory of authenticated tiles:
//
//	tile/8/<level>/<n>   the hashes that are known of tile n, 32 bytes each: 256 of them, or fewer if the tile was not full;
//	                     then the SHA-256 of these bytes, so that a damaged file is noticed and never served
//	.tmp/                files that are being written
//
// The directory of a database may have that of another one below it, as names do: no element of a name is "tile", or
// begins with a dot.
//
// The tree only grows, so a narrow tile is a prefix of every wider one. A file holds the widest that was ever stored, and
// every narrower width is served from it. All methods are safe for concurrent use. The directory belongs to one process.
type TileStore struct {
	root  *os.Root                // nil: there is no directory, and no tile
	fixed bool                    // opened to be read only
	hot   *cache[tileKey, []byte] // durable tiles, the widest known; the bytes are never changed
	names atomic.Uint64           // for temporary files
	sync  func(*os.File) error    // (*os.File).Sync, but for tests
	hung  time.Duration           // artifact.Hung, but for tests

	mu     sync.Mutex
	busy   map[tileKey]chan struct{} // guarded by mu; tiles being written; closed when done
	unsure map[tileKey]bool          // guarded by mu; tiles that have their name, but perhaps not after a crash
	dirs   map[string]bool           // guarded by mu; directories whose own entry is durable
	failed error                     // guarded by mu; the first fault: nothing more is written
	broken chan struct{}             // closed with failed

	onFault func(error) // guarded by mu; nil: nobody wants to know
}

// tileKey names a tile whatever its width.
type tileKey struct {
	l int
	n int64
}

func keyOf(t tlog.Tile) tileKey { return tileKey{t.L, t.N} }

// path returns where the tile lies, whatever its width.
func (k tileKey) path() string {
	return tlog.Tile{H: tileHeight, L: k.l, N: k.n, W: tileWidth}.Path()
}

// OpenTiles opens the store in dir, which is made if it does not exist.
func OpenTiles(dir string) (*TileStore, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("open tiles: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open tiles: %w", err)
	}
	s := newTileStore(root)
	if err := s.recover(); err != nil {
		root.Close()
		return nil, fmt.Errorf("open tiles in %s: %w", dir, err)
	}
	return s, nil
}

// OpenTilesReadOnly opens the store in dir to look at it, as it is: nothing is made, removed or fsynced, and Put fails.
// A directory that does not exist is a store without tiles.
func OpenTilesReadOnly(dir string) (*TileStore, error) {
	root, err := os.OpenRoot(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open tiles: %w", err)
	}
	s := newTileStore(root)
	s.fixed = true
	return s, nil
}

func newTileStore(root *os.Root) *TileStore {
	return &TileStore{
		root:   root,
		hot:    newCache[tileKey, []byte](hotTiles),
		sync:   (*os.File).Sync,
		hung:   artifact.HungLimit(),
		broken: make(chan struct{}),
		busy:   make(map[tileKey]chan struct{}),
		unsure: make(map[tileKey]bool),
		dirs:   make(map[string]bool),
	}
}

// Close gives the directory back.
func (s *TileStore) Close() error {
	if s.root == nil {
		return nil
	}
	return s.root.Close()
}

// recover removes temporary files, and makes durable what a crash may have left renamed but not yet durable.
func (s *TileStore) recover() error {
	if err := s.root.RemoveAll(tileTemp); err != nil {
		return err
	}
	for _, dir := range []string{tileTemp, "tile"} {
		if err := s.root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	dirs := []string{"."}
	err := fs.WalkDir(s.root.FS(), "tile", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := s.syncDir(dir); err != nil {
			return err
		}
		s.dirs[dir] = true
	}
	return nil
}

// Cached returns how many bytes of tiles are in memory.
func (s *TileStore) Cached() int64 { return s.hot.size() }

// Tile returns the bytes of t, which the caller must not change. An error matches [fs.ErrNotExist] if t, or a tile wide
// enough to hold t, is not here, and [artifact.ErrDamaged] if what lies in its place is not what was stored: t may exist
// then, and Put replaces it.
func (s *TileStore) Tile(t tlog.Tile) ([]byte, error) {
	if err := checkTile(t); err != nil {
		return nil, err
	}
	k, size := keyOf(t), t.W*tlog.HashSize
	if b, ok := s.hot.get(k); ok && len(b) >= size {
		return b[:size:size], nil
	}
	b, err := s.read(k)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if !s.unsure[k] {
		s.hot.update(k, b, int64(len(b)), func(old []byte) bool { return len(old) < len(b) })
	}
	s.mu.Unlock()
	if len(b) < size {
		return nil, fs.ErrNotExist
	}
	return b[:size:size], nil
}

// read reads what lies on disk of the tile k. Errors are those of Tile.
func (s *TileStore) read(k tileKey) ([]byte, error) {
	if s.root == nil {
		return nil, fs.ErrNotExist
	}
	f, err := s.root.Open(k.path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, tileBytes+sha256.Size+1)
	n, err := io.ReadFull(f, b)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, fmt.Errorf("%w: %w", err, artifact.ErrDamaged)
	}
	if b, err = parseTileFile(b[:n]); err != nil {
		return nil, err
	}
	return bytes.Clone(b), nil
}

// parseTileFile returns the hashes in a file, without a copy. An error matches [artifact.ErrDamaged].
func parseTileFile(file []byte) ([]byte, error) {
	n := len(file) - sha256.Size
	if n <= 0 || n > tileBytes || n%tlog.HashSize != 0 {
		return nil, fmt.Errorf("file of %d bytes: %w", len(file), artifact.ErrDamaged)
	}
	b, sum := file[:n:n], file[n:]
	if got := sha256.Sum256(b); got != [sha256.Size]byte(sum) {
		return nil, fmt.Errorf("file has the digest %x, want %x: %w", got, sum, artifact.ErrDamaged)
	}
	return b, nil
}

// tileFile returns the file with the hashes b.
func tileFile(b []byte) []byte {
	sum := sha256.Sum256(b)
	return slices.Concat(b, sum[:])
}

// checkTile reports whether t is one that a store can hold.
func checkTile(t tlog.Tile) error {
	if t.H != tileHeight || t.L < 0 || t.L >= maxLevel || t.N < 0 || t.N > maxTree>>tileHeight || t.W < 1 || t.W > tileWidth {
		return fmt.Errorf("there is no tile of height %d, level %d, number %d, width %d", t.H, t.L, t.N, t.W)
	}
	return nil
}

// Err returns the fault that ended writing, or nil while the store takes tiles.
func (s *TileStore) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// OnFault makes the store call f once, on a goroutine of its own, with the fault that ends writing; at once if that has
// happened already.
func (s *TileStore) OnFault(f func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onFault = f
	if s.failed != nil {
		go f(s.failed)
	}
}

// Put stores tiles, which must be authenticated, and returns when all of them are durable. What is there in the same or
// a greater width is kept; what is there and differs was damaged on disk and is replaced. An error matches
// [artifact.ErrUnavailable]; after a write or an fsync that failed, or hung, there is nothing but errors until the store is
// opened again, because what the kernel then holds of the file is not known. A full disk is no such fault.
func (s *TileStore) Put(tiles []tlog.Tile, data [][]byte) error {
	if s.fixed {
		return fmt.Errorf("store tiles: opened to be read only: %w", artifact.ErrUnavailable)
	}
	if err := s.Err(); err != nil { // before anything that is in memory is believed
		return fmt.Errorf("store tiles: writing stopped after %w: %w", err, artifact.ErrUnavailable)
	}
	batch := make(map[tileKey][]byte)
	for i, t := range tiles {
		if err := checkTile(t); err != nil {
			return err
		}
		if len(data[i]) != t.W*tlog.HashSize {
			return fmt.Errorf("put tile %s of %d bytes", t.Path(), len(data[i]))
		}
		k := keyOf(t)
		if hot, ok := s.hot.get(k); ok && bytes.HasPrefix(hot, data[i]) {
			continue
		}
		if len(batch[k]) < len(data[i]) {
			batch[k] = data[i]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	keys, err := s.lock(batch)
	defer s.unlock(keys)
	if err == nil {
		err = s.write(keys, batch)
	}
	if err != nil {
		return fmt.Errorf("store tiles: %w: %w", err, artifact.ErrUnavailable)
	}
	return nil
}

// write makes batch durable. The caller has locked its keys.
func (s *TileStore) write(keys []tileKey, batch map[tileKey][]byte) error {
	if err := s.Err(); err != nil { // while this waited for the keys
		return fmt.Errorf("writing stopped after %w", err)
	}
	var g errgroup.Group
	g.SetLimit(tileWrites)
	held := make([][]byte, len(keys)) // what is on disk in the end
	for i, k := range keys {
		g.Go(func() error {
			old, err := s.read(k)
			if err == nil && bytes.HasPrefix(old, batch[k]) {
				held[i] = old
				return nil
			}
			b := bytes.Clone(batch[k])
			if err := s.writeFile(k, b); err != nil {
				return err
			}
			held[i] = b
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err // what has its name already is written again by whoever needs it: see unsure
	}
	if err := s.syncParents(keys); err != nil {
		return err
	}
	fault.Point(fault.TilesDurable)
	for i, k := range keys {
		s.hot.put(k, held[i], int64(len(held[i])))
	}
	return nil
}

// writeFile puts b in the place of the tile k, through a temporary file. The directory is left to be fsynced.
func (s *TileStore) writeFile(k tileKey, b []byte) error {
	name := k.path()
	err := s.change("make a directory of tiles", func() error { return s.root.MkdirAll(path.Dir(name), 0o777) })
	if err != nil {
		return err
	}
	return s.replaceFile(name, tileFile(b), func() {
		s.mu.Lock()
		s.unsure[k] = true
		s.mu.Unlock()
		fault.Point(fault.TileRename)
	})
}

// replaceFile makes data the contents of name, through a temporary file, and calls before first when it has that. The
// directory is left to be fsynced.
func (s *TileStore) replaceFile(name string, data []byte, before func()) (err error) {
	temp := path.Join(tileTemp, strconv.FormatUint(s.names.Add(1), 10))
	var f *os.File
	if err := s.change("create a file", func() (err error) {
		f, err = s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		return err
	}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.root.Remove(temp))
		}
	}()
	if err = s.change("write a file", func() error { _, err := f.Write(data); return err }); err == nil {
		err = s.fsync(f)
	}
	if err2 := s.change("close a file", f.Close); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	before()
	return s.change("rename a file", func() error { return s.root.Rename(temp, name) })
}

// syncParents fsyncs the directories of keys, and above them those that are new. The files of keys are durable then.
func (s *TileStore) syncParents(keys []tileKey) error {
	dirs := make(map[string]bool)
	s.mu.Lock()
	for _, k := range keys {
		dir := path.Dir(k.path())
		dirs[dir] = true
		for ; !s.dirs[dir]; dir = path.Dir(dir) {
			dirs[path.Dir(dir)] = true
		}
	}
	s.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(tileWrites)
	for dir := range dirs { // a journal takes all of them in one go
		g.Go(func() error { return s.syncDir(dir) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir := range dirs {
		s.dirs[dir] = true
	}
	for _, k := range keys {
		delete(s.unsure, k)
	}
	return nil
}

func (s *TileStore) syncDir(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.fsync(f)
}

// fsync makes f durable. Its failure is final, but for a full disk: the temporary file goes then, and the next attempt
// writes another.
func (s *TileStore) fsync(f *os.File) error {
	return s.change("fsync", func() error { return s.fsyncOnce(f) })
}

// fsyncOnce stands by itself: where fsync is inlined, the compiler calls what its closure calls, also what is empty.
func (s *TileStore) fsyncOnce(f *os.File) error {
	err := fault.Error(fault.TileFsync)
	if err == nil {
		err = s.sync(f)
	}
	if isFull(err) && isDir(f) { // not forgiven: the name is in place, and the next fsync may pass without it
		err = fmt.Errorf("of a directory: %v", err)
	}
	return err
}

// change makes one change of the disk. If it fails, or hangs, it is the last one, unless there was no room, or too many files
// are open: then nothing was lost.
func (s *TileStore) change(what string, f func() error) error {
	err := artifact.Watch(s.hung, func() { s.latch(fmt.Errorf("%s: it has been hanging for %v", what, s.hung)) }, f)
	if err == nil {
		return s.Err() // also of one that came back too late
	}
	err = fmt.Errorf("%s: %w", what, err)
	if isFull(err) {
		return fmt.Errorf("%w: %w", artifact.ErrNoSpace, err)
	}
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, fs.ErrClosed} {
		if errors.Is(err, passing) {
			return err
		}
	}
	s.latch(err)
	return err
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// StopWrites ends writing as a fault of the store's own disk does: for whoever keeps other files on that disk and saw a write
// of them fail. Only the first reason counts. f of OnFault is not called for it.
func (s *TileStore) StopWrites(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = reason
		close(s.broken)
	}
}

// latch ends writing. Only the first reason counts.
func (s *TileStore) latch(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
		close(s.broken)
		if s.onFault != nil {
			go s.onFault(err)
		}
	}
}

func isDir(f *os.File) bool {
	fi, err := f.Stat()
	return err != nil || fi.IsDir()
}

// lock waits until nobody else writes the tiles of batch, or the store stops writing, and returns the keys that it has taken.
// They are taken in order, so that two batches cannot wait for each other.
func (s *TileStore) lock(batch map[tileKey][]byte) (taken []tileKey, err error) {
	keys := make([]tileKey, 0, len(batch))
	for k := range batch {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b tileKey) int { return cmp.Or(cmp.Compare(a.l, b.l), cmp.Compare(a.n, b.n)) })
	for _, k := range keys {
		for {
			s.mu.Lock()
			other, busy := s.busy[k]
			if !busy {
				s.busy[k] = make(chan struct{})
			}
			s.mu.Unlock()
			if !busy {
				break
			}
			select {
			case <-other:
			case <-s.broken: // the other one may never come back
				return taken, fmt.Errorf("writing stopped after %w", s.Err())
			}
		}
		taken = append(taken, k)
	}
	return taken, nil
}

func (s *TileStore) unlock(keys []tileKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		close(s.busy[k])
		delete(s.busy, k)
	}
}
