package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"modmirror/replicate"
)

func fsckCommand() *cobra.Command {
	var dataDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check everything a stopped mirror holds",
		Long: `Fsck reads the data directory of a mirror that is not running and checks all of it: the catalog file, every manifest
against its checksum database record and signed tree head, the Merkle root, every stored artifact's SHA-256 and go.sum
hash, and that the tiles which a client needs to verify each record are there. It changes nothing. It prints what is wrong,
a line each, and exits with 1 if anything is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := loadSettings(cmd); err != nil {
				return err
			}
			rep, err := fsck(cmd.Context(), dataDir, newProgress(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			if err := rep.print(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			if len(rep.Problems) > 0 {
				return errReported
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir, "the mirror's `directory`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

// fsckReport says what fsck looked at and what it found.
type fsckReport struct {
	Manifests int      `json:"manifests"`
	Records   int      `json:"records"`
	Blobs     int      `json:"blobs"`
	Unproven  int      `json:"unproven,omitempty"` // of these, which the mirror has yet to check before it serves them
	Bytes     int64    `json:"bytes"`
	Root      string   `json:"root"`
	Problems  []string `json:"problems"`
}

func (r fsckReport) print(w io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(w, p)
	}
	verdict := "all is well"
	switch n := len(r.Problems); n {
	case 0:
	case 1:
		verdict = "1 problem"
	default:
		verdict = fmt.Sprintf("%d problems", n)
	}
	_, err := fmt.Fprintf(w, "%s: %d module versions, %d records, %d blobs of %d bytes, root %s\n", verdict, r.Manifests, r.Records, r.Blobs, r.Bytes, r.Root)
	return err
}

// fsck checks the data directory of a stopped node. An error means that it could not be checked.
func fsck(ctx context.Context, dir string, progress *progress) (fsckReport, error) {
	c, err := openCatalog(dir)
	if errors.Is(err, replicate.ErrLocked) {
		return fsckReport{}, fmt.Errorf("a mirror is running on %s: stop it first, fsck checks a data directory at rest: %w", dir, err)
	}
	if err != nil {
		return fsckReport{}, err
	}
	defer c.Close()
	f := fscker{dir: dir, catalog: c, progress: progress}
	defer f.progress.done()
	err = f.run(ctx)
	return f.report, err
}

// openCatalog opens the catalog of a stopped mirror for reading.
func openCatalog(dir string) (*replicate.Catalog, error) {
	if err := hasCatalog(dir); err != nil {
		return nil, err
	}
	return replicate.OpenCatalog(dir)
}

// errNoCatalog says that a directory is none of a mirror.
var errNoCatalog = errors.New("there is no catalog.db: this is no mirror's data, or its catalog is lost")

// hasCatalog reports whether dir is a mirror's data directory: a command that only looks at one must not make another.
func hasCatalog(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	_, err := os.Stat(filepath.Join(dir, "catalog.db"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--data-dir %s: %w", dir, errNoCatalog)
	}
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	return nil
}
