package artifact

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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

func tryPut(s *Store, b []byte) (Ref, error) { return tryPutBy(s.Create, b, false) }

// tryPutBy is tryPut for a draft of Create or Hold, with or without a Flush.
func tryPutBy(create func(int64) (*Draft, error), b []byte, flush bool) (Ref, error) {
	d, err := create(MaxZip)
	if err != nil {
		return Ref{}, err
	}
	defer d.Discard()
	if _, err := io.Copy(d, bytes.NewReader(b)); err != nil {
		return Ref{}, err
	}
	if flush {
		d.Flush()
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

// Whatever the step before which the power fails: after it the bytes are complete or absent, and if Commit said that
// they are durable they are there. Everything else is swept.
func TestStoreSurvivesPowerLoss(t *testing.T) {
	want := bytes.Repeat([]byte("some zip "), 1000)
	var committed, lost int
	for _, how := range []struct{ undo, hold, flush bool }{{}, {undo: true}, {flush: true}, {undo: true, flush: true}, {undo: true, hold: true}} {
		for budget, over := 1, false; !over; budget++ {
			dir := t.TempDir()
			s, d := openUnsafe(t, dir)
			d.note(func() { d.budget = d.steps + budget })
			create := s.Create
			if how.hold {
				create = s.Hold
			}
			ref, err := tryPutBy(create, want, how.flush)
			d.note(func() { over = !d.dead })
			d.cut(t, how.undo)
			s.Close()

			s = openTestStore(t, dir)
			got, gerr := get(s, RefOf(want))
			switch {
			case gerr == nil && bytes.Equal(got, want):
				committed++
			case errors.Is(gerr, fs.ErrNotExist) && err != nil:
				lost++
			default:
				t.Errorf("power lost before step %d: Commit = %v, %v, then Open: %d bytes, %v", budget, ref, err, len(got), gerr)
			}
			if left, err := s.names(tmpDir); err != nil || len(left) > 0 {
				t.Errorf("power lost before step %d: tmp holds %q, %v", budget, left, err)
			}
			if _, err := tryPut(s, want); err != nil {
				t.Errorf("power lost before step %d: second attempt: %v", budget, err)
			}
			s.Close()
		}
	}
	if committed < 2 || lost < 6 {
		t.Errorf("%d times committed, %d times lost: the test is blind", committed, lost)
	}
}

// A commit of bytes that another one has just put in place, and not made durable yet, must not claim that they are.
func TestCommitOfExistingBytesIsDurable(t *testing.T) {
	dir := t.TempDir()
	s, d := openUnsafe(t, dir)
	want := []byte("some zip")
	d.fail = func(op, name string) error {
		if op != "syncdir" || name == blobDir {
			return nil
		}
		d.fail = nil
		d.mu.Unlock() // as if between the rename and the fsync of the first commit
		defer d.mu.Lock()
		if _, err := tryPut(s, want); err != nil {
			t.Errorf("second commit: %v", err)
		}
		return errPower
	}
	if _, err := tryPut(s, want); err == nil {
		t.Error("first commit succeeds without its fsync")
	}
	d.cut(t, true)
	s.Close()
	if got, err := get(openTestStore(t, dir), RefOf(want)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the power came back: %q, %v", got, err)
	}
}

func TestStoreStopsWritingAfterFault(t *testing.T) {
	eio := &fs.PathError{Op: "fsync", Path: "x", Err: syscall.EIO}
	for _, op := range []string{"write", "fsync", "read", "rename", "syncdir"} {
		s, d := openUnsafe(t, t.TempDir())
		old := put(t, s, []byte("old"))
		open, err := s.Create(100)
		if err != nil {
			t.Fatal(err)
		}
		d.note(func() { d.fail = failingOnce(op, eio) })
		if _, err := tryPut(s, []byte("new")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s fails: %v, want ErrUnavailable", op, err)
		}
		first := s.Err()
		if first == nil || !strings.Contains(first.Error(), "input/output error") {
			t.Errorf("%s fails: Err = %v", op, first)
			continue
		}
		if _, err := s.Create(100); err != first {
			t.Errorf("%s failed: Create = %v, want the first fault", op, err)
		}
		d.note(func() { d.fail = failing("write", errors.New("another fault")) })
		_, _ = open.Write([]byte("open"))
		if err := s.Err(); err != first {
			t.Errorf("%s failed: Err = %v after another fault, want the first", op, err)
		}
		if _, err := open.Commit(); err != first {
			t.Errorf("%s failed: Commit of an open draft = %v, want the first fault", op, err)
		}
		if err := s.Remove(old.Digest); err != first {
			t.Errorf("%s failed: Remove = %v, want the first fault", op, err)
		}
		if got, err := get(s, old); err != nil || string(got) != "old" {
			t.Errorf("%s failed: Open = %q, %v", op, got, err)
		}
		if err := s.Verify(t.Context(), old); err != nil {
			t.Errorf("%s failed: Verify = %v", op, err)
		}
	}
}

// What cannot be created because the disk became read-only ends writing: the kernel does that to a file system with errors.
// Too many open files are no fault of the disk.
func TestCreateOnReadOnlyDisk(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	d.note(func() { d.fail = failing("create", &fs.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}) })
	if _, err := s.Create(100); !errors.Is(err, ErrUnavailable) || s.Err() != nil {
		t.Errorf("too many open files: %v, the store says %v", err, s.Err())
	}
	d.note(func() { d.fail = failing("create", &fs.PathError{Op: "open", Path: "x", Err: syscall.EROFS}) })
	if _, err := s.Create(100); !errors.Is(err, ErrUnavailable) || s.Err() == nil || !strings.Contains(s.Err().Error(), "read-only file system") {
		t.Errorf("read-only: %v, the store says %v", err, s.Err())
	}
}

func TestFullDiskIsForgiven(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		for _, op := range []string{"create", "mkdir", "write", "fsync", "rename"} {
			s, d := openUnsafe(t, t.TempDir())
			d.note(func() { d.fail = failing(op, &fs.PathError{Op: op, Path: "x", Err: errno}) })
			_, err := tryPut(s, []byte("some zip"))
			if !errors.Is(err, ErrNoSpace) || !errors.Is(err, ErrUnavailable) || time.Since(s.Full()) > time.Minute {
				t.Errorf("%v at %s: %v", errno, op, err)
			}
			if op == "write" && !strings.Contains(err.Error(), "need up to 524288000 bytes, wrote 4") {
				t.Errorf("%v at %s: the message does not say what is needed: %v", errno, op, err)
			}
			d.note(func() { d.fail = nil })
			put(t, s, []byte("some zip"))
			if left, _ := s.names(tmpDir); len(left) > 0 {
				t.Errorf("%v at %s leaves %q", errno, op, left)
			}
		}
	}
}

