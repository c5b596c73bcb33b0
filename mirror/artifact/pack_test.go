package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func smallBlob(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "blob %d\n", i), 100*i+1) }

// packOf is a pack as a pull in bulk has it.
func packOf(t *testing.T, s *Store, count int) (p *Pack, refs []Ref) {
	t.Helper()
	p = s.NewPack()
	for i := range count {
		b := smallBlob(i)
		refs = append(refs, RefOf(b))
		if err := p.Add(refs[i], b); err != nil {
			t.Fatal(err)
		}
	}
	return p, refs
}

// keptPack returns a store that has a pack.
func keptPack(t *testing.T, count int) (dir string, s *Store, refs []Ref) {
	t.Helper()
	dir = t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	p, refs := packOf(t, s, count)
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	return dir, s, refs
}

// packs returns the files of packs in a data directory.
func packs(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, unprovenDir, "*"+packSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What is in a pack is here, and is nothing that may be served, until it is proven; also for the next process. The pack goes with the
// last of them.
func TestPack(t *testing.T) {
	dir, s, refs := keptPack(t, 9)
	reopen := func() {
		t.Helper()
		err := s.Close()
		if err == nil {
			s, err = OpenStore(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func(proven int) {
		t.Helper()
		total := int64(0)
		for i, r := range refs {
			if s.Has(r) != (i < proven) || s.HasUnproven(r) == s.Has(r) || (s.Durable(r) == nil) != s.Has(r) {
				t.Errorf("blob %d: Has %v, HasUnproven %v, Durable %v", i, s.Has(r), s.HasUnproven(r), s.Durable(r))
			}
			if i < proven {
				if err := s.Verify(t.Context(), r); err != nil {
					t.Error(err)
				}
				continue
			}
			total += r.Size
			if _, err := s.Open(r); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open of what is unproven: %v", err)
			}
			f, err := s.OpenUnproven(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			again, err := os.ReadFile(f.Name()) // as CheckZip does
			if err != nil || !bytes.Equal(again, smallBlob(i)) {
				t.Errorf("blob %d: %d bytes, %v", i, len(again), err)
			}
			f.Close()
		}
		if n, size := s.Unproven(); n != len(refs)-proven || size != total || len(s.UnprovenDigests()) != n {
			t.Errorf("Unproven = %d, %d; want %d, %d", n, size, len(refs)-proven, total)
		}
	}
	look(0)
	reopen()
	look(0)
	if err := s.Prove(append(refs[:5:5], RefOf([]byte("not here")))); err != nil {
		t.Fatal(err)
	}
	look(5)
	reopen()
	look(5)
	if len(packs(t, dir)) != 1 {
		t.Errorf("packs: %v", packs(t, dir))
	}
	if err := s.Prove(refs); err != nil {
		t.Fatal(err)
	}
	look(9)
	if len(packs(t, dir)) > 0 {
		t.Errorf("what is proven is still in %v", packs(t, dir))
	}
	s.Close()
}

// A pack of which all is among the blobs, which its process had no time to remove, goes when the store is opened, after the names of the
// blobs are durable.
func TestPackIsOver(t *testing.T) {
	dir, s, refs := keptPack(t, 3)
	for i := range refs {
		put(t, s, smallBlob(i))
	}
	s.Close()
	synced := map[string]bool{}
	s, err := OpenStoreOn(dir, func(root *os.Root) Disk { return namesSynced{rootDisk{root}, synced} })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, size := s.Unproven(); n != 0 || size != 0 || len(packs(t, dir)) != 0 {
		t.Errorf("%d blobs of %d bytes in %v", n, size, packs(t, dir))
	}
	for _, r := range refs {
		if dir := filepath.Dir(blobName(r.Digest)); !synced[dir] {
			t.Errorf("%s is not fsynced", dir)
		}
	}
}

// Other bytes than those that are asked for do not get into a pack, and do it no harm.
func TestPackRefuses(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, refs := packOf(t, s, 2)
	for _, r := range []Ref{RefOf([]byte("other")), {RefOf([]byte("bytes")).Digest, 4}} {
		if err := p.Add(r, []byte("bytes")); !errors.Is(err, ErrRefused) {
			t.Errorf("Add = %v", err)
		}
	}
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Unproven(); n != 2 {
		t.Errorf("%d are kept", n)
	}
	for _, r := range refs {
		f, err := s.OpenUnproven(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := s.NewPack().Keep(); err != nil {
		t.Errorf("Keep of nothing: %v", err)
	}
	if err := errors.Join(p.Add(refs[0], smallBlob(0)), p.Keep()); !errors.Is(err, fs.ErrClosed) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Add and Keep after the end: %v", err)
	}
	if CanPack(MaxPacked+1) || !CanPack(MaxPacked) {
		t.Error("what is too large can be packed, or what is not cannot")
	}
}

// When Keep has said that bytes are here, they are after any loss of power; and what has the name of a blob, proven or not, is whole
// after any loss of power at any moment.
func TestPackSurvivesPower(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for budget, over := 1, false; !over; budget++ {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			p, refs := packOf(t, s, 4)
			d.note(func() { d.budget = d.steps + budget })
			kept := p.Keep()
			proved := s.Prove(refs[:2])
			if kept == nil && proved == nil {
				proved = s.Prove(refs[2:])
			}
			over = kept == nil && proved == nil && s.Err() == nil
			d.cut(t, undo)
			s.Close()
			wholeAfterPower(t, dir, fmt.Sprintf("power lost before step %d, undo %v", budget, undo), refs,
				func(int) bool { return kept == nil }, func(int) bool { return over })
		}
	}
}

// A fault of the disk ends writing, a full one fails what did not fit; nothing that failed is here.
func TestPackFails(t *testing.T) {
	for _, op := range []string{"write", "fsync", "rename", "syncdir", "mkdir"} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			p, _ := packOf(t, s, 3)
			d.note(func() { d.fail = failing(op, cause) })
			err := p.Keep()
			d.note(func() { d.fail = nil })
			if n, _ := s.Unproven(); err == nil || n != 0 {
				t.Errorf("%s fails with %v: Keep = %v, %d are here", op, cause, err, n)
			}
			if latched := s.Err() != nil; latched != (cause == syscall.EIO || op == "syncdir") {
				t.Errorf("%s fails with %v: Err = %v", op, cause, s.Err())
			}
		}
	}
}

// What a full disk does not take is not here, and says so at once.
func TestPackOnAFullDisk(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	d.note(func() { d.fail = failing("create", syscall.ENOSPC) })
	p := s.NewPack()
	for range 2 {
		if err := p.Add(RefOf([]byte("a")), []byte("a")); !errors.Is(err, ErrNoSpace) {
			t.Errorf("Add = %v", err)
		}
	}
	if err := p.Keep(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Keep = %v", err)
	}
}

// What is proven and cannot get a file of its own is read where it is, and only that, and only while it is right.
func TestPackCannotBeUnpacked(t *testing.T) {
	for name, fail := range map[string]func(s *Store, d *unsafeDisk){
		"a full disk":    func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("write", syscall.ENOSPC) }) },
		"a broken disk":  func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("rename", syscall.EIO) }) },
		"writing is off": func(s *Store, _ *unsafeDisk) { s.StopWrites(errors.New("broken")) },
	} {
		dir := t.TempDir()
		s, d := openUnsafe(t, dir)
		p, refs := packOf(t, s, 4)
		if err := p.Keep(); err != nil {
			t.Fatal(err)
		}
		fail(s, d)
		if err := s.Prove(refs[:3]); err == nil {
			t.Errorf("%s: Prove passes", name)
		}
		for i, r := range refs {
			if s.Has(r) { // one that fits into a block that is there
				continue
			}
			f, err := s.Open(r)
			if (err == nil) != (i < 3) || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: Open of blob %d: %v", name, i, err)
			}
			if err == nil {
				b, err := io.ReadAll(f)
				if fi, serr := f.Stat(); err != nil || serr != nil || fi.Size() != r.Size || !bytes.Equal(b, smallBlob(i)) {
					t.Errorf("%s: blob %d has %d bytes: %v, %v", name, i, len(b), err, serr)
				}
				f.Close()
			}
			if !s.HasUnproven(r) || s.DurableIntact(t.Context(), r) == nil {
				t.Errorf("%s: blob %d counts as one that has its place", name, i)
			}
		}
		rotPack(t, packs(t, dir)[0], smallBlob(2))
		if f, err := s.Open(refs[2]); f != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Open of one that rotted: %v", name, err)
		}
	}
}

