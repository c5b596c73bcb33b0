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
	"modmirror/mirror/artifact/fault"
)

// stream is the catalog's file as of one transaction, sealed, on its way to another node.
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
	var meta *raft.SnapshotMeta
	if err := safely(true, func() error { meta = liveMeta(state{tx}); return nil }); err != nil {
		return nil, nil, errors.Join(err, tx.Rollback())
	}
	meta.Size += streamSealLen
	r, w := io.Pipe()
	s := &stream{PipeReader: r, done: make(chan struct{})}
	c.streamMu.Lock()
	c.streams[s] = true
	c.streamMu.Unlock()
	go func() {
		defer close(s.done)
		defer ended()
		err := sealStream(w, tx)
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
// old or the new one. Readers go on in the old one until the new one is open and has its name, and wait for no disk; so
// do streams, as bbolt reads the file that it has open, whatever its name.
func (c *catalog) replace(path string) error {
	db, err := openBolt(path, *catalogOptions(false))
	if err != nil {
		return err
	}
	if err := os.Rename(path, c.path); err != nil {
		return errors.Join(err, db.Close())
	}
	fault.Point(fault.SnapshotRenamed)
	if err := syncDir(filepath.Dir(c.path)); err != nil {
		return errors.Join(err, db.Close())
	}
	old, err := c.swap(db)
	c.endStreams() // those of the old one; it waits for them
	return errors.Join(err, old.Close())
}

// swap makes db the catalog, once nobody reads in the other one any more, and returns that.
func (c *catalog) swap(db *bbolt.DB) (old *bbolt.DB, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil {
		return db, fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	old, c.db = c.db, db
	c.generation.Add(1)
	return old, nil
}
