package artifact

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
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
	dir, s, refs := keptPack(t, 3)
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

// A pack that cannot be opened, or is gone when it is, as one of a mirror that runs may be for who only looks, keeps nothing else from
// being here.
func TestPackCannotBeOpened(t *testing.T) {
	dir, s, refs := keptPack(t, 2)
	for name, to := range map[string]string{"a": "gone", "b": "/etc/passwd", "c": "."} {
		if err := os.Symlink(to, dir+"/"+unprovenDir+"/"+name+packSuffix); err != nil {
			t.Fatal(err)
		}
	}
	look := func(again *Store, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if n, _ := again.Unproven(); n != len(refs) || !again.HasUnproven(refs[0]) {
			t.Errorf("%d are unproven", n)
		}
	}
	look(OpenStoreReadOnly(dir))
	s.Close()
	look(OpenStore(dir))
}

// Blobs that come, in packs and alone, are proven, disproved and dropped at the same time, in any order, end no writing, and none
// counts for ever.
func TestUnprovenAtTheSameTime(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var refs []Ref
	for i := range 12 {
		refs = append(refs, RefOf(smallBlob(i)))
	}
	pack := func() error {
		p := s.NewPack()
		for _, i := range rand.Perm(len(refs))[:3] {
			if err := p.Add(refs[i], smallBlob(i)); err != nil {
				return err
			}
		}
		return p.Keep()
	}
	alone := func(i int) error {
		d, err := s.Create(refs[i].Size)
		if err == nil {
			_, err = d.Write(smallBlob(i))
		}
		if err != nil {
			return err
		}
		return s.Keep([]*Draft{d})[0]
	}
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for range 100 {
				i := rand.IntN(len(refs))
				r := refs[i]
				errs := map[string]error{}
				switch rand.IntN(6) {
				case 0:
					errs["a pack"] = pack()
				case 1:
					errs["alone"] = alone(i)
				case 2:
					if err := s.Prove([]Ref{r, refs[0]}); s.Err() != nil {
						errs["Prove"] = err
					}
				case 3:
					errs["DropUnproven"] = s.DropUnproven(r.Digest)
				case 4:
					if f, err := s.OpenUnproven(t.Context(), r); err == nil {
						f.Close()
					}
				case 5:
					errs["Disprove"], errs["Remove"] = s.Disprove(r, "another h1"), s.Remove(r.Digest)
				}
				for what, err := range errs {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
		})
	}
	all.Wait()
	for _, r := range refs {
		if err := s.DropUnproven(r.Digest); err != nil {
			t.Error(err)
		}
	}
	if n, size := s.Unproven(); n != 0 || size != 0 || len(packs(t, dir)) != 0 {
		t.Errorf("%d blobs of %d bytes are left, in %v", n, size, packs(t, dir))
	}
}
