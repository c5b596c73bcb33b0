package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// reset is what `modmirror cluster reset` was asked for.
type reset struct {
	dir       string
	keepBlobs bool
	yes       bool
	force     bool
}

func clusterResetCommand() *cobra.Command {
	var r reset
	cmd := &cobra.Command{
		Use:   "reset --keep-blobs",
		Short: "Make a new node of a stopped one whose log or catalog is damaged, and keep its blobs",
		Long: `Reset moves aside what makes a data directory the one of its node: node.json, the log with its votes, and the catalog. Blobs,
also those in unproven, and tiles stay. The next start is that of a new node: it receives the catalog from the others of its cluster, reads each
blob that is there once to check it against that, and pulls only what is missing or damaged.

It is for a member of a cluster of several. The old node must be removed at another one (modmirror cluster remove), because
what it voted for and promised is forgotten here; the command says how. Nothing is deleted: when the new node is complete,
the directory with the old files can be.

The node must not run. What it will do is printed first, and asked about. It may be repeated if it was interrupted.`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.StringVar(&r.dir, "data-dir", defaultDataDir, "the node's `directory`")
	fs.BoolVar(&r.keepBlobs, "keep-blobs", false, "keep blobs and tiles; to keep nothing, move the whole directory away instead")
	fs.BoolVar(&r.yes, "yes", false, "do not ask: for scripts")
	fs.BoolVar(&r.force, "force", false, "go on although the node is the only member of its cluster: its catalog is lost for the mirror")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		return r.run(cmd.InOrStdin(), cmd.OutOrStdout())
	}
	return cmd
}

func (r reset) run(in io.Reader, out io.Writer) error {
	if !r.keepBlobs {
		return usageError("--keep-blobs is needed: that is all that reset can do. To keep nothing, move the directory away")
	}
	if _, err := os.Stat(r.dir); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	name := "OLD"
	if id, err := replicate.Identify(r.dir); err == nil {
		name = shortID(id.Node)
	}
	kept, err := blobsIn(r.dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s becomes the directory of a new node. Kept: %s, and the tiles. Moved aside: node.json, raft, catalog.db.\n", r.dir, kept)
	fmt.Fprintln(out, "Only for a member of a cluster of several: the others must hold what is committed.")
	if !r.yes {
		if err := confirm(in, out, "reset"); err != nil {
			return err
		}
	}
	cursors, err := tileCursors(r.dir)
	if err != nil {
		return err
	}
	aside, err := replicate.Reset(r.dir, r.force, cursors...)
	switch {
	case errors.Is(err, replicate.ErrLocked):
		return fmt.Errorf("a mirror is running on %s: stop it first: %w", r.dir, err)
	case errors.Is(err, replicate.ErrAlone):
		return fmt.Errorf("--data-dir %s: %w: restore it from a backup; --force gives the catalog up", r.dir, err)
	case err != nil:
		return fmt.Errorf("--data-dir %s: %w", r.dir, err)
	}
	_, err = fmt.Fprintf(out, `done: the old node is in %s
next, in this order:
  modmirror cluster remove %s --peer ANOTHER_NODE:3001    (the name that it had with --node-id will do as well)
  modmirror serve, with the command line that this node always had
when modmirror cluster status says that it lacks no blob, the directory %s can be deleted
`, aside, name, filepath.Base(aside))
	return err
}

// blobsIn counts the blobs of a directory by name and size, and says how many there are.
func blobsIn(dir string) (string, error) {
	s, err := artifact.OpenStoreReadOnly(dir)
	if err != nil {
		return "", err
	}
	defer s.Close()
	count, bytes := 0, int64(0)
	for ref, err := range s.All() {
		if err == nil { // what is no blob is for fsck to name
			count++
			bytes += ref.Size
		}
	}
	text := fmt.Sprintf("%d blobs of %s", count, size(bytes))
	if unproven, bytes := s.Unproven(); unproven > 0 {
		text += fmt.Sprintf(", %d more of %s in unproven", unproven, size(bytes))
	}
	return text, nil
}

// tileCursors returns the files that say how far tiles are held for the old node's catalog, relative to dir: a new node looks
// itself.
func tileCursors(dir string) (names []string, err error) {
	err = filepath.WalkDir(filepath.Join(dir, "sumdb"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "tile":
			return fs.SkipDir
		case !d.IsDir() && d.Name() == ".cursor":
			names = append(names, strings.TrimPrefix(path, filepath.Clean(dir)+string(filepath.Separator)))
		}
		return nil
	})
	return names, err
}
