package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Whatever is wrong with a blob, it is moved out of the way with its description, is missing for everybody from then on, and
// stays readable for who has it open. The right bytes take its place.
func TestCondemn(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(d *unsafeDisk, file string) error
		want   Damage
	}{
		"a bit": {func(_ *unsafeDisk, file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			b[0] ^= 1
			return os.WriteFile(file, b, 0o600)
		}, WrongBytes},
		"cut":       {func(_ *unsafeDisk, file string) error { return os.Truncate(file, 3) }, WrongBytes},
		"longer":    {func(_ *unsafeDisk, file string) error { return os.Truncate(file, 300) }, WrongBytes},
		"empty":     {func(_ *unsafeDisk, file string) error { return os.Truncate(file, 0) }, WrongBytes},
		"directory": {func(_ *unsafeDisk, file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) }, WrongBytes},
		"unreadable": {func(d *unsafeDisk, _ string) error {
			d.note(func() { d.fail = failing("blob", syscall.EIO) })
			return nil
		}, Unreadable},
		"missing": {func(_ *unsafeDisk, file string) error { return os.Remove(file) }, Missing},
	} {
		t.Run(name, func(t *testing.T) {
			s, disk := openUnsafe(t, t.TempDir())
			ref := put(t, s, []byte("bytes that were right"))
			open, err := s.Open(ref)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			file := filepath.Join(s.dir, blobName(ref.Digest))
			if err := tt.damage(disk, file); err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(t.Context(), ref); err == nil {
				t.Fatal("Verify finds nothing")
			}
			if got, err := s.Condemn(t.Context(), ref.Digest, "a test"); got != tt.want || err != nil {
				t.Fatalf("Condemn = %q, %v, want %q", got, err, tt.want)
			}
			disk.note(func() { disk.fail = nil })
			if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) || s.Has(ref) {
				t.Errorf("it is still in its place: %v", err)
			}
			for _, err := range []error{s.Durable(ref), s.DurableIntact(t.Context(), ref), s.Named(ref), second(s.Open(ref))} {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%v, want it to be missing", err)
				}
			}
			if name != "cut" && name != "empty" {
				if _, err := io.ReadAll(open); err != nil {
					t.Errorf("who had it open: %v", err)
				}
			}
			list, err := s.Damaged()
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == Missing {
				if len(list) != 0 {
					t.Errorf("Damaged = %+v of nothing", list)
				}
			} else {
				if len(list) != 1 || list[0].Digest != ref.Digest.String() || list[0].Damage != tt.want || list[0].Reason != "a test" || list[0].Replaced {
					t.Errorf("Damaged = %+v", list)
				}
				if _, err := os.Lstat(filepath.Join(s.dir, damagedDir, ref.Digest.String())); err != nil {
					t.Error(err)
				}
			}
			put(t, s, []byte("bytes that were right"))
			if b, err := get(s, ref); err != nil || string(b) != "bytes that were right" {
				t.Errorf("after the right bytes came: %q, %v", b, err)
			}
			if list, _ := s.Damaged(); tt.want != Missing && (len(list) != 1 || !list[0].Replaced) {
				t.Errorf("Damaged = %+v after the right bytes came", list)
			}
			s.Close()
			s, err = OpenStore(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if list, _ := s.Damaged(); tt.want != Missing && len(list) != 1 {
				t.Errorf("Damaged = %+v after a restart", list)
			}
			if q, err := s.Quarantined(); err != nil || len(q) != 0 {
				t.Errorf("Quarantined = %v, %v: that is for what others sent", q, err)
			}
		})
	}
}

