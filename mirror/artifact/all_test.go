package artifact

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAllYieldsBlobsOnly(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	want := make(map[Ref]bool)
	for i := range 300 {
		want[put(t, s, []byte(strings.Repeat("x", i)))] = true
	}
	misplaced := DigestOf([]byte("x")).String() // which is in its place, too
	strays := []string{
		"blobs/sha256/00/README", "blobs/sha256/00/" + strings.ToUpper(misplaced), "blobs/sha256/00/" + misplaced,
		"blobs/sha256/00/" + strings.Repeat("0", 63) + "1", "blobs/sha256/README", "blobs/sha256/0", "blobs/sha256/AB",
	}
	for i, name := range strays {
		err := s.root.WriteFile(name, nil, 0o600)
		if i == 3 {
			err = errors.Join(s.root.Remove(name), s.root.Mkdir(name, 0o700))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var last string
	var errs []error
	for ref, err := range s.All() {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !want[ref] || ref.Digest.String() <= last {
			t.Errorf("All yields %v after %s", ref, last)
		}
		delete(want, ref)
		last = ref.Digest.String()
	}
	if len(want) > 0 {
		t.Errorf("All misses %d blobs", len(want))
	}
	for _, name := range strays {
		if !slices.ContainsFunc(errs, func(err error) bool {
			return errors.Is(err, ErrDamaged) && strings.Contains(err.Error(), `"`+name+`"`)
		}) {
			t.Errorf("All does not report the stray %s: %v", name, errs)
		}
		if err := s.root.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if len(errs) != len(strays) {
		t.Errorf("All reports %d errors, want %d: %v", len(errs), len(strays), errs)
	}
	n := 0
	for range s.All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("All went on for %d blobs", n)
	}
	bad := filepath.Join(s.dir, blobDir, "07")
	if err := errors.Join(os.RemoveAll(bad), os.WriteFile(bad, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	errs = nil
	for _, err := range s.All() {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) != 1 || !errors.Is(errs[0], ErrUnavailable) || errors.Is(errs[0], fs.ErrNotExist) {
		t.Errorf("All with a file for a directory: %v, want one ErrUnavailable", errs)
	}
}
