package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// pulledDrafts are drafts as a pull in bulk has them, some with their fsync under way.
func pulledDrafts(t *testing.T, s *Store, count int) (drafts []*Draft, refs []Ref) {
	t.Helper()
	for i := range count {
		b := bytes.Repeat(fmt.Appendf(nil, "blob %d\n", i), 100*i+1)
		d, err := s.Create(int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Write(b); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			d.Flush()
		}
		drafts, refs = append(drafts, d), append(refs, RefOf(b))
	}
	return drafts, refs
}

// What is kept is here, and is nothing that may be served, until it is proven; also for the next process.
func TestKeepAndProve(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	drafts, refs := pulledDrafts(t, s, 9)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	var total int64
	for round := range 2 {
		total = 0
		for _, r := range refs {
			total += r.Size
			if !s.HasUnproven(r) || s.Has(r) {
				t.Errorf("round %d: HasUnproven %v, Has %v", round, s.HasUnproven(r), s.Has(r))
			}
			if _, err := s.Open(r); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open of what is unproven: %v", err)
			}
			if err := s.Durable(r); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Durable of what is unproven: %v", err)
			}
			if s.HasUnproven(Ref{r.Digest, r.Size + 1}) {
				t.Error("another size is here too")
			}
		}
		if n, size := s.Unproven(); n != len(refs) || size != total || len(s.UnprovenDigests()) != n {
			t.Errorf("Unproven = %d, %d; want %d, %d", n, size, len(refs), total)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = OpenStore(dir); err != nil {
			t.Fatal(err)
		}
	}
	defer s.Close()
	f, err := s.OpenUnproven(t.Context(), refs[1])
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := s.Prove(append(refs[:5:5], RefOf([]byte("not here")))); err != nil {
		t.Fatal(err)
	}
	for i, r := range refs {
		if s.Has(r) != (i < 5) || s.HasUnproven(r) != (i >= 5) {
			t.Errorf("blob %d: Has %v, HasUnproven %v", i, s.Has(r), s.HasUnproven(r))
		}
		if i < 5 {
			if err := s.Verify(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	}
	if err := s.DropUnproven(refs[8].Digest); err != nil || s.HasUnproven(refs[8]) {
		t.Errorf("DropUnproven: %v", err)
	}
	if n, _ := s.Unproven(); n != 3 {
		t.Errorf("%d are left", n)
	}
}

// Bytes that rotted are not proven, and those that are no zip of the module go into quarantine.
func TestDisprove(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	drafts, refs := pulledDrafts(t, s, 3)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, unprovenDir, refs[1].Digest.String()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("X"), 3); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := s.OpenUnproven(t.Context(), refs[1]); !errors.Is(err, ErrDamaged) {
		t.Errorf("OpenUnproven of rotten bytes: %v", err)
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
	drafts, again := pulledDrafts(t, s, 3)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	if err := s.Disprove(again[2], "once more"); err != nil || s.HasUnproven(again[2]) {
		t.Errorf("Disprove of what is in quarantine already: %v", err)
	}
}

// A blob that came through all checks meanwhile stays as it is.
func TestProveTwice(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	drafts, refs := pulledDrafts(t, s, 1)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	drafts, _ = pulledDrafts(t, s, 1)
	if _, err := drafts[0].Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.Prove(refs); err != nil || s.HasUnproven(refs[0]) || !s.Has(refs[0]) {
		t.Errorf("Prove: %v", err)
	}
}

// When Keep has said that bytes are here, they are after any loss of power; and what has the name of a blob, proven or not, is
// whole after any loss of power at any moment.
func TestKeepSurvivesPower(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for budget, over := 1, false; !over; budget++ {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			drafts, refs := pulledDrafts(t, s, 4)
			d.note(func() { d.budget = d.steps + budget })
			errs := s.Keep(drafts)
			proved := s.Prove(refs[:2])
			over = errors.Join(errs...) == nil && proved == nil
			d.cut(t, undo)
			s.Close()
			kept := func(i int) bool { return errs[i] == nil }
			wholeAfterPower(t, dir, fmt.Sprintf("power lost before step %d, undo %v", budget, undo), refs, kept, func(i int) bool { return over && i < 2 })
		}
	}
}

