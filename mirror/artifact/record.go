package artifact

import (
	"fmt"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxRecord bounds the text of a record, in bytes. Real ones have about 150 to 300.
const MaxRecord = 64 << 10

// Record is what a checksum database says about one module version, with the proof that it says so. It proves itself
// to anybody who holds the root hash of the database's signed tree of TreeSize records: [Record.Check] needs no other
// state, no network and no trust in whoever hands the record over (go.dev/design/25530-sumdb).
type Record struct {
	Database string           // the database's name, "sum.golang.org"
	ID       int64            // the record's index in the database's log
	Text     []byte           // go.sum lines, exactly as they are hashed into the tree
	TreeSize int64            // the tree that Proof speaks about has this many records; ID < TreeSize
	Proof    tlog.RecordProof // inclusion of Text at ID in that tree
}

// IsZero reports whether r says nothing.
func (r Record) IsZero() bool { return r.Database == "" && r.Text == nil }

// Sums returns the two go.sum hashes that r's text holds for exactly m: of the zip and of the go.mod file. It is an
// error (matching [ErrRefused]) if either line is missing, if there are two that differ, or if a line of m's has a shape
// that go.sum does not know: an answer without the wanted line must never count as a check (CVE-2026-42501). Lines of
// other shape that do not begin with m's path and version are left alone, as the go command leaves them.
func (r Record) Sums(m module.Version) (zip, mod string, err error) {
	text := string(r.Text)
	if err := checkText(text); err != nil {
		return "", "", fmt.Errorf("record %d of %s: %v: %w", r.ID, r.Database, err, ErrRefused)
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(f) < 2 || f[0] != m.Path {
			continue
		}
		var dst *string
		switch f[1] {
		case m.Version:
			dst = &zip
		case m.Version + "/go.mod":
			dst = &mod
		default:
			continue
		}
		if len(f) != 3 || !strings.Contains(f[2], ":") {
			return "", "", fmt.Errorf("record %d of %s has the malformed line %q: %w", r.ID, r.Database, line, ErrRefused)
		}
		if !strings.HasPrefix(f[2], "h1:") {
			continue // another algorithm: kept in the text, not used
		}
		if !validH1(f[2]) || *dst != "" && *dst != f[2] {
			return "", "", fmt.Errorf("record %d of %s has conflicting or malformed h1 lines for %s: %q: %w", r.ID, r.Database, m, text, ErrRefused)
		}
		*dst = f[2]
	}
	if zip == "" {
		return "", "", fmt.Errorf("record %d of %s lacks the line %q: %w", r.ID, r.Database, m.Path+" "+m.Version+" h1:…", ErrRefused)
	}
	if mod == "" {
		return "", "", fmt.Errorf("record %d of %s lacks the line %q: %w", r.ID, r.Database, m.Path+" "+m.Version+"/go.mod h1:…", ErrRefused)
	}
	return zip, mod, nil
}

// Check reports whether r is included in the tree of r.TreeSize records that has this root hash. A failure matches
// [ErrRefused]. Check is pure: every node repeats it when it applies a manifest.
func (r Record) Check(root tlog.Hash) error {
	if err := checkText(string(r.Text)); err != nil {
		return fmt.Errorf("record %d of %s: %v: %w", r.ID, r.Database, err, ErrRefused)
	}
	if r.TreeSize > MaxTreeSize {
		return fmt.Errorf("record %d of %s speaks about a tree of %d records: %w", r.ID, r.Database, r.TreeSize, ErrRefused)
	}
	if r.ID < 0 || r.ID >= r.TreeSize {
		return fmt.Errorf("record id %d is outside of the tree of %d records of %s: %w", r.ID, r.TreeSize, r.Database, ErrRefused)
	}
	if err := tlog.CheckRecord(r.Proof, r.TreeSize, root, r.ID, tlog.RecordHash(r.Text)); err != nil {
		return fmt.Errorf("record %d of %s is not in its signed tree of %d records: %v: %w", r.ID, r.Database, r.TreeSize, err, ErrRefused)
	}
	return nil
}

// checkText holds text to the rules of a record's text: tlog.FormatRecord's own, and a size.
func checkText(text string) error {
	if len(text) > MaxRecord {
		return fmt.Errorf("text of %d bytes is larger than %d", len(text), MaxRecord)
	}
	if _, err := tlog.FormatRecord(0, []byte(text)); err != nil || text == "" {
		return fmt.Errorf("text is not that of a record")
	}
	return nil
}
