package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// condemn puts b in quarantine.
func condemn(t *testing.T, s *Store, b []byte, reason string) {
	t.Helper()
	d, err := s.Create(MaxZip)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := d.Quarantine(reason); err != nil {
		t.Fatal(err)
	}
}

func TestQuarantineKeepsBytesAndReason(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	bad := []byte("not what sum.golang.org says")
	condemn(t, s, bad, "h1 is\nx, not y")
	condemn(t, s, bad, "again")
	for range 2 {
		list, err := s.Quarantined()
		if err != nil || len(list) != 1 {
			t.Fatalf("Quarantined = %v, %v, want one", list, err)
		}
		q := list[0]
		if q.Reason != "h1 is x, not y" || q.Size != int64(len(bad)) || q.Digest != DigestOf(bad).String() || q.Time.IsZero() {
			t.Errorf("Quarantined = %+v", q)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "quarantine", q.Digest)); err != nil || !bytes.Equal(b, bad) {
			t.Errorf("quarantine holds %q, %v", b, err)
		}
		if s.Has(RefOf(bad)) {
			t.Error("what is in quarantine is served")
		}
		s.Close()
		s = openTestStore(t, dir)
	}
}

func TestQuarantineIsBounded(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	s.quarantine.maxFiles, s.quarantine.maxBytes = 3, 100
	for i := range 10 {
		condemn(t, s, fmt.Append(nil, "bad ", i), "test")
	}
	want := func(what string, names ...string) {
		t.Helper()
		list, err := s.Quarantined()
		if err != nil || len(list) != len(names) {
			t.Fatalf("%s: Quarantined = %v, %v, want %d", what, list, err, len(names))
		}
		for i, name := range names {
			if list[i].Digest != DigestOf([]byte(name)).String() {
				t.Errorf("%s: %d is %+v, want %s", what, i, list[i], name)
			}
		}
		if files, err := s.names(quarantineDir); err != nil || len(files) != 2*len(names) {
			t.Errorf("%s: quarantine holds %q, %v", what, files, err)
		}
	}
	want("by number", "bad 7", "bad 8", "bad 9")
	large := strings.Repeat("x", 92)
	condemn(t, s, []byte(large), "test")
	want("by bytes", "bad 9", large)

	d, _ := s.Create(MaxZip)
	_, _ = d.Write(make([]byte, 101))
	if err := d.Quarantine("test"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("more bytes than the quarantine may have: %v, want ErrUnavailable", err)
	}
	want("after one too large", "bad 9", large)
	condemn(t, s, []byte("long"), strings.Repeat("é", maxReason))
	if list, _ := s.Quarantined(); len(list[len(list)-1].Reason) > maxReason+8 {
		t.Errorf("a reason of %d bytes", len(list[len(list)-1].Reason))
	}
}

// Whenever the power fails, there are no bytes without their reason, and no reason without bytes after the next start.
func TestQuarantineSurvivesPowerLoss(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for budget, over := 1, false; !over; budget++ {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			d.note(func() { d.budget = d.steps + budget })
			err := func() error {
				d, err := s.Create(100)
				if err != nil {
					return err
				}
				defer d.Discard()
				if _, err := d.Write([]byte("bad bytes")); err != nil {
					return err
				}
				return d.Quarantine("test")
			}()
			d.note(func() { over = !d.dead })
			d.cut(t, undo)
			s.Close()
			s = openTestStore(t, dir)
			list, lerr := s.Quarantined()
			files, ferr := s.names(quarantineDir)
			if lerr != nil || ferr != nil || len(files) != 2*len(list) || err == nil && len(list) != 1 {
				t.Errorf("power lost before step %d: %v, then %d described, files %q", budget, err, len(list), files)
			}
			for _, q := range list {
				if q.Reason != "test" || q.Size != 9 {
					t.Errorf("power lost before step %d: Quarantined = %+v", budget, q)
				}
			}
			s.Close()
		}
	}
}

func TestQuarantineOnFullDisk(t *testing.T) {
	s, disk := openUnsafe(t, t.TempDir())
	d, err := s.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = d.Write([]byte("bad"))
	disk.note(func() { disk.fail = failing("write", syscall.ENOSPC) })
	if err := d.Quarantine("test"); !errors.Is(err, ErrUnavailable) || s.Err() != nil {
		t.Errorf("Quarantine = %v, fault %v, want ErrUnavailable and none", err, s.Err())
	}
	disk.note(func() { disk.fail = nil })
	condemn(t, s, []byte("bad"), "test")
}

// The bytes of a draft that came to a bad end are described as far as they came.
func TestQuarantineOfBrokenDrafts(t *testing.T) {
	s, disk := openUnsafe(t, t.TempDir())
	long, err := s.Create(4)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = long.Write([]byte("long"))
	_, _ = long.Write([]byte("er"))
	torn, err := s.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	disk.note(func() { disk.fail = failingOnce("write", syscall.ENOSPC) })
	_, _ = torn.Write([]byte("torn off"))
	for d, want := range map[*Draft]string{long: "long", torn: "torn"} {
		if err := d.Quarantine("test"); err != nil {
			t.Error(err)
		}
		digest := DigestOf([]byte(want)).String()
		if b, err := os.ReadFile(filepath.Join(s.dir, quarantineDir, digest)); err != nil || string(b) != want {
			t.Errorf("quarantine holds %q, %v, want %q", b, err, want)
		}
	}
}
