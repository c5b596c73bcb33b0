package mirrortest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"modmirror/mirror/artifact"
)

var hostile = module.Version{Path: "example.com/hostile", Version: "v1.0.0"}

func checkZip(t *testing.T, m module.Version, b []byte) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := modzip.CheckZip(m, file)
	return err
}

func TestHonestZipPassesAllChecks(t *testing.T) {
	b := HonestZip(hostile)
	if err := checkZip(t, hostile, b); err != nil {
		t.Error(err)
	}
	if _, err := hashZip(b); err != nil {
		t.Error(err)
	}
	r := Repack(b)
	if bytes.Equal(r, b) || ZipSum(r) != ZipSum(b) || checkZip(t, hostile, r) != nil {
		t.Error("Repack does not keep the sum, or keeps the bytes")
	}
}

// Every hostile zip is wrong in its own way only: those that keep the sum pass both of x/mod's checks, of the others
// each fails one of them or has another sum than the honest zip.
func TestHostileZipsAreWhatTheySay(t *testing.T) {
	want := ZipSum(HonestZip(hostile))
	seen := make(map[string]string)
	for _, h := range HostileZips(hostile) {
		sum, err := hashZip(h.Zip)
		if same := err == nil && sum == want; same != h.SameSum {
			t.Errorf("%s: same sum is %v (%v), want %v", h.Name, same, err, h.SameSum)
		}
		check := checkZip(t, hostile, h.Zip)
		if h.SameSum && check != nil {
			t.Errorf("%s: CheckZip refuses it already: %v", h.Name, check)
		}
		if !h.SameSum && check == nil && err == nil {
			t.Errorf("%s: CheckZip and HashZip both accept it", h.Name)
		}
		if bytes.Equal(h.Zip, HonestZip(hostile)) {
			t.Errorf("%s: is the honest zip", h.Name)
		}
		if other, ok := seen[string(h.Zip)]; ok {
			t.Errorf("%s: is the same as %s", h.Name, other)
		}
		seen[string(h.Zip)] = h.Name
	}
}

func TestBombDeclaresItsSize(t *testing.T) {
	b := Bomb(hostile, 600<<20)
	if len(b) > 2<<20 {
		t.Errorf("bomb of %d bytes", len(b))
	}
	if checkZip(t, hostile, b) == nil {
		t.Error("CheckZip accepts a bomb of 600 MiB")
	}
	if b := Bomb(hostile, 3<<20); checkZip(t, hostile, b) != nil || ZipSum(b) == ZipSum(nil) {
		t.Error("a small bomb is malformed")
	}
	if b := ManyEntries(hostile, 1000); checkZip(t, hostile, b) != nil {
		t.Error("a zip with many entries is malformed")
	}
}

func TestSumsOfHostileZip(t *testing.T) {
	u := New()
	u.AddZip(hostile, []byte("no zip"), HonestMod(hostile), nil)
	zip, mod := u.Sums(hostile)
	if zip != "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" || mod != ModSum(u.Artifact(hostile, artifact.Mod)) {
		t.Errorf("Sums = %s, %s", zip, mod)
	}
}
