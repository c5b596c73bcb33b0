package artifact

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// rot turns a bit of a stored blob, as a disk does: nobody has written the file.
func rot(t *testing.T, s *Store, r Ref) {
	t.Helper()
	name := filepath.Join(s.dir, blobName(r.Digest))
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.WriteFile(name, b, 0o600), os.Chtimes(name, time.Time{}, fi.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// The first Open in a process finds what changed since the last one; also in a store that is open for reading only.
func TestFirstOpenVerifies(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	good, bad := put(t, s, []byte("good bytes")), put(t, s, []byte("bytes that rot"))
	rot(t, s, bad)
	s.Close()
	for _, open := range []func(string) (*Store, error){OpenStoreReadOnly, OpenStore} {
		s, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := get(s, bad); !errors.Is(err, ErrDamaged) {
				t.Errorf("Open of rotten bytes: %v, want ErrDamaged", err)
			}
			if b, err := get(s, good); err != nil || string(b) != "good bytes" {
				t.Errorf("Open: %q, %v", b, err)
			}
		}
		s.Close()
	}
}

// A blob is read once in a process, not at each Open; a file that takes its place is read again.
func TestOpenVerifiesOnce(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	ref := put(t, s, []byte("some zip"))
	for range 2 {
		if _, err := get(s, ref); err != nil {
			t.Fatal(err)
		}
		rot(t, s, ref) // which nobody looks for any more
		if _, err := get(s, ref); err != nil {
			t.Errorf("the second Open reads the blob again: %v", err)
		}
		rot(t, s, ref) // and back
		s.Close()
		s = openTestStore(t, dir)
	}
	name := filepath.Join(s.dir, blobName(ref.Digest))
	if _, err := get(s, ref); err != nil {
		t.Fatal(err)
	}
	for what, replace := range map[string]func() error{
		"time": func() error {
			return errors.Join(os.WriteFile(name, []byte("SOME ZIP"), 0o600), os.Chtimes(name, time.Time{}, time.Unix(1, 0)))
		},
		"file": func() error {
			fi, err := os.Stat(name)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(name+"2", []byte("SOME ZIP"), 0o600), os.Chtimes(name+"2", time.Time{}, fi.ModTime()), os.Rename(name+"2", name))
		},
	} {
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		if _, err := get(s, ref); !errors.Is(err, ErrDamaged) {
			t.Errorf("Open after the %s changed: %v, want ErrDamaged", what, err)
		}
		put(t, s, []byte("some zip"))
		if _, err := get(s, ref); err != nil {
			t.Errorf("Open after the right bytes came: %v", err)
		}
	}
}

// Bytes that were committed are right, and what Verify has read is too; what it finds damaged is not served any more.
func TestVerifiedIsShared(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	rot(t, s, ref)
	if _, err := get(s, ref); err != nil {
		t.Errorf("Open after Commit reads the blob again: %v", err)
	}
	if err := s.Verify(t.Context(), ref); !errors.Is(err, ErrDamaged) {
		t.Errorf("Verify = %v, want ErrDamaged", err)
	}
	if _, err := get(s, ref); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open after Verify = %v, want ErrDamaged", err)
	}
	rot(t, s, ref)
	if err := s.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if b, err := get(s, ref); err != nil || string(b) != "some zip" {
		t.Errorf("Open = %q, %v", b, err)
	}
}

