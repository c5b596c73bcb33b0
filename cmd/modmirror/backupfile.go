package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// A backup is a directory, or a tar file with the same names in it:
//
//	modmirror-backup                    what this directory is: "modmirror backup 1\n" (not in a tar)
//	blobs/sha256/ab/ab01…               zips and large go.mod files, by their SHA-256; shared by all generations
//	sumdb/<name>/tile/8/<level>/<n>     tiles that verify every committed record, as in a data directory; shared
//	generations/<time>/catalog.db       the catalog at one moment
//	generations/<time>/manifest.json    what belongs to this generation, and the checksum of everything
//	tmp/, generations/.making-…         what is being written
//	quarantine/, trash/                 empty; a data directory has them as well
//
// In a tar, which is one generation, catalog.db comes first and manifest.json last, both at the top.
//
// What is true if the process dies: a blob or a tile has its name when all its bytes are durable, or not at all. A generation has
// its name when the catalog, the manifest, and every blob and tile that they name are durable; before, there is a directory that
// the next backup removes. Blobs and tiles that were copied stay, and are not copied again. A tar has its name when it is whole.
const (
	backupMark     = "modmirror-backup"
	backupMarkText = "modmirror backup 1\n"
	generationsDir = "generations"
	makingPrefix   = ".making-"
	manifestName   = "manifest.json"
	backupFormat   = 1
)

// backupManifest is manifest.json: it says what a generation is. It ends in a line with the SHA-256 of what is before:
//
//	{ … }
//	sha256 <64 digits>
type backupManifest struct {
	Format    int              `json:"format"`
	Made      time.Time        `json:"made"`
	Version   string           `json:"version"` // of the program that made it
	Node      string           `json:"node"`    // that it was made from
	Point     replicate.Point  `json:"point"`
	Catalog   backupSum        `json:"catalog"`
	Blobs     backupSum        `json:"blobs"` // number, bytes, and the SHA-256 of lines "<digest> <size>\n" by digest
	Databases []backupDatabase `json:"databases"`
}

// backupSum says how much something is, and what.
type backupSum struct {
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// backupDatabase is a checksum database that the catalog trusts, and its newest head there. The tiles that it needs follow
// from that and the records in the catalog, and are authenticated by it.
type backupDatabase struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	Size int64  `json:"treeSize"` // 0: it has no head
	Root string `json:"root,omitempty"`
}

// maxBackupManifest bounds a manifest.json.
const maxBackupManifest = 1 << 20

func (m backupManifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	return fmt.Appendf(b, "sha256 %x\n", sha256.Sum256(b)), nil
}

// parseManifest takes what encode made and nothing else.
func parseManifest(b []byte) (m backupManifest, err error) {
	if len(b) > maxBackupManifest {
		return m, fmt.Errorf("%s has more than %d bytes: %w", manifestName, maxBackupManifest, artifact.ErrRefused)
	}
	body, _, ok := bytes.Cut(b, []byte("\nsha256 "))
	if !ok {
		return m, fmt.Errorf("%s is cut short: it does not end in its checksum: %w", manifestName, artifact.ErrRefused)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("%s is damaged: %v: %w", manifestName, err, artifact.ErrRefused)
	}
	if m.Format != backupFormat {
		return m, fmt.Errorf("%s has format %d, this version of modmirror reads %d: %w", manifestName, m.Format, backupFormat, artifact.ErrRefused)
	}
	if again, err := m.encode(); err != nil || !bytes.Equal(again, b) {
		return m, fmt.Errorf("%s is damaged: it does not have the checksum that it ends in: %w", manifestName, artifact.ErrRefused)
	}
	return m, nil
}

// blobList is the blobs that a catalog names, each once, by digest, and which artifact each is.
type blobList struct {
	refs []artifact.Ref
	of   map[artifact.Digest]blobUse
}

type blobUse struct {
	module module.Version
	kind   artifact.Kind
}

func (u blobUse) String() string { return fmt.Sprintf("%s of %s", u.kind, u.module) }

// add adds the blobs of m. Two that have one digest and not one size are refused.
func (l *blobList) add(m artifact.Manifest) error {
	for _, kind := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		ref := m.Ref(kind)
		if ref.IsZero() || kind != artifact.Zip && ref.Size <= artifact.MaxInline {
			continue
		}
		if _, known := l.of[ref.Digest]; known {
			continue // if not of one size, one of the two does not verify
		}
		if ref.Size > artifact.MaxZip {
			return fmt.Errorf("%s of %s has %d bytes: %w", kind, m.Module, ref.Size, artifact.ErrRefused)
		}
		if l.of == nil {
			l.of = make(map[artifact.Digest]blobUse)
		}
		l.of[ref.Digest] = blobUse{m.Module, kind}
		l.refs = append(l.refs, ref)
	}
	return nil
}

// sum sorts the list and sums it up.
func (l *blobList) sum() backupSum {
	slices.SortFunc(l.refs, func(a, b artifact.Ref) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
	s, h := backupSum{Files: len(l.refs)}, sha256.New()
	for _, r := range l.refs {
		s.Bytes += r.Size
		fmt.Fprintf(h, "%s %d\n", r.Digest, r.Size)
	}
	s.SHA256 = hexOf(h)
	return s
}

func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// blobFile is the name of a blob in a backup.
func blobFile(d artifact.Digest) string {
	h := d.String()
	return path.Join("blobs/sha256", h[:2], h)
}

// parseBlobFile is the reverse of blobFile.
func parseBlobFile(name string) (artifact.Digest, error) {
	d, err := artifact.ParseDigest(path.Base(name))
	if err != nil || blobFile(d) != name {
		return d, fmt.Errorf("%q is not the name of a blob: %w", name, artifact.ErrRefused)
	}
	return d, nil
}

// tilePrefix is the directory of a database's tiles in a backup, with a slash at the end.
func tilePrefix(database string) string {
	return strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(tilesDir("", database))), "/") + "/"
}
