package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// evidenceDir is where the evidence of forks lies as files, for people: the catalog holds it as well.
const evidenceDir = "evidence"

// evidenceName is the name of the file that f is written to: the database, and the sizes of both trees.
func evidenceName(f artifact.Fork) (string, error) {
	a, errA := tlog.ParseTree(f.A)
	b, errB := tlog.ParseTree(f.B)
	if err := errors.Join(errA, errB); err != nil {
		return "", fmt.Errorf("evidence of a fork of %s: %w", f.Database, err)
	}
	return fmt.Sprintf("%s-%d-%d.txt", strings.ReplaceAll(f.Database, "/", "_"), a.N, b.N), nil
}

// writeEvidence writes f, in the form in which the go command prints it, to a file below dir, unless it is there, and
// returns the file's path, and whether it is new. A crash leaves a temporary file at most. There may be several forks between the same sizes:
// the next ones get a number.
func writeEvidence(dir string, f artifact.Fork) (path string, isNew bool, err error) {
	name, err := evidenceName(f)
	if err != nil {
		return "", false, err
	}
	dir = filepath.Join(dir, evidenceDir)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", false, err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return "", false, err
	}
	text := []byte(f.String())
	for i := 1; ; i++ {
		path := filepath.Join(dir, name)
		if i > 1 {
			path = fmt.Sprintf("%s-%d.txt", strings.TrimSuffix(path, ".txt"), i)
		}
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, true, writeDurably(path, text)
		}
		if err != nil || bytes.Equal(have, text) {
			return path, false, err
		}
	}
}

// writeDurably makes path a file with these bytes, or leaves nothing under that name.
func writeDurably(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".evidence-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// keepEvidence is told of every fork that is committed.
func (n *node) keepEvidence(f artifact.Fork) {
	path, isNew, err := writeEvidence(n.config.DataDir, f)
	if err != nil {
		n.log.Error("the evidence of a fork is in the catalog, but not in a file", "database", f.Database, "err", err, "evidence", f.String())
		return
	}
	if isNew {
		n.log.Error("a checksum database has signed two histories; the evidence is in a file, for whoever runs or uses that database", "database", f.Database, "file", path)
		n.activity.alarm("%s has signed two histories", f.Database)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.evidence == nil {
		n.evidence = make(map[string][]string)
	}
	n.evidence[f.Database] = append(n.evidence[f.Database], path)
}

// evidenceOf returns the files with evidence of forks of a database.
func (n *node) evidenceOf(database string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string{}, n.evidence[database]...)
}
