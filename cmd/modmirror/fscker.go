package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb"
)

// fscker checks one data directory, room by room.
type fscker struct {
	dir      string
	catalog  *replicate.Catalog
	store    *artifact.Store
	progress *progress
	report   fsckReport

	blobs     map[artifact.Digest]bool // already checked, and not refused: several versions may share a blob
	databases map[string]*fsckDatabase
}

// fsckDatabase is what fsck needs of one checksum database: its tiles and its newest head.
type fsckDatabase struct {
	tiles *sumdb.TileStore
	head  tlog.Tree
}

func (f *fscker) problem(format string, args ...any) {
	f.report.Problems = append(f.report.Problems, fmt.Sprintf(format, args...))
}

func (f *fscker) run(ctx context.Context) error {
	seq, root := f.catalog.Root()
	f.report.Root = fmt.Sprintf("%d:%s", seq, root)
	f.report.Problems = []string{}
	f.blobs = make(map[artifact.Digest]bool)
	f.databases = make(map[string]*fsckDatabase)

	store, err := artifact.OpenStoreReadOnly(f.dir)
	if err != nil {
		return err
	}
	defer store.Close()
	f.store = store
	defer func() {
		for _, db := range f.databases {
			if db != nil {
				_ = db.tiles.Close() // read only
			}
		}
	}()

	f.progress.stage("catalog", -1)
	for err := range f.catalog.Check(ctx, func(done, _ int) { f.progress.set(done) }) {
		f.problem("catalog: %v", err)
	}
	st, err := f.catalog.Status(ctx)
	if err != nil {
		return err
	}
	f.checkForks(ctx, st.Frozen)
	if err := f.checkManifests(ctx); err != nil {
		return err
	}
	if err := f.checkTiles(ctx, st.Databases); err != nil {
		return err
	}
	return f.checkNames(ctx)
}

// checkTiles checks what is held of each database beyond the records of the manifests: every tile, and the right edges
// of the anchors, with which lookups are answered as well.
func (f *fscker) checkTiles(ctx context.Context, databases []string) error {
	f.progress.stage("tiles", -1)
	for _, name := range databases {
		db, err := f.database(ctx, name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errSeeAbove) {
			continue // nothing was ever asked of it
		}
		if err != nil {
			f.problem("checksum database %s: %v", name, err)
			continue
		}
		for err := range db.tiles.Check(ctx) {
			f.problem("tiles of %s: %v", name, err)
		}
		for _, below := range sumdb.AnchorBounds(db.head.N) {
			a, err := f.head(ctx, name, below)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = sumdb.CheckEdge(db.tiles, a, db.head)
			}
			if err != nil {
				f.problem("anchor of %s: %v", name, err)
			}
		}
	}
	return ctx.Err()
}

var errSeeAbove = errors.New("see above")

// head returns the newest committed head with fewer than below records.
func (f *fscker) head(ctx context.Context, name string, below int64) (tlog.Tree, error) {
	msg, err := f.catalog.TreeHead(ctx, name, below)
	if err != nil {
		return tlog.Tree{}, err
	}
	key, err := f.catalog.DatabaseKey(ctx, name)
	if err != nil {
		return tlog.Tree{}, err
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return tlog.Tree{}, err
	}
	return artifact.OpenTreeHead(verifier, msg)
}

// checkForks tells of databases that have signed two histories and that nobody has looked at since.
func (f *fscker) checkForks(ctx context.Context, frozen []string) {
	for _, name := range frozen {
		if fork, err := f.catalog.Fork(ctx, name); err != nil {
			f.problem("fork of %s: %v", name, err)
		} else {
			f.problem("%s", strings.TrimSuffix(fork.String(), "\n"))
		}
	}
}

func (f *fscker) checkManifests(ctx context.Context) error {
	f.progress.stage("artifacts", -1)
	for m, err := range f.catalog.Manifests(ctx) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			f.problem("catalog: %v", err)
			continue
		}
		f.report.Manifests++
		f.progress.set(f.report.Manifests)
		f.checkBlobs(ctx, m)
		f.checkRecord(ctx, m)
	}
	return nil
}

