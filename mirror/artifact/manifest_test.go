package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// sum returns a well-formed h1 that stands for s.
func sum(s string) string { return ModSum([]byte(s)) }

// lines returns the text of a record of m.
func lines(m module.Version, zip, mod string) []byte {
	return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zip, m.Path, m.Version, mod)
}

func testManifest() Manifest {
	return Manifest{
		Module: hello,
		Record: Record{
			Database: "sum.golang.org",
			ID:       7,
			Text:     lines(hello, sum("zip"), sum("mod")),
			TreeSize: 9,
			Proof:    tlog.RecordProof{{1}, {2}, {3}},
		},
		ZipSum: sum("zip"),
		ModSum: sum("mod"),
		Info:   RefOf([]byte("info")),
		Mod:    RefOf([]byte("mod")),
		Zip:    RefOf([]byte("zip")),
	}
}

func encode(t testing.TB, m Manifest) []byte {
	t.Helper()
	b, err := m.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewManifest(t *testing.T) {
	want := testManifest()
	m, err := NewManifest(hello, want.Record)
	if err != nil || m.ZipSum != want.ZipSum || m.ModSum != want.ModSum || !m.Info.IsZero() || !m.Mod.IsZero() || !m.Zip.IsZero() {
		t.Errorf("NewManifest = %+v, %v", m, err)
	}
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := NewManifest(module.Version{Path: hello.Path, Version: "v1.2.1"}, want.Record); !errors.Is(err, ErrRefused) {
		t.Errorf("NewManifest of a version that the record lacks: %v, want ErrRefused", err)
	}
}

func TestValidate(t *testing.T) {
	if err := testManifest().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(m *Manifest){
		"path":                   func(m *Manifest) { m.Module.Path = "no dots" },
		"version":                func(m *Manifest) { m.Module.Version = "master" },
		"version not canonical":  func(m *Manifest) { m.Module.Version = "v1.2.0+meta" },
		"version of other major": func(m *Manifest) { m.Module.Version = "v2.0.0" },
		"zip sum":                func(m *Manifest) { m.ZipSum = sum("other") },
		"go.mod sum":             func(m *Manifest) { m.ModSum = sum("other") },
		"sums exchanged":         func(m *Manifest) { m.ZipSum, m.ModSum = m.ModSum, m.ZipSum },
		"no record":              func(m *Manifest) { m.Record = Record{} },
		"large info":             func(m *Manifest) { m.Info.Size = MaxInfo + 1 },
		"large go.mod":           func(m *Manifest) { m.Mod.Size = MaxMod + 1 },
		"large zip":              func(m *Manifest) { m.Zip.Size = MaxZip + 1 },
		"negative size":          func(m *Manifest) { m.Zip.Size = -1 },
	} {
		m := testManifest()
		change(&m)
		if err := m.Validate(); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("wrong %s: Validate = %v", name, err)
		}
	}
}

func TestMergeAddsOnly(t *testing.T) {
	full := testManifest()
	empty := full
	empty.Info, empty.Mod, empty.Zip = Ref{}, Ref{}, Ref{}
	other := full
	other.Info, other.Zip = RefOf([]byte("other info")), RefOf([]byte("other zip"))
	otherRecord := full
	otherRecord.Record.TreeSize++
	for _, tt := range []struct {
		name    string
		m, n    Manifest
		want    Manifest
		refused bool
	}{
		{"all to nothing", empty, full, full, false},
		{"nothing to all", full, empty, full, false},
		{"itself", full, full, full, false},
		{"other info and zip with the same sums", full, other, full, false},
		{"other proof of the same", full, otherRecord, full, false},
		{"other go.mod bytes", full, Manifest{Module: hello, ZipSum: full.ZipSum, ModSum: full.ModSum, Mod: RefOf([]byte("x"))}, full, true},
		{"other zip sum", full, Manifest{Module: hello, ZipSum: sum("x"), ModSum: full.ModSum}, full, true},
		{"other go.mod sum", full, Manifest{Module: hello, ZipSum: full.ZipSum, ModSum: sum("x")}, full, true},
	} {
		got, err := tt.m.Merge(tt.n)
		if !reflect.DeepEqual(got, tt.want) || errors.Is(err, ErrConflict) != tt.refused || (err != nil) != tt.refused {
			t.Errorf("%s: Merge = %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
	}
	if got, err := full.Merge(Manifest{Module: module.Version{Path: "example.com/x", Version: "v1.2.0"}}); err == nil || !reflect.DeepEqual(got, full) {
		t.Errorf("Merge of another module = %+v, %v", got, err)
	}
}

// drawManifest draws one of few manifests of the same module, so that they often meet and sometimes contradict.
func drawManifest(t *rapid.T, name string) Manifest {
	ref := func(part string) Ref {
		return rapid.SampledFrom([]Ref{{}, RefOf([]byte(part)), RefOf([]byte(part + "2"))}).Draw(t, name+" "+part)
	}
	m := testManifest()
	m.Info, m.Mod, m.Zip = ref("info"), ref("mod"), ref("zip")
	if rapid.IntRange(0, 9).Draw(t, name+" sum") == 0 {
		m.ZipSum = sum("other")
	}
	return m
}

func TestMergeIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n := drawManifest(t, "m"), drawManifest(t, "n")
		got, err := m.Merge(n)
		if err != nil && !reflect.DeepEqual(got, m) {
			t.Fatalf("refused Merge changes %+v to %+v", m, got)
		}
		for _, k := range []Kind{Info, Mod, Zip} {
			if r := m.Ref(k); !r.IsZero() && got.Ref(k) != r {
				t.Fatalf("Merge changes the %v from %v to %v", k, r, got.Ref(k))
			}
			if r := got.Ref(k); r != m.Ref(k) && r != n.Ref(k) {
				t.Fatalf("Merge invents the %v %v", k, r)
			}
		}
		if again, err2 := got.Merge(n); !reflect.DeepEqual(again, got) || (err2 == nil) != (err == nil) {
			t.Fatalf("a second Merge makes %+v of %+v (%v, %v)", again, got, err, err2)
		}
	})
}

