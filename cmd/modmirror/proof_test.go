package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// madeProof returns a genuine proof of hello, as a mirror makes it, and the database that it is by.
func madeProof(t *testing.T) (p proof, hello module.Version, db *sumdbtest.Database, key note.Verifier) {
	t.Helper()
	hello = module.Version{Path: "example.com/hello", Version: "v1.0.0"}
	db = sumdbtest.New("sum.example.com")
	db.Grow(5)
	zip, mod := sumdbtest.Sum("zip"), sumdbtest.Sum("mod")
	id := db.Add(hello, zip, mod)
	db.Add(module.Version{Path: "example.com/hello", Version: "v1.1.0"}, zip, sumdbtest.Sum("other"))
	n := db.Size()
	m, err := artifact.NewManifest(hello, artifact.Record{
		Database: db.Name(), ID: id, Text: []byte(sumdbtest.Text(hello, zip, mod)), TreeSize: n, Proof: db.Prove(n, id),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Zip = artifact.RefOf([]byte("bytes"))
	data, err := json.Marshal(newProof(m, db.Head(n)))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = parseProof(data); err != nil {
		t.Fatal(err)
	}
	if key, err = note.NewVerifier(db.Key()); err != nil {
		t.Fatal(err)
	}
	return p, hello, db, key
}

// Nothing that a lying mirror can change in a proof stays PROVEN.
func TestProofIsChecked(t *testing.T) {
	p, hello, db, key := madeProof(t)
	if got, err := p.check(hello, []note.Verifier{key}); err != nil || got != key {
		t.Fatalf("the genuine proof: %v", err)
	}
	other := module.Version{Path: "example.com/hello", Version: "v1.1.0"}
	evil := sumdbtest.New("evil.example.com")
	evil.Grow(7)
	stranger, err := note.Sign(&note.Note{Text: "go.sum database tree\n7\n" + db.Root(7).String() + "\n"}, signerOf(t, "evil.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	_, strangerLine, _ := strings.Cut(string(stranger), "\n\n")
	for what, change := range map[string]func(*proof){
		"another module":      func(p *proof) { p.Module = "example.com/evil" },
		"another version":     func(p *proof) { p.Version = "v1.1.0" },
		"id":                  func(p *proof) { p.Record.ID++ },
		"negative id":         func(p *proof) { p.Record.ID = -1 },
		"text":                func(p *proof) { p.Record.Text = strings.Replace(p.Record.Text, "h1:", "h1:A", 1) },
		"more text":           func(p *proof) { p.Record.Text += "example.com/evil v1.0.0 h1:x\n" },
		"another record":      func(p *proof) { p.Record.Text = sumdbtest.Text(other, p.ZipSum, p.ModSum) },
		"zip sum":             func(p *proof) { p.ZipSum = sumdbtest.Sum("evil") },
		"go.mod sum":          func(p *proof) { p.ModSum = sumdbtest.Sum("evil") },
		"zip sum in colours":  func(p *proof) { p.ZipSum += "\x1b[2J" },
		"no path":             func(p *proof) { p.Path = nil },
		"a hash of the path":  func(p *proof) { p.Path = slices.Clone(p.Path); p.Path[0] = tlog.Hash{} },
		"a longer path":       func(p *proof) { p.Path = append(slices.Clone(p.Path), tlog.Hash{}) },
		"smaller head":        func(p *proof) { p.TreeHead = string(db.Head(6)) },
		"head, a bit flipped": func(p *proof) { p.TreeHead = strings.Replace(p.TreeHead, "\n7\n", "\n6\n", 1) },
		"head of another key": func(p *proof) { p.TreeHead = string(evil.Head(7)) },
		"no head":             func(p *proof) { p.TreeHead = "" },
		"more signatures":     func(p *proof) { p.TreeHead += strangerLine },
		"another database":    func(p *proof) { p.Database = "evil.example.com" },
		"digest":              func(p *proof) { p.Zip = &proofRef{SHA256: "deadbeef\x1b[2J\nPROVEN anything", Size: 1} },
		"size":                func(p *proof) { p.Zip = &proofRef{SHA256: p.Zip.SHA256, Size: -7} },
		"digest of go.mod":    func(p *proof) { p.Mod = &proofRef{} },
	} {
		lie := p
		change(&lie)
		if _, err := lie.check(hello, []note.Verifier{key}); err == nil {
			t.Errorf("%s: proven", what)
		} else if strings.ContainsAny(err.Error(), "\x1b") {
			t.Errorf("%s: the error has control characters: %q", what, err)
		}
	}
	if _, err := p.check(other, []note.Verifier{key}); err == nil {
		t.Error("proven for another version than the one asked for")
	}
	if _, err := p.check(hello, nil); err == nil {
		t.Error("proven without a pinned key")
	}
}

func signerOf(t *testing.T, name string) note.Signer {
	t.Helper()
	skey, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is printed is the same after a round through JSON, and says of the mirror's word that it is the mirror's.
func TestProofIsPrinted(t *testing.T) {
	p, _, _, key := madeProof(t)
	var text, doc bytes.Buffer
	if err := p.print(&text, key, false); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"example.com/hello@v1.0.0\n", p.ZipSum + "  (the mirror holds sha256:" + p.Zip.SHA256, p.ModSum + "  (bytes not stored)",
		fmt.Sprintf("PROVEN with the key sum.example.com+%08x alone", key.KeyHash())} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("printed without %q:\n%s", part, text.String())
		}
	}
	if err := p.print(&doc, key, true); err != nil {
		t.Fatal(err)
	}
	again, err := parseProof(doc.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, p) {
		t.Errorf("%v, want %v", again, p)
	}
	for _, junk := range []string{"{}", " x", "\n[]"} {
		if _, err := parseProof(append(slices.Clone(doc.Bytes()), junk...)); err == nil {
			t.Errorf("a proof followed by %q is accepted", junk)
		}
	}
	if _, err := parseProof([]byte(`{"modul":"x"}`)); err == nil {
		t.Error("an unknown field is accepted")
	}
}

// FuzzParseProof: what is accepted survives a round trip.
func FuzzParseProof(f *testing.F) {
	f.Add([]byte(`{"module":"a.b/c","version":"v1.0.0","modSum":"h1:x","zipSum":"h1:y","database":"d","record":{"id":1,"text":"t"},"treeHead":"n","path":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`))
	f.Add([]byte(`{"zip":{"sha256":"aa","size":-1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseProof(data)
		if err != nil {
			return
		}
		out, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseProof(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if second, err := json.Marshal(again); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%s and then %s, %v", out, second, err)
		}
	})
}
