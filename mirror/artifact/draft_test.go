package artifact

import (
	"bytes"
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

// A held draft is no file as long as it is small, and is one with all its bytes as soon as it has to be.
func TestHold(t *testing.T) {
	for name, c := range map[string]struct {
		writes []int // bytes
		files  int   // in tmp/ after the writes
	}{
		"nothing":                 {nil, 0},
		"a go.mod":                {[]int{100, 50}, 0},
		"as much as is inline":    {[]int{MaxInline - 1, 1}, 0},
		"one byte more":           {[]int{MaxInline, 1}, 1},
		"a large one":             {[]int{10, 3 * MaxInline, 10}, 1},
		"a large one in one go":   {[]int{MaxInline + 1}, 1},
		"many, the last too many": {[]int{MaxInline / 2, MaxInline / 2, MaxInline / 2}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTestStore(t, t.TempDir())
			for _, end := range []string{"commit", "quarantine", "discard"} {
				d, err := s.Hold(MaxMod)
				if err != nil {
					t.Fatal(err)
				}
				var want []byte
				for i, n := range c.writes {
					p := bytes.Repeat([]byte{end[0] + byte(i)}, n)
					want = append(want, p...)
					if _, err := d.Write(p); err != nil {
						t.Fatal(err)
					}
				}
				if left, err := s.names(tmpDir); err != nil || len(left) != c.files {
					t.Errorf("tmp holds %q, %v, want %d", left, err, c.files)
				}
				if got := make([]byte, len(want)); d.Ref() != RefOf(want) {
					t.Errorf("Ref = %v, want %v", d.Ref(), RefOf(want))
				} else if n, err := d.ReadAt(got, 0); n != len(want) || !bytes.Equal(got, want) {
					t.Errorf("ReadAt reads %d bytes, %v, want %d", n, err, len(want))
				}
				switch end {
				case "commit":
					ref, err := d.Commit()
					if got, err2 := get(s, ref); err != nil || err2 != nil || !bytes.Equal(got, want) {
						t.Errorf("Commit = %v, %v, then Open: %d bytes, %v", ref, err, len(got), err2)
					}
				case "quarantine":
					if err := d.Quarantine("bad"); err != nil {
						t.Error(err)
					}
					if list, err := s.Quarantined(); err != nil || len(list) != 1 || list[0].Size != int64(len(want)) {
						t.Errorf("Quarantined = %+v, %v", list, err)
					}
				case "discard":
					d.Discard()
				}
				if _, err := d.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
					t.Errorf("write after %s: %v", end, err)
				}
				if left, err := s.names(tmpDir); err != nil || len(left) > 0 {
					t.Errorf("after %s tmp holds %q, %v", end, left, err)
				}
			}
		})
	}
}

// What is held meets the disk's faults like any other draft when it becomes a file.
func TestHoldOnFaultyDisk(t *testing.T) {
	for _, c := range []struct {
		op    string
		errno error
		fault bool
	}{{"create", syscall.EMFILE, false}, {"create", syscall.EROFS, true}, {"write", syscall.ENOSPC, false}, {"write", syscall.EIO, true}} {
		s, d := openUnsafe(t, t.TempDir())
		d.note(func() { d.fail = failing(c.op, &fs.PathError{Op: c.op, Path: "x", Err: c.errno}) })
		for what, end := range map[string]func(*Draft) error{
			"write":      func(d *Draft) error { _, err := d.Write(make([]byte, MaxInline)); return err },
			"commit":     func(d *Draft) error { _, err := d.Commit(); return err },
			"quarantine": func(d *Draft) error { return d.Quarantine("bad") },
		} {
			draft, err := s.Hold(MaxZip)
			if c.fault && s.Err() != nil {
				if err == nil {
					t.Errorf("%v at %s: Hold after the fault succeeds", c.errno, c.op)
				}
				continue
			}
			if _, err := draft.Write([]byte("small")); err != nil {
				t.Errorf("%v at %s: a write into memory: %v", c.errno, c.op, err)
			}
			if err := end(draft); !errors.Is(err, ErrUnavailable) || (s.Err() != nil) != c.fault {
				t.Errorf("%v at %s: %s = %v, the store says %v", c.errno, c.op, what, err, s.Err())
			}
			draft.Discard()
			if left, err := s.names(tmpDir); err != nil || len(left) > 0 {
				t.Errorf("%v at %s: tmp holds %q, %v", c.errno, c.op, left, err)
			}
		}
	}
}