func TestManifestEncoding(t *testing.T) {
	m := testManifest()
	parts := m
	parts.Info, parts.Zip, parts.Record.Proof = Ref{}, Ref{}, nil
	for _, want := range []Manifest{m, parts, {}} {
		b := encode(t, want)
		var got Manifest
		if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decode(encode(%+v)) = %+v, %v", want, got, err)
		}
		for i := range b {
			if err := new(Manifest).UnmarshalBinary(b[:i]); err == nil {
				t.Errorf("decode of the first %d of %d bytes succeeds", i, len(b))
			}
		}
		if err := new(Manifest).UnmarshalBinary(append(b, 0)); err == nil {
			t.Error("decode with a byte too many succeeds")
		}
	}
	if b := encode(t, m); !bytes.Equal(b[:3], []byte{1, 17, 'e'}) || bytes.Count(b, []byte(m.Zip.Digest[:])) != 1 {
		t.Errorf("encoding begins with %q", b[:3])
	}
	prefix := []byte("prefix")
	if b, err := m.AppendBinary(prefix); err != nil || !bytes.Equal(b, append(prefix, encode(t, m)...)) {
		t.Errorf("AppendBinary does not append: %v", err)
	}
}

func TestManifestEncodingRefuses(t *testing.T) {
	for name, change := range map[string]func(m *Manifest){
		"negative id":        func(m *Manifest) { m.Record.ID = -1 },
		"negative tree size": func(m *Manifest) { m.Record.TreeSize = -1 },
		"long proof":         func(m *Manifest) { m.Record.Proof = make(tlog.RecordProof, maxProof+1) },
		"negative size":      func(m *Manifest) { m.Mod.Size = -1 },
	} {
		m := testManifest()
		change(&m)
		if _, err := m.AppendBinary(nil); err == nil {
			t.Errorf("%s: AppendBinary succeeds", name)
		}
	}
	good := encode(t, testManifest())
	path := len("\x01\x11") + len(hello.Path)
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"other format":       append([]byte{2}, good[1:]...),
		"length in two ways": append([]byte{1, 0x80 | 17, 0}, good[2:]...),
		"huge length":        append([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, good[2:]...),
		"length over 64 bit": append([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, good[2:]...),
		"tag of a ref":       append(good[:len(good)-34:len(good)-34], append([]byte{2}, good[len(good)-33:]...)...),
		"cut in the version": good[:path+2],
	} {
		m := Manifest{ZipSum: "untouched"}
		if err := m.UnmarshalBinary(b); err == nil || m.ZipSum != "untouched" {
			t.Errorf("%s: decode = %+v, %v", name, m, err)
		}
	}
	if err := new(Manifest).UnmarshalBinary(append([]byte{2}, good[1:]...)); !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a newer format is not named: %v", err)
	}
}

// The encoding is part of what nodes of different versions must agree on: these bytes must never change.
func TestManifestEncodingIsFixed(t *testing.T) {
	if got, want := DigestOf(encode(t, testManifest())).String(), "c65a49597f8d4e49e325327104b13a8d7e642ae4c5943caaac298151849214f1"; got != want {
		t.Errorf("the digest of the encoding is %s, want %s", got, want)
	}
}

func FuzzManifest(f *testing.F) {
	b, _ := testManifest().AppendBinary(nil)
	f.Add(b)
	b, _ = Manifest{}.AppendBinary(nil)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Manifest
		if err := m.UnmarshalBinary(b); err != nil {
			return
		}
		if again, err := m.AppendBinary(nil); err != nil || !bytes.Equal(again, b) {
			t.Errorf("encode(decode(%x)) = %x, %v", b, again, err)
		}
		var n Manifest
		if err := n.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(n, m) {
			t.Errorf("decode twice: %+v, %v, then %+v", m, err, n)
		}
		_ = m.Validate()
	})
}
