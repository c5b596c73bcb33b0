package mirror

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// askList asks the upstream for the list of path.
func (m *Mirror) askList(ctx context.Context, path string) (*seen, error) {
	body, err := m.listed(ctx, path)
	if err != nil {
		return nil, err
	}
	versions := artifact.ParseList(body, path)
	at := time.Now()
	half := artifact.Listing{Path: path, Versions: newestOf(versions, maxListing), Listed: at.UTC().Truncate(time.Second)}
	m.makeKnown(ctx, half, func(l artifact.Listing) bool { return !l.Listed.IsZero() && slices.Equal(l.Versions, half.Versions) }, len(versions)-len(half.Versions))
	return &seen{versions: versions, at: at}, nil
}

// listed returns the upstream's list of path. Lines that are no versions are for the caller to leave out, as the go
// command does. But a page of HTML must not become an empty list.
func (m *Mirror) listed(ctx context.Context, path string) ([]byte, error) {
	body, err := m.config.Upstream.Versions(ctx, path)
	if err != nil {
		return nil, err
	}
	return body, checkList(body)
}

func checkList(body []byte) error {
	if !utf8.Valid(body) || bytes.ContainsAny(body, "<\x00") {
		return fmt.Errorf("the upstream's answer is not a list: %w", artifact.ErrMalformed)
	}
	return nil
}

// maxListing bounds the versions of a list that are made known to the catalog, in bytes of the list: replicate takes
// commands of 512 KiB, and the path and the length of each version need room, too.
const maxListing = 448 << 10

// newestOf returns the last of sorted versions, as many as make a list of at most this many bytes.
func newestOf(versions []string, size int) []string {
	first := len(versions)
	for first > 0 && size > len(versions[first-1]) {
		first--
		size -= len(versions[first]) + 1
	}
	return versions[first:]
}

// makeKnown tells the catalog one half of what is known of a path, unless that is what it knows already. So many
// versions had no place in it.
func (m *Mirror) makeKnown(ctx context.Context, half artifact.Listing, same func(known artifact.Listing) bool, left int) {
	known, err := m.config.Index.Listing(ctx, half.Path)
	if err == nil && same(known) {
		return
	}
	if left > 0 {
		m.log.Warn("a list is too long for the catalog: offline and after a restart, its oldest versions are missing unless they are held",
			"module", half.Path, "kept", len(half.Versions), "missing", left)
	}
	if err == nil || isAbsent(err) {
		err = m.config.Index.PublishListing(ctx, half)
	}
	if err != nil { // it is served anyway; only another node, or an offline one, will not know
		m.log.Info("cannot make a list known to the catalog", "module", half.Path, "err", err)
	}
}

// heldList returns the list that the catalog knows, if it knows one or anything was published.
func (m *Mirror) heldList(ctx context.Context, path string) (*seen, error) {
	l, err := m.config.Index.Listing(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	if l.Listed.IsZero() {
		versions, err := m.committed(ctx, path)
		if err != nil || len(versions) == 0 {
			return nil, orElse(err, notExist("%s: no version list is held here", path))
		}
	}
	if l.Versions == nil {
		l.Versions = []string{}
	}
	return &seen{versions: l.Versions, at: notLater(l.Listed)}, nil
}

// notLater returns at, a time of the catalog, or now if that is earlier: what another node's clock stamped ahead of ours must
// not count as fresh until then.
func notLater(at time.Time) time.Time {
	if now := time.Now(); at.After(now) {
		return now
	}
	return at
}

// settleList returns the answer that lists what the upstream listed and what was published. Versions are sorted, without
// pseudo-versions: the go command would ask for the info of the newest.
func (m *Mirror) settleList(ctx context.Context, path string, s *seen) (*seen, bool, error) {
	all, err := m.committed(ctx, path)
	if err != nil {
		return nil, false, err
	}
	now := *s
	now.counted = len(all)
	if s.absent != nil {
		if len(all) == 0 {
			return &now, true, nil
		}
		now.absent, now.versions = nil, []string{} // something was published meanwhile
	}
	all = slices.DeleteFunc(all, module.IsPseudoVersion)
	all = append(all, now.versions...)
	artifact.SortVersions(all)
	now.answer = newAnswer(artifact.FormatList(slices.Compact(all)), typeText, shortCached, "")
	return &now, true, nil
}

// committed returns the versions of which anything is published. It owns the slice.
func (m *Mirror) committed(ctx context.Context, path string) ([]string, error) {
	versions, err := m.config.Index.Versions(ctx, path)
	if err != nil && !isAbsent(err) {
		return nil, fmt.Errorf("versions of %s: %w", path, err)
	}
	return slices.Clone(versions), nil
}

// query answers what a branch, a commit or a prefix means now. There is no older answer to fall back on: it would be
// wrong for whoever just pushed.
func (m *Mirror) query(ctx context.Context, mv module.Version, cachedOnly bool) (*answer, outcome, error) {
	key := queryKey(mv)
	if q, ok := m.queries.get(key); ok {
		return q.answer, outcomeHit, nil
	}
	if cachedOnly {
		return nil, 0, notExist("%s@%s: not held", mv.Path, mv.Version)
	}
	if m.config.Upstream == nil {
		return nil, 0, fmt.Errorf("%s@%s: %w", mv.Path, mv.Version, errOffline)
	}
	if err := m.knownAbsent(key); err != nil {
		return nil, 0, err
	}
	l, err := fly(ctx, m.flights, key, m.config.ClientWait, m.config.FetchBudget, m.list.slots(), func(ctx context.Context) (*resolved, error) {
		return m.resolveQuery(ctx, mv)
	})
	if err != nil {
		return nil, 0, err
	}
	if l.joined {
		return l.value.answer, outcomeJoined, nil
	}
	return l.value.answer, outcomeFetched, nil
}

// parseResolved returns the canonical form of the info of some version of path.
func parseResolved(body []byte, path string) ([]byte, error) {
	info, err := artifact.ParseInfo(body)
	if err != nil {
		return nil, err
	}
	if err := module.Check(path, info.Version); err != nil {
		return nil, fmt.Errorf("the upstream answers with version %s, which this path cannot have: %w", info.Version, artifact.ErrMalformed)
	}
	return info.JSON(), nil
}
