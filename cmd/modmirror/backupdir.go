package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// backupDir is a directory with generations of backups. Whoever writes to it has it locked.
type backupDir struct {
	path string
}

// generation is one backup in a directory.
type generation struct {
	name     string
	manifest backupManifest
}

// makeBackupDir makes path a directory for backups, or finds that it is one, and locks it. What an earlier backup left that did not
// come to its end is removed.
func makeBackupDir(path string) (d backupDir, lock io.Closer, err error) {
	d = backupDir{path}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return d, nil, err
	}
	lock, err = replicate.Lock(path)
	if errors.Is(err, replicate.ErrLocked) {
		return d, nil, fmt.Errorf("another backup or restore uses %s: %w", path, err)
	}
	if err != nil {
		return d, nil, err
	}
	if err := d.prepare(); err != nil {
		return d, nil, errors.Join(err, lock.Close())
	}
	return d, lock, nil
}

func (d backupDir) prepare() error {
	err := d.isBackup()
	if errors.Is(err, fs.ErrNotExist) {
		temporary := func(name string) bool { return strings.HasPrefix(name, ".evidence-") } // of writeDurably
		if empty, err := isEmptyDir(d.path, temporary); err != nil || !empty {
			return errors.Join(err, usageError("%s has other files in it than a backup: name an empty directory", d.path))
		}
		err = writeDurably(filepath.Join(d.path, backupMark), []byte(backupMarkText))
	}
	if err == nil {
		err = os.MkdirAll(d.generations(), 0o700)
	}
	if err != nil {
		return err
	}
	making, errMaking := filepath.Glob(filepath.Join(d.generations(), makingPrefix+"*"))
	marks, errMarks := filepath.Glob(filepath.Join(d.path, ".evidence-*"))
	err = errors.Join(errMaking, errMarks)
	for _, left := range append(making, marks...) {
		err = errors.Join(err, os.RemoveAll(left))
	}
	return errors.Join(err, syncDir(d.path))
}

func (d backupDir) generations() string { return filepath.Join(d.path, generationsDir) }

// isBackup reports whether the directory says that it is one.
func (d backupDir) isBackup() error {
	b, err := readSmall(d.path, backupMark)
	if err == nil && string(b) != backupMarkText {
		err = fmt.Errorf("%s is in the format %.100q, which this version of modmirror does not know: %w", filepath.Join(d.path, backupMark), b, artifact.ErrRefused)
	}
	return err
}

// readSmall reads a file of at most maxBackupManifest bytes below dir, which must be one and no link.
func readSmall(dir, name string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := openPlain(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxBackupManifest+1))
}

// openPlain opens a file below root. It follows no link, and opens nothing but files.
func openPlain(root *os.Root, name string) (*os.File, error) {
	parts := strings.Split(filepath.ToSlash(name), "/")
	for i := range parts {
		at := filepath.Join(parts[:i+1]...)
		fi, err := root.Lstat(at)
		if err != nil {
			return nil, err
		}
		if last := i == len(parts)-1; last && !fi.Mode().IsRegular() || !last && !fi.IsDir() {
			return nil, fmt.Errorf("%q is neither a file nor a directory of a backup, but %v: %w", at, fi.Mode().Type(), artifact.ErrRefused)
		}
	}
	return root.Open(name)
}

// list returns the generations that are whole, oldest first. One whose manifest is damaged is an error.
func (d backupDir) list() (all []generation, err error) {
	entries, err := os.ReadDir(d.generations())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), makingPrefix) {
			continue
		}
		g, err := d.read(e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b generation) int {
		return cmp.Or(cmp.Compare(a.manifest.Point.Index, b.manifest.Point.Index), cmp.Compare(a.name, b.name))
	})
	return all, nil
}

// read reads the manifest of a generation.
func (d backupDir) read(name string) (generation, error) {
	b, err := readSmall(d.path, filepath.Join(generationsDir, name, manifestName))
	if err != nil {
		return generation{}, fmt.Errorf("generation %q: %w", name, err)
	}
	m, err := parseManifest(b)
	if err != nil {
		return generation{}, fmt.Errorf("generation %q: %w", name, err)
	}
	return generation{name, m}, nil
}

