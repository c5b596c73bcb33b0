package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/sumdb"
)

func restoreCommand() *cobra.Command {
	r := &restore{}
	var check, asJSON bool
	var sumdbs []string
	var generation, temp string
	cmd := &cobra.Command{
		Use:   "restore source",
		Short: "Make the first node of a new cluster from a backup",
		Long: `Restore makes --data-dir the directory of the first node of a new cluster, which holds all that the backup holds. The source is a
directory or a .tar file that modmirror backup has made, or - for a tar on the standard input. Start the node with modmirror serve
then; others join it as new nodes do, with empty directories.

Nothing in a backup is believed: checksums, every row of the catalog, its Merkle root, the SHA-256 and the go.sum hash of every
artifact, the signatures of tree heads and the proofs of all records are checked, and what a backup has no place for is refused.
The databases that the backup trusts must be those that --sumdb says, with their keys.

A tree head never goes back: with --replace, the mirror that is in --data-dir is moved aside, into a directory there, unless it
has seen newer heads than the backup has. If that is to be, --force-older-head with a --reason does it, and the audit of the new
cluster says so (modmirror cluster audit).

With --check it is a drill: all is restored into a temporary directory, a mirror is started on it without any network, artifacts
and records are asked of it and verified, it is told how long that took, and nothing is left behind.`,
		Args: cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVar(&r.dir, "data-dir", defaultDataDir, "make this `directory`, which must be empty")
	fs.StringVar(&generation, "generation", "", "of a directory, the `name` of the generation (default: the newest)")
	fs.StringSliceVar(&sumdbs, "sumdb", []string{"sum.golang.org"}, "the checksum `databases` that are trusted, as of modmirror serve")
	fs.BoolVar(&r.replace, "replace", false, "move the mirror that is in --data-dir aside")
	fs.BoolVar(&r.force, "force-older-head", false, "restore although the mirror that is replaced has seen newer tree heads")
	fs.StringVar(&r.reason, "reason", "", "why; it is kept in the audit of the new cluster")
	fs.BoolVar(&check, "check", false, "restore into a temporary directory, see whether a mirror works on it, and remove it")
	fs.StringVar(&temp, "temp-dir", "", "make the temporary directory of --check in this `directory`")
	fs.BoolVar(&asJSON, "json", false, "print what was done as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		if err := r.validate(check, fs.Changed("data-dir"), fs.Changed("temp-dir")); err != nil {
			return err
		}
		if r.specs, err = parseSpecs(sumdbs); err != nil {
			return err
		}
		privateFiles()
		src, err := openRestoreSource(args[0], generation, cmd.InOrStdin())
		if err != nil {
			return fmt.Errorf("restore from %s: %w", args[0], err)
		}
		defer func() { err = errors.Join(err, src.Close()) }()
		r.source = args[0]
		r.copying.progress, r.warn = newProgress(cmd.ErrOrStderr()), cmd.ErrOrStderr()
		defer r.copying.progress.done()
		if check {
			d := drill{restore: r, sumdbs: sumdbs}
			if err := d.run(cmd.Context(), src, temp); err != nil {
				return fmt.Errorf("check of the backup %s: %w", args[0], err)
			}
			return printReport(cmd.OutOrStdout(), asJSON, d.report)
		}
		if err := r.run(cmd.Context(), src); err != nil {
			return fmt.Errorf("restore from %s: %w", args[0], err)
		}
		return printReport(cmd.OutOrStdout(), asJSON, r.report)
	}
	return cmd
}

func printReport(w io.Writer, asJSON bool, r interface{ print(io.Writer) error }) error {
	if asJSON {
		return printJSON(w, r)
	}
	return r.print(w)
}

// restore makes a data directory from a backup.
//
// If the process dies: a file in --data-dir says that it is being restored into, and neither serve nor anything else takes it for a
// mirror's; what was copied stays, and is not copied again. Run again, it comes to its end. A mirror that is to be replaced is what it
// was, but for a temporary directory, until the catalog of the backup is found to be right; then that file is there, before the first of
// its files is moved aside.
type restore struct {
	dir     string
	source  string // where the backup is; "-": nowhere
	specs   []sumdb.Spec
	replace bool
	force   bool
	reason  string
	begun   bool   // the directory was empty, and says now that it is being restored into
	copying backup // copies blobs and tiles
	warn    io.Writer
	report  restoreReport
}

