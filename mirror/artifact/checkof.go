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
	var head [HeadLen]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read a zip's first bytes: %v: %w", err, ErrUnavailable)
	}
	if said, err := checkZipHead(head[:n], man); said {
		return err
	}
	return checkWholeZip(ctx, f, man)
}

// HeadLen is how many of the first bytes of a blob [CheckHead] is to have, if there are so many.
const HeadLen = 512

// CheckHead is [CheckOf] as far as the first bytes of a blob tell.
func CheckHead(head []byte, man Manifest, k Kind) error {
	switch k {
	case Mod:
		return checkModOf(man)
	case Zip:
		_, err := checkZipHead(head, man)
		return err
	}
	return nil
}

// checkZipHead has said nothing of a zip without entries, nor of one whose names are too long for it.
func checkZipHead(head []byte, man Manifest) (said bool, err error) {
	name, ok := firstName(head)
	prefix := man.Module.Path + "@" + man.Module.Version + "/"
	switch {
	case !ok || len(prefix) > HeadLen-localLen:
		return false, nil
	case !bytes.HasPrefix(name, []byte(prefix)):
		return true, fmt.Errorf("a zip with the entry %s is none of %s: %w", quote(string(name)), man.Module, ErrRefused)
	}
	return true, nil
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

// checkWholeZip is for a zip without entries, which is small, and for names that nobody has.
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
	var head [HeadLen]byte
	n, err := s.peek(man.Zip, head[:])
	if err != nil {
		return err
	}
	if said, err := checkZipHead(head[:n], man); said && err == nil {
		return nil
	}
	f, err := s.openRead(ctx, man.Zip)
	if err != nil {
		return err
	}
	defer f.Close()
	return CheckOf(ctx, f, man, k)
}

// peek reads the first bytes of a blob, wherever it is.
func (s *Store) peek(r Ref, head []byte) (int, error) {
	f, off, err := s.openAny(r)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := s.disk.Blob(f).ReadAt(head[:min(int64(len(head)), r.Size)], off)
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("read the first bytes of %v: %v: %w", r, err, ErrDamaged)
	}
	return n, nil
}

// openAny opens the file that a blob is in, and says where, without reading it.
func (s *Store) openAny(r Ref) (f *os.File, off int64, err error) {
	f, err = s.open(r)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, 0, err
	}
	switch at, ok := s.unproven.at(r); {
	case ok && at.pack != nil:
		f, err = s.root.Open(at.pack.name)
		off = at.off
	case ok:
		f, err = openIn(s.root, unprovenName(r.Digest), r)
	}
	if errors.Is(err, fs.ErrNotExist) { // it may have been proven meanwhile
		f, err = s.open(r)
		off = 0
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	return f, off, err
}

// openRead opens a blob, proven or not, after it has been read: it has its digest, or the error matches [ErrDamaged].
func (s *Store) openRead(ctx context.Context, r Ref) (*os.File, error) {
	f, err := s.open(r)
	if errors.Is(err, fs.ErrNotExist) {
		return s.OpenUnproven(ctx, r)
	}
	if err == nil {
		if err = s.verify(ctx, f, r); err != nil {
			_ = f.Close() // it was only read
		}
	}
	return f, err
}