// After a failed fsync of a directory the name may be lost and the next fsync pass: also a full disk ends writing then.
func TestFullDiskAtDirectoryIsNotForgiven(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	for _, dir := range []string{"blobs/sha256", path.Dir(blobName(DigestOf([]byte("some zip"))))} {
		d.note(func() {
			d.fail = func(op, name string) error {
				if op == "syncdir" && name == dir {
					return syscall.ENOSPC
				}
				return nil
			}
		})
		if _, err := tryPut(s, []byte("some zip")); !errors.Is(err, ErrUnavailable) || s.Err() == nil {
			t.Errorf("fsync of %s: %v, fault %v, want both", dir, err, s.Err())
		}
		s, d = openUnsafe(t, t.TempDir())
	}
}

// A missing directory, a read-only disk: nothing about that is a missing version.
func TestStoreFaultsAreNeverNotExist(t *testing.T) {
	for _, op := range []string{"create", "mkdir", "write", "fsync", "rename", "syncdir"} {
		s, d := openUnsafe(t, t.TempDir())
		d.note(func() { d.fail = failing(op, fs.ErrNotExist) })
		if _, err := tryPut(s, []byte("x")); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable only", op, err)
		}
	}
	s := openTestStore(t, t.TempDir())
	s.Close()
	if _, err := s.Open(RefOf(nil)); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Open of a closed store: %v, want ErrUnavailable only", err)
	}
	if _, err := s.Create(1); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Create in a closed store: %v, want ErrUnavailable only", err)
	}
}

// lyingFile writes other bytes than it was given.
type lyingFile struct{ File }

func (f lyingFile) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	p[0] ^= 1
	return f.File.Write(p)
}

