package artifact

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func TestRecordSums(t *testing.T) {
	zip, mod := sum("zip"), sum("mod")
	zipLine, modLine := "example.com/hello v1.2.0 "+zip+"\n", "example.com/hello v1.2.0/go.mod "+mod+"\n"
	for _, tt := range []struct {
		name, text string
		ok         bool
	}{
		{"as the database says it", zipLine + modLine, true},
		{"other order", modLine + zipLine, true},
		{"lines of others", "example.com/other v1.2.0 h1:x\n" + zipLine + "# a note\n" + modLine + "example.com/hello v1.2.1 " + sum("x") + "\n", true},
		{"a line twice", zipLine + zipLine + modLine, true},
		{"another algorithm too", zipLine + "example.com/hello v1.2.0 h2:x\n" + modLine, true},
		{"no text", "", false},
		{"no zip line", modLine, false},
		{"no go.mod line", zipLine, false},
		{"only another version", strings.ReplaceAll(zipLine+modLine, "v1.2.0", "v1.2.1"), false},
		{"only another module", strings.ReplaceAll(zipLine+modLine, "hello", "hello2"), false},
		{"a longer path", strings.ReplaceAll(zipLine+modLine, "example", "x.example"), false},
		{"only another algorithm", strings.ReplaceAll(zipLine, "h1:", "h2:") + modLine, false},
		{"two zips", zipLine + "example.com/hello v1.2.0 " + sum("x") + "\n" + modLine, false},
		{"two go.mods", zipLine + modLine + "example.com/hello v1.2.0/go.mod " + sum("x") + "\n", false},
		{"short hash", "example.com/hello v1.2.0 h1:AAAA\n" + modLine, false},
		{"hash with other padding bits", strings.Replace(zipLine, zip[len(zip)-2:], "B=", 1) + modLine, false},
		{"a word too many", strings.Replace(zipLine, "\n", " x\n", 1) + modLine, false},
		{"a word too few", "example.com/hello v1.2.0\n" + zipLine + modLine, false},
		{"two blanks", strings.Replace(zipLine, " ", "  ", 1) + modLine, false},
		{"tab", strings.ReplaceAll(zipLine, " ", "\t") + modLine, false},
		{"carriage return", strings.ReplaceAll(zipLine+modLine, "\n", "\r\n"), false},
		{"without the last newline", strings.TrimSuffix(zipLine+modLine, "\n"), false},
		{"a blank line, as in front of a tree head", zipLine + "\n" + modLine, false},
		{"not UTF-8", zipLine + modLine + "\xff\n", false},
		{"NUL", zipLine + modLine + "\x00\n", false},
		{"too long", zipLine + modLine + strings.Repeat("#", MaxRecord) + "\n", false},
	} {
		gotZip, gotMod, err := Record{Database: "sum.golang.org", Text: []byte(tt.text)}.Sums(hello)
		if tt.ok && (err != nil || gotZip != zip || gotMod != mod) {
			t.Errorf("%s: Sums = %s, %s, %v, want %s, %s", tt.name, gotZip, gotMod, err, zip, mod)
		}
		if !tt.ok && (!errors.Is(err, ErrRefused) || gotZip != "" || gotMod != "") {
			t.Errorf("%s: Sums = %s, %s, %v, want ErrRefused", tt.name, gotZip, gotMod, err)
		}
	}
}

func FuzzRecordSums(f *testing.F) {
	f.Add(lines(hello, sum("zip"), sum("mod")))
	f.Add([]byte("example.com/hello v1.2.0 h2:x\n\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		zip, mod, err := Record{Text: text}.Sums(hello)
		if err != nil {
			if !errors.Is(err, ErrRefused) || zip != "" || mod != "" {
				t.Errorf("Sums = %q, %q, %v, want ErrRefused", zip, mod, err)
			}
			return
		}
		for _, line := range []string{"example.com/hello v1.2.0 " + zip + "\n", "example.com/hello v1.2.0/go.mod " + mod + "\n"} {
			if !bytes.HasPrefix(text, []byte(line)) && !bytes.Contains(text, []byte("\n"+line)) {
				t.Errorf("Sums = %q, %q, which %q does not say", zip, mod, text)
			}
		}
		if !validH1(zip) || !validH1(mod) {
			t.Errorf("Sums = %q, %q", zip, mod)
		}
	})
}

// testLog is a checksum database's tree in memory.
type testLog struct {
	hashes []tlog.Hash
	n      int64
}

func (l *testLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = l.hashes[x]
	}
	return out, nil
}

func (l *testLog) add(t testing.TB, text []byte) {
	t.Helper()
	h, err := tlog.StoredHashes(l.n, text, l)
	if err != nil {
		t.Fatal(err)
	}
	l.hashes = append(l.hashes, h...)
	l.n++
}

