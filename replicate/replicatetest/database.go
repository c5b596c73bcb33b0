// Package replicatetest makes what a catalog accepts: a checksum database in memory that signs trees and proves records,
// and publications of made-up modules. It does not import the package that it helps to test.
package replicatetest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Database is a checksum database's log and its key. It is not safe for concurrent use.
type Database struct {
	Name string
	Key  string // the verifier key

	tb     testing.TB
	signer note.Signer
	hashes []tlog.Hash
	texts  [][]byte
}

// NewDatabase returns an empty database with a fresh key.
func NewDatabase(tb testing.TB, name string) *Database {
	tb.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	return &Database{Name: name, Key: vkey, tb: tb, signer: signer}
}

// Fork returns a database with the same key and, so far, the same records.
func (d *Database) Fork() *Database {
	out := *d
	out.hashes, out.texts = slices.Clone(d.hashes), slices.Clone(d.texts)
	return &out
}

// Size returns how many records there are.
func (d *Database) Size() int64 { return int64(len(d.texts)) }

// Add appends a record and returns its id.
func (d *Database) Add(text string) int64 {
	d.tb.Helper()
	id := d.Size()
	hs, err := tlog.StoredHashes(id, []byte(text), d)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.hashes = append(d.hashes, hs...)
	d.texts = append(d.texts, []byte(text))
	return id
}

// ReadHashes implements tlog.HashReader.
func (d *Database) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(d.hashes)) {
			return nil, fmt.Errorf("no hash %d", x)
		}
		out[i] = d.hashes[x]
	}
	return out, nil
}

// Tree returns the tree of the first n records.
func (d *Database) Tree(n int64) tlog.Tree {
	d.tb.Helper()
	h, err := tlog.TreeHash(n, d)
	if err != nil {
		d.tb.Fatal(err)
	}
	return tlog.Tree{N: n, Hash: h}
}

// Head returns the signed head of the first n records.
func (d *Database) Head(n int64) []byte {
	d.tb.Helper()
	return d.Sign(d.Tree(n))
}

// Sign returns the signed head of any tree.
func (d *Database) Sign(t tlog.Tree) []byte {
	d.tb.Helper()
	msg, err := note.Sign(&note.Note{Text: string(tlog.FormatTree(t))}, d.signer)
	if err != nil {
		d.tb.Fatal(err)
	}
	return msg
}

// Prove returns the proof that the first of newer records begin with the older ones; nil if there is nothing to prove.
func (d *Database) Prove(newer, older int64) tlog.TreeProof {
	d.tb.Helper()
	if older == 0 {
		return nil
	}
	p, err := tlog.ProveTree(newer, older, d)
	if err != nil {
		d.tb.Fatal(err)
	}
	return p
}

// Record returns record id with its proof in the tree of size records.
func (d *Database) Record(id, size int64) artifact.Record {
	d.tb.Helper()
	p, err := tlog.ProveRecord(size, id, d)
	if err != nil {
		d.tb.Fatal(err)
	}
	if len(p) == 0 {
		p = nil
	}
	return artifact.Record{Database: d.Name, ID: id, Text: d.texts[id], TreeSize: size, Proof: p}
}

// Module is a made-up module version and its bytes.
type Module struct {
	module.Version
	Info, Mod []byte
	Zip       artifact.Ref
	ZipSum    string
	ID        int64 // of its record
}

// AddModule makes up a module version whose go.mod file has the given text, and appends its record.
func (d *Database) AddModule(path, version, gomod string) Module {
	d.tb.Helper()
	zip := []byte("zip of " + path + "@" + version)
	m := Module{
		Version: module.Version{Path: path, Version: version},
		Info:    fmt.Appendf(nil, `{"Version":"%s","Time":"2024-05-06T07:08:09Z"}`, version),
		Mod:     []byte(gomod),
		Zip:     artifact.RefOf(zip),
		ZipSum:  d.sum("zip", zip),
	}
	m.ID = d.Add(fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", path, version, m.ZipSum, path, version, d.sum("go.mod", m.Mod)))
	return m
}

// Publication returns the publication of m with all its parts and a record proven in the tree of size records.
func (d *Database) Publication(m Module, size int64) artifact.Publication {
	d.tb.Helper()
	man, err := artifact.NewManifest(m.Version, d.Record(m.ID, size))
	if err != nil {
		d.tb.Fatal(err)
	}
	man.Info, man.Mod, man.Zip = artifact.RefOf(m.Info), artifact.RefOf(m.Mod), m.Zip
	return artifact.Publication{Manifest: man, Info: m.Info, Mod: m.Mod}
}

func (d *Database) sum(name string, data []byte) string {
	h, err := dirhash.Hash1([]string{name}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
	if err != nil {
		d.tb.Fatal(err)
	}
	return h
}
