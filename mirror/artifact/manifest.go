package artifact

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// Manifest is what the mirror agrees on for one module version. It starts with the record and one artifact and gains
// the others later: most of a module graph is go.mod files whose zip nobody wants.
type Manifest struct {
	Module         module.Version
	Record         Record // who vouches for the sums
	ModSum, ZipSum string // go.sum hashes, "h1:…", as the record has them; both are known before any byte is fetched
	Info, Mod, Zip Ref    // the bytes published so far
}

// Ref returns the part of kind k.
func (m Manifest) Ref(k Kind) Ref {
	switch k {
	case Info:
		return m.Info
	case Mod:
		return m.Mod
	case Zip:
		return m.Zip
	}
	return Ref{}
}

// NewManifest starts the manifest of mv from what a checksum database says of it. It has no artifacts yet.
// An error matches [ErrRefused].
func NewManifest(mv module.Version, r Record) (Manifest, error) {
	zip, mod, err := r.Sums(mv)
	if err != nil {
		return Manifest{}, err
	}
	return Manifest{Module: mv, Record: r, ZipSum: zip, ModSum: mod}, nil
}

// Validate reports whether m is well-formed and its sums are those of its record. It does not check the record's proof,
// which needs a tree's root hash (see [Record.Check]).
func (m Manifest) Validate() error {
	if err := module.Check(m.Module.Path, m.Module.Version); err != nil {
		return err
	}
	if c := module.CanonicalVersion(m.Module.Version); c != m.Module.Version {
		return &module.ModuleError{Path: m.Module.Path, Version: m.Module.Version, Err: fmt.Errorf("version is not canonical")}
	}
	for _, k := range []Kind{Info, Mod, Zip} {
		r := m.Ref(k)
		if r.IsZero() {
			continue
		}
		if r.Size < 0 || r.Size > k.Limit() {
			return fmt.Errorf("manifest of %s: %s of %d bytes", m.Module, k, r.Size)
		}
	}
	zip, mod, err := m.Record.Sums(m.Module)
	if err != nil {
		return err
	}
	if zip != m.ZipSum || mod != m.ModSum {
		return fmt.Errorf("manifest of %s has sums %s and %s, its record %s and %s: %w", m.Module, m.ZipSum, m.ModSum, zip, mod, ErrRefused)
	}
	return nil
}

// Merge returns m with the parts of n that m lacks. What m has stays as it is: of two zips with the same sum but other
// bytes, and of two infos, the first wins, so that all nodes serve the same bytes for ever. Different sums are an error
// that matches [ErrConflict]; m is returned unchanged then. Merge is pure; every node merges the same way.
func (m Manifest) Merge(n Manifest) (Manifest, error) {
	if m.Module != n.Module {
		return m, fmt.Errorf("merge manifests of %s and %s", m.Module, n.Module)
	}
	if m.ZipSum != n.ZipSum || m.ModSum != n.ModSum {
		return m, fmt.Errorf("%s: committed zip %s and go.mod %s, now zip %s and go.mod %s: %w", m.Module, m.ZipSum, m.ModSum, n.ZipSum, n.ModSum, ErrConflict)
	}
	if !m.Mod.IsZero() && !n.Mod.IsZero() && m.Mod != n.Mod {
		return m, fmt.Errorf("%s: committed go.mod %v, now %v: %w", m.Module, m.Mod, n.Mod, ErrConflict)
	}
	out := m
	if out.Info.IsZero() {
		out.Info = n.Info
	}
	if out.Mod.IsZero() {
		out.Mod = n.Mod
	}
	if out.Zip.IsZero() {
		out.Zip = n.Zip
	}
	return out, nil
}

// Publication is a manifest on its way into the catalog, with the bytes of its parts that travel inline (at most
// [MaxInline] each). A part whose bytes are nil is either a blob, stored before, or not part of this publication.
// Acks tell whoever commits it where else the blobs of it are durable; they are no part of what is committed.
type Publication struct {
	Manifest  Manifest
	Info, Mod []byte
	Acks      []Ack
}

// Listing is what the upstream last said about a module path as a whole. It is an answer, not an artifact: nothing
// vouches for it. A zero time means that this half was never seen.
type Listing struct {
	Path     string
	Versions []string  // of /@v/list: canonical, sorted by semantic version, no pseudo-versions
	Listed   time.Time // when the upstream said so, to the second, UTC
	Latest   []byte    // of /@latest: canonical info JSON
	Latested time.Time // when the upstream said so, to the second, UTC
}

// validH1 reports whether s is a go.sum hash of the only algorithm in use: "h1:" and 32 bytes in base64.
func validH1(s string) bool {
	s, ok := strings.CutPrefix(s, "h1:")
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return ok && err == nil && len(b) == 32
}