// restoreReport says what was done.
type restoreReport struct {
	Dir      string            `json:"dataDir"`
	Node     string            `json:"node"`
	Cluster  string            `json:"cluster"`
	Manifest backupManifest    `json:"manifest"`
	Replaced string            `json:"replaced,omitempty"` // where the mirror is that was here
	Older    []string          `json:"older,omitempty"`    // tree heads that went back
	Checked  fsckReport        `json:"checked"`
	Copy     float64           `json:"copySeconds"`  // until everything was there
	Verify   float64           `json:"checkSeconds"` // until it was known to be right
	Seconds  float64           `json:"seconds"`      // in all
	audit    []replicate.Audit // of the new cluster
}

func (r restoreReport) print(w io.Writer) error {
	r.printChecked(w)
	for _, o := range r.Older {
		fmt.Fprintf(w, "! gone back: %s\n", o)
	}
	if r.Replaced != "" {
		fmt.Fprintf(w, "the mirror that was here is in %s now; remove it when it is not needed any more\n", r.Replaced)
	}
	_, err := fmt.Fprintf(w, "restored in %s (copied in %s, checked in %s): node %s of the new cluster %s\nstart it with modmirror serve --data-dir %s, and the others with empty directories\n",
		seconds(r.Seconds), seconds(r.Copy), seconds(r.Verify), shortID(r.Node), r.Cluster, r.Dir)
	return err
}

// printChecked says what was found to be right.
func (r restoreReport) printChecked(w io.Writer) {
	m := r.Manifest
	fmt.Fprintf(w, "backup of cluster %s at entry %d, made %s\n", m.Point.Cluster, m.Point.Index, m.Made.Format(time.RFC3339))
	fmt.Fprintf(w, "checked: catalog of %s, root %d:%s; %s, %s; %s of %s by SHA-256 and go.sum hash\n", size(m.Catalog.Bytes), m.Point.Seq, m.Point.Root,
		count(r.Checked.Manifests, "module version"), count(r.Checked.Records, "proven record"), count(r.Checked.Blobs, "blob"), size(r.Checked.Bytes))
	for _, d := range m.Databases {
		fmt.Fprintf(w, "checked: %s, signed tree head of %d records, and the tiles that lead to it\n", d.Name, d.Size)
	}
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond)
}

func (r *restore) validate(check, dir, temp bool) error {
	switch {
	case r.force != (r.reason != ""):
		return usageError("--force-older-head and --reason belong together: who goes back says why")
	case check && (dir || r.replace || r.force):
		return usageError("--check restores into a temporary directory, which is removed: leave --data-dir, --replace and --force-older-head out")
	case temp && !check:
		return usageError("--temp-dir is for --check")
	}
	if r.reason != "" {
		if err := auditNow("restore", r.reason).Check(); err != nil {
			return usageError("--reason: %v", err)
		}
	}
	return nil
}

// restoreNote is what an interrupted restore leaves for the next one.
type restoreNote struct {
	Aside string           `json:"aside,omitempty"` // directory that the mirror which was here is moved to
	Moved bool             `json:"moved,omitempty"` // it is there, all of it
	Heads []backupDatabase `json:"heads,omitempty"` // that it had seen
	Forks []artifact.Fork  `json:"forks,omitempty"` // that froze a database there
	Blind string           `json:"blind,omitempty"` // why they are not known
}

const (
	asidePrefix = "replaced-"
	workPrefix  = ".restore-"
)

