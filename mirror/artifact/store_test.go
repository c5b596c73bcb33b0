package artifact

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
)

func openTestStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// put stores b, or fails the test.
func put(t *testing.T, s *Store, b []byte) Ref {
	t.Helper()
	ref, err := tryPut(s, b)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func tryPut(s *Store, b []byte) (Ref, error) {
	d, err := s.Create(MaxZip)
	if err != nil {
		return Ref{}, err
	}
	defer d.Discard()
	if _, err := io.Copy(d, bytes.NewReader(b)); err != nil {
		return Ref{}, err
	}
	return d.Commit()
}

// get reads the bytes of r through the store.
func get(s *Store, r Ref) ([]byte, error) {
	f, err := s.Open(r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func TestStoreKeepsBytesOverRestart(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	want := []byte("some zip")
	if _, err := s.Open(RefOf(want)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open before Commit: %v, want fs.ErrNotExist", err)
	}
	ref := put(t, s, want)
	if ref != RefOf(want) {
		t.Errorf("Commit = %v, want %v", ref, RefOf(want))
	}
	for range 2 {
		if got, err := get(s, ref); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Open: %q, %v", got, err)
		}
		if err := s.Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
		s.Close()
		s = openTestStore(t, dir)
	}
}
