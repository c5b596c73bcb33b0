package artifact

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// Bytes that are cut off after they were compared, and before they get their place, are told as damaged, and stay until somebody drops
// them: they do not count as proven.
func TestProveOfWhatIsCutOff(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, refs := packOf(t, s, 2)
	d, err := s.Create(100)
	if err == nil {
		_, err = d.Write([]byte("a blob of its own"))
	}
	if err != nil {
		t.Fatal(err)
	}
	refs = append(refs, d.Ref())
	if err := errors.Join(append(s.Keep([]*Draft{d}), p.Keep())...); err != nil {
		t.Fatal(err)
	}
	for i, file := range map[int]string{1: packs(t, dir)[0], 2: dir + "/" + unprovenName(refs[2].Digest)} {
		f, err := s.OpenUnproven(t.Context(), refs[i])
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		fi, err := os.Stat(file)
		if err == nil {
			err = os.Truncate(file, fi.Size()-1)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Prove(refs[i : i+1]); i == 1 && !errors.Is(err, ErrDamaged) || s.Has(refs[i]) {
			t.Errorf("blob %d: Prove = %v, Has %v", i, err, s.Has(refs[i]))
		}
		if _, err := s.OpenUnproven(t.Context(), refs[i]); !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("blob %d: OpenUnproven = %v", i, err)
		}
	}
	if n, _ := s.Unproven(); n != 3 || !s.HasUnproven(refs[0]) {
		t.Errorf("%d are unproven", n)
	}
	if err := errors.Join(s.DropUnproven(refs[1].Digest), s.DropUnproven(refs[2].Digest), s.Prove(refs[:1])); err != nil || !s.Has(refs[0]) {
		t.Errorf("%v, Has %v", err, s.Has(refs[0]))
	}
	if n, size := s.Unproven(); n != 0 || size != 0 || len(packs(t, dir)) != 0 {
		t.Errorf("%d blobs of %d bytes are left, in %v", n, size, packs(t, dir))
	}
}

// A pack that came from another system, such as one that has files in memory, is proven all the same.
func TestPackWithoutMemoryFiles(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, refs := packOf(t, s, 3)
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	s.memoryFile = func([]byte) (*os.File, error) { return nil, errors.ErrUnsupported }
	for i, r := range refs {
		f, err := s.OpenUnproven(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(f.Name())
		if f.Close(); err != nil || RefOf(b) != r || s.Has(r) || !s.HasUnproven(r) {
			t.Errorf("blob %d: %d bytes, %v", i, len(b), err)
		}
	}
	if n, _ := s.Unproven(); n != len(refs) {
		t.Errorf("%d are unproven", n)
	}
	if err := s.Prove(refs); err != nil || !s.Has(refs[0]) || !s.Has(refs[2]) {
		t.Errorf("Prove = %v", err)
	}
	if n, size := s.Unproven(); n != 0 || size != 0 || len(packs(t, dir)) != 0 {
		t.Errorf("%d blobs of %d bytes are left, in %v", n, size, packs(t, dir))
	}
}

// Who only looks at the directory of a mirror that runs may be told of a pack that is gone when it is opened.
func TestPackGoesMeanwhile(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, refs := packOf(t, s, 2)
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gone", dir+"/"+unprovenDir+"/a"+packSuffix); err != nil { // as a file that goes at that moment
		t.Fatal(err)
	}
	again, err := OpenStoreReadOnly(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if n, _ := again.Unproven(); n != len(refs) || !again.HasUnproven(refs[0]) {
		t.Errorf("%d are unproven", n)
	}
}
