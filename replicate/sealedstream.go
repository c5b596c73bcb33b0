package replicate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// A catalog is sent sealed: a byte that says the format, the file, and the SHA-256 of all that is in front of it. TCP's
// own sum misses one damage in some ten thousand packets that have any, and what a row says of listings, members or counts
// is vouched for by nothing else.
const (
	streamFormat  = 1
	streamSealLen = 1 + sha256.Size // what a sealed file has more
)

// sealStream writes to w what file writes, sealed.
func sealStream(w io.Writer, file io.WriterTo) error {
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := both.Write([]byte{streamFormat}); err != nil {
		return err
	}
	if _, err := file.WriteTo(both); err != nil {
		return err
	}
	fault.Point(fault.SnapshotSend)
	_, err := w.Write(sum.Sum(nil))
	return err
}

// unsealer takes in a sealed file and passes the file on.
type unsealer struct {
	to   io.Writer
	sum  hash.Hash // of the format and all that was passed on; nil before the format is known
	held []byte    // the last bytes that came in, which are the sum if none follow
}

// Write takes in a part of any length.
func (u *unsealer) Write(p []byte) (int, error) {
	n := len(p)
	if u.sum == nil && n > 0 {
		if p[0] != streamFormat {
			return 0, fmt.Errorf("snapshot in format %d, this node reads format %d: run the same version of modmirror on all nodes: %w", p[0], streamFormat, artifact.ErrRefused)
		}
		u.sum = sha256.New()
		u.sum.Write(p[:1])
		p = p[1:]
	}
	u.held = append(u.held, p...)
	if more := len(u.held) - sha256.Size; more > 0 {
		u.sum.Write(u.held[:more])
		if _, err := u.to.Write(u.held[:more]); err != nil {
			return 0, err
		}
		u.held = append(u.held[:0], u.held[more:]...)
	}
	return n, nil
}

// check reports whether what was passed on is, as a whole, what was sealed.
func (u *unsealer) check() error {
	if u.sum == nil || !bytes.Equal(u.held, u.sum.Sum(nil)) {
		return errors.New("cut short, or not the bytes that were sent: its SHA-256 is another one")
	}
	return nil
}