func TestCommitReadsBack(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	d, err := s.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	d.f = lyingFile{d.f}
	_, _ = d.Write([]byte("some zip"))
	if _, err := d.Commit(); !errors.Is(err, ErrUnavailable) || s.Err() == nil {
		t.Errorf("Commit of bytes that changed on their way = %v, store fault %v", err, s.Err())
	}
	for ref := range s.All() {
		t.Errorf("store has %v", ref)
	}
}

func TestDraftEnforcesItsLimit(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	d, err := s.Create(10)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := d.Write(make([]byte, 10)); n != 10 || err != nil {
		t.Errorf("Write of the limit = %d, %v", n, err)
	}
	if _, err := d.Write([]byte{1}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "10 bytes") {
		t.Errorf("Write of one byte more = %v, want ErrRefused with the limit", err)
	}
	if _, err := d.Write(nil); !errors.Is(err, ErrRefused) {
		t.Errorf("Write afterwards = %v, want the same", err)
	}
	if d.Size() != 10 {
		t.Errorf("Size = %d, want 10", d.Size())
	}
	if _, err := d.Commit(); !errors.Is(err, ErrRefused) {
		t.Errorf("Commit = %v, want ErrRefused", err)
	}
	if s.Err() != nil || s.Has(RefOf(make([]byte, 10))) {
		t.Errorf("store fault %v, or the start of the bytes is stored", s.Err())
	}
}

func TestDraftAfterItsEnd(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	for name, end := range map[string]func(*Draft){
		"Commit":     func(d *Draft) { _, _ = d.Commit() },
		"Discard":    func(d *Draft) { d.Discard() },
		"Quarantine": func(d *Draft) { _ = d.Quarantine("test") },
	} {
		d, err := s.Create(10)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = d.Write([]byte(name))
		end(d)
		d.Discard()
		_, werr := d.Write([]byte("x"))
		_, cerr := d.Commit()
		_, rerr := d.ReadAt(make([]byte, 1), 0)
		for _, err := range []error{werr, cerr, rerr, d.Quarantine("again")} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("after %s: %v, want fs.ErrClosed", name, err)
			}
		}
		if s.Has(RefOf([]byte(name))) != (name == "Commit") {
			t.Errorf("after %s: Has = %v", name, name != "Commit")
		}
	}
	if left, _ := s.names(tmpDir); len(left) > 0 || s.Err() != nil {
		t.Errorf("tmp holds %q, fault %v", left, s.Err())
	}
}

func TestDraftShowsWhatWasWritten(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	d, err := s.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	_, _ = d.Write([]byte("some "))
	_, _ = d.Write([]byte("zip"))
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil || string(b) != "some zip" || d.Ref() != RefOf(b) {
		t.Errorf("draft holds %q, %v, Ref %v", b, err, d.Ref())
	}
	if b, err := os.ReadFile(d.Name()); err != nil || string(b) != "some zip" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	fi, err := os.Stat(d.Name())
	if err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("other users may do something: %v, %v", fi.Mode(), err)
	}
}

func TestCommitNeverRewrites(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	before, err := s.root.Stat(blobName(ref.Digest))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, []byte("some zip"))
	after, err := s.root.Stat(blobName(ref.Digest))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the second commit replaced the file (%v)", err)
	}
	if left, _ := s.names(tmpDir); len(left) > 0 {
		t.Errorf("tmp holds %q", left)
	}
}

// Of two commits at once one makes the file, and the other leaves it alone.
func TestConcurrentCommitsNeverRewrite(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	var before fs.FileInfo
	d.fail = func(op, name string) error {
		if op != "fsync" {
			return nil
		}
		d.fail = nil
		d.mu.Unlock() // the whole second commit happens here
		defer d.mu.Lock()
		ref, err := tryPut(s, []byte("some zip"))
		if err == nil {
			before, err = s.root.Stat(blobName(ref.Digest))
		}
		return err
	}
	ref := put(t, s, []byte("some zip"))
	if after, err := s.root.Stat(blobName(ref.Digest)); err != nil || !os.SameFile(before, after) {
		t.Errorf("the slower commit replaced the file (%v)", err)
	}
	if left, _ := s.names(tmpDir); len(left) > 0 {
		t.Errorf("tmp holds %q", left)
	}
}

