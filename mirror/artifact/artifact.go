// Package artifact is the vocabulary that every room of modmirror shares: what an artifact is, how it is named, what is
// proven about it, and where its bytes lie.
//
// A module version has three artifacts (go.dev/ref/mod#goproxy-protocol): its info (JSON), its go.mod and its zip. Their
// bytes are named by a [Digest], the SHA-256 of exactly these bytes. That is not the sum that stands in a go.sum file
// ("h1:…"), which covers the names and contents of the files inside a zip and says nothing about the zip's own bytes.
//
// A [Record] is what a checksum database says about one module version, together with the proof that the database's
// signed tree contains it. A [Manifest] is what the mirror agrees on for one module version: the record, and the
// digests of the artifacts published so far. It grows part by part and never contradicts itself; see [Manifest.Merge].
// A [Store] keeps the bytes of zips in a directory, by digest, durable once stored.
//
// What comes from outside is checked here, by functions that know nothing of where it came from: [CheckZip] decides
// whether bytes are a module zip and computes their sum, [CanonicalInfo] gives an info the one form in which it is kept,
// [ModSum] is the sum of a go.mod file, [ParseList] reads a version list. None of them compares a sum with a record.
//
// This package imports the standard library and golang.org/x/mod only. Everything but the Store and CheckZip is pure.
package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Kind says which of the three artifacts of a module version is meant.
type Kind uint8

// The artifacts of a module version, in the order in which the go command asks for them.
const (
	Info Kind = iota + 1 // JSON with version and time; not authenticated by any checksum database
	Mod                  // the go.mod file
	Zip                  // the source
)

// String returns the file name extension that the GOPROXY protocol uses for k, without the dot.
func (k Kind) String() string {
	switch k {
	case Info:
		return "info"
	case Mod:
		return "mod"
	case Zip:
		return "zip"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Sizes that bound every artifact. The zip and go.mod limits are those of the go command (golang.org/x/mod/zip).
const (
	MaxInfo   = 1 << 20   // bytes of an info
	MaxMod    = 16 << 20  // bytes of a go.mod file
	MaxZip    = 500 << 20 // bytes of a zip
	MaxInline = 64 << 10  // bytes of an info or a go.mod that a Raft entry carries; larger ones are blobs like a zip
)

// Limit returns the largest size in bytes that an artifact of kind k may have.
func (k Kind) Limit() int64 {
	switch k {
	case Info:
		return MaxInfo
	case Mod:
		return MaxMod
	case Zip:
		return MaxZip
	}
	return 0
}

// Digest is the SHA-256 of an artifact's bytes. It is the bytes' address in a [Store]; it is not a go.sum hash.
type Digest [sha256.Size]byte

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// String returns d as 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest parses the form that String prints and nothing else.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || copy(d[:], b) != len(b) || d.String() != s {
		return Digest{}, fmt.Errorf("malformed digest %q", s)
	}
	return d, nil
}

// Ref names bytes by their digest and says how many there are. The zero Ref means: not published yet.
type Ref struct {
	Digest Digest
	Size   int64
}

// RefOf returns the Ref of b.
func RefOf(b []byte) Ref { return Ref{Digest: DigestOf(b), Size: int64(len(b))} }

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// String returns the digest and the size, for messages.
func (r Ref) String() string { return fmt.Sprintf("sha256:%s (%d bytes)", r.Digest, r.Size) }
