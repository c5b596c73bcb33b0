package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// tree returns what a directory holds, with everything that a write would change.
func tree(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprint(name, fi.Mode(), fi.Size(), fi.ModTime().UnixNano()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Looking at a data directory leaves it as it is, with its leftovers, whatever is asked of the store.
func TestReadOnlyStoreWritesNothing(t *testing.T) {
	for name, fill := range map[string]func(*Store) error{
		"a store in use": func(s *Store) error {
			return errors.Join(
				s.root.WriteFile(tmpDir+"/draft-leftover", []byte("x"), 0o600),
				s.root.WriteFile(quarantineDir+"/"+DigestOf(nil).String()+".json", nil, 0o600))
		},
		"missing directories": func(s *Store) error {
			return errors.Join(s.root.RemoveAll(tmpDir), s.root.RemoveAll(quarantineDir))
		},
		"nothing": func(s *Store) error {
			return errors.Join(s.root.RemoveAll("blobs"), s.root.RemoveAll(tmpDir), s.root.RemoveAll(quarantineDir))
		},
	} {
		dir := t.TempDir()
		w := openTestStore(t, dir)
		ref := put(t, w, []byte("some zip"))
		if err := fill(w); err != nil {
			t.Fatal(err)
		}
		w.Close()
		before := tree(t, dir)

		s, err := OpenStoreReadOnly(dir)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, create := s.Create(10)
		for _, err := range []error{create, s.Remove(ref.Digest), s.Sweep(), s.Err()} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: a write: %v, want ErrUnavailable", name, err)
			}
		}
		if _, err := s.Quarantined(); err != nil {
			t.Errorf("%s: Quarantined: %v", name, err)
		}
		var held []Ref
		for r, err := range s.All() {
			if err != nil {
				t.Errorf("%s: All: %v", name, err)
			}
			held = append(held, r)
		}
		if want := name != "nothing"; want != slices.Contains(held, ref) || want != s.Has(ref) || want != (s.Verify(t.Context(), ref) == nil) {
			t.Errorf("%s: All yields %v, Verify: %v", name, held, s.Verify(t.Context(), ref))
		}
		s.Close()
		if after := tree(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: the directory changed:\n%q\n%q", name, before, after)
		}
	}
}

func TestReadOnlyStoreNeedsItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	if s, err := OpenStoreReadOnly(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenStoreReadOnly = %v, %v, want fs.ErrNotExist", s, err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}
