package mirror

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"

	"modmirror/mirror/artifact"
)

// dataFiles are the small files that a Mirror keeps in the data directory: its cursor, and what it could not commit yet. Each
// is written under a temporary name, fsynced and renamed, and its directory is fsynced: after a crash it is the old one or the
// new one. What is left of a temporary file is overwritten by the next.
type dataFiles struct {
	root  *os.Root
	store *artifact.Store // stops writing too when these files cannot be made durable
}

const tmpSuffix = ".tmp"

func openFiles(dir string, store *artifact.Store) (*dataFiles, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	return &dataFiles{root, store}, nil
}

// write makes data the contents of name, durably.
func (d *dataFiles) write(name string, data []byte) error {
	return d.change("write "+name, func() error {
		err := d.writeTemp(name+tmpSuffix, data)
		if err == nil {
			err = d.root.Rename(name+tmpSuffix, name)
		}
		if err == nil {
			err = d.syncDir(path.Dir(name))
		}
		return err
	})
}

// change makes a change of the disk, unless one has failed before, or hung.
func (d *dataFiles) change(what string, f func() error) error {
	if err := d.store.Err(); err != nil {
		return err
	}
	late := func() { d.store.Fault(what, fmt.Errorf("it has been hanging for %v", artifact.Hung)) }
	return d.fault(what, artifact.Watch(artifact.Hung, late, f))
}

func (d *dataFiles) writeTemp(name string, data []byte) error {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (d *dataFiles) syncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// mkdir makes a directory in the data directory, if it is not there, durably.
func (d *dataFiles) mkdir(name string) error {
	return d.change("make "+name, func() error {
		if err := d.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return d.syncDir(".")
	})
}

// read returns the contents of name, of at most limit bytes.
func (d *dataFiles) read(name string, limit int64) ([]byte, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}

// remove removes name. That it may come back after a power cut does no harm to anything here.
func (d *dataFiles) remove(name string) error {
	return d.change("remove "+name, func() error {
		if err := d.root.Remove(name); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}

// fault says what could not be written. A disk that is full or open for reading only will be asked again; after any other
// fault nothing is written to it any more.
func (d *dataFiles) fault(what string, err error) error {
	if err == nil {
		return nil
	}
	if fault := d.store.Err(); fault != nil { // it hung, and came back too late
		return fault
	}
	for _, passing := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, os.ErrClosed} {
		if errors.Is(err, passing) {
			return fmt.Errorf("%s: %v: %w", what, err, artifact.ErrUnavailable)
		}
	}
	return d.store.Fault(what, err)
}
