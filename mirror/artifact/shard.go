package artifact

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"iter"
)

// Shards is the number of directories that blobs are spread over, by the first byte of their digests.
const Shards = 256

// Shard is All for the blobs in one directory.
func (s *Store) Shard(b byte) iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) { s.allIn(hex.EncodeToString([]byte{b}), yield) }
}

// Rehash is Verify that asks the disk, where the system lets it, and not what memory holds of the file. Nobody who opens the
// blob waits for it. It reads pieces of at most piece bytes, and calls pace after each with the number of them.
func (s *Store) Rehash(ctx context.Context, r Ref, piece int, pace func(ctx context.Context, n int) error) error {
	f, err := s.open(r)
	if err != nil {
		return err
	}
	defer f.Close()
	forgetPages(f)
	in := s.content(f, r)
	slow := readerFunc(func(p []byte) (int, error) {
		n, err := in.Read(p)
		if n > 0 {
			if perr := pace(ctx, n); perr != nil {
				return n, perr
			}
		}
		return n, err
	})
	return s.verifyFrom(ctx, f, bufio.NewReaderSize(slow, piece), r)
}

// Named reports whether anything stands in the place of r, right or not. The error matches [fs.ErrNotExist] if nothing does,
// and [ErrDamaged] if it has another size.
func (s *Store) Named(r Ref) error {
	fi, err := s.root.Lstat(blobName(r.Digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && (!fi.Mode().IsRegular() || fi.Size() != r.Size):
		return stray(blobName(r.Digest), "it is no file of the right size")
	}
	return nil
}
