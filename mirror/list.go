package mirror

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
)

// askList asks the upstream for the list of path.
func (m *Mirror) askList(ctx context.Context, path string) (*seen, error) {
	body, err := m.config.Upstream.Versions(ctx, path)
	if err != nil {
		return nil, err
	}
	// Lines that are no versions are left out, as the go command does. But a page of HTML must not become an empty list.
	if !utf8.Valid(body) || bytes.ContainsAny(body, "<\x00") {
		return nil, fmt.Errorf("list of %s: not a list: %w", path, artifact.ErrMalformed)
	}
	versions := artifact.ParseList(body, path)
	at := time.Now()
	if len(body) <= maxListing {
		half := artifact.Listing{Path: path, Versions: versions, Listed: at.UTC().Truncate(time.Second)}
		m.makeKnown(ctx, half, func(l artifact.Listing) bool { return !l.Listed.IsZero() && slices.Equal(l.Versions, versions) })
	}
	return m.union(ctx, path, versions, at)
}

// heldList returns the list that the catalog knows, united with what was published.
func (m *Mirror) heldList(ctx context.Context, path string) (*seen, error) {
	l, err := m.config.Index.Listing(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	if l.Listed.IsZero() {
		versions, err := m.committed(ctx, path)
		if err != nil || len(versions) == 0 {
			return nil, orNotExist(err)
		}
	}
	if l.Versions == nil {
		l.Versions = []string{}
	}
	return m.union(ctx, path, l.Versions, l.Listed)
}

// union returns the answer that lists versions and what was published of path. Versions are sorted, without
// pseudo-versions: the go command would ask for the info of the newest.
func (m *Mirror) union(ctx context.Context, path string, versions []string, at time.Time) (*seen, error) {
	all, err := m.committed(ctx, path)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, module.IsPseudoVersion)
	all = append(all, versions...)
	artifact.SortVersions(all)
	body := artifact.FormatList(slices.Compact(all))
	return &seen{answer: newAnswer(body, typeText, shortCached, ""), versions: versions, at: at}, nil
}

// relist renews the list of path in memory after a version of it was published.
func (m *Mirror) relist(ctx context.Context, path string) {
	s, ok := m.list.memory.get(path)
	if !ok {
		return
	}
	if s.absent != nil {
		m.list.memory.drop(path)
		return
	}
	now, err := m.union(ctx, path, s.versions, s.at)
	if err != nil {
		m.list.memory.drop(path)
		return
	}
	now.failed = s.failed
	m.list.keep(path, now)
}

// committed returns the versions of which anything is published. It owns the slice.
func (m *Mirror) committed(ctx context.Context, path string) ([]string, error) {
	versions, err := m.config.Index.Versions(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, fmt.Errorf("versions of %s: %w", path, err)
	}
	return slices.Clone(versions), nil
}

// askLatest asks the upstream for @latest of path.
func (m *Mirror) askLatest(ctx context.Context, path string) (*seen, error) {
	body, err := m.config.Upstream.Latest(ctx, path)
	if err != nil {
		return nil, err
	}
	info, err := parseResolved(body, path)
	if err != nil {
		return nil, fmt.Errorf("latest of %s: %w", path, err)
	}
	at := time.Now()
	half := artifact.Listing{Path: path, Latest: info, Latested: at.UTC().Truncate(time.Second)}
	m.makeKnown(ctx, half, func(l artifact.Listing) bool { return bytes.Equal(l.Latest, info) })
	return &seen{answer: newAnswer(info, typeJSON, shortCached, ""), at: at}, nil
}

// heldLatest returns what the upstream said last, or else the newest version that was published.
func (m *Mirror) heldLatest(ctx context.Context, path string) (*seen, error) {
	l, err := m.config.Index.Listing(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	if len(l.Latest) > 0 {
		return &seen{answer: newAnswer(l.Latest, typeJSON, shortCached, ""), at: l.Latested}, nil
	}
	versions, err := m.committed(ctx, path)
	if err != nil || len(versions) == 0 {
		return nil, orNotExist(err)
	}
	newest := slices.MaxFunc(versions, compareLatest)
	mv := module.Version{Path: path, Version: newest}
	body := artifact.RevInfo{Version: newest}.JSON()
	if man, err := m.manifest(ctx, mv); err == nil && !man.Info.IsZero() {
		if small, f, err := m.load(ctx, man, artifact.Info); err == nil && f == nil {
			body = small
		}
	}
	return &seen{answer: newAnswer(body, typeJSON, shortCached, "")}, nil
}

// compareLatest orders versions as @latest prefers them: releases, pre-releases, pseudo-versions.
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
	if ra, rb := rank(a), rank(b); ra != rb {
		return ra - rb
	}
	return semver.Compare(a, b)
}

// query answers what a branch, a commit or a prefix means now. There is no older answer to fall back on: it would be
// wrong for whoever just pushed.
func (m *Mirror) query(ctx context.Context, mv module.Version, cachedOnly bool) (*answer, outcome, error) {
	key := "query " + mv.Path + "@" + mv.Version
	if a, ok := m.queries.get(key); ok {
		return a, outcomeHit, nil
	}
	if cachedOnly {
		return nil, 0, notExist("%s@%s: not held", mv.Path, mv.Version)
	}
	if m.config.Upstream == nil {
		return nil, 0, fmt.Errorf("%s@%s: %w", mv.Path, mv.Version, errOffline)
	}
	if err, ok := m.negative.get(key); ok {
		return nil, 0, err
	}
	l, err := fly(ctx, m.flights, key, m.config.ClientWait, m.config.FetchBudget, m.small, func(ctx context.Context) (*answer, error) {
		body, err := m.config.Upstream.Query(ctx, mv.Path, mv.Version)
		if err == nil {
			body, err = parseResolved(body, mv.Path)
		}
		if err != nil {
			return nil, m.forget(key, fmt.Errorf("%s@%s: %w", mv.Path, mv.Version, err))
		}
		a := newAnswer(body, typeJSON, shortCached, "")
		m.queries.put(key, a, a.cost(), m.config.ListTTL)
		return a, nil
	})
	if err != nil {
		return nil, 0, err
	}
	if l.joined {
		return l.value, outcomeJoined, nil
	}
	return l.value, outcomeFetched, nil
}

// parseResolved returns the canonical form of the info of some version of path.
func parseResolved(body []byte, path string) ([]byte, error) {
	info, err := artifact.ParseInfo(body)
	if err != nil {
		return nil, err
	}
	if err := module.Check(path, info.Version); err != nil {
		return nil, fmt.Errorf("info of another module's version: %s: %w", strings.TrimSpace(err.Error()), artifact.ErrMalformed)
	}
	return info.JSON(), nil
}

// forget remembers for a while that something does not exist, if err says so, and returns err for the client.
func (m *Mirror) forget(key string, err error) error {
	if isAbsent(err) {
		err = remember(err)
		m.negative.put(key, err, overhead, m.config.NegativeTTL)
	}
	return err
}
