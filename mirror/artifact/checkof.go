package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// A blob lies under the digest of its bytes, and was found to be an artifact of one module version before it got there. A catalog
// that names it for another version, too, is made up by somebody who lies: it must not be served as that. To tell costs one
// small read, and no memory of what was compared with what:
//
//	go.mod  its go.sum hash is a hash of its digest. Two versions may have the same go.mod, and so the same blob.
//	zip     the names of all its entries begin with "module@version/", and only those of that version do: a path has no @, and
//	        a version no slash. The first entry begins where the file does (see CheckZip). A zip without any entry says of no
//	        version that it is its own: its go.sum hash decides, as ever.

// CheckOf reports whether f, the blob of kind k of man, which passed the gate as an artifact of some module version, is one of man's.
// If not, the error matches [ErrRefused]. It does not look at more of the bytes than it must, which may have rotted: see
// [Store.CheckOf].
func CheckOf(ctx context.Context, f ZipFile, man Manifest, k Kind) error {
	switch k {
	case Mod:
		return checkModOf(man)
	case Zip:
		return checkZipOf(ctx, f, man)
	}
	return nil // no sum vouches for an info
}

func checkModOf(man Manifest) error {
	if sum := modSumOf(man.Mod.Digest); sum != man.ModSum {
		return fmt.Errorf("the go.mod's sum is %s, that of the record is %s: %w", sum, man.ModSum, ErrRefused)
	}
	return nil
}

// modSumOf returns the go.sum hash of the go.mod with this digest (golang.org/x/mod/sumdb/dirhash.Hash1).
func modSumOf(d Digest) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s  go.mod\n", d))
	return "h1:" + base64.StdEncoding.EncodeToString(sum[:])
}

func checkZipOf(ctx context.Context, f ZipFile, man Manifest) error {
	prefix := man.Module.Path + "@" + man.Module.Version + "/"
	head := make([]byte, localLen+max(len(prefix), 200)) // what is more than the prefix is for the message
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read a zip's first bytes: %v: %w", err, ErrUnavailable)
	}
	name, ok := firstName(head[:n])
	switch {
	case !ok:
		return checkWholeZip(ctx, f, man)
	case !bytes.HasPrefix(name, []byte(prefix)):
		return fmt.Errorf("a zip with the entry %s is none of %s: %w", quote(string(name)), man.Module, ErrRefused)
	}
	return nil
}

// firstName returns as much of the name of a zip's first entry as is in head, its first bytes; ok is false if it begins with none.
func firstName(head []byte) (name []byte, ok bool) {
	le := binary.LittleEndian
	if len(head) < localLen || le.Uint32(head) != localMagic {
		return nil, false
	}
	name = head[localLen:]
	return name[:min(len(name), int(le.Uint16(head[26:])))], true
}

// checkWholeZip is for a zip without entries, which is small.
func checkWholeZip(ctx context.Context, f ZipFile, man Manifest) error {
	sums, err := CheckZip(ctx, f, man.Zip.Size, man.Module)
	if err == nil && sums.H1 != man.ZipSum {
		err = fmt.Errorf("the zip's sum is %s, that of the record is %s: %w", sums.H1, man.ZipSum, ErrRefused)
	}
	return err
}

// CheckOf is the function CheckOf for the bytes of a blob that is here, whether it is proven or not. Only what still has its digest
// is refused: bytes that have rotted match [ErrDamaged]. The error matches [fs.ErrNotExist] if they are not here.
func (s *Store) CheckOf(ctx context.Context, man Manifest, k Kind) error {
	if k != Zip {
		return CheckOf(ctx, nil, man, k)
	}
	f, err := s.openAny(man.Zip)
	if err != nil {
		return err
	}
	defer f.Close()
	bad := CheckOf(ctx, f, man, k)
	if !errors.Is(bad, ErrRefused) {
		return bad
	}
	got, err := digestAll(ctx, s.content(f, man.Zip))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && got == man.Zip:
		return bad
	}
	s.verified.forget(man.Zip.Digest)
	return fmt.Errorf("%v: the file is %v, %v: %w", man.Zip, got, err, ErrDamaged)
}

// openAny opens a blob, wherever it is, without reading it.
func (s *Store) openAny(r Ref) (*os.File, error) {
	f, err := s.open(r)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = openIn(s.root, unprovenName(r.Digest), r)
	}
	if errors.Is(err, fs.ErrNotExist) { // it was proven meanwhile
		f, err = s.open(r)
	}
	return f, err
}
