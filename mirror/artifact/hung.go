package artifact

import (
	"fmt"
	"sync/atomic"
	"time"

	"modmirror/mirror/artifact/fault"
)

// Hung is how long one write, fsync or rename may take before the disk counts as failed. Nothing depends on the disk that would
// notice a hanging one otherwise; one that is merely slow comes back long before.
const Hung = 30 * time.Second

// HungLimit is Hung, unless a test has made it shorter.
func HungLimit() time.Duration {
	return time.Duration(fault.Limit("hung-milliseconds", int64(Hung/time.Millisecond))) * time.Millisecond
}

// Watch runs write, which changes a disk, and calls late if that is not over after limit. It returns what write does, whenever
// that is: what hangs in the kernel cannot be given up.
func Watch(limit time.Duration, late func(), write func() error) error {
	watch := time.AfterFunc(limit, late)
	defer watch.Stop()
	return write()
}

// watchedDisk is the disk of a Store. A change that hangs ends writing as one that fails does; when it comes back it has failed,
// too late to be believed.
type watchedDisk struct {
	Disk
	s *Store
}

func (d watchedDisk) watch(what string, write func() error) error { return d.s.watch(what, write) }

func (s *Store) watch(what string, write func() error) error {
	var late atomic.Pointer[error] // of this one; what else fails meanwhile is the others' business
	err := Watch(s.hung, func() {
		first := s.latch(what, fmt.Errorf("it has been hanging for %v", s.hung))
		late.Store(&first)
	}, write)
	if first := late.Load(); first != nil {
		return *first
	}
	return err
}

func (d watchedDisk) Create(name string) (f File, err error) {
	err = d.watch("create a file", func() (err error) { f, err = d.Disk.Create(name); return err })
	if err != nil {
		if f != nil {
			_ = f.Close() // nothing was written
		}
		return nil, err
	}
	return watchedFile{f, d}, nil
}

func (d watchedDisk) Rename(oldname, newname string) error {
	return d.watch("rename a file", func() error { return d.Disk.Rename(oldname, newname) })
}

func (d watchedDisk) Remove(name string) error {
	return d.watch("remove a file", func() error { return d.Disk.Remove(name) })
}

func (d watchedDisk) Mkdir(name string) error {
	return d.watch("make a directory", func() error { return d.Disk.Mkdir(name) })
}

func (d watchedDisk) SyncDir(name string) error {
	return d.watch("fsync a directory", func() error { return d.Disk.SyncDir(name) })
}

// watchedFile is a file of a watchedDisk. That a read hangs is not told from here: nothing is lost by it.
type watchedFile struct {
	File
	on watchedDisk
}

func (f watchedFile) Write(p []byte) (n int, err error) {
	err = f.on.watch("write to a file", func() error { n, err = f.File.Write(p); return err })
	return n, err
}

func (f watchedFile) Sync() error { return f.on.watch("fsync a file", f.File.Sync) }
