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
	blobs map[Digest]fileID        // guarded by mu
	reads map[Digest]chan struct{} // guarded by mu; closed when the one who reads the blob is done
	max   int
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

// begin reports whether the file is known to be right. If it is not and wait is nil, the caller reads it and calls end; a
// wait that is not nil is closed when somebody else has done so.
func (v *verified) begin(d Digest, id fileID) (known bool, wait chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.blobs[d]; ok && have == id {
		return true, nil
	}
	if wait, ok := v.reads[d]; ok {
		return false, wait
	}
	v.reads[d] = make(chan struct{})
	return false, nil
}

func (v *verified) end(d Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.reads[d])
	delete(v.reads, d)
}

// verifyOnce reads f, the file of r, unless this process has done so before. Of several callers one reads.
func (s *Store) verifyOnce(f *os.File, r Ref) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	for {
		known, wait := s.verified.begin(r.Digest, fileIDOf(fi))
		if known {
			return nil
		}
		if wait == nil {
			break
		}
		<-wait // the next round reads the file again if it was damaged: it may not be the same one
	}
	defer s.verified.end(r.Digest)
	return s.verify(context.Background(), f, r)
}

// verify reads f, the file of r, without moving its offset, and remembers what comes of it.
func (s *Store) verify(ctx context.Context, f *os.File, r Ref) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("verify %v: %v: %w", r, err, ErrUnavailable)
	}
	got, err := digestAll(ctx, io.NewSectionReader(f, 0, r.Size+1))
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
	return s.verifyOnce(f, r) == nil
}
