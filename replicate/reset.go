package replicate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ErrAlone means that a node is the only member of its cluster: nobody else holds what it holds.
var ErrAlone = errors.New("this node is the only member of its cluster, nobody else has its catalog")

// ErrNothingToReset means that there is neither log nor catalog.
var ErrNothingToReset = errors.New("there is no node in this directory")

// Reset makes the data directory dir, in which no node runs, that of a new node, and keeps all that is checked before it is
// used: blobs and tiles. What made it the old node is moved, never deleted, to a directory below dir, whose path is returned:
// node.json, the log with its votes, the catalog, whether they can be read or not, and the files that others names.
//
// node.json goes first, so that at no moment an old identity stands without its votes. If the process dies, what is left is
// refused by every start as files without a node.json, and Reset goes on with it; or, as the last file is gone, it is done.
//
// An error matches [ErrLocked] if a node runs there, [ErrAlone] if the catalog can be read and says so, unless force is true,
// and [ErrNothingToReset].
func Reset(dir string, force bool, others ...string) (aside string, err error) {
	if err := checkRestored(dir); err != nil {
		return "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	if lock != nil {
		defer lock.Close()
	}
	if err := resettable(dir, force); err != nil {
		return "", err
	}
	names, err := present(dir, resetOrder(others...))
	if err != nil {
		return "", err
	}
	aside = filepath.Join(dir, "old-node-"+time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Mkdir(aside, 0o700); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := moveAside(dir, aside, name); err != nil {
			return "", err
		}
	}
	return aside, nil
}

// resetOrder returns what is moved, in this order.
func resetOrder(others ...string) []string {
	return append([]string{"node.json", "formed.json"}, append(others, "raft", "catalog.db")...)
}

// resettable says why there is nothing to be reset in dir, or why it must not be.
func resettable(dir string, force bool) error {
	have, err := present(dir, []string{"raft", "catalog.db"})
	if err != nil {
		return err
	}
	if len(have) == 0 {
		return ErrNothingToReset
	}
	c, err := OpenCatalog(dir)
	if errors.Is(err, ErrLocked) {
		return err
	}
	if err != nil {
		return nil // that it cannot be read is what a reset is for
	}
	defer c.Close()
	var members int
	if err := c.view(func(s state) error { conf, _ := s.members(); members = len(conf.Servers); return nil }); err != nil || force {
		return nil
	}
	if members == 1 {
		return ErrAlone
	}
	return nil
}

// present returns those of names that are in dir.
func present(dir string, names []string) (there []string, err error) {
	for _, name := range names {
		have, err := exists(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if have {
			there = append(there, name)
		}
	}
	return there, nil
}

// moveAside moves a file or directory of dir to the same place below aside, durably.
func moveAside(dir, aside, name string) error {
	from, to := filepath.Join(dir, name), filepath.Join(aside, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move %s aside: %w", name, err)
	}
	return errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
}