// Commit waits for the fsync that Flush began and makes no second one, unless bytes were written since.
func TestFlush(t *testing.T) {
	for name, c := range map[string]struct {
		late   bool
		fsyncs int
	}{"all": {false, 1}, "all but the last bytes": {true, 2}} {
		s, d := openUnsafe(t, t.TempDir())
		began, goOn := make(chan struct{}), make(chan struct{})
		fsyncs := 0
		d.note(func() {
			d.fail = func(op, _ string) error {
				if op == "fsync" {
					if fsyncs++; fsyncs == 1 {
						d.mu.Unlock()
						defer d.mu.Lock()
						close(began)
						<-goOn
					}
				}
				return nil
			}
		})
		draft, err := s.Create(MaxZip)
		if err != nil {
			t.Fatal(err)
		}
		want := []byte("some zip")
		if _, err := draft.Write(want); err != nil {
			t.Fatal(err)
		}
		draft.Flush()
		draft.Flush()
		<-began // and is not over: the bytes can be looked at
		looked := make([]byte, len(want))
		if _, err := draft.ReadAt(looked, 0); err != nil || !bytes.Equal(looked, want) {
			t.Errorf("%s: ReadAt = %q, %v", name, looked, err)
		}
		close(goOn)
		if c.late {
			want = append(want, '!')
			if _, err := draft.Write([]byte("!")); err != nil {
				t.Fatal(err)
			}
		}
		ref, err := draft.Commit()
		if got, err2 := get(s, ref); err != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: Commit = %v, %v, then Open = %q, %v", name, ref, err, got, err2)
		}
		if d.note(func() {}); fsyncs != c.fsyncs {
			t.Errorf("%s: %d fsyncs of the file, want %d", name, fsyncs, c.fsyncs)
		}
	}
}

// Flush of a draft in memory is none: the file that is made of it later is fsynced, whatever became of Flush.
func TestFlushOfHeld(t *testing.T) {
	for what, end := range map[string]func(*Draft) error{
		"commit":     func(d *Draft) error { _, err := d.Commit(); return err },
		"quarantine": func(d *Draft) error { return d.Quarantine("bad") },
	} {
		s, d := openUnsafe(t, t.TempDir())
		draft, err := s.Hold(MaxZip)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := draft.Write([]byte("small")); err != nil {
			t.Fatal(err)
		}
		draft.Flush()
		if err := end(draft); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		d.note(func() {
			for name, dirty := range d.dirty {
				if dirty {
					t.Errorf("%s: %s is not durable", what, name)
				}
			}
		})
	}
}

// A failed fsync ends writing also if nobody wants the draft any more: what it says of the disk is true for the next one.
func TestFailedFlush(t *testing.T) {
	for what, end := range map[string]func(*Draft) error{
		"commit":     func(d *Draft) error { _, err := d.Commit(); return err },
		"quarantine": func(d *Draft) error { return d.Quarantine("bad") },
		"write":      func(d *Draft) error { _, err := d.Write([]byte("x")); return err },
		"discard":    func(d *Draft) error { d.Discard(); return d.s.Err() },
	} {
		s, d := openUnsafe(t, t.TempDir())
		draft, err := s.Create(MaxZip)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := draft.Write([]byte("some zip")); err != nil {
			t.Fatal(err)
		}
		d.note(func() { d.fail = failingOnce("fsync", &fs.PathError{Op: "sync", Path: "x", Err: syscall.EIO}) })
		draft.Flush()
		if err := end(draft); !errors.Is(err, ErrUnavailable) || s.Err() == nil {
			t.Errorf("%s after a failed fsync: %v, the store says %v", what, err, s.Err())
		}
		draft.Discard()
		if s.Has(RefOf([]byte("some zip"))) {
			t.Errorf("%s after a failed fsync: there is a blob", what)
		}
	}
}
