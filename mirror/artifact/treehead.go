package artifact

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxTreeHead bounds a signed tree head, in bytes. Real ones have about 170.
const MaxTreeHead = 8 << 10

// MaxTreeSize bounds the records of a tree. One that claims more is not believed, signed or not: nothing will ever have so
// many, and package tlog does not come back from the proofs of a tree of more than 1<<62.
const MaxTreeSize = 1 << 52

// OpenTreeHead returns the tree that the signed note msg (C2SP: checkpoint, c2sp.org/tlog-checkpoint) speaks about, once
// v's signature on it is verified. It has at most MaxTreeSize records. An error matches [ErrRefused].
func OpenTreeHead(v note.Verifier, msg []byte) (tlog.Tree, error) {
	if len(msg) > MaxTreeHead {
		return tlog.Tree{}, fmt.Errorf("tree head of %d bytes is larger than %d: %w", len(msg), MaxTreeHead, ErrRefused)
	}
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("tree head is not signed by %s+%08x: %v: %w", v.Name(), v.KeyHash(), err, ErrRefused)
	}
	tree, err := tlog.ParseTree([]byte(n.Text))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("signed note of %s is not a tree head: %v: %w", v.Name(), err, ErrRefused)
	}
	if tree.N > MaxTreeSize {
		return tlog.Tree{}, fmt.Errorf("tree head of %s has %d records, more than %d: %w", v.Name(), tree.N, int64(MaxTreeSize), ErrRefused)
	}
	return tree, nil
}

// Fork is the proof that a checksum database's operator, or a thief of its key, signed two histories: two tree heads
// with valid signatures that contradict each other. It convinces anybody who holds the database's key.
type Fork struct {
	Database string
	A, B     []byte         // the signed notes; A's tree is not larger than B's
	Derived  tlog.Hash      // the root that B's tree has at A's size
	Proof    tlog.TreeProof // that it has; empty if both trees have the same size
}

// Check reports whether f proves a fork. An error matches [ErrRefused] and means that f proves nothing.
func (f Fork) Check(v note.Verifier) error {
	a, err := OpenTreeHead(v, f.A)
	if err != nil {
		return err
	}
	b, err := OpenTreeHead(v, f.B)
	if err != nil {
		return err
	}
	if a.N == b.N {
		if a.Hash == b.Hash {
			return fmt.Errorf("the tree heads of %s at %d are the same: %w", f.Database, a.N, ErrRefused)
		}
		return nil
	}
	if err := tlog.CheckTree(f.Proof, b.N, b.Hash, a.N, f.Derived); err != nil {
		return fmt.Errorf("evidence of a fork of %s between %d and %d records: %v: %w", f.Database, a.N, b.N, err, ErrRefused)
	}
	if f.Derived == a.Hash {
		return fmt.Errorf("the tree heads of %s at %d and %d records are consistent: %w", f.Database, a.N, b.N, ErrRefused)
	}
	return nil
}

// String returns the evidence as text, in the form in which the go command prints it.
func (f Fork) String() string {
	s := fmt.Sprintf("SECURITY ERROR\n%s signed two histories that contradict each other.\nold database:\n\t%q\nnew database:\n\t%q\nthe new database's hash at the old size is %v\nproof of misbehavior:", f.Database, f.A, f.B, f.Derived)
	for _, h := range f.Proof {
		s += "\n\t" + h.String()
	}
	return s + "\n"
}
