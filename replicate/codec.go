package replicate

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Everything that the catalog and the log hold is built of three shapes: a uvarint, a string (uvarint length and bytes)
// and raw 32-byte hashes. Every value has one encoding only; whoever decodes encodes again and compares.

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// appendOptional appends bytes that may be absent: nil is the byte 0, anything else the byte 1 and a string.
func appendOptional(b, s []byte) []byte {
	if s == nil {
		return append(b, 0)
	}
	return appendString(append(b, 1), s)
}

func appendHashes[T ~[]tlog.Hash](b []byte, hs T) []byte {
	b = binary.AppendUvarint(b, uint64(len(hs)))
	for _, h := range hs {
		b = append(b, h[:]...)
	}
	return b
}

// maxHashes bounds a proof: a consistency proof has at most two hashes for each of 63 levels.
const maxHashes = 128

// decoder takes fields off the front of b. After the first error it returns zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.b) {
		d.fail("cut short")
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) flag() bool {
	b := d.byte()
	if b > 1 {
		d.fail("malformed flag")
	}
	return b == 1
}

func (d *decoder) int() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || int64(v) < 0 || n > 1 && d.b[n-1] == 0 { // or longer than it has to be: there is one form of each
		d.fail("malformed number")
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

// bytes returns a string field. The result aliases the decoder's input.
func (d *decoder) bytes() []byte {
	n := d.int()
	if n > int64(len(d.b)) {
		d.fail("cut short")
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) optional() []byte {
	switch d.byte() {
	case 0:
		return nil
	case 1:
		if b := d.bytes(); b != nil {
			return b
		}
		return []byte{}
	}
	d.fail("malformed flag")
	return nil
}

func (d *decoder) hash() (h tlog.Hash) {
	copy(h[:], d.take(tlog.HashSize))
	return h
}

func (d *decoder) hashes() []tlog.Hash {
	n := d.int()
	if n > maxHashes {
		d.fail("%d hashes", n)
	}
	if n == 0 || d.err != nil {
		return nil
	}
	hs := make([]tlog.Hash, n)
	for i := range hs {
		hs[i] = d.hash()
	}
	return hs
}

// end returns the first error; bytes left over are one.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}

// bigEndian is the form of a number inside a key, so that keys sort as numbers do.
func bigEndian(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func fromBigEndian(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }
