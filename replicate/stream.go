package replicate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// stream is the catalog's file as of one transaction, on its way to another node.
type stream struct {
	*io.PipeReader
	done chan struct{} // closed when the transaction has ended
}

// Close ends the stream and waits until its transaction has ended.
func (s *stream) Close() error {
	err := s.CloseWithError(io.ErrClosedPipe)
	<-s.done
	return err
}

// stream starts to send the catalog and calls ended once that is over. Unlike a reader in view it does not hold c.mu: who
// wants to close or replace the catalog must not wait for a slow peer, but ends the streams (endStreams).
func (c *catalog) stream(ended func()) (*raft.SnapshotMeta, io.ReadCloser, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.db == nil {
		return nil, nil, fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	tx, err := c.db.Begin(false)
	if err != nil {
		return nil, nil, err
	}
	meta := liveMeta(state{tx})
	r, w := io.Pipe()
	s := &stream{PipeReader: r, done: make(chan struct{})}
	c.streamMu.Lock()
	if c.replacing {
		c.streamMu.Unlock()
		return nil, nil, errors.Join(fmt.Errorf("catalog is being replaced: %w", artifact.ErrUnavailable), tx.Rollback())
	}
	c.streams[s] = true
	c.streamMu.Unlock()
	go func() {
		defer close(s.done)
		defer ended()
		_, err := tx.WriteTo(w)
		w.CloseWithError(errors.Join(err, tx.Rollback()))
		c.streamMu.Lock()
		delete(c.streams, s)
		c.streamMu.Unlock()
	}()
	return meta, s, nil
}

// endStreams ends all streams and waits for them. If the caller holds c.mu, no new one begins meanwhile.
func (c *catalog) endStreams() {
	c.streamMu.Lock()
	var all []*stream
	for s := range c.streams {
		all = append(all, s)
	}
	c.streamMu.Unlock()
	for _, s := range all {
		s.CloseWithError(errors.New("catalog is being closed"))
		<-s.done
	}
}

// replace puts the catalog at path, which is durable and checked, in the place of this one; a crash or an error leaves the
// old or the new one. Readers go on in the old one until the new one is open and has its name, and wait for no disk. Only
// streams end before, because bbolt opens the file for them by its name.
func (c *catalog) replace(path string) error {
	c.setReplacing(true)
	defer c.setReplacing(false)
	c.endStreams()
	db, err := openCatalogAt(path, c.path)
	if err != nil {
		return err
	}
	if err := os.Rename(path, c.path); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := syncDir(filepath.Dir(c.path)); err != nil {
		return errors.Join(err, db.Close())
	}
	old, err := c.swap(db)
	return errors.Join(err, old.Close())
}

// swap makes db the catalog, once nobody reads in the other one any more, and returns that.
func (c *catalog) swap(db *bbolt.DB) (old *bbolt.DB, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil {
		return db, fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	old, c.db = c.db, db
	return old, nil
}

func (c *catalog) setReplacing(is bool) {
	c.streamMu.Lock()
	defer c.streamMu.Unlock()
	c.replacing = is
}

// openCatalogAt opens the catalog at path, which will be moved to later. bbolt opens its file again for each stream.
func openCatalogAt(path, later string) (*bbolt.DB, error) {
	opt := catalogOptions(false)
	opt.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, perm)
		if errors.Is(err, os.ErrNotExist) {
			return os.OpenFile(later, flag&^os.O_CREATE, perm)
		}
		return f, err
	}
	return openBolt(path, *opt)
}