// wholeAfterPower opens a store that lost its power: what was kept is here, what was proven is proven, and what is here is whole.
func wholeAfterPower(t *testing.T, dir, when string, refs []Ref, kept, proven func(i int) bool) {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, r := range refs {
		if kept(i) && !s.HasUnproven(r) && !s.Has(r) {
			t.Errorf("%s: blob %d was kept, and is gone", when, i)
		}
		if proven(i) && !s.Has(r) {
			t.Errorf("%s: blob %d was proven, and is not", when, i)
		}
		if s.HasUnproven(r) {
			if f, err := s.OpenUnproven(t.Context(), r); err != nil {
				t.Errorf("%s: %v", when, err)
			} else {
				f.Close()
			}
		}
		if s.Has(r) {
			if err := s.Verify(t.Context(), r); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
}

// A fault of the disk ends writing, a full one fails what did not fit; nothing that failed is here.
func TestKeepFails(t *testing.T) {
	for _, op := range []string{"fsync", "read", "rename", "syncdir", "mkdir"} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			s, d := openUnsafe(t, t.TempDir())
			drafts, refs := pulledDrafts(t, s, 3)
			for _, draft := range drafts {
				if err := draft.awaitFlush(); err != nil {
					t.Fatal(err)
				}
			}
			d.note(func() { d.fail = failing(op, cause) })
			errs := s.Keep(drafts)
			d.note(func() { d.fail = nil })
			failed := 0
			for i, r := range refs {
				if errs[i] != nil {
					failed++
				}
				if (errs[i] == nil) != s.HasUnproven(r) {
					t.Errorf("%s fails with %v: blob %d: %v, here %v", op, cause, i, errs[i], s.HasUnproven(r))
				}
			}
			if failed == 0 {
				t.Errorf("%s fails with %v, and nothing else", op, cause)
			}
			if latched := s.Err() != nil; latched != (cause == syscall.EIO || op == "syncdir") {
				t.Errorf("%s fails with %v: Err = %v", op, cause, s.Err())
			}
		}
	}
}

// namesSynced notes which directories are fsynced.
type namesSynced struct {
	rootDisk
	synced map[string]bool
}

func (d namesSynced) SyncDir(name string) error {
	d.synced[name] = true
	return d.rootDisk.SyncDir(name)
}

// What an earlier process left, which may have died before it made the name durable, counts once that is done.
func TestUnprovenOfAnEarlierProcess(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	drafts, refs := pulledDrafts(t, s, 1)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	s.Close()
	synced := map[string]bool{}
	s, err = OpenStoreOn(dir, func(root *os.Root) Disk { return namesSynced{rootDisk{root}, synced} })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.HasUnproven(refs[0]) || !synced[unprovenDir] {
		t.Errorf("HasUnproven %v, its directory fsynced %v", s.HasUnproven(refs[0]), synced[unprovenDir])
	}
}

