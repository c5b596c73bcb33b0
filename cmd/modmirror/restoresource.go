package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb"
)

// restoreSource is a backup that is read back. Anybody may have written it. Its methods are called in this order.
type restoreSource interface {
	// catalog copies the catalog to a new file at path. It may be anything.
	catalog(ctx context.Context, path string) error

	// fits reports whether the catalog, which is m, is that of this backup, as far as that is known yet.
	fits(m backupManifest) error

	// fill commits to store every blob that c names, or fails, and brings tiles within reach. It returns the backup's manifest,
	// which says the same of the catalog as c does. work is a directory for what is not kept.
	fill(ctx context.Context, b *backup, store *artifact.Store, work string, c *heldCatalog) (backupManifest, error)

	// tiles opens the tiles of a database. They may be anything.
	tiles(work, database string) (*sumdb.TileStore, error)

	String() string
	Close() error
}

// openRestoreSource opens a backup: a directory, a tar file, or - for in.
func openRestoreSource(path, name string, in io.Reader) (restoreSource, error) {
	if path == "-" {
		return &tarSource{name: "the standard input", in: in, close: func() error { return nil }}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return openDirSource(path, name)
	}
	if name != "" {
		return nil, usageError("--generation: a tar is one generation")
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("it is neither a directory nor a file, but %v", fi.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &tarSource{name: path, in: f, close: f.Close}, nil
}

// dirSource is one generation of a directory.
type dirSource struct {
	backupDir
	generation
	root  *os.Root
	store *artifact.Store
}

// openDirSource opens the generation of that name, or the newest.
func openDirSource(path, name string) (s *dirSource, err error) {
	s = &dirSource{backupDir: backupDir{path}}
	if err := s.isBackup(); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("it is no directory that modmirror backup has made: there is no file %s", backupMark)
	} else if err != nil {
		return nil, err
	}
	if err := s.noStrangers("", []string{backupMark, "blobs", "sumdb", generationsDir, "tmp", "quarantine", "trash", "lost+found"}); err != nil {
		return nil, err
	}
	if s.generation, err = s.choose(name); err != nil {
		return nil, err
	}
	if err := s.noStrangers(filepath.Join(generationsDir, s.name), []string{replicate.CatalogName, manifestName}); err != nil {
		return nil, err
	}
	if s.root, err = os.OpenRoot(path); err != nil {
		return nil, err
	}
	if s.store, err = artifact.OpenStoreReadOnly(path); err != nil {
		return nil, errors.Join(err, s.root.Close())
	}
	return s, nil
}

// choose finds a generation by its name, or the newest one.
func (d backupDir) choose(name string) (generation, error) {
	if name != "" {
		if !filepath.IsLocal(name) || filepath.Base(name) != name || strings.HasPrefix(name, ".") {
			return generation{}, usageError("--generation %q is not the name of one", name)
		}
		return d.read(name)
	}
	all, err := d.list()
	if err != nil {
		return generation{}, fmt.Errorf("%w; --generation takes another one", err)
	}
	if len(all) == 0 {
		return generation{}, fmt.Errorf("no backup in it has come to its end")
	}
	return all[len(all)-1], nil
}

// noStrangers reports whether a directory of the backup has nothing in it but what belongs there.
func (d backupDir) noStrangers(dir string, known []string) error {
	entries, err := os.ReadDir(filepath.Join(d.path, dir))
	if err != nil {
		return err
	}
next:
	for _, e := range entries {
		for _, k := range known {
			if e.Name() == k && (e.IsDir() || e.Type().IsRegular()) {
				continue next
			}
		}
		return fmt.Errorf("%q does not belong into a backup: %w", filepath.Join(dir, e.Name()), artifact.ErrRefused)
	}
	return nil
}

func (s *dirSource) String() string { return s.path }

func (s *dirSource) Close() error { return errors.Join(s.store.Close(), s.root.Close()) }

func (s *dirSource) catalog(ctx context.Context, path string) error {
	name := filepath.Join(generationsDir, s.name, replicate.CatalogName)
	f, err := openPlain(s.root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	return copyCatalog(ctx, path, name, f, s.manifest.Catalog)
}

// copyCatalog copies what is called name to a new file at path, and has it be as sum says.
func copyCatalog(ctx context.Context, path, name string, r io.Reader, sum backupSum) error {
	if err := roomForCatalog(path, sum.Bytes); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(&limited{ctx: ctx, r: r}, sum.Bytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if got := hexOf(h); n != sum.Bytes || got != sum.SHA256 {
		return fmt.Errorf("%s is damaged: it has %d bytes or more with the SHA-256 %s, and %s says %d with %s: %w", name, n, got, manifestName, sum.Bytes, sum.SHA256, artifact.ErrRefused)
	}
	return nil
}

// roomForCatalog says before the copy that the disk of path has no room for a catalog: what a forged backup says of its size fills none.
func roomForCatalog(path string, need int64) error {
	if room, ok := lookAtDisk(filepath.Dir(path)); ok && need > 0 && uint64(need) > room.Free {
		return fmt.Errorf("%s free for %s, and the catalog of the backup has %s: %w", size(int64(room.Free)), path, size(need), artifact.ErrNoSpace)
	}
	return nil
}

func (s *dirSource) fits(m backupManifest) error { return s.manifest.describes(m) }

// describes reports whether m, which was found out of a catalog, is what the manifest says of it.
func (m backupManifest) describes(found backupManifest) error {
	found.Made, found.Version, found.Node = m.Made, m.Version, m.Node
	a, errA := m.encode()
	b, errB := found.encode()
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if got, want := found.Catalog, m.Catalog; got != want && found.Point == m.Point && found.Blobs == m.Blobs { // of a tar that is known last
		return fmt.Errorf("%s is damaged: it has %d bytes with the SHA-256 %s, and %s says %d with %s: %w", replicate.CatalogName, got.Bytes, got.SHA256, manifestName, want.Bytes, want.SHA256, artifact.ErrRefused)
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("%s is not that of this catalog: it says entry %d, root %d:%s, %d blobs of %d bytes; the catalog has entry %d, root %d:%s, %d blobs of %d bytes: %w", manifestName,
			m.Point.Index, m.Point.Seq, m.Point.Root, m.Blobs.Files, m.Blobs.Bytes, found.Point.Index, found.Point.Seq, found.Point.Root, found.Blobs.Files, found.Blobs.Bytes, artifact.ErrRefused)
	}
	return nil
}

func (s *dirSource) fill(ctx context.Context, b *backup, store *artifact.Store, _ string, c *heldCatalog) (backupManifest, error) {
	for _, ref := range c.blobs.refs { // before the long work
		if !s.store.Has(ref) && !store.Has(ref) {
			return s.manifest, fmt.Errorf("%s (%s) is missing, or has another size than %d bytes: %w", blobFile(ref.Digest), c.blobs.of[ref.Digest], ref.Size, artifact.ErrRefused)
		}
	}
	b.source = &backupSource{blobs: []blobSource{storeBlobs{s.store, s.path}}}
	return s.manifest, b.toStore(ctx, store, c)
}

func (s *dirSource) tiles(_, database string) (*sumdb.TileStore, error) {
	return sumdb.OpenTilesReadOnly(tilesDir(s.path, database))
}
