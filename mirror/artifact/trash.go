package artifact

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// The trash holds blobs that nothing named, for as long as whoever collects them lets it, under the same names as blobs/ has:
//
//	trash/ab/ab01…
//
// Nobody is served from there. Who asks for a blob that is in the trash and nowhere else (Open, Durable, DurableIntact) has it
// brought back first: it is read whole, and renamed only if it still has its digest. What is true if the process dies, or the
// power fails:
//
//	before the rename  the blob is where it was
//	after it           it is in one of the two places, and whole; who needs it finds it in either
//	after Trash        it is in the trash
//
// A blob is moved, and removed, only by who has its digest alone: nobody reserves it, and nobody can before that is done. So
// whoever holds a reservation, looks and finds the blob (or has it brought back) finds it again until it releases; and what
// the collector is told in still, while it has the digest alone, is true when it renames.
const trashDir = "trash"

func trashName(d Digest) string {
	h := d.String()
	return trashDir + "/" + h[:2] + "/" + h
}

// Trash moves the bytes of d to the trash, unless they are reserved, are not here, or still says no: it is asked last, when
// nobody can reserve them any more, and must not reserve anything itself. moved is false then. When it is true the move is
// durable.
func (s *Store) Trash(d Digest, still func() bool) (moved bool, err error) {
	if err := s.Err(); err != nil {
		return false, err
	}
	done, ok := s.reserved.takeAlone(d)
	if !ok {
		return false, nil
	}
	defer done()
	if fi, err := s.root.Lstat(blobName(d)); err != nil || !fi.Mode().IsRegular() || !still() {
		return false, nil
	}
	from, to := blobName(d), trashName(d)
	if err := s.trashShard(d); err != nil {
		return false, err
	}
	s.verified.forget(d)
	if err := s.disk.Rename(from, to); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, s.fault("rename a blob", err)
	}
	return true, s.syncBoth(path.Dir(to), path.Dir(from))
}

// trashShard makes the directory of d in the trash, if it is not there, durably. The trash itself is made when it is needed first: a
// store may be one in which nothing is ever collected.
func (s *Store) trashShard(d Digest) error {
	dir := path.Dir(trashName(d))
	if _, err := s.root.Lstat(dir); err == nil {
		return nil
	}
	for _, name := range []string{trashDir, dir} {
		if err := s.disk.Mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
			return s.fault("make a directory of the trash", err)
		}
		if err := s.disk.SyncDir(path.Dir(name)); err != nil {
			return s.latch("fsync the directory of the trash", err)
		}
	}
	return nil
}

// syncBoth makes a rename durable, where the file is now before where it was.
func (s *Store) syncBoth(to, from string) error {
	for _, dir := range []string{to, from} {
		if err := s.disk.SyncDir(dir); err != nil {
			return s.latch("fsync a directory of a blob that was moved", err)
		}
	}
	return nil
}

// Drop removes the bytes of d from the trash for good, unless they are reserved, are not there, or still says no, as in
// [Store.Trash]. That they come back after a power cut does no harm.
func (s *Store) Drop(d Digest, still func() bool) (removed bool, err error) {
	if err := s.Err(); err != nil {
		return false, err
	}
	done, ok := s.reserved.takeAlone(d)
	if !ok {
		return false, nil
	}
	defer done()
	if fi, err := s.root.Lstat(trashName(d)); err != nil || !fi.Mode().IsRegular() || !still() {
		return false, nil
	}
	if err := s.disk.Remove(trashName(d)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("remove sha256:%s from the trash: %v: %w", d, err, ErrUnavailable)
	}
	return true, nil
}

// restore brings the bytes of r back from the trash, if they are there and right. The caller holds a reservation. Otherwise
// the error matches [fs.ErrNotExist], or says why they cannot be moved.
func (s *Store) restore(ctx context.Context, r Ref) error {
	f, err := openIn(s.root, trashName(r.Digest), r)
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("open %v: what is in the trash is not it: %w", r, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.readTrashed(ctx, f, r); err != nil {
		return err
	}
	if err := s.Err(); err != nil {
		return err
	}
	dir, err := s.shard(r.Digest)
	if err != nil {
		return err
	}
	s.renaming.Lock()
	defer s.renaming.Unlock()
	if fi, err := s.root.Lstat(blobName(r.Digest)); err == nil && fi.Size() == r.Size {
		return nil // another one was faster
	}
	if err := s.disk.Rename(trashName(r.Digest), blobName(r.Digest)); err != nil {
		return s.fault("rename a blob", err)
	}
	s.restored.Add(1)
	return s.syncBoth(dir, path.Dir(trashName(r.Digest)))
}

// readTrashed reads f and reports whether it is r.
func (s *Store) readTrashed(ctx context.Context, f *os.File, r Ref) error {
	got, err := digestAll(ctx, io.NewSectionReader(s.disk.Blob(f), 0, r.Size+1))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("open %v: %w", r, context.Cause(ctx))
	case err != nil || got != r:
		return fmt.Errorf("open %v: in the trash there is %v: %v: %w", r, got, err, fs.ErrNotExist)
	}
	return nil
}

// openRestored is open for who may find the bytes in the trash. From a disk that is not written to any more they are read where
// they are.
func (s *Store) openRestored(ctx context.Context, r Ref) (*os.File, error) {
	f, missing := s.open(r)
	if !errors.Is(missing, fs.ErrNotExist) {
		return f, missing
	}
	defer s.Reserve(r.Digest)()
	if f, err := s.open(r); !errors.Is(err, fs.ErrNotExist) { // another one was faster
		return f, err
	}
	err := s.restore(ctx, r)
	switch {
	case err == nil:
		return s.open(r)
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing
	case s.Err() != nil:
		return openIn(s.root, trashName(r.Digest), r)
	}
	return nil, err
}

// Restored returns how many blobs were brought back from the trash since the store was opened.
func (s *Store) Restored() int64 { return s.restored.Load() }

// ShardDigests returns the digests of the blobs whose first byte is shard, without a look at any of them. What is no blob is left
// out: see All.
func (s *Store) ShardDigests(shard byte) ([]Digest, error) { return s.digests(blobDir, shard) }

// TrashDigests returns the digests of what is in the trash, by the same rule.
func (s *Store) TrashDigests(shard byte) ([]Digest, error) { return s.digests(trashDir, shard) }

func (s *Store) digests(dir string, shard byte) ([]Digest, error) {
	names, err := s.names(dir + "/" + hex.EncodeToString([]byte{shard}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list blobs: %v: %w", err, ErrUnavailable)
	}
	all := make([]Digest, 0, len(names))
	for _, name := range names {
		if d, err := ParseDigest(name); err == nil && d[0] == shard {
			all = append(all, d)
		}
	}
	return all, nil
}

// BlobSize returns the size of the file of d, 0 if there is none.
func (s *Store) BlobSize(d Digest) int64 { return s.sizeOf(blobName(d)) }

// TrashSize returns the size of the file of d in the trash, 0 if there is none.
func (s *Store) TrashSize(d Digest) int64 { return s.sizeOf(trashName(d)) }

func (s *Store) sizeOf(name string) int64 {
	fi, err := s.root.Lstat(name)
	if err != nil {
		return 0
	}
	return fi.Size()
}
