package artifact

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Disk is every way in which a Store changes its directory, so that tests can put one in its place that loses power,
// runs full or lies: see [OpenStoreOn]. Names are relative to the data directory and slash-separated. Contents of a file are
// durable once its Sync has returned, and its name once SyncDir of the directory has. Of reading, only that of whole blobs goes
// through a Disk.
type Disk interface {
	Create(name string) (File, error) // a new file, never an existing one
	Rename(oldname, newname string) error
	Remove(name string) error
	Mkdir(name string) error
	SyncDir(name string) error // returns once the names in the directory are durable

	Blob(f *os.File) io.ReaderAt // how the bytes of an open blob are read to compare them with their digest
}

// File is an open file of a Disk.
type File interface {
	io.Writer
	io.ReaderAt
	Sync() error
	Close() error
}

// What a Store creates is for the user it runs as: zips of private modules are somebody's source code, and the default
// group of an account is shared with other people on some systems. A backup runs as that user, or as root.
const (
	filePerm = 0o600
	dirPerm  = 0o700
)

// rootDisk is the real disk. Nothing that it is asked can leave the directory, not even through a symbolic link.
type rootDisk struct{ root *os.Root }

// NewDisk returns the real disk below root, for one that stands in front of it.
func NewDisk(root *os.Root) Disk { return rootDisk{root} }

func (d rootDisk) Create(name string) (File, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, err // not a file that holds a nil *os.File
	}
	return f, nil
}

func (d rootDisk) Rename(oldname, newname string) error { return d.root.Rename(oldname, newname) }
func (d rootDisk) Remove(name string) error             { return d.root.Remove(name) }
func (d rootDisk) Mkdir(name string) error              { return d.root.Mkdir(name, dirPerm) }
func (d rootDisk) Blob(f *os.File) io.ReaderAt          { return f }

func (d rootDisk) SyncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDir is SyncDir for a directory outside of any store.
func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeDir makes the data directory and what is missing above it, and makes their names durable: a store whose whole
// directory is gone after a power cut has kept no promise. Also that of one which is there, since the process that made it
// may have died before; but what somebody else made, in a directory that we may not read, is their business.
func makeDir(dir string, sync func(string) error) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(parent, sync); err != nil {
			return err
		}
	}
	made := os.Mkdir(dir, dirPerm)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	if err := sync(parent); err != nil && made == nil {
		return err
	}
	return nil
}
