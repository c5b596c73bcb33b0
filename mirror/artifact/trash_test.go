package artifact

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func yes() bool { return true }

func trash(t *testing.T, s *Store, ref Ref) {
	t.Helper()
	if moved, err := s.Trash(ref.Digest, yes); !moved || err != nil {
		t.Fatalf("Trash = %v, %v", moved, err)
	}
	if s.Has(ref) || s.TrashSize(ref.Digest) != ref.Size {
		t.Fatal("it is not in the trash")
	}
}

// What is in the trash is out of the way, and whoever needs it has it back, from the same file.
func TestTrashComesBack(t *testing.T) {
	for what, need := range map[string]func(*Store, Ref) error{
		"Open": func(s *Store, r Ref) error {
			f, err := s.Open(r)
			if err == nil {
				f.Close()
			}
			return err
		},
		"Durable":       func(s *Store, r Ref) error { return s.Durable(r) },
		"DurableIntact": func(s *Store, r Ref) error { return s.DurableIntact(t.Context(), r) },
	} {
		s, disk := openUnsafe(t, t.TempDir())
		ref := put(t, s, []byte("bytes"))
		trash(t, s, ref)
		if all, err := s.ShardDigests(ref.Digest[0]); len(all) != 0 || err != nil {
			t.Errorf("ShardDigests = %v, %v", all, err)
		}
		if all, err := s.TrashDigests(ref.Digest[0]); !slices.Equal(all, []Digest{ref.Digest}) || err != nil {
			t.Errorf("TrashDigests = %v, %v", all, err)
		}
		if err := s.Verify(t.Context(), ref); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "in the trash") {
			t.Errorf("Verify of what is in the trash: %v", err)
		}
		if err := need(s, ref); err != nil {
			t.Errorf("%s of what is in the trash: %v", what, err)
		}
		if !s.Has(ref) || s.TrashSize(ref.Digest) != 0 || s.Restored() != 1 {
			t.Errorf("%s did not bring it back", what)
		}
		if n := len(disk.renames); n != 0 {
			t.Errorf("%s: names in %d directories are not durable", what, n)
		}
	}
}

// Bytes that changed in the trash do not come back: they are missing, and fetched from elsewhere.
func TestRottenTrash(t *testing.T) {
	for _, data := range []string{"bytez", "byte", ""} {
		s, _ := openUnsafe(t, t.TempDir())
		ref := put(t, s, []byte("bytes"))
		trash(t, s, ref)
		if err := os.WriteFile(filepath.Join(s.dir, trashName(ref.Digest)), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Durable(ref); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: Durable = %v", data, err)
		}
		if _, err := s.Open(ref); !errors.Is(err, fs.ErrNotExist) || s.Has(ref) {
			t.Errorf("%q: Open = %v", data, err)
		}
		if put(t, s, []byte("bytes")) != ref || s.Durable(ref) != nil {
			t.Errorf("%q: it cannot be stored again", data)
		}
	}
}

// What is reserved is neither moved nor removed; what somebody objects to in the last moment is not, either.
func TestReserved(t *testing.T) {
	s, _ := openUnsafe(t, t.TempDir())
	ref := put(t, s, []byte("bytes"))
	no := func() bool { return false }
	release, again := s.Reserve(ref.Digest), s.Reserve(ref.Digest)
	release()
	release() // a second time is none
	if moved, err := s.Trash(ref.Digest, yes); moved || err != nil || !s.Has(ref) {
		t.Errorf("Trash of what is reserved = %v, %v", moved, err)
	}
	again()
	if moved, err := s.Trash(ref.Digest, no); moved || err != nil || !s.Has(ref) {
		t.Errorf("Trash against an objection = %v, %v", moved, err)
	}
	trash(t, s, ref)
	release = s.Reserve(ref.Digest)
	if removed, err := s.Drop(ref.Digest, yes); removed || err != nil {
		t.Errorf("Drop of what is reserved = %v, %v", removed, err)
	}
	release()
	if removed, err := s.Drop(ref.Digest, no); removed || err != nil || s.TrashSize(ref.Digest) == 0 {
		t.Errorf("Drop against an objection = %v, %v", removed, err)
	}
	if removed, err := s.Drop(ref.Digest, yes); !removed || err != nil || s.TrashSize(ref.Digest) != 0 {
		t.Errorf("Drop = %v, %v", removed, err)
	}
	if len(s.reserved.of) != 0 {
		t.Errorf("%d reservations are left", len(s.reserved.of))
	}
}

// Who reserves a blob while it is moved waits until that is done.
func TestReserveWaits(t *testing.T) {
	s, _ := openUnsafe(t, t.TempDir())
	ref := put(t, s, []byte("bytes"))
	reserved := make(chan func())
	if moved, err := s.Trash(ref.Digest, func() bool {
		go func() { reserved <- s.Reserve(ref.Digest) }()
		select {
		case <-reserved:
			t.Error("reserved while it is moved")
		case <-time.After(20 * time.Millisecond):
		}
		return true
	}); !moved || err != nil {
		t.Fatal(moved, err)
	}
	(<-reserved)()
}

// The power fails before any step of a move to the trash, and of the way back: the blob is in one of the two places, whole, and
// there is no third.
func TestTrashSurvivesPowerLoss(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for budget := 1; ; budget++ {
			dir := t.TempDir()
			s, disk := openUnsafe(t, dir)
			ref := put(t, s, []byte("bytes"))
			disk.note(func() { disk.budget = disk.steps + budget })
			_, err := s.Trash(ref.Digest, yes)
			if err == nil {
				err = s.Durable(ref)
			}
			dead := disk.dead
			disk.cut(t, undo)
			s.Close()
			if !dead {
				break
			}
			if err == nil {
				t.Errorf("step %d: a move that the power cut short is called done", budget)
			}
			again, err := OpenStore(dir)
			if err != nil {
				t.Fatal(err)
			}
			if again.Has(ref) == (again.TrashSize(ref.Digest) == ref.Size) {
				t.Errorf("step %d, undo %v: in blobs %v, in the trash %v", budget, undo, again.Has(ref), again.TrashSize(ref.Digest))
			}
			if err := again.DurableIntact(t.Context(), ref); err != nil {
				t.Errorf("step %d, undo %v: %v", budget, undo, err)
			}
			again.Close()
		}
	}
}

// A disk that is not written to any more gives the bytes all the same, from where they are.
func TestTrashOfFailedDisk(t *testing.T) {
	broken, _ := openUnsafe(t, t.TempDir())
	ref := put(t, broken, []byte("bytes"))
	trash(t, broken, ref)
	broken.StopWrites(errors.New("broken"))
	if f, err := broken.Open(ref); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if err := broken.Durable(ref); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Durable = %v", err)
	}
	if moved, err := broken.Trash(ref.Digest, yes); moved || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Trash = %v, %v", moved, err)
	}
	if removed, err := broken.Drop(ref.Digest, yes); removed || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Drop = %v, %v", removed, err)
	}
	s, disk := openUnsafe(t, t.TempDir())
	ref = put(t, s, []byte("bytes"))
	disk.fail = failing("syncdir", syscall.EIO)
	if _, err := s.Trash(ref.Digest, yes); !errors.Is(err, ErrUnavailable) || s.Err() == nil {
		t.Errorf("Trash on a disk that does not fsync: %v", err)
	}
}
