package artifact

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// ParseList returns the versions in an upstream's answer to /@v/list of path, in the order of SortVersions, each once.
// The first word of a line is a version, an RFC 3339 time may follow. Lines without a canonical version that path may
// have are left out, and so are pseudo-versions: the go command ignores both. A list is never wrong as a whole, and
// never nil.
func ParseList(b []byte, path string) []string {
	list := []string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || module.CanonicalVersion(f[0]) != f[0] || module.IsPseudoVersion(f[0]) {
			continue
		}
		if module.Check(path, f[0]) == nil {
			list = append(list, strings.Clone(f[0]))
		}
	}
	SortVersions(list)
	return slices.Compact(list)
}

// NewestPseudoVersion returns the pseudo-version of the latest time in an upstream's answer to /@v/list of path, or "".
// The time is that of the line, or else the one in the version. The go command takes it if the upstream has no @latest.
func NewestPseudoVersion(b []byte, path string) string {
	best, bestTime := "", time.Time{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || !module.IsPseudoVersion(f[0]) || module.CanonicalVersion(f[0]) != f[0] || module.Check(path, f[0]) != nil {
			continue
		}
		t, err := module.PseudoVersionTime(f[0])
		if len(f) > 1 {
			t, err = time.Parse(time.RFC3339, f[1])
		}
		if err == nil && t.After(bestTime) {
			best, bestTime = f[0], t
		}
	}
	return strings.Clone(best)
}

// FormatList returns the answer to /@v/list: the versions as they are, one a line. Of none it is empty, not nil.
func FormatList(versions []string) []byte {
	b := []byte{}
	for _, v := range versions {
		b = append(b, v...)
		b = append(b, '\n')
	}
	return b
}

// SortVersions sorts versions by semantic version, and equal ones by their text.
func SortVersions(versions []string) { semver.Sort(versions) }