// rotPack flips a bit of these bytes in a file.
func rotPack(t *testing.T, file string, data []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, data)
	if at < 0 {
		t.Fatal("they are not there")
	}
	b[at+len(data)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Bytes that rotted in a pack are not proven, those that are no zip of the module go into quarantine, and the pack goes with the last.
func TestPackDisproved(t *testing.T) {
	dir, s, refs := keptPack(t, 3)
	rotPack(t, packs(t, dir)[0], smallBlob(1))
	if _, err := s.OpenUnproven(t.Context(), refs[1]); !errors.Is(err, ErrDamaged) {
		t.Errorf("OpenUnproven of rotten bytes: %v", err)
	}
	if err := s.Prove(refs[1:2]); !errors.Is(err, ErrDamaged) || s.Has(refs[1]) {
		t.Errorf("Prove of rotten bytes: %v", err)
	}
	if err := s.DropUnproven(refs[1].Digest); err != nil || s.HasUnproven(refs[1]) {
		t.Errorf("DropUnproven: %v", err)
	}
	for range 2 {
		if err := s.Disprove(refs[2], "another h1"); err != nil {
			t.Fatal(err)
		}
	}
	q, err := s.Quarantined()
	if err != nil || len(q) != 1 || q[0].Digest != refs[2].Digest.String() || q[0].Reason != "another h1" || s.HasUnproven(refs[2]) || s.Has(refs[2]) {
		t.Errorf("in quarantine: %+v, %v", q, err)
	}
	if err := s.Prove(refs[:1]); err != nil || !s.Has(refs[0]) || len(packs(t, dir)) > 0 {
		t.Errorf("Prove of the last: %v, packs %v", err, packs(t, dir))
	}
}

// Of a pack that lost its end, or whose head is no size, what stands before is here.
func TestPackIsDamaged(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"truncated":         func(b []byte) []byte { return b[:len(b)-1] },
		"a size of nothing": func(b []byte) []byte { b[len(b)-len(smallBlob(2))-1] = 0xff; return b },
		"another size":      func(b []byte) []byte { b[len(b)-len(smallBlob(2))-8] = 0xff; return b },
	} {
		dir, s, refs := keptPack(t, 3)
		s.Close()
		file := packs(t, dir)[0]
		b, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, damage(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, err = OpenStore(dir); err != nil {
			t.Fatal(err)
		}
		if n, _ := s.Unproven(); n != 2 || !s.HasUnproven(refs[0]) || !s.HasUnproven(refs[1]) || s.HasUnproven(refs[2]) {
			t.Errorf("%s: %d are here", name, n)
		}
		again, _ := packOf(t, s, 3) // pulled again: what it has counts from there
		if err := again.Keep(); err != nil {
			t.Fatal(err)
		}
		if err := s.Prove(refs); err != nil || len(packs(t, dir)) > 0 {
			t.Errorf("%s: Prove = %v, packs %v", name, err, packs(t, dir))
		}
		s.Close()
	}
}
