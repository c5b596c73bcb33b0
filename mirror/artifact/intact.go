package artifact

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// maxVerified bounds how many blobs are remembered as verified, at about 100 bytes each.
const maxVerified = 1 << 18

// verified remembers which blobs this process has read whole and found to be right, so that the others can be read before
// they are served for the first time. It does not find bytes that rot between two reads: the offline check does, and a
// go client would.
type verified struct {
	mu    sync.Mutex
	blobs map[Digest]fileID   // guarded by mu
	reads map[Digest]*reading // guarded by mu; who reads the blob now
	max   int
}

// reading is one look at a blob, of which several callers may use the outcome.
type reading struct {
	file fileID
	done chan struct{} // closed at the end
	err  error         // set before
}

// fileID tells a file from another one in its place, as far as a file system can.
type fileID struct {
	node     uint64 // inode; 0 where there is none
	modified int64
	size     int64
}

func fileIDOf(fi fs.FileInfo) fileID {
	return fileID{node: inode(fi), modified: fi.ModTime().UnixNano(), size: fi.Size()}
}

func (v *verified) add(d Digest, id fileID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.blobs[d]; !ok && len(v.blobs) >= v.max {
		for other := range v.blobs { // any: it costs one more read
			delete(v.blobs, other)
			break
		}
	}
	v.blobs[d] = id
}

func (v *verified) forget(d Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.blobs, d)
}

// begin returns nil if the file is known to be right, and otherwise who reads the blob. If that is mine, the caller has to
// read the file and to call end.
func (v *verified) begin(d Digest, id fileID) (now *reading, mine bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.blobs[d]; ok && have == id {
		return nil, false
	}
	if now, ok := v.reads[d]; ok {
		return now, false
	}
	now = &reading{file: id, done: make(chan struct{})}
	v.reads[d] = now
	return now, true
}

func (v *verified) end(d Digest, now *reading, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now.err = err
	close(now.done)
	delete(v.reads, d)
}

// verifyOnce reads f, the file of r, unless this process has done so before. Of several callers one reads, on no context of
// its own, and the others wait for the outcome as long as their contexts live.
func (s *Store) verifyOnce(ctx context.Context, f *os.File, r Ref) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	for {
		now, mine := s.verified.begin(r.Digest, fileIDOf(fi))
		switch {
		case now == nil:
			return nil
		case mine:
			return s.verifyFor(now, f, r)
		}
		select {
		case <-now.done:
		case <-ctx.Done():
			return fmt.Errorf("open %v: %w", r, context.Cause(ctx))
		}
		if now.file == fileIDOf(fi) { // or else it was another file, in whose place this one is
			return now.err
		}
	}
}

// verifyFor is verify for all who wait for now.
func (s *Store) verifyFor(now *reading, f *os.File, r Ref) (err error) {
	defer func() { s.verified.end(r.Digest, now, err) }()
	return s.verify(context.Background(), f, r)
}

// verify reads f, the file of r, without moving its offset, and remembers what comes of it.
func (s *Store) verify(ctx context.Context, f *os.File, r Ref) error {
	return s.verifyFrom(ctx, f, s.content(f, r), r)
}

// content is what f, the file of r, holds, and one byte more if it is too long.
func (s *Store) content(f *os.File, r Ref) io.Reader {
	return io.NewSectionReader(s.disk.Blob(f), 0, r.Size+1)
}

// verifyFrom is verify for bytes that are read through in.
func (s *Store) verifyFrom(ctx context.Context, f *os.File, in io.Reader, r Ref) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("verify %v: %v: %w", r, err, ErrUnavailable)
	}
	got, err := digestAll(ctx, in)
	if ctx.Err() != nil {
		return fmt.Errorf("verify %v: %w", r, context.Cause(ctx))
	}
	if err == nil && got == r {
		s.verified.add(r.Digest, fileIDOf(fi))
		return nil
	}
	s.verified.forget(r.Digest)
	if err != nil {
		return fmt.Errorf("verify %v: %v: %w", r, err, ErrDamaged)
	}
	return fmt.Errorf("verify %v: the file is %v: %w", r, got, ErrDamaged)
}

// intact reports whether r is stored and right. Unless again is set, what this process has read before is not read again.
func (s *Store) intact(r Ref, again bool) bool {
	f, err := s.open(r)
	if err != nil {
		return false
	}
	defer f.Close()
	if again {
		return s.verify(context.Background(), f, r) == nil
	}
	return s.verifyOnce(context.Background(), f, r) == nil
}

// Doubt makes the next Open of a blob read it again: somebody could not read all of it.
func (s *Store) Doubt(d Digest) { s.verified.forget(d) }
