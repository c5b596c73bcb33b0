package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
	"modmirror/sumdb"
)

// backupSource is what a backup is made from: a node that runs, or the data directory of one that does not.
type backupSource struct {
	name    string                                       // for people
	node    string                                       // its id
	catalog func(ctx context.Context, path string) error // receives the catalog as a file at path
	blobs   []blobSource                                 // in the order in which they are asked
	tiles   func(database string) ([]sumdb.Source, error)
	closers []func() error
}

func (s *backupSource) Close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// blobSource has blobs. What it gives is not believed before its digest is known.
type blobSource interface {
	String() string
	Blob(ctx context.Context, ref artifact.Ref) (io.ReadCloser, error)
}

// source finds what to make a backup from. Of a node that runs in --data-dir, blobs and tiles are read from there, which is
// quicker than over TLS; what is missing or damaged is asked of the node, and then of the others.
func (c *control) source(cmd *cobra.Command) (*backupSource, error) {
	cat, runs, err := c.stopped(cmd)
	if err != nil {
		return nil, err
	}
	s := &backupSource{}
	if cat != nil {
		s.closers = append(s.closers, cat.Close)
		err = s.fromStopped(cmd.Context(), c.dataDir, cat)
	} else {
		var k *conn
		if k, err = c.dial(cmd.Context()); err != nil {
			return nil, err
		}
		s.closers = append(s.closers, k.Close)
		err = s.fromRunning(cmd.Context(), k, c.dataDir, runs)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *backupSource) fromStopped(ctx context.Context, dir string, cat *replicate.Catalog) error {
	st, err := cat.Status(ctx)
	if err != nil {
		return err
	}
	s.name, s.node = "the stopped node in "+dir, st.ID
	s.catalog = func(ctx context.Context, path string) error {
		r, w := io.Pipe()
		go func() { _ = w.CloseWithError(cat.Send(ctx, w)) }()
		defer r.Close()
		return replicate.ReceiveCatalog(path, r, maxCatalog)
	}
	s.tiles = func(database string) ([]sumdb.Source, error) { return s.localTiles(dir, database) }
	return s.localBlobs(dir)
}

func (s *backupSource) fromRunning(ctx context.Context, k *conn, dir string, local bool) error {
	b, err := k.call(ctx, http.MethodGet, "/v1/cluster", nil)
	if err != nil {
		return err
	}
	var v clusterView
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("the answer of %s: %w", k.node.Address, err)
	}
	s.name, s.node = fmt.Sprintf("node %s at %s", k.node.Name, k.node.Address), k.node.ID
	s.catalog = func(ctx context.Context, path string) error { return k.catalog(ctx, path) }
	if local {
		if err := s.localBlobs(dir); err != nil {
			return err
		}
	}
	members := []peer.Member{k.node}
	for _, m := range v.Nodes {
		if m.ID != k.node.ID && m.Address != "" && m.Alive {
			members = append(members, peer.Member{ID: m.ID, Name: m.Name, Address: m.Address})
		}
	}
	for _, m := range members {
		s.blobs = append(s.blobs, nodeBlobs{k, m})
	}
	s.tiles = func(database string) (all []sumdb.Source, err error) {
		if local {
			if all, err = s.localTiles(dir, database); err != nil {
				return nil, err
			}
		}
		for _, m := range members {
			all = append(all, sumPeer{k.Link, m, database})
		}
		return all, nil
	}
	return nil
}

// localBlobs adds the store in a data directory.
func (s *backupSource) localBlobs(dir string) error {
	store, err := artifact.OpenStoreReadOnly(dir)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, store.Close)
	s.blobs = append(s.blobs, storeBlobs{store, dir})
	return nil
}

// localTiles returns the tiles in a data directory.
func (s *backupSource) localTiles(dir, database string) ([]sumdb.Source, error) {
	tiles, err := sumdb.OpenTilesReadOnly(tilesDir(dir, database))
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, tiles.Close)
	return []sumdb.Source{tiles.Source(tilesDir(dir, database))}, nil
}

// storeBlobs is the blobs in a directory.
type storeBlobs struct {
	*artifact.Store
	dir string
}

// errUnproven is for a blob that is here and of which only a mirror that runs may hand out copies, after it has checked it.
var errUnproven = errors.New("it is here, and its go.sum hash has yet to be compared: start the mirror, or make the backup of another node")

func (s storeBlobs) String() string { return filepath.Join(s.dir, "blobs") }

func (s storeBlobs) Blob(_ context.Context, ref artifact.Ref) (io.ReadCloser, error) {
	f, err := s.OpenUnchecked(ref)
	if errors.Is(err, fs.ErrNotExist) && s.HasUnproven(ref) {
		return nil, errUnproven
	}
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return f, nil
}

// nodeBlobs is the blobs of a node.
type nodeBlobs struct {
	*conn
	member peer.Member
}

func (s nodeBlobs) String() string {
	return "node " + s.member.Name + " at " + s.member.Address
}

func (s nodeBlobs) Blob(ctx context.Context, ref artifact.Ref) (io.ReadCloser, error) {
	return s.get(ctx, s.member, blobPath(ref))
}

// get asks for something large.
func (k *conn) get(ctx context.Context, m peer.Member, path string) (io.ReadCloser, error) {
	resp, err := k.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Path: path, Bulk: true})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK && resp.Header.Get(classHeader) == "" {
		return resp.Body, nil
	}
	_, _, err = answerOf(resp)
	if err == nil {
		err = fmt.Errorf("it answers %s: %w", resp.Status, artifact.ErrUnavailable)
	}
	return nil, err
}

// maxCatalog bounds a catalog that is received: bbolt reads no larger ones.
const maxCatalog = 1 << 46

// catalog receives the catalog of the node that was dialed.
func (k *conn) catalog(ctx context.Context, path string) error {
	body, err := k.get(ctx, k.node, "/v1/catalog")
	if err != nil {
		return fmt.Errorf("the catalog of the node at %s: %w", k.node.Address, err)
	}
	defer body.Close()
	if err := replicate.ReceiveCatalog(path, body, maxCatalog); err != nil {
		return fmt.Errorf("the catalog of the node at %s: %w", k.node.Address, err)
	}
	return nil
}

// isEmptyDir reports whether there is nothing in dir but what a file system puts there, or no dir at all.
func isEmptyDir(dir string, but func(name string) bool) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	for _, e := range entries {
		if e.Name() != "lost+found" && !but(e.Name()) {
			return false, nil
		}
	}
	return err == nil, err
}
