package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb"
)

func backupCommand() *cobra.Command {
	b := &backup{}
	var keep int
	var asJSON bool
	var limit byteRate
	cmd := &cobra.Command{
		Use:   "backup destination",
		Short: "Copy all that a cluster holds, from any of its nodes",
		Long: `Backup copies the catalog as it is at one moment, every zip and go.mod that it names, and the tiles that verify them, so that a
cluster which is restored from it answers everything with the internet gone. It is made from the node that runs in --data-dir,
from the one at --peer, or from the --data-dir of a node that is stopped; while it is made, the cluster works on.

The destination is a directory, a file whose name ends in .tar, or - for a tar on the standard output. Into the same directory
again, only what is new is copied, and each run makes a generation of its own, which is there as a whole or not at all. Every
byte is checked while it is copied: what the node lacks, or has damaged, is taken from another one, and if none has it right, the
backup fails. It is not encrypted. It has no secret of the cluster in it: no token, no key, no password.`,
		Args: cobra.ExactArgs(1),
	}
	c := controlFlags(cmd)
	cmd.Flags().IntVar(&keep, "keep", 0, "of a directory, keep the newest `generations` and remove the catalogs of older ones; 0: keep all")
	cmd.Flags().BoolVar(&b.verify, "verify", false, "read again what earlier backups have copied, and replace what is damaged")
	cmd.Flags().Var(&limit, "limit", "how many `bytes` a second are copied, for example 20MB; 0: no limit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was done as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		if keep < 0 {
			return usageError("--keep %d: want the number of generations to keep", keep)
		}
		privateFiles()
		if b.source, err = c.source(cmd); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.source.Close()) }()
		b.progress, b.warn = newProgress(cmd.ErrOrStderr()), cmd.ErrOrStderr()
		defer b.progress.done()
		if limit > 0 {
			b.limit = rate.NewLimiter(rate.Limit(limit), copyStep)
		}
		out := cmd.OutOrStdout()
		switch dest := args[0]; {
		case dest == "-":
			out = cmd.ErrOrStderr()
			err = b.toStream(cmd.Context(), cmd.OutOrStdout())
		case strings.HasSuffix(dest, ".tar"):
			err = b.toFile(cmd.Context(), dest)
		default:
			err = b.toDir(cmd.Context(), dest, keep)
		}
		if err != nil {
			return fmt.Errorf("backup from %s: %w", b.source.name, err)
		}
		if asJSON {
			return printJSON(out, b.report)
		}
		return b.report.print(out)
	}
	return cmd
}

// backup makes one backup.
type backup struct {
	source   *backupSource
	verify   bool
	limit    *rate.Limiter // nil: none
	progress *progress
	warn     io.Writer

	mu     sync.Mutex
	copied int          // guarded by mu; blobs that are done
	report backupReport // guarded by mu while blobs are copied
}

// backupReport says what was done.
type backupReport struct {
	Destination string         `json:"destination"`
	Generation  string         `json:"generation,omitempty"` // of a directory
	Manifest    backupManifest `json:"manifest"`
	NewBlobs    int            `json:"newBlobs"`
	NewBytes    int64          `json:"newBytes"`
	Healed      []string       `json:"healed,omitempty"` // what was damaged, or not taken from where it was looked for first, and why
	Removed     []string       `json:"removed,omitempty"`
	Unchanged   bool           `json:"unchanged,omitempty"` // nothing was committed since the newest generation, which was completed
	Seconds     float64        `json:"seconds"`
	began       time.Time
}

func (r backupReport) print(w io.Writer) error {
	m := r.Manifest
	for _, h := range r.Healed {
		fmt.Fprintf(w, "! %s\n", h)
	}
	what := "is complete"
	if r.Unchanged {
		what = "was complete already: nothing is committed since"
	}
	name := r.Destination
	if r.Generation != "" {
		name = filepath.Join(name, generationsDir, r.Generation)
	}
	fmt.Fprintf(w, "backup %s %s: cluster %s at entry %d\n", name, what, m.Point.Cluster, m.Point.Index)
	fmt.Fprintf(w, "%s, root %d:%s\n", count(int(m.Point.Manifests), "module version"), m.Point.Seq, m.Point.Root)
	fmt.Fprintf(w, "catalog %s; %s, %s, of which %d with %s are new\n", size(m.Catalog.Bytes), count(m.Blobs.Files, "blob"), size(m.Blobs.Bytes), r.NewBlobs, size(r.NewBytes))
	for _, d := range m.Databases {
		fmt.Fprintf(w, "%s at %d records\n", d.Name, d.Size)
	}
	if len(r.Removed) > 0 {
		fmt.Fprintf(w, "older generations that were removed: %s\n", strings.Join(r.Removed, ", "))
	}
	_, err := fmt.Fprintf(w, "took %s\n", time.Duration(r.Seconds*float64(time.Second)).Round(10*time.Millisecond))
	return err
}

