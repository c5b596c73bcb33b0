package peer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken().String())
	f.Add(tokenMark + ".." + tokenSum(tokenMark+"."))
	f.Add(tokenMark + ".AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8.cce781a3")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err == nil && tok.String() != s {
			t.Errorf("ParseToken(%q) prints as %q", s, tok)
		}
		if err != nil && tok != (Token{}) {
			t.Errorf("ParseToken(%q) returns a token with an error", s)
		}
		// The checksum keeps the fuzzer out, so it gets in behind it too.
		body := tokenMark + "." + s
		if tok, err := ParseToken(body + "." + tokenSum(body)); err == nil && !strings.HasPrefix(tok.String(), body+".") {
			t.Errorf("the secret %q prints as %q", s, tok)
		}
	})
}

var helloForTests = Hello{Cluster: "C", Node: "NODE1", Name: "one", Boot: "B1", Starts: 3, Address: "h:1", Zone: "z", Role: "voter", Version: "v1"}

func FuzzHello(f *testing.F) {
	f.Add(helloForTests.header())
	f.Add(Hello{Node: "n", Boot: "b"}.header())
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHeader(s)
		if err != nil {
			return
		}
		if err := h.check(); err != nil {
			t.Errorf("parseHeader lets through what check does not: %v", err)
		}
		if again, err := parseHeader(h.header()); err != nil || again != h {
			t.Errorf("%+v comes back as %+v, %v", h, again, err)
		}
		if _, err := (frame{Hello: h}).encode(); err != nil {
			t.Errorf("a hello that is taken does not fit into a frame: %v", err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, fr := range []frame{{To: "n2", Hello: helloForTests}, {Hello: helloForTests, Refused: Refuse(Removed, "go")}, {}} {
		b, err := fr.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, "raft"...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		fr, err := readFrame(r)
		if err != nil {
			return
		}
		used := len(b) - r.Len()
		if want := 4 + int(b[2])<<8 + int(b[3]); used != want {
			t.Errorf("readFrame has read %d bytes of a frame of %d", used, want)
		}
		out, err := fr.encode()
		if err != nil {
			t.Fatalf("a frame that was read cannot be written: %v", err)
		}
		again, err := readFrame(bytes.NewReader(out))
		if err != nil || again.To != fr.To || again.Hello != fr.Hello || (again.Refused == nil) != (fr.Refused == nil) || fr.Refused != nil && *again.Refused != *fr.Refused {
			t.Errorf("%+v comes back as %+v, %v", fr, again, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	r := record{1, "n2", stateAccepted, Proposal{"C", 3, []Member{{ID: "n1", Address: "a:1"}, {ID: "n2", Name: "two", Address: "b:1", Zone: "z"}, {ID: "n3", Address: "c:1"}}}}
	f.Add(r.encode())
	r.State = stateFormed
	f.Add(r.encode())
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.encode(), b) {
			t.Error("a file is read that encode does not write")
		}
		if !r.Proposal.has(r.Node) || r.Proposal.check() != nil {
			t.Errorf("%+v makes no sense", r)
		}
	})
}

func FuzzFormState(f *testing.F) {
	p := Proposal{"C", 1, []Member{{ID: "n1", Address: "a:1"}}}
	b, _ := json.Marshal(formState{Hello: helloForTests, Ready: true, Expect: 3, Sees: []string{"a"}, Proposal: &p, Leader: &p.Servers[0]})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseFormState(b)
		if err != nil {
			return
		}
		if st.Formed && st.Proposal == nil {
			t.Error("formed without a proposal")
		}
		b2, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseFormState(b2); err != nil {
			t.Errorf("%s comes back as %v", b2, err)
		}
	})
}

func FuzzSeed(f *testing.F) {
	for _, s := range []string{"a:1", "a", "[::1]:5", "::1", "dns:a", "dns:a:7", "dns:[::1]:7", "srv:_m._tcp.a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseSeed(s)
		if err != nil {
			return
		}
		if again, err := parseSeed(e.String()); err != nil || again != e {
			t.Errorf("%q is %+v, prints as %q, which is %+v, %v", s, e, e, again, err)
		}
	})
}

// The bytes in the package's doc.
func TestFrameBytes(t *testing.T) {
	fr := frame{To: "NODE2", Hello: Hello{Cluster: "C", Node: "NODE1", Boot: "B1"}}
	b, err := fr.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(b[:4])+" "+string(b[4:]), `00000041 {"to":"NODE2","hello":{"cluster":"C","node":"NODE1","boot":"B1"}}`; got != want {
		t.Errorf("the frame is %s, want %s", got, want)
	}
	if got, want := fr.Hello.header(), "eyJjbHVzdGVyIjoiQyIsIm5vZGUiOiJOT0RFMSIsImJvb3QiOiJCMSJ9"; got != want {
		t.Errorf("the header is %s, want %s", got, want)
	}
}