// follows reports whether a backup with the manifest m may be made beside those that there are.
func (m backupManifest) follows(last backupManifest) error {
	if m.Point.Cluster != last.Point.Cluster {
		return fmt.Errorf("the newest backup there is of cluster %s, and this one would be of cluster %s: name another directory", last.Point.Cluster, m.Point.Cluster)
	}
	if m.Point.Index < last.Point.Index || m.Point.Seq < last.Point.Seq {
		return fmt.Errorf("the newest backup there ends at entry %d, and this node has only %d: it is behind, ask another one", last.Point.Index, m.Point.Index)
	}
	if m.Point.Seq == last.Point.Seq && m.Point.Root != last.Point.Root {
		return fmt.Errorf("the newest backup there has the root %v of %d leaves, and this node %v: they hold different things, see modmirror fsck", last.Point.Root, last.Point.Seq, m.Point.Root)
	}
	return nil
}

// toDir makes a generation in a directory.
func (b *backup) toDir(ctx context.Context, path string, keep int) (err error) {
	d, lock, err := makeBackupDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	b.report.Destination = path
	making := filepath.Join(d.generations(), makingPrefix+rand.Text())
	if err := os.Mkdir(making, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(making) // once it has its name there is nothing to remove
	c, err := b.receive(ctx, filepath.Join(making, replicate.CatalogName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	all, err := d.list()
	if err != nil {
		return err
	}
	if len(all) > 0 {
		if err := c.manifest.follows(all[len(all)-1].manifest); err != nil {
			return err
		}
	}
	if err := b.fill(ctx, path, c); err != nil {
		return err
	}
	rotten, err := b.rotten(ctx, d, all)
	if err != nil {
		return err
	}
	if last := len(all) - 1; last >= 0 && all[last].manifest.Point == c.manifest.Point && !rotten[all[last].name] {
		b.report.Generation, b.report.Manifest, b.report.Unchanged = all[last].name, all[last].manifest, true
	} else {
		if b.report.Generation, err = d.publish(making, c.manifest); err != nil {
			return err
		}
		all = append(all, generation{b.report.Generation, c.manifest})
	}
	b.report.Removed, err = d.prune(all, keep)
	b.report.Seconds = time.Since(b.report.began).Seconds()
	return err
}

// rotten returns, with --verify, the generations whose catalog is not what it was any more, and says so in the report. What the
// catalog was of is past: only that of the newest one can still be made again, as another generation.
func (b *backup) rotten(ctx context.Context, d backupDir, all []generation) (map[string]bool, error) {
	found := map[string]bool{}
	if !b.verify {
		return found, nil
	}
	for _, g := range all {
		sum, err := sumOf(ctx, filepath.Join(d.generations(), g.name, replicate.CatalogName))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil && sum == g.manifest.Catalog {
			continue
		}
		if err == nil {
			err = fmt.Errorf("it has %d bytes with the SHA-256 %s", sum.Bytes, sum.SHA256)
		}
		found[g.name] = true
		b.report.Healed = append(b.report.Healed, fmt.Sprintf("generation %s cannot be restored, remove it: its %s is damaged: %v", g.name, replicate.CatalogName, err))
	}
	return found, nil
}

// fill copies the blobs and tiles of c that are not there yet.
func (b *backup) fill(ctx context.Context, path string, c *heldCatalog) (err error) {
	store, err := artifact.OpenStore(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := b.toStore(ctx, store, c); err != nil {
		return err
	}
	return b.collectTiles(ctx, path, c)
}

// publish completes the generation in making, whose blobs and tiles are durable, and gives it its name.
func (d backupDir) publish(making string, m backupManifest) (string, error) {
	text, err := m.encode()
	if err != nil {
		return "", err
	}
	if err := writeDurably(filepath.Join(making, manifestName), text); err != nil {
		return "", err
	}
	name := m.Made.Format("20060102T150405.000Z")
	if err := os.Rename(making, filepath.Join(d.generations(), name)); err != nil {
		return "", err
	}
	return name, syncDir(d.generations())
}

// prune removes the oldest of all generations but keep. Blobs stay: what is committed once is in every later catalog.
func (d backupDir) prune(all []generation, keep int) (removed []string, err error) {
	if keep == 0 {
		return nil, nil
	}
	for _, g := range all[:max(0, len(all)-keep)] {
		gone := filepath.Join(d.generations(), makingPrefix+g.name) // what half of is removed is none
		if err := os.Rename(filepath.Join(d.generations(), g.name), gone); err != nil {
			return removed, err
		}
		if err := errors.Join(syncDir(d.generations()), os.RemoveAll(gone)); err != nil {
			return removed, err
		}
		removed = append(removed, g.name)
	}
	return removed, nil
}
