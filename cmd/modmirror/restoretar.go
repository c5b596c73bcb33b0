package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb"
)

// tarSource is a backup that is read from its beginning to its end, once. Every name in it is one that the catalog asks for, in the
// order in which they are written; nothing is made under a name that it says.
type tarSource struct {
	name  string
	in    io.Reader
	close func() error
	tar   *tar.Reader
}

func (s *tarSource) String() string { return s.name }

func (s *tarSource) Close() error { return s.close() }

// next returns the next file.
func (s *tarSource) next() (*tar.Header, error) {
	h, err := s.tar.Next()
	if err == io.EOF {
		return nil, fmt.Errorf("it is cut short: there is no %s at the end: %w", manifestName, artifact.ErrRefused)
	}
	if err != nil {
		return nil, fmt.Errorf("it is damaged or cut short: %w: %w", err, artifact.ErrRefused)
	}
	if h.Typeflag != tar.TypeReg || h.Linkname != "" {
		return nil, fmt.Errorf("%q is no file, but of type %q: %w", h.Name, h.Typeflag, artifact.ErrRefused)
	}
	for key := range h.PAXRecords { // a few bytes of it would fill any disk
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, fmt.Errorf("%q is a file of holes, which no backup has: %w", h.Name, artifact.ErrRefused)
		}
	}
	return h, nil
}

// failed says what became of reading a file.
func (s *tarSource) failed(name string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it is cut short in %s: %w", name, artifact.ErrRefused)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// catalog takes the first file.
func (s *tarSource) catalog(ctx context.Context, path string) error {
	s.tar = tar.NewReader(&limited{ctx: ctx, r: s.in})
	h, err := s.next()
	if err != nil {
		return err
	}
	if h.Name != replicate.CatalogName {
		return fmt.Errorf("it begins with %q, a backup with %s: %w", h.Name, replicate.CatalogName, artifact.ErrRefused)
	}
	if err := roomForCatalog(path, h.Size); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, s.tar)
	if err := errors.Join(err, f.Close()); err != nil {
		return s.failed(h.Name, err)
	}
	return nil
}

// fits cannot say anything: the manifest is at the end.
func (s *tarSource) fits(backupManifest) error { return nil }

// fill takes all other files.
func (s *tarSource) fill(ctx context.Context, b *backup, store *artifact.Store, work string, c *heldCatalog) (m backupManifest, err error) {
	in := tarFiller{tarSource: s, b: b, store: store, c: c, stores: map[string]*sumdb.TileStore{}}
	b.progress.stage("blobs", len(c.blobs.refs))
	in.commits, in.ctx = errgroup.WithContext(ctx)
	in.commits.SetLimit(copyBlobs)
	err = in.openTiles(work)
	if err == nil {
		m, err = in.files()
	}
	err = errors.Join(err, in.commits.Wait())
	for _, tiles := range in.stores {
		err = errors.Join(err, tiles.Close())
	}
	if err == nil {
		err = m.describes(c.manifest)
	}
	return m, err
}

// tarFiller takes files in.
type tarFiller struct {
	*tarSource
	ctx     context.Context
	b       *backup
	store   *artifact.Store
	c       *heldCatalog
	commits *errgroup.Group             // makes blobs durable, while the next are read
	blobs   int                         // how many there were
	stores  map[string]*sumdb.TileStore // by the directory of the tiles in the backup
	last    string                      // the name before
}

// openTiles makes the stores that tiles are looked at in: they are not authenticated yet.
func (in *tarFiller) openTiles(work string) error {
	for _, db := range in.c.manifest.Databases {
		tiles, err := sumdb.OpenTiles(tilesDir(work, db.Name))
		if err != nil {
			return err
		}
		in.stores[tilePrefix(db.Name)] = tiles
	}
	return nil
}

