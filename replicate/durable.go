package replicate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// createFile makes path exist, whole and durable. If it does not exist, fill writes a temporary file beside it, which is
// fsynced, given its name without replacing another file, and the directory fsynced. If it exists (also because another
// process was faster), it stays as it is. A crash leaves a temporary file at most, which sweep removes.
func createFile(path string, fill func(tmp string) error) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempMark+"*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer os.Remove(tmp)
	if err := f.Close(); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := errors.Join(giveFile(tmp), syncFile(tmp)); err != nil {
		return err
	}
	if err := nameFile(tmp, path); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// link is os.Link; tests put a file system without hard links in its place.
var link = os.Link

// nameFile gives tmp the name path, unless there is such a file: the error matches fs.ErrExist then. Without hard links,
// the name is taken by an empty file first, which only one process can do. If that dies before the second step, the empty
// file is refused by whoever opens it.
func nameFile(tmp, path string) error {
	err := link(tmp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// replaceFile is createFile for a file that is there already: a crash leaves the old one or the new one.
func replaceFile(path string, fill func(tmp string) error) error {
	tmp := path + tempMark + "new" // swept by name; who holds the lock of the directory is alone
	defer os.Remove(tmp)
	if err := fill(tmp); err != nil {
		return err
	}
	if err := errors.Join(giveFile(tmp), syncFile(tmp)); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// tempMark stands in the name of every file that is not in use yet.
const tempMark = ".tmp-"

// sweep removes what a crash left behind in dir. The caller holds the lock on the node's directory.
func sweep(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		if strings.Contains(e.Name(), tempMark) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// fsync is (*os.File).Sync; tests look on.
var fsync = (*os.File).Sync

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(fsync(f), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(fsync(f), f.Close())
}

// makeDir creates dir and makes its name durable.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
