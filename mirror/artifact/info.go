package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
)

// RevInfo is the content of an info: what a source says about one version of a module. Nothing vouches for it.
//
//	{"Version":"v1.2.0","Time":"2026-03-01T12:00:00Z","Origin":{"VCS":"git","URL":"https://example.com/m"}}
type RevInfo struct {
	Version string          // canonical
	Time    time.Time       // of the commit, as its author says; UTC; zero if unknown
	Origin  json.RawMessage // where it came from: a JSON object without white space, or nil
}

// maxOrigin bounds an Origin, in bytes. Real ones have about 200. With it, every canonical info is far below MaxInline.
const maxOrigin = 16 << 10

// ParseInfo parses the info of a version that is not known in advance: the answer to @latest, to a branch or a commit.
// The input must be one JSON object with a canonical Version. As the go command does, it matches the names of fields
// regardless of case, and ignores fields that it does not know; a field that is there twice is refused. An Origin that
// the go command could not read, or that is too long, is left out: it is informative only, and it must not spoil a
// version for ever. An error matches [ErrMalformed].
func ParseInfo(b []byte) (RevInfo, error) {
	info, err := parseInfo(b)
	if err != nil {
		return RevInfo{}, fmt.Errorf("info %s: %w: %w", quote(string(b)), err, ErrMalformed)
	}
	return info, nil
}

// CanonicalInfo returns the one form of an upstream's info of m in which the mirror keeps and serves it; see
// [RevInfo.JSON]. Its Version must be exactly that of m. The canonical form of a canonical form is itself, and every
// node computes the same bytes: CanonicalInfo is pure. An error matches [ErrMalformed] and does not name m.
func CanonicalInfo(b []byte, m module.Version) ([]byte, error) {
	info, err := ParseInfo(b)
	if err != nil {
		return nil, err
	}
	if info.Version != m.Version {
		return nil, fmt.Errorf("the info is that of another version, %s: %w", info.Version, ErrMalformed)
	}
	return info.JSON(), nil
}

// JSON returns the canonical form of an info: the fields in the order of RevInfo, no white space, the time in UTC; a
// zero Time and an empty Origin are left out. Version must be canonical.
func (i RevInfo) JSON() []byte {
	b := []byte(`{"Version":"` + i.Version + `"`) // nothing in a canonical version needs an escape
	if !i.Time.IsZero() {
		b = append(b, `,"Time":"`...)
		b = i.Time.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	if len(i.Origin) > 0 {
		b = append(b, `,"Origin":`...)
		b = append(b, i.Origin...)
	}
	return append(b, '}')
}

func parseInfo(b []byte) (info RevInfo, err error) {
	if len(b) > MaxInfo {
		return info, fmt.Errorf("more than the limit of %d bytes", MaxInfo)
	}
	if !utf8.Valid(b) {
		return info, fmt.Errorf("not UTF-8")
	}
	fields, err := parseObject(b, "Version", "Time", "Origin")
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(or(fields["Version"], `""`), &info.Version); err != nil {
		return info, fmt.Errorf("malformed Version")
	}
	if c := module.CanonicalVersion(info.Version); c == "" || c != info.Version {
		return info, fmt.Errorf("version %s is not canonical", quote(info.Version))
	}
	if err := json.Unmarshal(or(fields["Time"], `null`), &info.Time); err != nil {
		return info, fmt.Errorf("malformed Time")
	}
	info.Time = info.Time.UTC()
	if y := info.Time.Year(); y < 0 || y > 9999 {
		return info, fmt.Errorf("time out of range")
	}
	info.Origin = parseOrigin(fields["Origin"])
	return info, nil
}

// parseOrigin returns the canonical form of an Origin, or nil if there is none that is worth keeping.
func parseOrigin(b json.RawMessage) json.RawMessage {
	// The fields of cmd/go's codehost.Origin: strings, or the go command fails to read the whole info.
	known := []string{"VCS", "URL", "Subdir", "Hash", "TagPrefix", "TagSum", "Ref", "RepoSum"}
	fields, err := parseObject(b, known...)
	if err != nil {
		return nil
	}
	for _, f := range fields {
		if f[0] != '"' && string(f) != "null" {
			return nil
		}
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil || out.Len() > maxOrigin {
		return nil
	}
	return out.Bytes()
}

// parseObject parses b as one JSON object and returns its fields of the given names, spelled in any case.
func parseObject(b []byte, names ...string) (map[string]json.RawMessage, error) {
	if !json.Valid(b) {
		return nil, fmt.Errorf("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	fields := make(map[string]json.RawMessage)
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		for _, name := range names {
			if !strings.EqualFold(name, key.(string)) {
				continue
			}
			if _, ok := fields[name]; ok {
				return nil, fmt.Errorf("field %s is there twice", name)
			}
			fields[name] = value
		}
	}
	return fields, nil
}

func or(b json.RawMessage, def string) json.RawMessage {
	if b == nil {
		return json.RawMessage(def)
	}
	return b
}

// ModSum returns the go.sum hash, "h1:…", of a go.mod file with the content b.
func ModSum(b []byte) string {
	h1, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	})
	if err != nil {
		panic(fmt.Sprintf("artifact: hash of a go.mod in memory: %v", err)) // neither the name nor the reader can fail
	}
	return h1
}