// One look that fails does not condemn what the next one finds right; neither is condemned what came in between.
func TestCondemnLooksAgain(t *testing.T) {
	s, disk := openUnsafe(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	disk.note(func() { disk.fail = failingOnce("blob", syscall.EIO) })
	if err := s.Verify(t.Context(), ref); !errors.Is(err, ErrDamaged) {
		t.Fatalf("Verify = %v, want ErrDamaged", err)
	}
	if got, err := s.Condemn(t.Context(), ref.Digest, "a fluke"); got != Intact || err != nil || !s.Has(ref) {
		t.Errorf("Condemn = %q, %v of what is right", got, err)
	}

	rot(t, s, ref)
	disk.note(func() { disk.fail = nil })
	done := false
	disk.note(func() {
		disk.fail = func(op, name string) error {
			if op != "rename" || done {
				return nil
			}
			done = true // the whole commit of the right bytes happens while the description is written
			disk.mu.Unlock()
			defer disk.mu.Lock()
			_, err := tryPut(s, []byte("some zip"))
			return err
		}
	})
	if got, err := s.Condemn(t.Context(), ref.Digest, "a race"); got != Intact || err != nil || !done {
		t.Errorf("Condemn = %q, %v of what was replaced meanwhile", got, err)
	}
	if b, err := get(s, ref); err != nil || string(b) != "some zip" {
		t.Errorf("the right bytes were moved away: %q, %v", b, err)
	}
}

// Whenever the power fails, the damaged bytes are in their place or in quarantine with their description, and never nowhere.
func TestCondemnSurvivesPowerLoss(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for budget, over := 1, false; !over; budget++ {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			ref := put(t, s, []byte("some zip"))
			rot(t, s, ref)
			d.note(func() { d.budget = d.steps + budget })
			_, err := s.Condemn(t.Context(), ref.Digest, "test")
			d.note(func() { over = !d.dead })
			d.cut(t, undo)
			s.Close()
			s = openTestStore(t, dir)
			list, lerr := s.Damaged()
			_, inPlace := os.Lstat(filepath.Join(dir, blobName(ref.Digest)))
			if lerr != nil || len(list) == 0 && inPlace != nil {
				t.Errorf("power lost before step %d: %v; then %v in quarantine (%v), in place: %v", budget, err, list, lerr, inPlace)
			}
			if over && (len(list) != 1 || inPlace == nil || err != nil) {
				t.Errorf("Condemn = %v, then %v in quarantine, in place: %v", err, list, inPlace)
			}
			for _, q := range list {
				if q.Reason != "test" || q.Damage != WrongBytes {
					t.Errorf("power lost before step %d: %+v", budget, q)
				}
			}
			if got, err := s.Condemn(t.Context(), ref.Digest, "test"); err != nil || got != WrongBytes && got != Missing {
				t.Errorf("power lost before step %d: Condemn after it = %q, %v", budget, got, err)
			}
			s.Close()
		}
	}
}

// What nobody has replaced is kept; of the rest, the newest within the limits. The evidence against upstreams is left alone.
func TestDamagedIsBounded(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	s.damaged.maxFiles, s.damaged.maxBytes = 3, 100
	condemn(t, s, []byte("what an upstream sent"), "evidence")
	var refs []Ref
	blob := func(i int) []byte { return []byte(fmt.Sprintf("blob %d", i)) }
	spoil := func(i int) {
		t.Helper()
		ref := put(t, s, blob(i))
		rot(t, s, ref)
		if got, err := s.Condemn(t.Context(), ref.Digest, "test"); got != WrongBytes || err != nil {
			t.Fatalf("Condemn = %q, %v", got, err)
		}
		refs = append(refs, ref)
	}
	held := func() (all []string) {
		t.Helper()
		list, err := s.Damaged()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			for i, ref := range refs {
				if ref.Digest.String() == d.Digest {
					all = append(all, fmt.Sprint(i))
				}
			}
		}
		return all
	}
	for i := range 9 {
		spoil(i)
	}
	if got := strings.Join(held(), " "); got != "0 1 2 3 4 5 6 7 8" {
		t.Errorf("held: %s, want all that is not replaced", got)
	}
	for i := range 6 {
		put(t, s, blob(i))
	}
	if err := s.Unnamed(refs[6].Digest); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(held(), " "); got != "4 5 6 7 8" {
		t.Errorf("held: %s, want the newest three of 0 to 6, and 7 and 8, which are not replaced", got)
	}
	s.damaged.maxBytes = 8
	put(t, s, blob(7))
	spoil(9)
	if got := strings.Join(held(), " "); got != "7 8 9" {
		t.Errorf("held: %s, want one for 8 bytes, and what is not replaced", got)
	}
	if q, err := s.Quarantined(); err != nil || len(q) != 1 || q[0].Reason != "evidence" {
		t.Errorf("Quarantined = %v, %v", q, err)
	}
}

// A shard has the blobs whose digests begin with its number.
func TestShard(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	want := map[Ref]bool{}
	for i := range 40 {
		want[put(t, s, []byte(fmt.Sprint("blob ", i)))] = true
	}
	for b := range Shards {
		for ref, err := range s.Shard(byte(b)) {
			if err != nil || !want[ref] || ref.Digest[0] != byte(b) {
				t.Errorf("shard %x has %v, %v", b, ref, err)
			}
			delete(want, ref)
			if err := s.Rehash(t.Context(), ref, 4, func(context.Context, int) error { return nil }); err != nil {
				t.Error(err)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%d blobs are in no shard", len(want))
	}
}