func (r *restore) run(ctx context.Context, src restoreSource) (err error) {
	began := time.Now()
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	lock, err := replicate.Lock(r.dir)
	if errors.Is(err, replicate.ErrLocked) {
		return fmt.Errorf("--data-dir %s: a mirror runs on this directory; stop it first", r.dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	note, err := r.begin(ctx)
	if err != nil {
		return err
	}
	if err := r.keepOff(note); err != nil {
		return err
	}
	work, err := r.workDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	path := filepath.Join(work, replicate.CatalogName)
	c, err := r.open(ctx, src, path, note)
	if err != nil {
		return errors.Join(err, r.letGo())
	}
	defer c.Close()
	if err := r.moveAside(note); err != nil {
		return err
	}
	if err := r.fill(ctx, src, work, c, began); err != nil {
		return fmt.Errorf("%w; what was restored so far is in %s, and no mirror starts on it", err, r.dir)
	}
	if err := c.Close(); err != nil {
		return err
	}
	id, err := replicate.Refound(r.dir, path, r.report.audit...)
	r.report.Dir, r.report.Node, r.report.Cluster, r.report.Seconds = r.dir, id.Node, id.Cluster, time.Since(began).Seconds()
	return err
}

// begin looks at what is in the directory. Nothing is changed.
func (r *restore) begin(ctx context.Context) (note restoreNote, err error) {
	earlier, err := replicate.RestoreNote(r.dir)
	if err != nil {
		return note, err
	}
	if earlier != nil {
		if err := json.Unmarshal(earlier, &note); err != nil {
			return note, fmt.Errorf("%s was being restored into, and what was noted of that is damaged: %w; remove the directory", r.dir, err)
		}
		if note.Aside != "" && (!strings.HasPrefix(note.Aside, asidePrefix) || filepath.Base(note.Aside) != note.Aside) {
			return note, fmt.Errorf("%s was being restored into, and what was noted of that is damaged: %q; remove the directory", r.dir, note.Aside)
		}
		return note, nil
	}
	empty, err := isEmptyDir(r.dir, func(name string) bool {
		return strings.HasPrefix(name, workPrefix) || strings.HasPrefix(name, asidePrefix) || strings.HasPrefix(name, replicate.RestoringName+".") // of a kill
	})
	if err != nil || empty {
		return note, err
	}
	if !r.replace {
		return note, usageError("--data-dir %s is not empty: name another directory, or have what is in it moved aside with --replace", r.dir)
	}
	inside, err := wouldMove(r.source, r.dir)
	if err != nil {
		return note, err
	}
	if inside {
		return note, usageError("--data-dir %s holds the backup %s, which would be moved aside while it is read: move it out of there first", r.dir, r.source)
	}
	note.Aside = asidePrefix + time.Now().UTC().Format("20060102T150405.000Z")
	note.Heads, note.Forks, err = headsIn(ctx, r.dir)
	if errors.Is(err, replicate.ErrLocked) {
		return note, fmt.Errorf("--data-dir %s: a mirror runs on this directory; stop it first", r.dir)
	}
	if err != nil {
		note.Blind = err.Error()
	}
	return note, nil
}

// wouldMove reports whether path is below something in dir that is moved aside.
func wouldMove(path, dir string) (bool, error) {
	if path == "-" {
		return false, nil
	}
	for _, p := range []*string{&path, &dir} {
		real, err := filepath.EvalSymlinks(*p)
		if err == nil {
			real, err = filepath.Abs(real)
		}
		if err != nil {
			return false, err
		}
		*p = real
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return false, nil // on another volume, or outside
	}
	first, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
	return !isKept(first), nil
}

// isKept reports whether a file or directory of a data directory stays where it is when the others are moved aside.
func isKept(name string) bool {
	return name == replicate.RestoringName || name == "lost+found" || strings.HasPrefix(name, workPrefix) || strings.HasPrefix(name, asidePrefix)
}

// keepOff keeps nodes off a directory in which there is no mirror, before anything is put there.
func (r *restore) keepOff(note restoreNote) error {
	if r.resumes() || note.Aside != "" {
		return nil
	}
	r.begun = true
	return replicate.NoteRestore(r.dir, note)
}

// letGo takes that back, as nothing was put there.
func (r *restore) letGo() error {
	if !r.begun {
		return nil
	}
	return errors.Join(os.Remove(filepath.Join(r.dir, replicate.RestoringName)), syncDir(r.dir))
}

// workDir makes a temporary directory beside what is restored, and removes those of restores that were interrupted.
func (r *restore) workDir() (string, error) {
	left, err := filepath.Glob(filepath.Join(r.dir, workPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(r.dir, workPrefix)
}

// open copies the catalog of the backup to path, and finds it right and fit to take the place of what is here.
func (r *restore) open(ctx context.Context, src restoreSource, path string, note restoreNote) (*heldCatalog, error) {
	r.copying.progress.stage("catalog", -1)
	if err := src.catalog(ctx, path); err != nil {
		return nil, err
	}
	c, err := openHeld(ctx, path, r.copying.progress)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", replicate.CatalogName, err)
	}
	if err := r.accept(ctx, src, c, note); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// accept reports whether c, whose rows are right, may take the place of what is here.
func (r *restore) accept(ctx context.Context, src restoreSource, c *heldCatalog, note restoreNote) error {
	if err := cmp.Or(r.trusts(c), src.fits(c.manifest)); err != nil {
		return err
	}
	p := c.manifest.Point
	r.report.audit = []replicate.Audit{auditNow("restore", fmt.Sprintf("from a backup of cluster %s at entry %d, root %d:%s", p.Cluster, p.Index, p.Seq, p.Root))}
	if err := r.compare(ctx, c, note); err != nil {
		return err
	}
	return r.hasRoom(c)
}

// trusts reports whether the keys that the backup trusts are those that we are told to: whoever can write a backup can sign
// anything with a key of their own.
func (r *restore) trusts(c *heldCatalog) error {
	for _, db := range c.manifest.Databases {
		ok := false
		for _, spec := range r.specs {
			ok = ok || spec.Name == db.Name && spec.Key == db.Key
		}
		if !ok {
			return fmt.Errorf("the backup trusts the checksum database %s by the key %s, and --sumdb does not: name it there if you do: %w", db.Name, db.Key, artifact.ErrRefused)
		}
	}
	return nil
}

// hasRoom says early that the disk is too small.
func (r *restore) hasRoom(c *heldCatalog) error {
	room, ok := lookAtDisk(r.dir)
	if need := c.manifest.Blobs.Bytes + c.manifest.Catalog.Bytes; ok && uint64(need) > room.Free && (r.begun || !r.resumes()) {
		return fmt.Errorf("%s free on the disk of %s, and the backup has %s", size(int64(room.Free)), r.dir, size(need))
	}
	return nil
}

// resumes reports whether an earlier restore has left something.
func (r *restore) resumes() bool {
	note, err := replicate.RestoreNote(r.dir)
	return err == nil && note != nil
}

// moveAside keeps nodes off the directory, and moves what is in it aside. From here on a crash leaves no mirror here.
func (r *restore) moveAside(note restoreNote) error {
	if !r.resumes() {
		if err := replicate.NoteRestore(r.dir, note); err != nil {
			return err
		}
	}
	if note.Aside == "" {
		return nil
	}
	aside := filepath.Join(r.dir, note.Aside)
	r.report.Replaced = aside
	if note.Moved {
		return nil
	}
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if isKept(name) {
			continue
		}
		if err := os.Rename(filepath.Join(r.dir, name), filepath.Join(aside, name)); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(aside), syncDir(r.dir)); err != nil {
		return err
	}
	note.Moved = true
	return replicate.NoteRestore(r.dir, note)
}

// fill brings the blobs and tiles in, and checks all that there is then, as fsck does.
func (r *restore) fill(ctx context.Context, src restoreSource, work string, c *heldCatalog, began time.Time) (err error) {
	store, err := artifact.OpenStore(r.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if r.report.Manifest, err = src.fill(ctx, &r.copying, store, work, c); err != nil {
		return err
	}
	for _, db := range c.manifest.Databases {
		if db.Size == 0 {
			continue
		}
		from, err := src.tiles(work, db.Name)
		if err != nil {
			return err
		}
		err = collectDatabase(ctx, r.dir, c.Catalog, db.Name, []sumdb.Source{from.Source(tilesDir(src.String(), db.Name))}, 0)
		if err := errors.Join(err, from.Close()); err != nil {
			return fmt.Errorf("tiles of %s: %w", db.Name, err)
		}
	}
	r.report.Copy = time.Since(began).Seconds()
	err = r.verify(ctx, store, c)
	r.report.Verify = time.Since(began).Seconds() - r.report.Copy
	return err
}

// verify checks every artifact and every proof from what is in the directory now.
func (r *restore) verify(ctx context.Context, store *artifact.Store, c *heldCatalog) error {
	f := fscker{dir: r.dir, catalog: c.Catalog, store: store, progress: r.copying.progress, blobs: map[artifact.Digest]bool{}, databases: map[string]*fsckDatabase{}}
	defer func() {
		for _, db := range f.databases {
			if db != nil {
				_ = db.tiles.Close() // read only
			}
		}
	}()
	if err := f.checkManifests(ctx); err != nil {
		return err
	}
	var names []string
	for _, db := range c.manifest.Databases {
		names = append(names, db.Name)
	}
	if err := f.checkTiles(ctx, names); err != nil {
		return err
	}
	p := c.manifest.Point
	f.report.Root = fmt.Sprintf("%d:%s", p.Seq, p.Root)
	r.report.Checked = f.report
	if n := len(f.report.Problems); n > 0 {
		for _, p := range f.report.Problems {
			fmt.Fprintln(r.warn, p)
		}
		return fmt.Errorf("the backup has %s, see above; the first: %s: %w", count(n, "problem"), f.report.Problems[0], artifact.ErrRefused)
	}
	return nil
}