// A commit of the right bytes takes the place of rotten ones, whether they were served before or not.
func TestCommitHealsRottenBytes(t *testing.T) {
	dir := t.TempDir()
	for _, restart := range []bool{false, true} {
		s := openTestStore(t, dir)
		ref := put(t, s, []byte("some zip"))
		if _, err := get(s, ref); err != nil {
			t.Fatal(err)
		}
		rot(t, s, ref)
		if restart {
			s.Close()
			s = openTestStore(t, dir)
		}
		put(t, s, []byte("some zip"))
		if b, err := get(s, ref); err != nil || string(b) != "some zip" {
			t.Errorf("Open = %q, %v", b, err)
		}
		if err := s.Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// Also when somebody has put a directory of blobs in the place of another while the store was open.
func TestOpenAfterRestore(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	ref := put(t, s, []byte("some zip"))
	if _, err := get(s, ref); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(filepath.Join(s.dir, blobName(ref.Digest)))
	if err := errors.Join(os.CopyFS(dir+"-copy", os.DirFS(dir)), os.RemoveAll(dir), os.Rename(dir+"-copy", dir)); err != nil {
		t.Fatal(err)
	}
	if b, err := get(s, ref); err != nil || string(b) != "some zip" {
		t.Errorf("Open = %q, %v", b, err)
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	s.verified.max = 3
	for i := range 9 {
		ref := put(t, s, bytes.Repeat([]byte("x"), i))
		if _, err := get(s, ref); err != nil {
			t.Error(err)
		}
	}
	if n := len(s.verified.blobs); n != 3 {
		t.Errorf("%d blobs are remembered, want 3", n)
	}
	ref := RefOf([]byte("x"))
	if err := s.Remove(ref.Digest); err != nil {
		t.Error(err)
	}
	if _, ok := s.verified.blobs[ref.Digest]; ok {
		t.Error("a blob that was removed is remembered")
	}
}

// Of many who open a blob for the first time, one reads it. The others learn what came of it if it was their file, and read
// theirs if it was another one; or they give up.
func TestFirstOpensAreJoined(t *testing.T) {
	errVerdict, errLeft := errors.New("verdict"), errors.New("left")
	for _, tt := range []struct {
		name    string
		same    bool // file
		verdict error
		want    error
	}{
		{"right", true, nil, nil},
		{"damaged", true, errVerdict, errVerdict},
		{"another file", false, errVerdict, ErrDamaged},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := openTestStore(t, t.TempDir())
			ref := put(t, s, []byte("some zip"))
			rot(t, s, ref)
			s.verified.forget(ref.Digest)
			var file fileID
			if fi, err := os.Stat(filepath.Join(s.dir, blobName(ref.Digest))); err != nil {
				t.Fatal(err)
			} else if tt.same {
				file = fileIDOf(fi)
			}
			now, mine := s.verified.begin(ref.Digest, file)
			if !mine {
				t.Fatal("the blob is known already")
			}
			ctx, leave := context.WithCancelCause(t.Context())
			open := func(ctx context.Context, want error) func() {
				return func() {
					f, err := s.OpenContext(ctx, ref)
					if !errors.Is(err, want) {
						t.Errorf("%s: Open = %v, want %v", tt.name, err, want)
					}
					f.Close()
				}
			}
			var wg, left sync.WaitGroup
			left.Go(open(ctx, errLeft))
			for range 8 {
				wg.Go(open(t.Context(), tt.want))
			}
			synctest.Wait()
			leave(errLeft)
			left.Wait()
			s.verified.end(ref.Digest, now, tt.verdict)
			wg.Wait()
			if len(s.verified.reads) > 0 {
				t.Errorf("%s: a read never ends", tt.name)
			}
		})
	}
}

func TestOnFault(t *testing.T) {
	s, d := openUnsafe(t, t.TempDir())
	faults := make(chan error, 9)
	s.OnFault(func(err error) { faults <- err })
	d.note(func() { d.fail = failing("fsync", syscall.EIO) })
	for range 3 {
		if _, err := tryPut(s, []byte("some zip")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Commit = %v", err)
		}
	}
	if err := <-faults; err == nil || err != s.Err() {
		t.Errorf("OnFault(%v), want %v", err, s.Err())
	}
	late := make(chan error, 9)
	s.OnFault(func(err error) { late <- err })
	if err := <-late; err != s.Err() {
		t.Errorf("OnFault(%v) of a store that has failed, want %v", err, s.Err())
	}
	r, err := OpenStoreReadOnly(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.OnFault(func(err error) { faults <- err })
	s.latch("again", syscall.EIO)
	if len(faults)+len(late) > 0 {
		t.Error("OnFault is called twice, or for a store that is open for reading only")
	}
}

// OpenStore makes every directory durable that it may have made, or that a process made which died before it did so.
func TestOpenStoreIsDurable(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		var synced []string
		s, err := OpenStoreOn(dir, func(root *os.Root) Disk { return syncSpy{rootDisk{root}, &synced} })
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		for _, want := range []string{".", "blobs", "blobs/sha256"} {
			if !slices.Contains(synced, want) {
				t.Errorf("OpenStore fsyncs %q, not %s", synced, want)
			}
		}
	}
}

type syncSpy struct {
	rootDisk
	synced *[]string
}

func (d syncSpy) SyncDir(name string) error {
	*d.synced = append(*d.synced, name)
	return d.rootDisk.SyncDir(name)
}

func BenchmarkOpen(b *testing.B) {
	s, err := OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ref, err := tryPut(s, bytes.Repeat([]byte("zip"), 10000))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := s.Open(ref)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
