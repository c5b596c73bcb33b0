package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// A backup has the catalog as one file, as it was at one moment. What is true if the process dies while it is received: the
// file is there under a name that nobody takes for a backup, and whoever makes the backup begins again.

// Point is a moment of a catalog. All that was applied up to Index is in it, and nothing that came after.
type Point struct {
	Cluster   string    `json:"cluster"`
	Index     uint64    `json:"index"` // of the last entry
	Term      uint64    `json:"term"`  // of that entry
	Seq       int64     `json:"seq"`   // leaves of the Merkle tree
	Root      tlog.Hash `json:"root"`  // its root
	Manifests int64     `json:"manifests"`
}

func (s state) point() (p Point, err error) {
	p.Index, p.Term = s.applied()
	tree, err := s.merkle()
	p.Cluster, p.Seq, p.Root, p.Manifests = s.cluster(), tree.size, tree.root(), s.number(keyManifests)
	return p, err
}

// Point returns the moment that a catalog at rest is of.
func (c *Catalog) Point(ctx context.Context) (p Point, err error) {
	err = c.read(ctx, func(s state) error { p, err = s.point(); return err })
	return p, err
}

// Send writes the catalog to w as it is at one moment, sealed as for another node (sealedstream.go), for [ReceiveCatalog]. As
// long as w takes, no page that is freed meanwhile is used again: w should be quick. A catalog that is known to be damaged,
// or to be another one than the majority has, is not sent.
func (c *catalog) Send(ctx context.Context, w io.Writer) error {
	if err := c.read(ctx, func(state) error { return nil }); err != nil {
		return err
	}
	if err := c.damage.err(); err != nil {
		return fmt.Errorf("the catalog is damaged, see modmirror fsck: %w", err)
	}
	_, r, err := c.stream(func() {})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // ends the copy
	_, err = io.Copy(w, r)
	stop()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return errors.Join(err, r.Close())
}

// ReceiveCatalog makes path, which must not exist, a file with what [catalog.Send] wrote, durable but for its name. If the bytes
// are not those that were sent, or there are more than limit, there is no file. Nothing is known of what they say.
func ReceiveCatalog(path string, r io.Reader, limit int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	in := unsealer{to: f}
	n, err := io.Copy(&in, io.LimitReader(r, limit+streamSealLen+1))
	switch {
	case err != nil:
		return err
	case n > limit+streamSealLen:
		return fmt.Errorf("a catalog of more than %d bytes: %w", limit, artifact.ErrRefused)
	}
	if err := in.check(); err != nil {
		return fmt.Errorf("the catalog is refused: %w: %w", err, artifact.ErrRefused)
	}
	return fsync(f)
}

// OpenCatalogFile opens a catalog that is by itself, without node.json and log, for reading. What it holds is not to be believed
// before Check has found nothing: the file may be anybody's. One of a later version of modmirror is refused as that: it is not damaged.
func OpenCatalogFile(path string) (*Catalog, error) {
	db, err := openDB(path, true)
	if err != nil {
		return nil, err
	}
	c := &Catalog{catalog: newCatalog(path)}
	c.db = db
	check := func() error { return db.View(func(tx *bbolt.Tx) error { return state{tx}.checkConfig() }) }
	if err := safely(true, check); errors.Is(err, errNewer) {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Lock keeps other processes of modmirror from working in dir, until the lock is closed. The error matches [ErrLocked] if one
// does. Where the file system has no such locks, it locks nothing.
func Lock(dir string) (io.Closer, error) {
	f, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return io.NopCloser(nil), nil
	}
	return f, nil
}

// CatalogName is the name of the catalog in a data directory.
const CatalogName = "catalog.db"

func catalogPath(dir string) string { return filepath.Join(dir, CatalogName) }