// What did not pass does not count as here, also if the disk does not let go of it.
func TestDisproveFails(t *testing.T) {
	for name, fail := range map[string]func(s *Store, d *unsafeDisk){
		"a full disk":    func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("create", syscall.ENOSPC) }) },
		"a broken disk":  func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("rename", syscall.EIO) }) },
		"writing is off": func(s *Store, _ *unsafeDisk) { s.StopWrites(errors.New("broken")) },
	} {
		dir := t.TempDir()
		s, d := openUnsafe(t, dir)
		drafts, refs := pulledDrafts(t, s, 2)
		if err := errors.Join(s.Keep(drafts)...); err != nil {
			t.Fatal(err)
		}
		fail(s, d)
		if err := s.Disprove(refs[0], "another h1"); err == nil || s.HasUnproven(refs[0]) {
			t.Errorf("%s: Disprove = %v, and it counts as here: %v", name, err, s.HasUnproven(refs[0]))
		}
		d.note(func() { d.fail = failing("remove", syscall.EIO) })
		if err := s.DropUnproven(refs[1].Digest); err == nil || s.HasUnproven(refs[1]) {
			t.Errorf("%s: DropUnproven = %v, and it counts as here: %v", name, err, s.HasUnproven(refs[1]))
		}
		if n, size := s.Unproven(); n != 0 || size != 0 {
			t.Errorf("%s: %d blobs of %d bytes are left", name, n, size)
		}
	}
}

// What is proven and cannot be moved is read where it is, and only that, and only while it is right.
func TestProveFails(t *testing.T) {
	for name, fail := range map[string]func(s *Store, d *unsafeDisk){
		"a full disk":    func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("mkdir", syscall.ENOSPC) }) },
		"a broken disk":  func(_ *Store, d *unsafeDisk) { d.note(func() { d.fail = failing("rename", syscall.EIO) }) },
		"writing is off": func(s *Store, _ *unsafeDisk) { s.StopWrites(errors.New("broken")) },
	} {
		dir := t.TempDir()
		s, d := openUnsafe(t, dir)
		drafts, refs := pulledDrafts(t, s, 3)
		if err := errors.Join(s.Keep(drafts)...); err != nil {
			t.Fatal(err)
		}
		fail(s, d)
		if err := s.Prove(refs[:2]); err == nil {
			t.Errorf("%s: Prove passes", name)
		}
		for i, r := range refs {
			f, err := s.Open(r)
			if (err == nil) != (i < 2) || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: Open of blob %d: %v", name, i, err)
			}
			if err == nil {
				f.Close()
			}
			if s.Has(r) || !s.HasUnproven(r) || s.DurableIntact(t.Context(), r) == nil {
				t.Errorf("%s: blob %d counts as one that has its place", name, i)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, unprovenName(refs[1].Digest)), make([]byte, refs[1].Size), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := s.Open(refs[1]); f != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Open of one that rotted: %v", name, err)
		}
	}
}

// However many drafts come in at a time, on a disk that hangs no more threads wait than are useful.
func TestFlushIsBounded(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	gate := make(chan bool)
	d.slow = "fsync"
	d.hang.Store(&gate)
	var drafts []*Draft
	under := 0
	for i := range keepSyncs + 8 {
		draft, err := s.Create(100)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(draft, "blob %d", i); err != nil {
			t.Fatal(err)
		}
		draft.Flush()
		if draft.flush != nil {
			under++
		}
		drafts = append(drafts, draft)
	}
	if under != keepSyncs {
		t.Errorf("%d fsyncs are under way, want %d", under, keepSyncs)
	}
	close(gate)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Error(err)
	}
	if n, _ := s.Unproven(); n != len(drafts) {
		t.Errorf("%d of %d are kept", n, len(drafts))
	}
}

// A file that lost its end is not here, and the right one that takes its place is.
func TestKeepInPlaceOfATruncatedOne(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	drafts, refs := pulledDrafts(t, s, 2)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Truncate(filepath.Join(dir, unprovenName(refs[1].Digest)), 3); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenStore(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.HasUnproven(refs[1]) {
		t.Error("what is left of it is here")
	}
	drafts, _ = pulledDrafts(t, s, 2)
	if err := errors.Join(s.Keep(drafts)...); err != nil {
		t.Fatal(err)
	}
	if n, size := s.Unproven(); !s.HasUnproven(refs[1]) || n != 2 || size != refs[0].Size+refs[1].Size {
		t.Errorf("HasUnproven %v, %d blobs of %d bytes", s.HasUnproven(refs[1]), n, size)
	}
}