// files takes files until the manifest, which is the last.
func (in *tarFiller) files() (m backupManifest, err error) {
	for {
		h, err := in.next()
		if err != nil {
			return m, err
		}
		switch {
		case in.ctx.Err() != nil:
			return m, context.Cause(in.ctx)
		case h.Name == manifestName:
			return in.manifest(h)
		case strings.HasPrefix(h.Name, "blobs/"):
			err = in.blob(h)
		default:
			err = in.tile(h)
		}
		if err != nil {
			return m, err
		}
		in.last = h.Name
	}
}

// blob takes the next blob, which is the one that the catalog names next.
func (in *tarFiller) blob(h *tar.Header) error {
	d, err := parseBlobFile(h.Name)
	if err != nil {
		return err
	}
	refs := in.c.blobs.refs
	if in.blobs == len(refs) || refs[in.blobs].Digest != d {
		if use, known := in.c.blobs.of[d]; known {
			return fmt.Errorf("%s (%s) is not in its place, or what should be before is missing: %w", h.Name, use, artifact.ErrRefused)
		}
		return fmt.Errorf("%q does not belong into this backup: no module version in it has such a file: %w", h.Name, artifact.ErrRefused)
	}
	ref := refs[in.blobs]
	in.blobs++
	draft, err := in.store.Hold(ref.Size)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{draft}, in.tar, make([]byte, copyStep))
	if got := draft.Ref(); err == nil && got != ref {
		err = fmt.Errorf("it is damaged: it has %d bytes with the SHA-256 %s: %w", got.Size, got.Digest, artifact.ErrRefused)
	}
	if err != nil {
		draft.Discard()
		return in.failed(fmt.Sprintf("%s (%s)", h.Name, in.c.blobs.of[d]), err)
	}
	in.commits.Go(func() error {
		_, err := draft.Commit()
		in.b.done(true, ref)
		return err
	})
	return nil
}

// tile takes a tile.
func (in *tarFiller) tile(h *tar.Header) error {
	i := strings.Index(h.Name, "/tile/") + 1
	store := in.stores[h.Name[:i]]
	if i == 0 || store == nil || h.Name <= in.last && strings.HasPrefix(in.last, h.Name[:i]) {
		return fmt.Errorf("%q does not belong into this backup, or not there: %w", h.Name, artifact.ErrRefused)
	}
	b, err := io.ReadAll(io.LimitReader(in.tar, sumdb.MaxTileFile+1))
	if err != nil {
		return in.failed(h.Name, err)
	}
	t, data, err := sumdb.ParseTileFile(h.Name[i:], b)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return store.Put([]tlog.Tile{t}, [][]byte{data})
}

// manifest takes the manifest, after which there is nothing.
func (in *tarFiller) manifest(h *tar.Header) (m backupManifest, err error) {
	b, err := io.ReadAll(io.LimitReader(in.tar, maxBackupManifest+1))
	if err != nil {
		return m, in.failed(h.Name, err)
	}
	if m, err = parseManifest(b); err != nil {
		return m, err
	}
	if missing := len(in.c.blobs.refs) - in.blobs; missing > 0 {
		ref := in.c.blobs.refs[in.blobs]
		return m, fmt.Errorf("%s missing; the first is %s (%s): %w", count(missing, "blob"), blobFile(ref.Digest), in.c.blobs.of[ref.Digest], artifact.ErrRefused)
	}
	if h, err := in.tar.Next(); err == nil {
		return m, fmt.Errorf("%q does not belong into this backup: %s is the last: %w", h.Name, manifestName, artifact.ErrRefused)
	} else if err != io.EOF {
		return m, fmt.Errorf("it is damaged after its last file: %w: %w", err, artifact.ErrRefused)
	}
	return m, in.nothingFollows()
}

// nothingFollows reads what is behind the end of the tar, which is filled up with zeros.
func (in *tarFiller) nothingFollows() error {
	buf := make([]byte, copyStep)
	for {
		n, err := in.in.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return fmt.Errorf("there is something behind its end: %w", artifact.ErrRefused)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *tarSource) tiles(work, database string) (*sumdb.TileStore, error) {
	return sumdb.OpenTilesReadOnly(tilesDir(work, database))
}
