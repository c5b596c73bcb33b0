package artifact

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"modmirror/mirror/artifact/fault"
)

// Store keeps bytes in a directory by their digest, durable once stored:
//
//	blobs/sha256/ab/ab01…  the bytes with the SHA-256 ab01… (64 digits); written once, never changed
//	tmp/draft-…            bytes on their way in; swept when the store is opened
//	unproven/ab01…         bytes that were pulled in bulk and may not be served yet; see unproven.go
//	trash/ab/ab01…         bytes that nothing named, before they are removed; see trash.go
//	quarantine/            bytes that failed a check, and why; see [Draft.Quarantine]
//	quarantine/damaged/    bytes that were right when they were stored; see [Store.Condemn]
//
// Bytes come in through a [Draft] and nowhere else; those of [Store.Keep] are no blobs before [Store.Prove]. What is true if the process dies, or the power fails:
//
//	while the draft is written    a leftover in tmp/, which the next OpenStore removes
//	after the fsync of the file   the same
//	after the rename              the blob is there and complete, or (power lost) there is nothing
//	after Commit returned         the blob is there and complete
//
// A name under blobs/ therefore always has all its bytes, and nothing has to be repaired. Bytes that changed later are
// found by size at every Open, by digest at the first Open of each blob in a process and with Verify, and match
// [ErrDamaged]; whoever has the right bytes elsewhere commits them again, which replaces the damaged ones, after they were moved out
// of the way ([Store.Condemn]) or not.
//
// After the first failed write, fsync, rename or read-back the store writes nothing more until it is opened again
// ([Store.Err] says why): the kernel reports a failed fsync once and may let the next one pass although the bytes are
// lost. So it is after a change of the disk that hangs longer than [Hung]. Reading goes on. A full disk is not such a fault:
// it fails one draft, with [ErrNoSpace], and the next one succeeds once there is space.
//
// A Store is safe for concurrent use, by one process: who opens it holds the data directory's lock. How many drafts
// are open at a time is the caller's business; each may take as many bytes of disk as its limit says.
type Store struct {
	dir  string
	root *os.Root
	disk Disk

	renaming sync.Mutex // held from the look whether a blob exists to the rename that makes it

	shards [256]struct { // by the first byte of the digest: its subdirectory of blobs/
		mu   sync.Mutex
		made bool // guarded by mu; there, and durable

		dir atomic.Pointer[os.Root] // open for reading since the first Open; nil before
	}

	verified verified
	reserved reservations
	unproven shelved
	flushes  chan struct{} // slots of Flush
	restored atomic.Int64  // blobs that came back from the trash

	memoryFile func(b []byte) (*os.File, error) // memoryFile, but for tests

	hung    time.Duration // Hung, but for tests
	writing context.Context
	stop    context.CancelCauseFunc // ends writing

	mu      sync.Mutex
	onFault func(error) // guarded by mu; may be nil
	failed  error       // guarded by mu; the first fault, which ends writing, or that the store is open for reading only
	full    time.Time   // guarded by mu; when a change last found no space

	quarantine shelf
	damaged    damagedShelf
}

const (
	blobDir       = "blobs/sha256"
	tmpDir        = "tmp"
	quarantineDir = "quarantine"
	draftPrefix   = tmpDir + "/draft-"
)

// OpenStore opens the store in the data directory dir, and makes what is missing of it. It removes the drafts that an
// earlier process left behind, so the caller must hold the directory's lock.
func OpenStore(dir string) (*Store, error) {
	return OpenStoreOn(dir, NewDisk)
}

