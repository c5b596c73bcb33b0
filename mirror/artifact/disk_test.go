package artifact

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// unsafeDisk is a disk that keeps what was not fsynced in mind, to lose it when the power fails, and that can be told to
// fail. It has the rules that a Store counts on: contents are durable after Sync of the file, names after SyncDir of
// their directory.
type unsafeDisk struct {
	rootDisk
	fail func(op, name string) error // before each operation; nil: nothing fails
	hang atomic.Pointer[chan bool]   // each operation waits until it is closed; nil: none does
	slow string                      // the operation that waits

	mu      sync.Mutex
	dead    bool                // guarded by mu, as the rest: the power is off
	steps   int                 // operations so far
	budget  int                 // the power fails in front of the operation of this number; 0: never
	dirty   map[string]bool     // files with contents that are not durable
	renames map[string][]move   // by directory: names in it that are not durable
	dirs    map[string][]string // the same of directories that were made
}

type move struct{ from, to string }

var errPower = errors.New("no power")

func (d *unsafeDisk) step(op, name string) error {
	if gate := d.hang.Load(); gate != nil && op == d.slow {
		<-*gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps++
	if d.dead || d.steps == d.budget {
		d.dead = true
		return errPower
	}
	if d.fail != nil {
		return d.fail(op, name)
	}
	return nil
}

// note changes what is known of the disk, under the lock.
func (d *unsafeDisk) note(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *unsafeDisk) Create(name string) (File, error) {
	if err := d.step("create", name); err != nil {
		return nil, err
	}
	f, err := d.rootDisk.Create(name)
	if err != nil {
		return nil, err
	}
	d.note(func() { d.dirty[name] = true })
	return &unsafeFile{File: f, d: d, name: name}, nil
}

func (d *unsafeDisk) Rename(oldname, newname string) error {
	if err := d.step("rename", newname); err != nil {
		return err
	}
	if err := d.rootDisk.Rename(oldname, newname); err != nil {
		return err
	}
	d.note(func() {
		d.dirty[newname] = d.dirty[oldname]
		delete(d.dirty, oldname)
		dir := path.Dir(newname)
		d.renames[dir] = append(d.renames[dir], move{oldname, newname})
	})
	return nil
}

func (d *unsafeDisk) Remove(name string) error {
	if err := d.step("remove", name); err != nil {
		return err
	}
	return d.rootDisk.Remove(name)
}

func (d *unsafeDisk) Mkdir(name string) error {
	if err := d.step("mkdir", name); err != nil {
		return err
	}
	d.note(func() { d.dirs[path.Dir(name)] = append(d.dirs[path.Dir(name)], name) })
	return d.rootDisk.Mkdir(name)
}

func (d *unsafeDisk) SyncDir(name string) error {
	if err := d.step("syncdir", name); err != nil {
		return err
	}
	d.note(func() {
		delete(d.renames, name)
		delete(d.dirs, name)
	})
	return d.rootDisk.SyncDir(name)
}

// Blob reads a blob in steps called "blob".
func (d *unsafeDisk) Blob(f *os.File) io.ReaderAt {
	return &unsafeFile{File: f, d: d, name: f.Name(), blob: true}
}

// cut turns the power off and makes the directory what it may be then: contents that were not fsynced are gone, names
// that were not fsynced are the old ones if undo says so (a kernel may also have written them already).
func (d *unsafeDisk) cut(t *testing.T, undo bool) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	for name, dirty := range d.dirty {
		if !dirty {
			continue
		}
		if fi, err := d.root.Lstat(name); err == nil {
			f, err := d.root.OpenFile(name, os.O_WRONLY, 0)
			if err == nil {
				err = errors.Join(f.Truncate(fi.Size()/2), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if !undo {
		return
	}
	for _, dirs := range d.dirs {
		for _, dir := range dirs {
			if err := d.root.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, moves := range d.renames {
		for _, m := range moves {
			if err := d.root.Rename(m.to, m.from); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
}

type unsafeFile struct {
	File
	d    *unsafeDisk
	name string
	blob bool // it is one that is stored
}

func (f *unsafeFile) Write(p []byte) (int, error) {
	if err := f.d.step("write", f.name); err != nil {
		n, _ := f.File.Write(p[:len(p)/2]) // a disk that runs full takes some
		return n, err
	}
	return f.File.Write(p)
}

func (f *unsafeFile) ReadAt(p []byte, off int64) (int, error) {
	op := "read"
	if f.blob {
		op = "blob"
	}
	if err := f.d.step(op, f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *unsafeFile) Sync() error {
	if err := f.d.step("fsync", f.name); err != nil {
		return err
	}
	f.d.note(func() { f.d.dirty[f.name] = false })
	return f.File.Sync()
}

// openUnsafe opens a store on an unsafeDisk that works; the test breaks it afterwards.
func openUnsafe(t *testing.T, dir string) (*Store, *unsafeDisk) {
	t.Helper()
	var d *unsafeDisk
	s, err := OpenStoreOn(dir, func(root *os.Root) Disk {
		d = &unsafeDisk{rootDisk: rootDisk{root}, dirty: map[string]bool{}, renames: map[string][]move{}, dirs: map[string][]string{}}
		return d
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, d
}

// failing returns the errors of a disk on which one operation fails each time.
func failing(op string, err error) func(string, string) error {
	return func(o, _ string) error {
		if o == op {
			return err
		}
		return nil
	}
}

// failingOnce is failing for the first time only: a retry would succeed.
func failingOnce(op string, err error) func(string, string) error {
	done := false
	return func(o, _ string) error {
		if o != op || done {
			return nil
		}
		done = true
		return err
	}
}

// The names of the data directory and of what is missing above it are durable once it is open.
func TestMakeDir(t *testing.T) {
	errSync := errors.New("sync")
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b", "data")
	var synced []string
	spy := func(name string) error { synced = append(synced, name); return nil }
	fail := func(string) error { return errSync }
	if err := makeDir(filepath.Join(top, "x"), fail); !errors.Is(err, errSync) {
		t.Errorf("makeDir with a disk that fails: %v", err)
	}
	for _, want := range [][]string{{top, filepath.Join(top, "a"), filepath.Join(top, "a", "b")}, {filepath.Join(top, "a", "b")}} {
		synced = nil
		if err := makeDir(dir, spy); err != nil || !slices.Equal(synced, want) {
			t.Errorf("makeDir = %v, fsyncs %q, want %q", err, synced, want)
		}
	}
	if err := makeDir(dir, fail); err != nil {
		t.Errorf("makeDir of what is there, in a directory of somebody else's: %v", err)
	}
}
