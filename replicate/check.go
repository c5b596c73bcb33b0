package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
)

// What follows are the rules that need nothing but the value itself. They run before a proposal, again in Apply on every
// node, and again when a stopped node's catalog is checked.

// checkManifest holds m to the rules that need no other state.
func checkManifest(m artifact.Manifest) error {
	if err := m.Validate(); err != nil {
		if errors.Is(err, artifact.ErrRefused) {
			return err
		}
		return fmt.Errorf("%w: %w", err, artifact.ErrRefused)
	}
	if n := len(moduleKey(m.Module)); n > maxKey-64 {
		return fmt.Errorf("module path and version of %d bytes: %w", n, artifact.ErrRefused)
	}
	if m.Info.IsZero() && m.Mod.IsZero() && m.Zip.IsZero() {
		return fmt.Errorf("manifest of %s has no artifact: %w", m.Module, artifact.ErrRefused)
	}
	return nil
}

// checkParts checks the inline bytes of p against its manifest: digest, size, go.sum hash, form of the info. Bytes that do
// not travel with p must be a blob (larger than MaxInline) or be found by lookup. The second error is lookup's own.
func checkParts(p artifact.Publication, lookup func(artifact.Digest) ([]byte, bool, error)) (bad, err error) {
	for _, part := range []struct {
		kind artifact.Kind
		ref  artifact.Ref
		data []byte
	}{{artifact.Info, p.Manifest.Info, p.Info}, {artifact.Mod, p.Manifest.Mod, p.Mod}} {
		data := part.data
		if data == nil {
			if part.ref.IsZero() || part.ref.Size > artifact.MaxInline {
				continue
			}
			stored, ok, err := lookup(part.ref.Digest)
			if err != nil {
				return nil, err
			}
			if !ok {
				return fmt.Errorf("%s of %s comes without its bytes: %w", part.kind, p.Manifest.Module, artifact.ErrRefused), nil
			}
			data = stored
		}
		if err := checkPart(p.Manifest, part.kind, part.ref, data); err != nil {
			return err, nil
		}
	}
	return nil, nil
}

// checkPart checks data, the inline bytes of one artifact of m.
func checkPart(m artifact.Manifest, k artifact.Kind, ref artifact.Ref, data []byte) error {
	if len(data) > artifact.MaxInline {
		return fmt.Errorf("%s of %s: %d bytes are too many to travel inline: %w", k, m.Module, len(data), artifact.ErrRefused)
	}
	if have := artifact.RefOf(data); have != ref {
		return fmt.Errorf("%s of %s is %v, its manifest says %v: %w", k, m.Module, have, ref, artifact.ErrRefused)
	}
	if k == artifact.Mod {
		if sum := artifact.ModSum(data); sum != m.ModSum {
			return fmt.Errorf("go.mod of %s has the sum %s, the checksum database says %s: %w", m.Module, sum, m.ModSum, artifact.ErrRefused)
		}
		return nil
	}
	version, err := checkInfo(data)
	if err == nil && version != m.Module.Version {
		err = fmt.Errorf("it is of version %s", version)
	}
	if err != nil {
		return fmt.Errorf("info of %s: %v: %w", m.Module, err, artifact.ErrRefused)
	}
	return nil
}

// checkInfo reports whether data is an info in canonical JSON ([artifact.RevInfo.JSON]) and returns its version. The form is
//
//	{"Version":"v1.2.3","Time":"2024-05-06T07:08:09Z","Origin":{…}}
//
// without any space outside of strings; time and origin may be missing. It is read by hand, because what encoding/json
// accepts or prints may change with a Go release, and nodes of two releases must agree.
func checkInfo(data []byte) (version string, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"Version":"`))
	v, rest, ok2 := bytes.Cut(rest, []byte(`"`))
	if !ok || !ok2 || len(data) > artifact.MaxInfo {
		return "", errors.New("not the canonical JSON of an info")
	}
	version = string(v)
	if !semver.IsValid(version) || module.CanonicalVersion(version) != version {
		return "", fmt.Errorf("version %q is not canonical", v)
	}
	if after, ok := bytes.CutPrefix(rest, []byte(`,"Time":"`)); ok {
		t, after, _ := bytes.Cut(after, []byte(`"`))
		if !canonicalTime(t) {
			return "", fmt.Errorf("time %q is not canonical", t)
		}
		rest = after
	}
	if string(rest) == "}" {
		return version, nil
	}
	origin, ok := bytes.CutPrefix(rest, []byte(`,"Origin":`))
	origin, ok2 = bytes.CutSuffix(origin, []byte("}"))
	if !ok || !ok2 || !compactObject(origin) {
		return "", errors.New("not the canonical JSON of an info")
	}
	return version, nil
}

// checkListing holds l to its documented form.
func checkListing(l artifact.Listing) error {
	if err := module.CheckPath(l.Path); err != nil || len(l.Path) > maxKey {
		return fmt.Errorf("listing of %.200q: %v: %w", l.Path, err, artifact.ErrMalformed)
	}
	for _, t := range []time.Time{l.Listed, l.Latested} {
		if !t.IsZero() && (t.Unix() <= 0 || !t.Equal(time.Unix(t.Unix(), 0))) {
			return fmt.Errorf("listing of %s at %v: not a whole second: %w", l.Path, t, artifact.ErrMalformed)
		}
	}
	for i, v := range l.Versions {
		if !semver.IsValid(v) || module.CanonicalVersion(v) != v || module.IsPseudoVersion(v) {
			return fmt.Errorf("listing of %s has the version %q, which does not belong there: %w", l.Path, v, artifact.ErrMalformed)
		}
		if i > 0 && compareVersions(l.Versions[i-1], v) >= 0 {
			return fmt.Errorf("listing of %s is not sorted at %q: %w", l.Path, v, artifact.ErrMalformed)
		}
	}
	if l.Listed.IsZero() && len(l.Versions) > 0 || l.Latested.IsZero() && l.Latest != nil {
		return fmt.Errorf("listing of %s has content that was never seen: %w", l.Path, artifact.ErrMalformed)
	}
	if l.Latest != nil {
		if _, err := checkInfo(l.Latest); err != nil {
			return fmt.Errorf("latest of %s: %v: %w", l.Path, err, artifact.ErrMalformed)
		}
	}
	return nil
}

// compareVersions orders versions as semver.Sort does: those of equal precedence (they differ in "+incompatible") by text.
func compareVersions(a, b string) int {
	if c := semver.Compare(a, b); c != 0 {
		return c
	}
	return bytes.Compare([]byte(a), []byte(b))
}

// mergeListing returns old with the halves of l that were seen, and whether more than a time changed.
func mergeListing(old, l artifact.Listing) (merged artifact.Listing, changed bool) {
	merged = old
	merged.Path = l.Path
	if !l.Listed.IsZero() {
		changed = old.Listed.IsZero() || !slices.Equal(old.Versions, l.Versions)
		merged.Versions, merged.Listed = l.Versions, l.Listed
	}
	if !l.Latested.IsZero() {
		changed = changed || old.Latested.IsZero() || !bytes.Equal(old.Latest, l.Latest)
		merged.Latest, merged.Latested = l.Latest, l.Latested
	}
	return merged, changed
}

// validName reports whether a checksum database's name can be part of a key.
func validName(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return name != "" && len(name) <= 255
}
