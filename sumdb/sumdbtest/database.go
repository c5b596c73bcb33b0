// Package sumdbtest has what tests of a checksum database's client need: a database in memory that signs, forks and lies
// on demand, a source that serves recorded answers, and a catalog in memory that keeps the rules of the real one.
package sumdbtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Database is a checksum database in memory. It is an http.Handler, at / and below /sumdb/<name>/, and a source for the
// same process by its Get method. All methods are safe for concurrent use.
type Database struct {
	name   string
	signer note.Signer
	key    string
	other  note.Signer // of the same name, with a key that nobody trusts

	mu      sync.Mutex
	records [][]byte                 // guarded by mu, as all below
	hashes  hashes                   // stored hashes of records
	ids     map[module.Version]int64 // of records
	lies    Lies
	counts  map[string]int
	release chan struct{} // closed when hanging ends; nil: nothing hangs
	as      *Database     // answers instead, if not nil
}

type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(h)) {
			return nil, fmt.Errorf("stored hash %d of %d", x, len(h))
		}
		out[i] = h[x]
	}
	return out, nil
}

// New returns an empty database of that name, with a key of its own.
func New(name string) *Database {
	signer, key := newSigner(name)
	other, _ := newSigner(name)
	return &Database{
		name: name, signer: signer, key: key, other: other,
		ids: make(map[module.Version]int64), counts: make(map[string]int),
	}
}

func newSigner(name string) (note.Signer, string) {
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		panic(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		panic(err)
	}
	return s, vkey
}

// Name returns the database's name.
func (d *Database) Name() string { return d.name }

// Key returns the verifier key.
func (d *Database) Key() string { return d.key }

// Size returns the number of records.
func (d *Database) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.records))
}

// Sum returns a go.sum hash that is well-formed and different for different seeds.
func Sum(seed string) string {
	h := sha256.Sum256([]byte(seed))
	return "h1:" + base64.StdEncoding.EncodeToString(h[:])
}

// Text returns the text of a record with both lines.
func Text(m module.Version, zipSum, modSum string) string {
	return fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zipSum, m.Path, m.Version, modSum)
}

// Add logs a record for m and returns its id. A version that is known already keeps its record.
func (d *Database) Add(m module.Version, zipSum, modSum string) int64 {
	return d.AddText(m, Text(m, zipSum, modSum))
}

// AddText logs text as the record of m: that of another module, or one without a line.
func (d *Database) AddText(m module.Version, text string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, ok := d.ids[m]; ok {
		return id
	}
	d.ids[m] = int64(len(d.records))
	return d.append([]byte(text))
}

// Grow logs n records of modules that nobody asks for.
func (d *Database) Grow(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range n {
		m := module.Version{Path: fmt.Sprintf("filler.example/m%d", len(d.records)), Version: "v1.0.0"}
		d.append(fmt.Appendf(nil, "%s %s %s\n", m.Path, m.Version, fillerSum))
	}
}

var fillerSum = Sum("filler")

// append logs text. The caller holds mu.
func (d *Database) append(text []byte) int64 {
	id := int64(len(d.records))
	more, err := tlog.StoredHashes(id, text, d.hashes)
	if err != nil {
		panic(err)
	}
	d.records = append(d.records, text)
	d.hashes = append(d.hashes, more...)
	return id
}

// Head returns the signed tree head of the first n records.
func (d *Database) Head(n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.head(n)
}

// head is Head. The caller holds mu.
func (d *Database) head(n int64) []byte {
	root, err := tlog.TreeHash(n, d.hashes)
	if err != nil {
		panic(err)
	}
	signer := d.signer
	if d.lies.WrongKey {
		signer = d.other
	}
	text := string(tlog.FormatTree(tlog.Tree{N: n, Hash: root})) + d.lies.HeadLines
	msg, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		panic(err)
	}
	return append(msg, d.lies.Junk...)
}

// Root returns the root hash of the first n records.
func (d *Database) Root(n int64) tlog.Hash {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := tlog.TreeHash(n, d.hashes)
	if err != nil {
		panic(err)
	}
	return root
}

// Prove returns the inclusion proof of record id in the tree of the first n.
func (d *Database) Prove(n, id int64) tlog.RecordProof {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := tlog.ProveRecord(n, id, d.hashes)
	if err != nil {
		panic(err)
	}
	return p
}

// Fork returns another history of the same database, signed with the same key: its first keep records are the same, and
// what comes then is up to the caller (it has no more yet).
func (d *Database) Fork(keep int64) *Database {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &Database{
		name: d.name, signer: d.signer, key: d.key, other: d.other,
		records: slices.Clone(d.records[:keep]), hashes: slices.Clone(d.hashes[:tlog.StoredHashCount(keep)]),
		ids: maps.Clone(d.ids), counts: make(map[string]int),
	}
	maps.DeleteFunc(f.ids, func(_ module.Version, id int64) bool { return id >= keep })
	return f
}
