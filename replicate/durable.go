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
	if err := syncFile(tmp); err != nil {
		return err
	}
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil { // a file system without hard links
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
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

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeDir creates dir and makes its name durable.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
