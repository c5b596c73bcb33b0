package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// Catalog is a stopped node's catalog, open for reading. Its methods may be called at the same time.
type Catalog struct {
	*catalog
	dir    string // the data directory; "" in tests of a catalog that is by itself
	id     identity
	idErr  error     // why there is no id
	log    *bbolt.DB // keeps a node from starting on this directory; nil for a catalog without a log that can be read
	logErr error     // why there is no log
}

// OpenCatalog opens the catalog in the data directory dir of a node that does not run. The error matches [ErrLocked] if
// one does, and [fs.ErrNotExist] if there is none. Nothing is written. What is wrong with node.json and the log is left
// for Check to say.
func OpenCatalog(dir string) (*Catalog, error) {
	if err := checkRestored(dir); err != nil {
		return nil, err
	}
	c := &Catalog{catalog: newCatalog(catalogPath(dir)), dir: dir}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Catalog) open() (err error) {
	if c.db, err = openDB(c.path, true); err != nil {
		return err
	}
	c.id, c.idErr = readIdentity(filepath.Join(c.dir, "node.json"))
	opt := *logOptions()
	opt.ReadOnly = true
	c.log, c.logErr = openBolt(logPath(c.dir), opt)
	if errors.Is(c.logErr, ErrLocked) {
		return c.logErr
	}
	return nil
}

// Close releases the directory.
func (c *Catalog) Close() error {
	err := c.close()
	if c.log != nil {
		err = errors.Join(err, c.log.Close())
	}
	return err
}

// Status returns what the catalog knows of itself. There is no role and no leader.
func (c *Catalog) Status(ctx context.Context) (Status, error) {
	st := Status{ID: c.id.Node, Role: "stopped"}
	if c.log != nil {
		if info, err := os.Stat(c.log.Path()); err == nil {
			st.LogBytes = info.Size()
		}
	}
	return st, c.fill(ctx, &st)
}

// missing says that a file of a node is not there, in one line.
func missing(what string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}