// heldCatalog is the catalog of a backup, checked, with what it names.
type heldCatalog struct {
	*replicate.Catalog
	manifest backupManifest
	blobs    blobList
}

// receive receives the catalog as a file at path, checks all of it, and lists what it names.
func (b *backup) receive(ctx context.Context, path string) (*heldCatalog, error) {
	b.report.began = time.Now()
	b.progress.stage("catalog", -1)
	if err := b.source.catalog(ctx, path); err != nil {
		return nil, err
	}
	c, err := openHeld(ctx, path, b.progress)
	if err != nil {
		return nil, fmt.Errorf("%w; if there are other nodes, make the backup from another one", err)
	}
	c.manifest.Made, c.manifest.Version, c.manifest.Node = time.Now().UTC().Truncate(time.Millisecond), buildVersion(), b.source.node
	b.report.Manifest = c.manifest
	return c, nil
}

// openHeld opens a catalog that may be anybody's: it checks all of it before it believes any.
func openHeld(ctx context.Context, path string, progress *progress) (*heldCatalog, error) {
	sum, err := sumOf(ctx, path)
	if err != nil {
		return nil, err
	}
	cat, err := replicate.OpenCatalogFile(path)
	if err != nil {
		return nil, err
	}
	c := &heldCatalog{Catalog: cat, manifest: backupManifest{Format: backupFormat, Catalog: sum}}
	if err := c.look(ctx, progress); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// look checks the catalog, and fills in what it names.
func (c *heldCatalog) look(ctx context.Context, progress *progress) (err error) {
	for err := range c.Check(ctx, func(done, _ int) { progress.set(done) }) {
		return fmt.Errorf("the catalog is damaged: %w", err) // the first will do
	}
	if c.manifest.Point, err = c.Point(ctx); err != nil {
		return err
	}
	for m, err := range c.Manifests(ctx) {
		if err == nil {
			err = c.blobs.add(m)
		}
		if err != nil {
			return err
		}
	}
	c.manifest.Blobs = c.blobs.sum()
	c.manifest.Databases, err = databasesOf(ctx, c.Catalog)
	return err
}

// databasesOf lists the checksum databases that a catalog trusts, with their newest heads.
func databasesOf(ctx context.Context, c *replicate.Catalog) ([]backupDatabase, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	all := []backupDatabase{}
	for _, name := range st.Databases {
		d := backupDatabase{Name: name}
		if d.Key, err = c.DatabaseKey(ctx, name); err != nil {
			return nil, err
		}
		head, err := headOf(ctx, c, name, math.MaxInt64)
		if err == nil {
			d.Size, d.Root = head.N, head.Hash.String()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// headOf returns the newest committed head of a database with fewer than below records.
func headOf(ctx context.Context, c *replicate.Catalog, name string, below int64) (tlog.Tree, error) {
	msg, err := c.TreeHead(ctx, name, below)
	if err != nil {
		return tlog.Tree{}, err
	}
	key, err := c.DatabaseKey(ctx, name)
	if err != nil {
		return tlog.Tree{}, err
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return tlog.Tree{}, err
	}
	return artifact.OpenTreeHead(verifier, msg)
}

// sumOf sums a file up.
func sumOf(ctx context.Context, path string) (s backupSum, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h := sha256.New()
	s.Files = 1
	s.Bytes, err = io.Copy(h, &limited{ctx: ctx, r: f})
	s.SHA256 = hexOf(h)
	return s, err
}

// fetch gets the bytes of ref from the first source that has them right. The draft is the caller's to end.
func (b *backup) fetch(ctx context.Context, store *artifact.Store, ref artifact.Ref, use blobUse) (*artifact.Draft, error) {
	var errs []error
	for _, from := range b.source.blobs {
		d, err := b.fetchFrom(ctx, store, ref, from)
		if err == nil {
			if len(errs) > 0 {
				b.mu.Lock()
				b.report.Healed = append(b.report.Healed, fmt.Sprintf("%s was taken from %s: %v", use, from, errors.Join(errs...)))
				b.mu.Unlock()
			}
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := store.Err(); err != nil {
			return nil, err
		}
		if errors.Is(err, errUnproven) && len(b.source.blobs) > 1 { // the node itself is asked next
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %w", from, err))
	}
	return nil, fmt.Errorf("%s, sha256:%s, cannot be had: %w", use, ref.Digest, errors.Join(errs...))
}

func (b *backup) fetchFrom(ctx context.Context, store *artifact.Store, ref artifact.Ref, from blobSource) (*artifact.Draft, error) {
	body, err := from.Blob(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	d, err := store.Hold(ref.Size)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{d}, &limited{ctx, body, b.limit}, make([]byte, copyStep))
	if got := d.Ref(); err == nil && got != ref {
		err = fmt.Errorf("it is damaged: it has %d bytes with the SHA-256 %s: %w", got.Size, got.Digest, artifact.ErrDamaged)
	}
	if err != nil {
		d.Discard()
		return nil, err
	}
	return d, nil
}

// done counts a blob.
func (b *backup) done(isNew bool, ref artifact.Ref) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.copied++
	b.progress.set(b.copied)
	if isNew {
		b.report.NewBlobs++
		b.report.NewBytes += ref.Size
	}
}

const (
	copyStep  = 128 << 10 // bytes at a time
	copyBlobs = 8         // at a time: most of it is waiting for fsyncs
)

// toStore copies the blobs that store lacks.
func (b *backup) toStore(ctx context.Context, store *artifact.Store, c *heldCatalog) error {
	b.progress.stage("blobs", len(c.blobs.refs))
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(copyBlobs)
	for _, ref := range c.blobs.refs {
		if working.Err() != nil {
			break
		}
		g.Go(func() error { return b.toStoreOne(working, store, ref, c.blobs.of[ref.Digest]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (b *backup) toStoreOne(ctx context.Context, store *artifact.Store, ref artifact.Ref, use blobUse) error {
	have := store.Has(ref)
	if have && b.verify {
		err := store.Verify(ctx, ref)
		if err != nil && !errors.Is(err, artifact.ErrDamaged) {
			return err
		}
		if have = err == nil; !have {
			b.mu.Lock()
			b.report.Healed = append(b.report.Healed, fmt.Sprintf("%s was damaged in the backup, and is replaced: %v", use, err))
			b.mu.Unlock()
		}
	}
	if have {
		b.done(false, ref)
		return nil
	}
	d, err := b.fetch(ctx, store, ref, use)
	if err != nil {
		return err
	}
	if _, err := d.Commit(); err != nil {
		return err
	}
	b.done(true, ref)
	return nil
}

// collectTiles brings the tiles together that verify what c holds, in directories below dir.
func (b *backup) collectTiles(ctx context.Context, dir string, c *heldCatalog) error {
	b.progress.stage("tiles", -1)
	for _, db := range c.manifest.Databases {
		if db.Size == 0 {
			continue
		}
		from, err := b.source.tiles(db.Name)
		if err != nil {
			return err
		}
		if err := collectDatabase(ctx, dir, c.Catalog, db.Name, from, tilePatience); err != nil {
			return fmt.Errorf("tiles of %s: %w", db.Name, err)
		}
	}
	return nil
}

// tilePatience bounds how long a backup waits for tiles of a head that was committed a moment ago: nodes are collecting them.
const tilePatience = time.Minute

const tileBatch = 256 // records whose tiles are collected together

// collectDatabase collects the tiles of one database.
func collectDatabase(ctx context.Context, dir string, c *replicate.Catalog, name string, from []sumdb.Source, patience time.Duration) (err error) {
	head, err := headOf(ctx, c, name, math.MaxInt64)
	if err != nil {
		return err
	}
	store, err := sumdb.OpenTiles(tilesDir(dir, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	col := &sumdb.Collector{Head: head, Store: store, From: from}
	deadline := time.Now().Add(patience)
	collect := func(batch []artifact.Record) error {
		for {
			err := col.Records(ctx, batch)
			if err == nil || time.Now().After(deadline) || errors.Is(err, artifact.ErrRefused) {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(time.Second):
			}
		}
	}
	var batch []artifact.Record
	for m, err := range c.Manifests(ctx) {
		if err != nil {
			return err
		}
		if m.Record.Database != name {
			continue
		}
		if batch = append(batch, m.Record); len(batch) == tileBatch {
			if err := collect(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if err := collect(batch); err != nil {
		return err
	}
	return collectEdges(ctx, c, name, col)
}

// collectEdges collects what leads from the newest head to those that lookups are answered with as well. A node does not use one
// of which it lacks a tile, so none is insisted on; one that is damaged is not passed over.
func collectEdges(ctx context.Context, c *replicate.Catalog, name string, col *sumdb.Collector) error {
	if err := col.Edge(ctx, col.Head); err != nil {
		return err
	}
	for _, below := range sumdb.AnchorBounds(col.Head.N) {
		a, err := headOf(ctx, c, name, below)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = col.Edge(ctx, a)
		}
		if err != nil && (ctx.Err() != nil || errors.Is(err, artifact.ErrRefused) || errors.Is(err, artifact.ErrDamaged)) {
			return err
		}
	}
	return nil
}

// limited reads no faster than its limiter lets it, and only as long as ctx lives.
type limited struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter // nil: none
}

func (l *limited) Read(p []byte) (int, error) {
	if l.ctx.Err() != nil {
		return 0, context.Cause(l.ctx)
	}
	n, err := l.r.Read(p[:min(len(p), copyStep)])
	if n > 0 && l.limit != nil {
		if err := l.limit.WaitN(l.ctx, n); err != nil {
			return n, err
		}
	}
	return n, err
}