// OpenStoreOn is OpenStore for a directory that is changed through another disk than the real one, which on returns: the store
// keeps no promise that this disk does not keep.
func OpenStoreOn(dir string, on func(root *os.Root) Disk) (*Store, error) {
	dir, err := filepath.Abs(dir) // the names of files stay right if somebody changes the working directory
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := makeDir(dir, syncDir); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := newStore(dir, root, on(root))
	if err := s.prepare(); err != nil {
		root.Close()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

// OpenStoreReadOnly opens the store in the data directory dir to look at it. It writes nothing at all, neither now nor
// later: Create and Remove fail with [ErrUnavailable], what is missing stays missing, and what an earlier process left in
// tmp/ stays there. It works on a file system that is mounted read-only. The directory must exist.
func OpenStoreReadOnly(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := newStore(dir, root, rootDisk{root})
	s.failed = fmt.Errorf("the store %s is %w: %w", dir, errReadOnly, ErrUnavailable)
	s.stop(s.failed)
	if err := s.loadUnproven(false); err != nil {
		root.Close()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

func newStore(dir string, root *os.Root, disk Disk) *Store {
	s := &Store{dir: dir, root: root, hung: HungLimit()}
	s.disk = watchedDisk{disk, s}
	s.writing, s.stop = context.WithCancelCause(context.Background())
	s.reserved.of = map[Digest]*reservation{}
	s.memoryFile = memoryFile
	s.flushes = make(chan struct{}, keepSyncs)
	s.unproven.places, s.unproven.passed = map[Digest]place{}, map[Digest]bool{}
	s.verified = verified{blobs: map[Digest]fileID{}, reads: map[Digest]*reading{}, max: maxVerified}
	s.quarantine = shelf{s: s, maxFiles: QuarantineFiles, maxBytes: QuarantineBytes}
	s.damaged = damagedShelf{s: s, maxFiles: DamagedFiles, maxBytes: DamagedBytes}
	return s
}

// prepare makes the directories. It fsyncs them although they may be there already: the process that made them may have
// died before it did.
func (s *Store) prepare() error {
	for _, name := range []string{blobDir, tmpDir, quarantineDir} {
		if err := s.root.MkdirAll(name, dirPerm); err != nil {
			return err
		}
	}
	names, err := s.names(blobDir)
	if err != nil {
		return err
	}
	for _, name := range []string{blobDir, path.Dir(blobDir), "."} {
		if err := s.disk.SyncDir(name); err != nil {
			return err
		}
	}
	for _, name := range names {
		if b, err := hex.DecodeString(name); err == nil && len(b) == 1 {
			s.shards[b[0]].made = true
		}
	}
	if err := s.loadUnproven(true); err != nil {
		return err
	}
	return s.Sweep()
}

// shard returns the directory of d's blob, and makes it if that is not done yet. Whoever needs the same one meanwhile
// waits for the fsync: a commit that went ahead would call bytes durable whose directory may still be lost.
func (s *Store) shard(d Digest) (string, error) {
	dir := path.Dir(blobName(d))
	sh := &s.shards[d[0]]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.made {
		return dir, nil
	}
	if err := s.disk.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", s.fault("make a directory of blobs", err)
	}
	if err := s.disk.SyncDir(blobDir); err != nil {
		return "", s.latch("fsync the directory of directories", err)
	}
	sh.made = true
	return dir, nil
}

// Sweep removes the drafts of an earlier process. OpenStore calls it; nobody else does while drafts are open.
func (s *Store) Sweep() error {
	if err := s.Err(); err != nil {
		return err
	}
	names, err := s.names(tmpDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name = tmpDir + "/" + name; strings.HasPrefix(name, draftPrefix) {
			if err := s.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return errors.Join(s.quarantine.sweep(), s.damaged.sweep())
}

// Close closes the store. Drafts that are still open can be discarded, not committed.
func (s *Store) Close() error {
	err := s.root.Close()
	for i := range s.shards {
		if dir := s.shards[i].dir.Load(); dir != nil {
			err = errors.Join(err, dir.Close())
		}
	}
	return err
}

// OnFault makes the store call f once, on a goroutine of its own, with the fault that ends writing; at once if that has
// happened already. It is called before the store is used.
func (s *Store) OnFault(f func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onFault = f
	if s.failed != nil && !errors.Is(s.failed, errReadOnly) {
		go f(s.failed)
	}
}

// Fault ends writing because of err, as a failed write of the store's own does, and returns the reason, which is the first one:
// for whoever keeps other files in the data directory. f of OnFault is told.
func (s *Store) Fault(what string, err error) error { return s.latch(what, err) }

// StopWrites ends writing as a fault of the store's own disk does: for whoever keeps other files on that disk and saw a write
// of them fail. Only the first reason counts. f of OnFault is not called for it.
func (s *Store) StopWrites(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("the store %s stopped writing: %v: %w", s.dir, reason, ErrUnavailable)
		s.stop(s.failed)
	}
}

// Writing returns a context that ends when writing does; its cause is what [Store.Err] returns then. It is for who waits for
// something that would have to be written.
func (s *Store) Writing() context.Context { return s.writing }

// Full returns when a change of the disk last failed for want of space; zero if none did. A quota shows nowhere else.
func (s *Store) Full() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// errReadOnly is why a store that is open for reading only does not write. It is no fault.
var errReadOnly = errors.New("open for reading only")

// Err returns the fault that ended writing, or nil while the store takes drafts. It matches [ErrUnavailable].
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fault turns the error of a write into the error for the caller, and ends writing unless the disk is merely full.
// It hides err's identity: a missing directory must not look like a missing artifact.
func (s *Store) fault(what string, err error) error {
	if isFull(err) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.full = time.Now()
		return fmt.Errorf("%w: %s: %v", ErrNoSpace, what, err)
	}
	if errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%s: the store is closed: %w", what, ErrUnavailable)
	}
	return s.latch(what, err)
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// latch ends writing and returns the reason, which is the first one.
func (s *Store) latch(what string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("the store %s stopped writing: %s: %v: %w", s.dir, what, err, ErrUnavailable)
		s.stop(s.failed)
		if s.onFault != nil {
			go s.onFault(s.failed)
		}
	}
	return s.failed
}

// Create starts a draft of at most limit bytes.
func (s *Store) Create(limit int64) (*Draft, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	name, f, err := s.create()
	if err != nil {
		return nil, err
	}
	return &Draft{s: s, name: name, f: f, hash: sha256.New(), limit: limit}, nil
}

// Hold is Create for bytes that are likely to be few, or not to become a blob: they stay in memory as long as they are no more than
// [MaxInline] and neither committed nor put into quarantine. To make a file and to remove it again takes longer than all else
// that is done with a go.mod before it is published.
func (s *Store) Hold(limit int64) (*Draft, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	return &Draft{s: s, f: &memory{}, hash: sha256.New(), limit: limit}, nil
}

// create makes the file of a draft.
func (s *Store) create() (name string, f File, err error) {
	name = draftPrefix + strings.ToLower(rand.Text())
	f, err = s.disk.Create(name)
	if errors.Is(err, syscall.EROFS) || isFull(err) { // of a disk with errors the kernel makes one that can only be read; one without room for a file may have some for bytes
		return "", nil, s.fault("create a draft", err)
	}
	if fault := s.Err(); err != nil && fault != nil {
		return "", nil, fault
	}
	if err != nil {
		return "", nil, fmt.Errorf("create a draft: %v: %w", err, ErrUnavailable) // too many open files, say: nothing is lost
	}
	fault.Point(fault.DraftCreated)
	return name, f, nil
}

// blobName returns the address of d.
func blobName(d Digest) string {
	h := d.String()
	return blobDir + "/" + h[:2] + "/" + h
}

// Has reports whether r is stored, with the right size.
func (s *Store) Has(r Ref) bool {
	fi, err := s.root.Lstat(blobName(r.Digest))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == r.Size
}

// Open opens the bytes of r for reading. The error matches [fs.ErrNotExist] if they are not here, and [ErrDamaged] if
// something else is here in their place. The first Open of a blob in a process reads it whole to know that; others who
// open it meanwhile wait. The caller closes the file.
func (s *Store) Open(r Ref) (*os.File, error) { return s.OpenContext(context.Background(), r) }

// OpenContext is Open for somebody who waits for another's reading only as long as ctx lives. Bytes that are in the trash are
// brought back.
func (s *Store) OpenContext(ctx context.Context, r Ref) (*os.File, error) {
	f, err := s.openRestored(ctx, r)
	if errors.Is(err, fs.ErrNotExist) && s.unproven.hasPassed(r.Digest) {
		passed, perr := s.openPassed(ctx, r)
		if errors.Is(perr, ErrDamaged) { // whoever proves it again finds it so
			s.unproven.doubt(r.Digest)
			return nil, err
		}
		return passed, perr
	}
	if err != nil {
		return nil, err
	}
	if err := s.verifyOnce(ctx, f, r); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// open opens the file of r if it has the right size.
func (s *Store) open(r Ref) (*os.File, error) {
	if dir := s.shardDir(r.Digest); dir != nil {
		f, err := openIn(dir, r.Digest.String(), r)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		// The directory may have been replaced since it was opened.
	}
	return openIn(s.root, blobName(r.Digest), r)
}

// shardDir returns the directory of d's blob, which is kept open: a Root walks a name from its top with a system call for
// each part, which takes twice as long as the rest of Open. The names below it cannot leave it any more than before. It is
// nil if the directory cannot be opened.
func (s *Store) shardDir(d Digest) *os.Root {
	at := &s.shards[d[0]].dir
	if dir := at.Load(); dir != nil {
		return dir
	}
	dir, err := s.root.OpenRoot(path.Dir(blobName(d)))
	if err != nil {
		return nil
	}
	if !at.CompareAndSwap(nil, dir) {
		_ = dir.Close()
	}
	return at.Load()
}

func openIn(dir *os.Root, name string, r Ref) (*os.File, error) {
	fi, err := dir.Lstat(name) // first: to open a pipe would wait
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %v: %w", r, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("open %v: %v in its place: %w", r, fi.Mode().Type(), ErrDamaged)
	}
	if fi.Size() != r.Size {
		return nil, fmt.Errorf("open %v: the file has %d bytes: %w", r, fi.Size(), ErrDamaged)
	}
	f, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %v: %w", r, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	return f, nil
}

// Verify reads the bytes of r and reports whether they still have their digest. Bytes that do not, and bytes that the
// disk cannot read, match [ErrDamaged]; missing ones match [fs.ErrNotExist].
func (s *Store) Verify(ctx context.Context, r Ref) error {
	f, err := s.open(r)
	if errors.Is(err, fs.ErrNotExist) && s.TrashSize(r.Digest) == r.Size {
		return fmt.Errorf("%w; it is in the trash, from where a mirror that runs brings it back", err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return s.verify(ctx, f, r)
}

// digestAll returns the Ref of what r still holds.
func digestAll(ctx context.Context, r io.Reader) (Ref, error) {
	h := sha256.New()
	n, err := io.Copy(h, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	}))
	return Ref{Digest: Digest(h.Sum(nil)), Size: n}, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Remove removes the bytes of d, whether they are damaged or not. Files that are open stay readable. It is no error if
// there is nothing to remove.
func (s *Store) Remove(d Digest) error {
	if err := s.Err(); err != nil {
		return err
	}
	s.verified.forget(d)
	name := blobName(d)
	if err := s.disk.Remove(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if fault := s.Err(); err != nil && fault != nil {
		return fault
	} else if err != nil {
		return fmt.Errorf("remove sha256:%s: %v: %w", d, err, ErrUnavailable)
	}
	if err := s.disk.SyncDir(path.Dir(name)); err != nil {
		return s.latch("fsync the directory of a removed blob", err)
	}
	return nil
}

// All yields every blob, in the order of digests, as the directory has them at that moment; a size that is wrong shows
// in comparison with a Ref from elsewhere. A directory that cannot be read is an error and the rest follows. So is, each
// matching [ErrDamaged], what is there and is no blob: nobody but the store makes anything under blobs/.
func (s *Store) All() iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) {
		names, err := s.names(blobDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !yield(Ref{}, fmt.Errorf("list blobs: %v: %w", err, ErrUnavailable)) {
			return
		}
		for _, dir := range names {
			if b, err := hex.DecodeString(dir); err != nil || len(b) != 1 || hex.EncodeToString(b) != dir {
				if !yield(Ref{}, stray(blobDir+"/"+dir, "it is no directory of blobs")) {
					return
				}
			} else if !s.allIn(dir, yield) {
				return
			}
		}
	}
}

// allIn yields the blobs in one directory, and reports whether to go on.
func (s *Store) allIn(dir string, yield func(Ref, error) bool) bool {
	names, err := s.names(blobDir + "/" + dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !yield(Ref{}, fmt.Errorf("list blobs: %v: %w", err, ErrUnavailable)) {
		return false
	}
	for _, name := range names {
		file := blobDir + "/" + dir + "/" + name
		d, err := ParseDigest(name)
		if err != nil || name[:2] != dir {
			if !yield(Ref{}, stray(file, "a blob has another name")) {
				return false
			}
			continue
		}
		fi, err := s.root.Lstat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // removed meanwhile
		case err != nil:
			err = fmt.Errorf("list blobs: %v: %w", err, ErrUnavailable)
		case !fi.Mode().IsRegular():
			err = stray(file, fmt.Sprintf("it is no file, but %v", fi.Mode().Type()))
		}
		ref := Ref{}
		if err == nil {
			ref = Ref{Digest: d, Size: fi.Size()}
		}
		if !yield(ref, err) {
			return false
		}
	}
	return true
}

func stray(name, why string) error { return fmt.Errorf("stray %q: %s: %w", name, why, ErrDamaged) }

// names returns the names in a directory, sorted.
func (s *Store) names(dir string) ([]string, error) {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}
