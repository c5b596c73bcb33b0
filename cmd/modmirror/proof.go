package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// proof is everything that is needed to check, with the checksum database's public key and nothing else, that a module
// version has the hashes which the mirror serves: the record, a signed tree head, and the path from one to the other.
type proof struct {
	Module   string      `json:"module"`
	Version  string      `json:"version"`
	ModSum   string      `json:"modSum"`
	ZipSum   string      `json:"zipSum"`
	Mod      *proofRef   `json:"mod,omitempty"` // the bytes that the mirror says it holds, if it does
	Zip      *proofRef   `json:"zip,omitempty"`
	Database string      `json:"database"`
	Record   proofRecord `json:"record"`
	TreeHead string      `json:"treeHead"` // the signed note
	Path     []tlog.Hash `json:"path"`     // of inclusion, from the record's leaf up
}

type proofRef struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

type proofRecord struct {
	ID   int64  `json:"id"`
	Text string `json:"text"`
}

func newProof(m artifact.Manifest, treeHead []byte) proof {
	p := proof{
		Module: m.Module.Path, Version: m.Module.Version, ModSum: m.ModSum, ZipSum: m.ZipSum,
		Database: m.Record.Database, Record: proofRecord{m.Record.ID, string(m.Record.Text)},
		TreeHead: string(treeHead), Path: m.Record.Proof,
	}
	ref := func(r artifact.Ref) *proofRef {
		if r.IsZero() {
			return nil
		}
		return &proofRef{r.Digest.String(), r.Size}
	}
	p.Mod, p.Zip = ref(m.Mod), ref(m.Zip)
	return p
}

// parseProof reads what newProof made.
func parseProof(data []byte) (proof, error) {
	var p proof
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return proof{}, fmt.Errorf("proof: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return proof{}, errors.New("proof: something follows it")
	}
	return p, nil
}

// check verifies p for exactly m with the pinned keys, and nothing else. It returns the key that vouches for it.
func (p proof) check(m module.Version, keys []note.Verifier) (note.Verifier, error) {
	if p.Module != m.Path || p.Version != m.Version {
		return nil, fmt.Errorf("the proof is about %.300q@%.100q, not %s", p.Module, p.Version, m)
	}
	i := slices.IndexFunc(keys, func(k note.Verifier) bool { return k.Name() == p.Database })
	if i < 0 {
		return nil, fmt.Errorf("the proof is by the database %.200q, whose key is not pinned (--sumdb)", p.Database)
	}
	tree, err := artifact.OpenTreeHead(keys[i], []byte(p.TreeHead))
	if err != nil {
		return nil, err
	}
	r := artifact.Record{Database: p.Database, ID: p.Record.ID, Text: []byte(p.Record.Text), TreeSize: tree.N, Proof: p.Path}
	if err := r.Check(tree.Hash); err != nil {
		return nil, err
	}
	zip, mod, err := r.Sums(m)
	if err != nil {
		return nil, err
	}
	if zip != p.ZipSum || mod != p.ModSum {
		return nil, fmt.Errorf("the mirror's hashes are %.100q and %.100q, the record's %s and %s", p.ZipSum, p.ModSum, zip, mod)
	}
	return keys[i], errors.Join(p.onlySigned(keys[i]), p.Mod.check(), p.Zip.check())
}

// onlySigned reports whether all of the tree head is vouched for by key: a note may carry signatures of anybody, and what
// is printed under PROVEN must not.
func (p proof) onlySigned(key note.Verifier) error {
	n, err := note.Open([]byte(p.TreeHead), note.VerifierList(key))
	if err != nil {
		return err
	}
	if len(n.UnverifiedSigs) > 0 {
		return fmt.Errorf("the tree head has signatures by others than %s", key.Name())
	}
	return nil
}

// check reports whether r can be what a mirror holds. No proof says which bytes these are.
func (r *proofRef) check() error {
	if r == nil {
		return nil
	}
	if _, err := artifact.ParseDigest(r.SHA256); err != nil || r.Size < 0 {
		return fmt.Errorf("the mirror says that it holds %d bytes with the SHA-256 %.100q, which cannot be", r.Size, r.SHA256)
	}
	return nil
}