// checkBlobs checks the parts of m that lie in the store; the others are in the catalog, which has checked itself.
func (f *fscker) checkBlobs(ctx context.Context, m artifact.Manifest) {
	for _, kind := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		ref := m.Ref(kind)
		if ref.IsZero() || kind != artifact.Zip && ref.Size <= artifact.MaxInline {
			continue
		}
		passed, counted := f.blobs[ref.Digest]
		if passed { // it is an artifact of another version, which has named it before
			if err := f.store.CheckOf(ctx, m, kind); errors.Is(err, artifact.ErrRefused) {
				f.problem("%s %s: %v", m.Module, kind, err)
			}
			continue
		}
		if !counted {
			f.report.Blobs++
			f.report.Bytes += ref.Size
		}
		err := f.checkBlob(ctx, m, kind, ref)
		if err != nil {
			f.problem("%s %s: %v", m.Module, kind, err)
		}
		f.blobs[ref.Digest] = !errors.Is(err, artifact.ErrRefused) // or else it may be what the next one says
	}
}

func (f *fscker) checkBlob(ctx context.Context, m artifact.Manifest, kind artifact.Kind, ref artifact.Ref) error {
	file, err := f.openVerified(ctx, ref)
	if err != nil {
		return err
	}
	defer file.Close()
	if kind == artifact.Mod {
		return checkModSum(file, m)
	}
	if kind != artifact.Zip {
		return nil // an info has no sum, its digest pins it
	}
	sums, err := artifact.CheckZip(ctx, file, ref.Size, m.Module)
	if err != nil {
		return err
	}
	if sums.H1 != m.ZipSum {
		return fmt.Errorf("the zip's sum is %s, committed is %s", sums.H1, m.ZipSum)
	}
	return nil
}

// openVerified opens a blob that has its digest, be it proven or not: here it is anyway.
func (f *fscker) openVerified(ctx context.Context, ref artifact.Ref) (*os.File, error) {
	if f.store.HasUnproven(ref) && !f.store.Has(ref) {
		f.report.Unproven++
		return f.store.OpenUnproven(ctx, ref)
	}
	if err := f.store.Verify(ctx, ref); err != nil {
		return nil, err
	}
	return f.store.Open(ref)
}

// checkModSum checks a go.mod that is too large for the catalog, which checks the others.
func checkModSum(file io.Reader, m artifact.Manifest) error {
	b, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	if sum := artifact.ModSum(b); sum != m.ModSum {
		return fmt.Errorf("the go.mod's sum is %s, committed is %s", sum, m.ModSum)
	}
	return nil
}

// checkRecord looks for everything that a client with an empty cache needs to verify m offline.
func (f *fscker) checkRecord(ctx context.Context, m artifact.Manifest) {
	db, err := f.database(ctx, m.Record.Database)
	if err != nil {
		f.problem("%s: checksum database %s: %v", m.Module, m.Record.Database, err)
		return
	}
	f.report.Records++
	if err := sumdb.CheckOffline(db.tiles, db.head, m.Record); err != nil {
		f.problem("%s: record %d of %s: %v", m.Module, m.Record.ID, m.Record.Database, err)
	}
}

func (f *fscker) database(ctx context.Context, name string) (*fsckDatabase, error) {
	if db, ok := f.databases[name]; ok {
		if db == nil {
			return nil, errSeeAbove
		}
		return db, nil
	}
	f.databases[name] = nil
	head, err := f.head(ctx, name, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	tiles, err := sumdb.OpenTilesReadOnly(tilesDir(f.dir, name))
	if err != nil {
		return nil, err
	}
	f.databases[name] = &fsckDatabase{tiles, head}
	return f.databases[name], nil
}

// checkNames looks at the files of the store that no manifest names: leftovers of a crash are fine and are collected by
// the mirror; a file whose name says one thing and whose bytes another is not.
func (f *fscker) checkNames(ctx context.Context) error {
	f.progress.stage("other blobs", -1)
	for ref, err := range f.store.All() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.problem("store: %v", err)
			continue
		}
		if f.blobs[ref.Digest] {
			continue
		}
		if err := f.store.Verify(ctx, ref); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.problem("blob %s: %v", ref.Digest, err)
		}
	}
	return nil
}

// tilesDir is where the tiles of a checksum database lie. A name may contain slashes, its directory does not.
func tilesDir(dir, database string) string {
	esc, err := module.EscapePath(database)
	if err != nil {
		esc = database
	}
	return filepath.Join(dir, "sumdb", filepath.FromSlash(esc))
}
