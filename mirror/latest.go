package mirror

import (
	"bytes"
	"context"
	"slices"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
)

// askLatest asks the upstream for @latest of path.
func (m *Mirror) askLatest(ctx context.Context, path string) (*seen, error) {
	body, err := m.config.Upstream.Latest(ctx, path)
	if isAbsent(err) {
		return m.askNewest(ctx, path, err)
	}
	if err != nil {
		return nil, err
	}
	info, err := parseResolved(body, path)
	if err != nil {
		return nil, err
	}
	return m.latestIs(ctx, path, info, upstreamOnly), nil
}

// latestIs returns info as what the upstream says now, after making it known to the catalog.
func (m *Mirror) latestIs(ctx context.Context, path string, info []byte, counted int) *seen {
	at := time.Now()
	half := artifact.Listing{Path: path, Latest: info, Latested: at.UTC().Truncate(time.Second)}
	m.makeKnown(ctx, half, func(l artifact.Listing) bool { return bytes.Equal(l.Latest, info) }, 0)
	return &seen{answer: newAnswer(info, typeJSON, shortCached, ""), counted: counted, at: at}
}

// askNewest answers @latest for an upstream that has none, because it is a plain directory, say. The go command would
// take the newest pseudo-version of the list then (cmd/go/internal/modfetch, proxyRepo.Latest), but our lists have no
// pseudo-versions. What was published counts as well: somebody may have asked for a commit that is newer than the list.
func (m *Mirror) askNewest(ctx context.Context, path string, absent error) (*seen, error) {
	body, err := m.listed(ctx, path)
	if isAbsent(err) {
		return nil, absent
	}
	if err != nil {
		return nil, err
	}
	published, err := m.committed(ctx, path)
	if err != nil {
		return nil, err
	}
	all := append(artifact.ParseList(body, path), published...)
	if v := artifact.NewestPseudoVersion(body, path); v != "" {
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, absent
	}
	mv := module.Version{Path: path, Version: slices.MaxFunc(all, compareLatest)}
	info := m.heldInfo(ctx, mv)
	if info == nil {
		if info, err = m.config.Upstream.Query(ctx, path, mv.Version); err == nil {
			info, err = artifact.CanonicalInfo(info, mv)
		}
	}
	switch {
	case err == nil:
		return m.latestIs(ctx, path, info, len(published)), nil
	case isAbsent(err):
		return nil, absent // what was published is answered by heldLatest
	}
	return nil, err
}

// heldLatest returns what the upstream said last, or else the newest version that was published.
func (m *Mirror) heldLatest(ctx context.Context, path string) (*seen, error) {
	l, err := m.config.Index.Listing(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	if len(l.Latest) > 0 {
		return &seen{answer: newAnswer(l.Latest, typeJSON, shortCached, ""), counted: upstreamOnly, at: notLater(l.Latested)}, nil
	}
	versions, err := m.committed(ctx, path)
	if err != nil || len(versions) == 0 {
		return nil, orElse(err, notExist("%s: no version is held here", path))
	}
	mv := module.Version{Path: path, Version: slices.MaxFunc(versions, compareLatest)}
	body := m.heldInfo(ctx, mv)
	if body == nil {
		body = artifact.RevInfo{Version: mv.Version}.JSON()
	}
	return &seen{answer: newAnswer(body, typeJSON, shortCached, ""), counted: len(versions)}, nil
}

// settleLatest does not remember what was found before something else was published.
func (m *Mirror) settleLatest(ctx context.Context, path string, s *seen) (*seen, bool, error) {
	if s.counted == upstreamOnly {
		return s, true, nil
	}
	published, err := m.committed(ctx, path)
	if err != nil {
		return nil, false, err
	}
	return s, len(published) == s.counted, nil
}

// heldInfo returns the published info of mv, nil if there is none.
func (m *Mirror) heldInfo(ctx context.Context, mv module.Version) []byte {
	man, err := m.manifest(ctx, mv)
	if err != nil || man.Info.IsZero() {
		return nil
	}
	small, f, err := m.load(ctx, man, artifact.Info)
	if err != nil {
		return nil
	}
	if f != nil {
		f.Close() // an info is never so large
	}
	return small
}

// compareLatest orders versions as @latest prefers them: releases, pre-releases, pseudo-versions; the latter by time.
func compareLatest(a, b string) int {
	rank := func(v string) int {
		switch {
		case module.IsPseudoVersion(v):
			return 0
		case semver.Prerelease(v) != "":
			return 1
		}
		return 2
	}
	ra, rb := rank(a), rank(b)
	if ra != rb {
		return ra - rb
	}
	if ra == 0 {
		ta, _ := module.PseudoVersionTime(a) // of a date that does not exist it is zero: the oldest
		tb, _ := module.PseudoVersionTime(b)
		if c := ta.Compare(tb); c != 0 {
			return c
		}
	}
	return semver.Compare(a, b)
}
