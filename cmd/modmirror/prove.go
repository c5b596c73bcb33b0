package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

func proveCommand() *cobra.Command {
	var dataDir string
	var databases []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "prove module@version",
		Short: "Prove the hashes of a module version with the checksum database's key alone",
		Long: `Prove prints what vouches for a stored module version: the checksum database's record, a signed tree head, the path of
inclusion from the one to the other, and the hashes. It then checks all of that with the pinned public key (--sumdb) and
nothing else: neither the mirror nor the network is trusted. With --json it prints the evidence as one document.`,
		Args: cobra.ExactArgs(1),
	}
	server := serverFlag(cmd)
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "read this `directory` of a mirror; a running one is asked at --server instead")
	cmd.Flags().StringSliceVar(&databases, "sumdb", []string{"sum.golang.org"}, "the pinned checksum `database`: a name, or name+hash+key; several are allowed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the evidence as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		m, err := parseModuleVersion(args[0])
		if err != nil {
			return err
		}
		keys, err := pinnedKeys(databases)
		if err != nil {
			return err
		}
		var p proof
		if dataDir != "" {
			p, err = proofFromDir(cmd.Context(), dataDir, m)
		}
		if dataDir == "" || errors.Is(err, replicate.ErrLocked) { // then a mirror is running there
			p, err = proofFromServer(cmd.Context(), *server, m)
		}
		if err != nil {
			return err
		}
		key, err := p.check(m, keys)
		if err != nil {
			return fmt.Errorf("NOT PROVEN: %w", err)
		}
		return p.print(cmd.OutOrStdout(), key, asJSON)
	}
	return cmd
}

// parseModuleVersion reads module@version, both as the go command prints them.
func parseModuleVersion(s string) (module.Version, error) {
	path, v, ok := strings.Cut(s, "@")
	if !ok {
		return module.Version{}, usageError("%q is not module@version", s)
	}
	if err := module.Check(path, v); err != nil {
		return module.Version{}, usageError("%v", err)
	}
	return module.Version{Path: path, Version: v}, nil
}

// pinnedKeys returns the verifiers of databases as --sumdb names them.
func pinnedKeys(databases []string) ([]note.Verifier, error) {
	specs, err := parseSpecs(databases)
	if err != nil {
		return nil, err
	}
	var keys []note.Verifier
	for _, spec := range specs {
		key, err := note.NewVerifier(spec.Key)
		if err != nil {
			return nil, usageError("--sumdb %s: %v", spec.Name, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func proofFromServer(ctx context.Context, server string, m module.Version) (proof, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return proof{}, err
	}
	v, err := module.EscapeVersion(m.Version)
	if err != nil {
		return proof{}, err
	}
	data, err := ask(ctx, server, "/prove/"+path+"@"+v)
	if err != nil {
		return proof{}, err
	}
	return parseProof(data)
}

func proofFromDir(ctx context.Context, dir string, m module.Version) (proof, error) {
	c, err := openCatalog(dir)
	if err != nil {
		return proof{}, err
	}
	defer c.Close()
	return proofFrom(ctx, c, m)
}

// provable is what a proof is made from: a running node or the catalog of a stopped one.
type provable interface {
	Manifest(ctx context.Context, m module.Version) (artifact.Manifest, error)
	TreeHead(ctx context.Context, db string, below int64) ([]byte, error)
}

func proofFrom(ctx context.Context, c provable, m module.Version) (proof, error) {
	man, err := c.Manifest(ctx, m)
	if errors.Is(err, fs.ErrNotExist) {
		return proof{}, fmt.Errorf("%s is not held: %w", m, err)
	}
	if err != nil {
		return proof{}, err
	}
	if man.Record.TreeSize == math.MaxInt64 {
		return proof{}, fmt.Errorf("manifest of %s: tree size out of range", m)
	}
	head, err := c.TreeHead(ctx, man.Record.Database, man.Record.TreeSize+1)
	if err != nil {
		return proof{}, fmt.Errorf("tree head of %s at %d: %v: %w", man.Record.Database, man.Record.TreeSize, err, artifact.ErrDamaged) // it must be there
	}
	return newProof(man, head), nil
}

func (p proof) print(w io.Writer, key note.Verifier, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(p)
	}
	fmt.Fprintf(w, "%s@%s\n", p.Module, p.Version)
	fmt.Fprintf(w, "  zip      %s%s\n", p.ZipSum, held(p.Zip))
	fmt.Fprintf(w, "  go.mod   %s%s\n", p.ModSum, held(p.Mod))
	fmt.Fprintf(w, "record %d of %s\n", p.Record.ID, p.Database)
	for line := range strings.Lines(p.Record.Text) {
		fmt.Fprintf(w, "  %s", line)
	}
	fmt.Fprintf(w, "path of inclusion, %d hashes\n", len(p.Path))
	for _, h := range p.Path {
		fmt.Fprintf(w, "  %s\n", h)
	}
	fmt.Fprintln(w, "signed tree head")
	for line := range strings.Lines(p.TreeHead) {
		fmt.Fprintf(w, "  %s", line)
	}
	_, err := fmt.Fprintf(w, "PROVEN with the key %s+%08x alone: both h1 hashes\n", key.Name(), key.KeyHash())
	return err
}

func held(r *proofRef) string {
	if r == nil {
		return "  (bytes not stored)"
	}
	return fmt.Sprintf("  (the mirror holds sha256:%s, %d bytes)", r.SHA256, r.Size)
}
