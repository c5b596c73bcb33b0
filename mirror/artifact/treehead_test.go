package artifact

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// key returns a fresh key of a database called name.
func key(t testing.TB, name string) (note.Signer, note.Verifier) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func sign(t testing.TB, text string, s ...note.Signer) []byte {
	t.Helper()
	msg, err := note.Sign(&note.Note{Text: text}, s...)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func head(t testing.TB, s note.Signer, n int64, h tlog.Hash) []byte {
	t.Helper()
	return sign(t, string(tlog.FormatTree(tlog.Tree{N: n, Hash: h})), s)
}

func TestOpenTreeHead(t *testing.T) {
	s, v := key(t, "sum.example")
	other, _ := key(t, "sum.example")
	text := string(tlog.FormatTree(tlog.Tree{N: 7, Hash: tlog.Hash{1}}))
	good := sign(t, text, s)
	for name, msg := range map[string][]byte{"signed": good, "with another's signature too": sign(t, text, other, s), "with more lines": sign(t, text+"more\n", s)} {
		tree, err := OpenTreeHead(v, msg)
		if err != nil || tree.N != 7 || tree.Hash != (tlog.Hash{1}) {
			t.Errorf("%s: OpenTreeHead = %v, %v", name, tree, err)
		}
	}
	for name, msg := range map[string][]byte{
		"nothing":        nil,
		"unsigned":       []byte(text),
		"other key":      sign(t, text, other),
		"no tree head":   sign(t, "hello\n", s),
		"negative size":  sign(t, strings.Replace(text, "\n7\n", "\n-7\n", 1), s),
		"too many":       head(t, s, MaxTreeSize+1, tlog.Hash{}),
		"most of all":    head(t, s, 1<<63-1, tlog.Hash{}),
		"too long":       sign(t, text+strings.Repeat("x", MaxTreeHead)+"\n", s),
		"text in front":  append([]byte("x\n"), good...),
		"bytes behind":   append(bytes.Clone(good), "x\n"...),
		"size of others": bytes.Replace(good, []byte("\n7\n"), []byte("\n8\n"), 1),
	} {
		if tree, err := OpenTreeHead(v, msg); !errors.Is(err, ErrRefused) || tree != (tlog.Tree{}) {
			t.Errorf("%s: OpenTreeHead = %v, %v, want ErrRefused", name, tree, err)
		}
	}
	if tree, err := OpenTreeHead(v, head(t, s, MaxTreeSize, tlog.Hash{})); err != nil || tree.N != MaxTreeSize {
		t.Errorf("largest: OpenTreeHead = %v, %v", tree, err)
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		// The last digit of a signature in base64 has two bits to spare; a flip there is another spelling of the same.
		if tree, err := OpenTreeHead(v, b); !errors.Is(err, ErrRefused) && (err != nil || i < len(good)-4 || tree.N != 7) {
			t.Errorf("byte %d of %d flipped: %v, %v, want ErrRefused", i, len(good), tree, err)
		}
	}
}

func TestForkCheck(t *testing.T) {
	s, v := key(t, "sum.example")
	thief, _ := key(t, "sum.example")
	var a, b testLog // they part at record 3
	for i := range 6 {
		a.add(t, fmt.Appendf(nil, "record %d\n", i))
		if i < 3 {
			b.add(t, fmt.Appendf(nil, "record %d\n", i))
		} else {
			b.add(t, fmt.Appendf(nil, "forged %d\n", i))
		}
	}
	prove := func(l *testLog, n, old int64) tlog.TreeProof {
		p, err := tlog.ProveTree(n, old, l)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	sameSize := Fork{Database: "sum.example", A: head(t, s, 5, a.root(t, 5)), B: head(t, s, 5, b.root(t, 5))}
	other := Fork{Database: "sum.example", A: head(t, s, 4, a.root(t, 4)), B: head(t, s, 6, b.root(t, 6)), Derived: b.root(t, 4), Proof: prove(&b, 6, 4)}
	for name, f := range map[string]Fork{"same size": sameSize, "other size": other} {
		if err := f.Check(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text := f.String(); !strings.Contains(text, "SECURITY ERROR") || !strings.Contains(text, fmt.Sprintf("%q", f.A)) || !strings.Contains(text, fmt.Sprintf("%q", f.B)) {
			t.Errorf("%s: the evidence is not in the text: %s", name, text)
		}
	}
	for name, change := range map[string]func(f *Fork){
		"one history":           func(f *Fork) { f.A = head(t, s, 4, b.root(t, 4)) },
		"the same head":         func(f *Fork) { f.A = f.B },
		"A signed by a thief":   func(f *Fork) { f.A = head(t, thief, 4, a.root(t, 4)) },
		"B signed by a thief":   func(f *Fork) { f.B = head(t, thief, 6, b.root(t, 6)) },
		"no proof":              func(f *Fork) { f.Proof = nil },
		"proof of the other":    func(f *Fork) { f.Proof = prove(&a, 6, 4) },
		"derived out of thin":   func(f *Fork) { f.Derived = tlog.Hash{1} },
		"derived is the true":   func(f *Fork) { f.Derived = a.root(t, 4) },
		"A larger than B":       func(f *Fork) { f.A, f.B = f.B, f.A },
		"A before the parting":  func(f *Fork) { f.A, f.Derived, f.Proof = head(t, s, 3, a.root(t, 3)), b.root(t, 3), prove(&b, 6, 3) },
		"B larger than any":     func(f *Fork) { f.B = head(t, s, 1<<63-1, b.root(t, 6)) },
		"A is of an empty tree": func(f *Fork) { f.A = head(t, s, 0, tlog.Hash{}) },
	} {
		f := other
		change(&f)
		if err := f.Check(v); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: Check = %v, want ErrRefused", name, err)
		}
	}
}

// No proof and no derived root make a fork of two heads of one history.
func FuzzForkCheck(f *testing.F) {
	s, v := key(f, "sum.example")
	var log testLog
	for i := range 6 {
		log.add(f, fmt.Appendf(nil, "record %d\n", i))
	}
	a, b, root := head(f, s, 4, log.root(f, 4)), head(f, s, 6, log.root(f, 6)), log.root(f, 4)
	proof, err := tlog.ProveTree(6, 4, &log)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(root[:], flat(proof))
	f.Add(make([]byte, tlog.HashSize), flat(proof))
	f.Add(root[:], flat(proof[1:]))
	f.Fuzz(func(t *testing.T, derived, proof []byte) {
		fork := Fork{Database: "sum.example", A: a, B: b, Proof: hashesOf(proof)}
		copy(fork.Derived[:], derived)
		if err := fork.Check(v); !errors.Is(err, ErrRefused) {
			t.Errorf("derived %x, proof %x: %v, want ErrRefused", derived, proof, err)
		}
		if err := tlog.CheckTree(fork.Proof, 6, log.root(t, 6), 4, fork.Derived); err == nil && fork.Derived != root {
			t.Errorf("proof %x shows the root %x at 4 records", proof, derived)
		}
	})
}
