package mirror

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"modmirror/mirror/artifact"
)

// Many blobs go from one node to another in one request and one answer. The request names them, each in 40 bytes, its SHA-256 and
// its size, a big-endian number of 64 bits. The answer has as many parts, in the same order, and nothing after them:
//
//	01 00000000000003e8 <1000 bytes>   the size, and the bytes
//	00                                 this node does not have it
//	02                                 it cannot hand it over now
//
// Whoever reads the answer believes none of it: a size that is not the one asked for ends it, and bytes have to have their digest.

// MaxBulk is how many blobs one request may name.
const MaxBulk = 512

const (
	bulkRef    = len(artifact.Digest{}) + 8 // bytes of one in a request
	bulkAbsent = 0
	bulkHere   = 1
	bulkLater  = 2
)

// AppendBulk appends the request for refs.
func AppendBulk(b []byte, refs []artifact.Ref) []byte {
	for _, r := range refs {
		b = append(b, r.Digest[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(r.Size))
	}
	return b
}

// ParseBulk parses what AppendBulk appends. Its errors match artifact.ErrMalformed.
func ParseBulk(b []byte) ([]artifact.Ref, error) {
	if len(b) == 0 || len(b)%bulkRef != 0 || len(b) > MaxBulk*bulkRef {
		return nil, fmt.Errorf("%d bytes do not name 1 to %d blobs: %w", len(b), MaxBulk, artifact.ErrMalformed)
	}
	refs := make([]artifact.Ref, 0, len(b)/bulkRef)
	for ; len(b) > 0; b = b[bulkRef:] {
		size := binary.BigEndian.Uint64(b[bulkRef-8:])
		if size > artifact.MaxZip {
			return nil, fmt.Errorf("a blob of %d bytes: %w", size, artifact.ErrMalformed)
		}
		refs = append(refs, artifact.Ref{Digest: artifact.Digest(b[:bulkRef-8]), Size: int64(size)})
	}
	return refs, nil
}

// appendPart appends what stands before the bytes of r in an answer.
func appendPart(b []byte, r artifact.Ref) []byte {
	return binary.BigEndian.AppendUint64(append(b, bulkHere), uint64(r.Size))
}

// errNotNow is for what a node has, or may have, and does not hand over now.
var errNotNow = fmt.Errorf("it cannot hand it over now: %w", artifact.ErrUnavailable)

// readBulk reads the answer to a request for refs, and calls take for each part that it has: with its bytes, of which take may leave
// some, or with why there are none. An error says why the rest is not there; it matches artifact.ErrUnavailable, and also
// ErrMalformed if that is no answer. A take that fails ends it, too, with its error.
func readBulk(r io.Reader, refs []artifact.Ref, take func(i int, body io.Reader, absent error) error) error {
	for i, ref := range refs {
		var head [9]byte
		if _, err := io.ReadFull(r, head[:1]); err != nil {
			return cutShort(i, len(refs), err)
		}
		var err error
		switch head[0] {
		case bulkAbsent:
			err = take(i, nil, fmt.Errorf("it does not have %v: %w", ref, fs.ErrNotExist))
		case bulkLater:
			err = take(i, nil, errNotNow)
		case bulkHere:
			if _, err := io.ReadFull(r, head[1:]); err != nil {
				return cutShort(i, len(refs), err)
			}
			if size := binary.BigEndian.Uint64(head[1:]); size != uint64(ref.Size) {
				return fmt.Errorf("part %d of %d has %d bytes, asked for was %v: %w: %w", i+1, len(refs), size, ref, artifact.ErrMalformed, artifact.ErrUnavailable)
			}
			body := &io.LimitedReader{R: r, N: ref.Size}
			if err = take(i, body, nil); err == nil {
				if _, derr := io.Copy(io.Discard, body); derr != nil || body.N > 0 {
					return cutShort(i, len(refs), derr)
				}
			}
		default:
			return fmt.Errorf("part %d of %d begins with %#x: %w: %w", i+1, len(refs), head[0], artifact.ErrMalformed, artifact.ErrUnavailable)
		}
		if err != nil {
			return err
		}
	}
	if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return fmt.Errorf("there is more after the last of %d parts: %w: %w", len(refs), artifact.ErrMalformed, artifact.ErrUnavailable)
	}
	return nil
}

func cutShort(part, parts int, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("part %d of %d: %w: %w", part+1, parts, err, artifact.ErrUnavailable)
}