func (l *testLog) root(t testing.TB, n int64) tlog.Hash {
	t.Helper()
	h, err := tlog.TreeHash(n, l)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestRecordCheck(t *testing.T) {
	var log testLog
	for i := range 9 {
		log.add(t, lines(hello, sum(string(rune('a'+i))), sum("mod")))
	}
	root := log.root(t, 9)
	proof, err := tlog.ProveRecord(9, 7, &log)
	if err != nil {
		t.Fatal(err)
	}
	good := Record{Database: "sum.golang.org", ID: 7, Text: lines(hello, sum("h"), sum("mod")), TreeSize: 9, Proof: proof}
	if err := good.Check(root); err != nil {
		t.Fatal(err)
	}
	if good.IsZero() || !(Record{}).IsZero() {
		t.Error("IsZero is wrong")
	}
	refuse := func(name string, r Record, root tlog.Hash) {
		t.Helper()
		if err := r.Check(root); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: Check = %v, want ErrRefused", name, err)
		}
	}
	// A larger TreeSize may pass: RFC 6962 proofs have the same shape in many trees. Who checks takes the root of a head
	// that is signed for TreeSize.
	for name, change := range map[string]func(r *Record){
		"id too large":      func(r *Record) { r.ID = 9 },
		"id negative":       func(r *Record) { r.ID = -1 },
		"id of another":     func(r *Record) { r.ID = 6 },
		"tree too small":    func(r *Record) { r.TreeSize = 7 },
		"tree too large":    func(r *Record) { r.TreeSize = 1<<63 - 1 },
		"tree negative":     func(r *Record) { r.TreeSize = -9 },
		"text of another":   func(r *Record) { r.Text = lines(hello, sum("g"), sum("mod")) },
		"no text":           func(r *Record) { r.Text = nil },
		"text not of a log": func(r *Record) { r.Text = []byte("x") },
		"proof cut":         func(r *Record) { r.Proof = r.Proof[1:] },
		"proof too long":    func(r *Record) { r.Proof = append(r.Proof[:len(r.Proof):len(r.Proof)], tlog.Hash{}) },
	} {
		r := good
		change(&r)
		refuse(name, r, root)
	}
	for i := range good.Proof {
		r := good
		r.Proof = append(tlog.RecordProof{}, good.Proof...)
		r.Proof[i][5] ^= 1
		refuse("flipped bit in the proof", r, root)
	}
	for i := range good.Text {
		r := good
		r.Text = bytes.Clone(good.Text)
		r.Text[i] ^= 1
		refuse("flipped bit in the text", r, root)
	}
	refuse("older root", good, log.root(t, 8))
}

// hashesOf returns the hashes that b begins with, and flat puts them together again.
func hashesOf(b []byte) (out []tlog.Hash) {
	for ; len(b) >= tlog.HashSize; b = b[tlog.HashSize:] {
		out = append(out, tlog.Hash(b[:tlog.HashSize]))
	}
	return out
}

func flat(hashes []tlog.Hash) (out []byte) {
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

// Of a tree no proof is accepted but the true one, and with no proof a text that is not in the tree, whatever id and size
// are claimed.
func FuzzRecordCheck(f *testing.F) {
	var log testLog
	var texts []string
	for i := range 9 {
		text := lines(hello, sum(string(rune('a'+i))), sum("mod"))
		texts = append(texts, string(text))
		log.add(f, text)
	}
	root := log.root(f, 9)
	proofs := make([]tlog.RecordProof, 9)
	for id := range proofs {
		var err error
		if proofs[id], err = tlog.ProveRecord(9, int64(id), &log); err != nil {
			f.Fatal(err)
		}
		f.Add(int64(id), int64(9), []byte(texts[id]), flat(proofs[id]))
	}
	f.Add(int64(7), int64(10), []byte(texts[7]), flat(proofs[7]))
	f.Add(int64(7), int64(1<<63-1), []byte(texts[7]), flat(proofs[7]))
	f.Add(int64(7), int64(9), []byte("x\n"), flat(proofs[7]))
	f.Add(int64(8), int64(9), []byte(texts[8]), flat(proofs[7]))
	f.Fuzz(func(t *testing.T, id, size int64, text, proof []byte) {
		r := Record{Database: "sum.golang.org", ID: id, Text: text, TreeSize: size, Proof: hashesOf(proof)}
		err := r.Check(root)
		switch {
		case err != nil && !errors.Is(err, ErrRefused):
			t.Errorf("Check = %v, want ErrRefused", err)
		case err != nil && size == 9 && id >= 0 && id < 9 && string(text) == texts[id] && slices.Equal(r.Proof, proofs[id]):
			t.Errorf("the true proof of record %d: %v", id, err)
		case err == nil && !slices.Contains(texts, string(text)):
			t.Errorf("record %d of %d: text %q is accepted with the proof %x", id, size, text, proof)
		case err == nil && size == 9 && (string(text) != texts[id] || !slices.Equal(r.Proof, proofs[id])):
			t.Errorf("record %d: text %q is accepted with the proof %x", id, text, proof)
		}
	})
}
