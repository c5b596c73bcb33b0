package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

func someManifest(t testing.TB) artifact.Manifest {
	t.Helper()
	mv := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	h1 := "h1:" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	text := []byte("example.com/m v1.0.0 " + h1 + "\nexample.com/m v1.0.0/go.mod " + h1 + "\n")
	return artifact.Manifest{Module: mv, ZipSum: h1, ModSum: h1, Record: artifact.Record{Database: "sum.example.com", ID: 0, Text: text, TreeSize: 1, Proof: tlog.RecordProof{}}}
}

func TestSpreadHead(t *testing.T) {
	man := someManifest(t)
	head, err := spreadHead(man, artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(io.MultiReader(bytes.NewReader(head), bytes.NewReader([]byte("the blob"))))
	got, k, err := readSpreadHead(r)
	if err != nil || k != artifact.Zip || got.Module != man.Module || got.ZipSum != man.ZipSum {
		t.Fatalf("%+v, %v, %v", got, k, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "the blob" {
		t.Errorf("after the head comes %q", rest)
	}
	for i := range head {
		if _, _, err := readSpreadHead(bufio.NewReader(bytes.NewReader(head[:i]))); err == nil {
			t.Errorf("%d of %d bytes are taken", i, len(head))
		}
	}
	long := binary.AppendUvarint([]byte{byte(artifact.Zip)}, maxManifest+1)
	if _, _, err := readSpreadHead(bufio.NewReader(io.MultiReader(bytes.NewReader(long), endless{}))); !errors.Is(err, artifact.ErrMalformed) {
		t.Errorf("a manifest that is too long: %v", err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Whatever stands before a blob is taken or refused, and takes no more memory than a manifest may have.
func FuzzReadSpreadHead(f *testing.F) {
	head, err := spreadHead(someManifest(f), artifact.Zip)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Add([]byte{2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		man, k, err := readSpreadHead(r)
		if err != nil {
			return
		}
		again, err := spreadHead(man, k)
		if err != nil {
			t.Fatalf("%+v cannot be written again: %v", man, err)
		}
		if m2, k2, err := readSpreadHead(bytes.NewReader(again)); err != nil || k2 != k || m2.Module != man.Module || m2.Zip != man.Zip || m2.Mod != man.Mod {
			t.Fatalf("%+v becomes %+v, %v", man, m2, err)
		}
	})
}
