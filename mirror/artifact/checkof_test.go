package artifact_test

import (
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// Every zip that passes the gate is one of its version, and of none whose name is like it; but one without any file, which is the same
// for all.
func TestCheckOfZips(t *testing.T) {
	zips := maps.Clone(honestZips())
	zips["made for tests"] = mirrortest.HonestZip(hello)
	for what, b := range zips {
		f := open(t, b)
		sums, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		of := func(path, version, sum string) error {
			man := artifact.Manifest{Module: module.Version{Path: path, Version: version}, ZipSum: sum, Zip: artifact.RefOf(b)}
			return artifact.CheckOf(t.Context(), f, man, artifact.Zip)
		}
		if err := of(hello.Path, hello.Version, sums.H1); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if sums.Files == 0 {
			if err := of("example.com/other", "v1.0.0", sums.H1); err != nil {
				t.Errorf("%s, of another module: %v", what, err)
			}
			if err := of(hello.Path, hello.Version, "h1:other"); !errors.Is(err, artifact.ErrRefused) {
				t.Errorf("%s, with another sum: %v", what, err)
			}
			continue
		}
		for _, v := range []module.Version{{Path: "example.com/other", Version: "v1.0.0"}, {Path: "example.com/hello/v2", Version: "v2.0.0"},
			{Path: hello.Path, Version: "v1.0.1"}, {Path: hello.Path, Version: "v1.0.0-pre"}, {Path: hello.Path, Version: "v1.0"},
			{Path: "example.com/hell", Version: "v1.0.0"}, {Path: "xample.com/hello", Version: "v1.0.0"},
			{Path: strings.Repeat("long/", 100), Version: "v1.0.0"}} {
			if err := of(v.Path, v.Version, sums.H1); !errors.Is(err, artifact.ErrRefused) {
				t.Errorf("%s, of %s: %v", what, v, err)
			}
		}
	}
	b := []byte("no zip at all, which no gate lets in, and which is none of any version")
	man := artifact.Manifest{Module: hello, Zip: artifact.RefOf(b)}
	if err := artifact.CheckOf(t.Context(), open(t, b), man, artifact.Zip); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("no zip: %v", err)
	}
	if err := artifact.CheckOf(t.Context(), broken{open(t, mirrortest.HonestZip(hello))}, man, artifact.Zip); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

// broken cannot be read.
type broken struct{ artifact.ZipFile }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// The go.sum hash of a go.mod is known from its digest.
func TestCheckOfGoMods(t *testing.T) {
	mod := []byte("module example.com/hello\n")
	man := artifact.Manifest{Module: hello, ModSum: artifact.ModSum(mod), Mod: artifact.RefOf(mod)}
	if err := artifact.CheckOf(t.Context(), nil, man, artifact.Mod); err != nil {
		t.Error(err)
	}
	man.Mod = artifact.RefOf([]byte("module example.com/other\n"))
	if err := artifact.CheckOf(t.Context(), nil, man, artifact.Mod); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("another go.mod: %v", err)
	}
}