func TestStoreTellsDamageFromAbsence(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	for name, damage := range map[string]func(name string) error{
		"cut":       func(name string) error { return os.Truncate(name, 3) },
		"longer":    func(name string) error { return os.Truncate(name, 300) },
		"empty":     func(name string) error { return os.Truncate(name, 0) },
		"directory": func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o700)) },
		"link": func(name string) error {
			return errors.Join(os.Remove(name), os.Symlink(strings.Repeat("x", len("bytes to be damaged: link")), name))
		},
	} {
		ref := put(t, s, []byte("bytes to be damaged: "+name))
		file := filepath.Join(s.dir, blobName(ref.Digest))
		if err := damage(file); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{second(s.Open(ref)), s.Verify(t.Context(), ref)} {
			if !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v, want ErrDamaged", name, err)
			}
		}
		if s.Has(ref) {
			t.Errorf("%s: Has = true", name)
		}
		if err := s.Remove(ref.Digest); err != nil {
			t.Errorf("%s: Remove: %v", name, err)
		}
		if _, err := s.Open(ref); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Open after Remove: %v, want fs.ErrNotExist", name, err)
		}
		put(t, s, []byte("bytes to be damaged: "+name))
		if err := s.Verify(t.Context(), ref); err != nil {
			t.Errorf("%s: after it was healed: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A flipped bit keeps the size: only Verify finds it.
func TestVerifyFindsFlippedBits(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	want := []byte("some zip")
	ref := put(t, s, want)
	for i := range want {
		b := bytes.Clone(want)
		b[i] ^= 4
		if err := os.WriteFile(filepath.Join(s.dir, blobName(ref.Digest)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), ref); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), DigestOf(b).String()) {
			t.Errorf("byte %d: %v, want ErrDamaged with both digests", i, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Verify(ctx, ref); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		t.Errorf("Verify after its context ended: %v, want context.Canceled", err)
	}
}

// A commit heals a blob whose size is wrong without being told to.
func TestCommitHealsWrongSize(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	if err := os.Truncate(filepath.Join(s.dir, blobName(ref.Digest)), 2); err != nil {
		t.Fatal(err)
	}
	put(t, s, []byte("some zip"))
	if err := s.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	f, err := s.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		if err := s.Remove(ref.Digest); err != nil {
			t.Error(err)
		}
		if s.Has(ref) {
			t.Error("Has after Remove")
		}
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "some zip" {
		t.Errorf("a file that was open reads %q, %v", b, err)
	}
	put(t, s, []byte("some zip"))
	d.note(func() { d.fail = failing("syncdir", syscall.EIO) })
	if err := s.Remove(ref.Digest); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Remove that is not durable = %v, want ErrUnavailable", err)
	}
}

func TestStoreConcurrently(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 12 {
				b := []byte(strings.Repeat("zip", j%4)) // the same few by all
				ref, err := tryPut(s, b)
				if err != nil {
					t.Errorf("commit: %v", err)
					return
				}
				if got, err := get(s, ref); err != nil || !bytes.Equal(got, b) {
					t.Errorf("read after commit: %q, %v", got, err)
				}
				if i == 0 {
					for _, err := range s.All() {
						if err != nil {
							t.Error(err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if left, _ := s.names(tmpDir); len(left) > 0 || s.Err() != nil {
		t.Errorf("tmp holds %q, fault %v", left, s.Err())
	}
}

// The store shares tmp/ and sweeps its own drafts only; it does not follow links out of the directory.
func TestOpenStoreSweepsDraftsOnly(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	s := openTestStore(t, dir)
	for _, name := range []string{"tmp/draft-leftover", "tmp/snapshot"} {
		if err := s.root.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openTestStore(t, dir)
	if left, err := s.names(tmpDir); err != nil || len(left) != 1 || left[0] != "snapshot" {
		t.Errorf("tmp holds %q, %v, want the snapshot", left, err)
	}
	s.Close()

	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "tmp")), os.Symlink(outside, filepath.Join(dir, "tmp"))); err != nil {
		t.Fatal(err)
	}
	if s, err := OpenStore(dir); err == nil {
		s.Close()
		t.Error("OpenStore follows a link out of the data directory")
	}
}

// What was begun before the fault is not stored after it: the disk may lie about it as about the rest.
func TestNoCommitAfterFault(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	d, err := s.Create(10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte("bytes")); err != nil {
		t.Fatal(err)
	}
	s.StopWrites(errors.New("another file's fsync"))
	if _, err := d.Commit(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "another file's fsync") {
		t.Errorf("Commit = %v", err)
	}
	for ref := range s.All() {
		t.Errorf("stored: %v", ref)
	}
}
