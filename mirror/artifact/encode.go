package artifact

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// The encoding of a manifest is part of the state that all nodes must agree on byte for byte (its hash is a leaf of the
// catalog's Merkle tree), so it is our own and has one form only:
//
//	byte     format, 1
//	string   module path, version
//	string   database; uvarint id; string text; uvarint tree size; uvarint number of proof hashes, 32 bytes each
//	string   go.mod sum, zip sum
//	ref      info, go.mod, zip
//
// A string is a uvarint length and the bytes; a ref is the byte 0, or the byte 1, 32 bytes of SHA-256, uvarint size.
const manifestFormat = 1

// maxProof bounds an inclusion proof: one hash for each level of a tree of 2^62 records, and one spare.
const maxProof = 64

// AppendBinary appends the canonical encoding of m to b.
func (m Manifest) AppendBinary(b []byte) ([]byte, error) {
	if m.Record.ID < 0 || m.Record.TreeSize < 0 || len(m.Record.Proof) > maxProof {
		return b, fmt.Errorf("encode manifest of %s: record out of range", m.Module)
	}
	b = append(b, manifestFormat)
	b = appendString(b, m.Module.Path)
	b = appendString(b, m.Module.Version)
	b = appendString(b, m.Record.Database)
	b = binary.AppendUvarint(b, uint64(m.Record.ID))
	b = appendString(b, m.Record.Text)
	b = binary.AppendUvarint(b, uint64(m.Record.TreeSize))
	b = binary.AppendUvarint(b, uint64(len(m.Record.Proof)))
	for _, h := range m.Record.Proof {
		b = append(b, h[:]...)
	}
	b = appendString(b, m.ModSum)
	b = appendString(b, m.ZipSum)
	for _, r := range []Ref{m.Info, m.Mod, m.Zip} {
		if r.Size < 0 {
			return b, fmt.Errorf("encode manifest of %s: negative size", m.Module)
		}
		if r.IsZero() {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		b = append(b, r.Digest[:]...)
		b = binary.AppendUvarint(b, uint64(r.Size))
	}
	return b, nil
}

// UnmarshalBinary decodes the one encoding that AppendBinary makes of a manifest, and refuses everything else.
func (m *Manifest) UnmarshalBinary(data []byte) error {
	d := decoder{b: data}
	if f := d.byte(); d.err == nil && f != manifestFormat {
		return fmt.Errorf("decode manifest: it has format %d, and this version of modmirror knows format %d: a later version may have written it", f, manifestFormat)
	}
	var out Manifest
	out.Module = module.Version{Path: string(d.bytes()), Version: string(d.bytes())}
	out.Record.Database = string(d.bytes())
	out.Record.ID = d.int()
	if text := d.bytes(); len(text) > 0 {
		out.Record.Text = bytes.Clone(text)
	}
	out.Record.TreeSize = d.int()
	if n := d.int(); n > maxProof {
		d.fail("proof of %d hashes", n)
	} else if n > 0 && d.err == nil {
		out.Record.Proof = make(tlog.RecordProof, n)
		for i := range out.Record.Proof {
			copy(out.Record.Proof[i][:], d.take(tlog.HashSize))
		}
	}
	out.ModSum, out.ZipSum = string(d.bytes()), string(d.bytes())
	for _, r := range []*Ref{&out.Info, &out.Mod, &out.Zip} {
		if d.byte() == 0 {
			continue
		}
		copy(r.Digest[:], d.take(len(r.Digest)))
		r.Size = d.int()
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	if d.err != nil {
		return fmt.Errorf("decode manifest: %w", d.err)
	}
	if again, err := out.AppendBinary(nil); err != nil || !bytes.Equal(again, data) {
		return fmt.Errorf("decode manifest: not in canonical form")
	}
	*m = out
	return nil
}

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

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
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) int() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || int64(v) < 0 {
		d.fail("malformed number")
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

func (d *decoder) bytes() []byte {
	n := d.int()
	if n > int64(len(d.b)) {
		d.fail("cut short")
		return nil
	}
	return d.take(int(n))
}
