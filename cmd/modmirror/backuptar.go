package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// toFile makes a tar file. It has its name when it is whole and durable.
func (b *backup) toFile(ctx context.Context, path string) (err error) {
	b.report.Destination = path
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // there is none once it has its name
	err = b.toTar(ctx, f, dir)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// toStream writes a tar to w.
func (b *backup) toStream(ctx context.Context, w io.Writer) error {
	b.report.Destination = "on the standard output"
	return b.toTar(ctx, w, "")
}

// toTar writes a tar to w. What it has to look at before is in a temporary directory below dir; "": where the system has them.
func (b *backup) toTar(ctx context.Context, w io.Writer, dir string) (err error) {
	work, err := os.MkdirTemp(dir, ".modmirror-backup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	c, err := b.receive(ctx, filepath.Join(work, replicate.CatalogName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	out := bufio.NewWriterSize(w, 1<<20)
	t := tarWriter{tar.NewWriter(out), c.manifest.Made}
	if err := t.file(ctx, replicate.CatalogName, filepath.Join(work, replicate.CatalogName)); err != nil {
		return err
	}
	if err := b.tarBlobs(ctx, t, work, c); err != nil {
		return err
	}
	if err := b.collectTiles(ctx, work, c); err != nil {
		return err
	}
	for _, db := range c.manifest.Databases {
		if err := t.tiles(ctx, work, db.Name); err != nil {
			return err
		}
	}
	text, err := c.manifest.encode()
	if err == nil {
		err = t.add(manifestName, int64(len(text)), bytes.NewReader(text))
	}
	b.report.Seconds = time.Since(b.report.began).Seconds()
	return errors.Join(err, t.Close(), out.Flush())
}

// tarBlobs writes the blobs of c, each once it is known to be right.
func (b *backup) tarBlobs(ctx context.Context, t tarWriter, work string, c *heldCatalog) (err error) {
	store, err := artifact.OpenStore(work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	b.progress.stage("blobs", len(c.blobs.refs))
	for _, ref := range c.blobs.refs {
		d, err := b.fetch(ctx, store, ref, c.blobs.of[ref.Digest])
		if err != nil {
			return err
		}
		err = t.add(blobFile(ref.Digest), ref.Size, io.NewSectionReader(d, 0, ref.Size))
		d.Discard()
		if err != nil {
			return err
		}
		b.done(true, ref)
	}
	return nil
}

// tarWriter writes the files of a backup.
type tarWriter struct {
	*tar.Writer
	made time.Time
}

func (t tarWriter) add(name string, size int64, r io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: t.made.Truncate(time.Second)}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := io.Copy(t.Writer, r); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return t.Flush() // an error if there were fewer bytes
}

// file adds the file at path.
func (t tarWriter) file(ctx context.Context, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return t.add(name, fi.Size(), &limited{ctx: ctx, r: f})
}

// tiles adds the tiles of a database, in the order of their names.
func (t tarWriter) tiles(ctx context.Context, work, database string) error {
	dir := tilesDir(work, database)
	err := fs.WalkDir(os.DirFS(dir), "tile", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return t.file(ctx, tilePrefix(database)+name, filepath.Join(dir, filepath.FromSlash(name)))
	})
	if errors.Is(err, fs.ErrNotExist) { // it has no head
		return nil
	}
	return err
}
