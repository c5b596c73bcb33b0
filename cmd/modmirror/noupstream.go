package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
	"modmirror/sumdb"
)

// A node with --no-upstream asks no upstream and no checksum database. It is nobody's owner for the cluster (see [turn]), asks
// those who are, and takes what they bring in from them. Unlike one with --offline, for which what is not held does not exist, it
// says 503 if none of them answers.

// errNoFetcher is for what a node without an upstream is not told by another one.
var errNoFetcher = fmt.Errorf("this node asks no upstream by itself (--no-upstream), and no node that asks one can say now: %w", artifact.ErrUnavailable)

// noUpstream is the upstream of such a node. It implements [mirror.Upstream].
type noUpstream struct{}

func (noUpstream) Fetch(context.Context, module.Version, artifact.Kind, func(io.Reader, int64, string) error) error {
	return errNoFetcher
}
func (noUpstream) Versions(context.Context, string) ([]byte, error)      { return nil, errNoFetcher }
func (noUpstream) Latest(context.Context, string) ([]byte, error)        { return nil, errNoFetcher }
func (noUpstream) Query(context.Context, string, string) ([]byte, error) { return nil, errNoFetcher }

// sumOwner is a checksum database by way of the nodes that ask it. It implements [sumdb.Source].
type sumOwner struct {
	n        *node
	database string
	first    string // the node that is asked first; empty: it depends on what it is asked for
}

func (s sumOwner) String() string {
	if s.first != "" {
		return "node " + s.first + ", which asks " + s.database
	}
	return "the nodes that ask " + s.database
}

// sumOwners returns the function that says whose turn it is to look a record up, for a node with clients who do.
func (n *node) sumOwners(database string) func(module.Version) sumdb.Source {
	if n.upstream == nil { // all that it asks for goes by turns, see addSources
		return nil
	}
	return func(m module.Version) sumdb.Source {
		t := n.turnFor(m.String())
		for _, first := range slices.Concat(t.zone, t.cluster) {
			return sumOwner{n, database, first.Name}
		}
		return nil
	}
}

// Get has the node whose turn it is ask the database.
func (s sumOwner) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	q := s.n.summing(s.database, path)
	r := askInTurn(ctx, peers{s.n}, q, s.n.turnFor(q.key))
	switch {
	case !r.said && r.err != nil:
		return nil, fmt.Errorf("%s: %s: none of them can say: %w", s, path, r.err)
	case !r.said:
		return nil, fmt.Errorf("%s: none of them answers: %w", s, artifact.ErrUnavailable)
	case r.err != nil:
		return nil, fmt.Errorf("%s: %s: %w", s, path, r.err)
	case int64(len(r.value)) > limit:
		return nil, fmt.Errorf("%s: %s of more than %d bytes: %w", s, path, limit, artifact.ErrMalformed)
	}
	return r.value, nil
}

// summing is the question for what a checksum database has at a path. A record has the key of the artifacts that it is of, so
// that their owner looks it up once for both.
func (n *node) summing(database, path string) question[[]byte] {
	key := "sumdb " + database + path
	if m, ok := lookedUp(path); ok {
		key = m.String()
	}
	return question[[]byte]{key, "/v1/sum", request{Database: database, Query: path}, n.config.Limits.Lookup,
		func(_ peer.Member, answer []byte) ([]byte, error) { return answer, nil }} // who asks verifies it
}

// lookedUp returns the module version of which the record is at a path.
func lookedUp(path string) (m module.Version, ok bool) {
	rest, ok := strings.CutPrefix(path, "/lookup/")
	escPath, escVersion, _ := strings.Cut(rest, "@")
	var errs [2]error
	m.Path, errs[0] = module.UnescapePath(escPath)
	m.Version, errs[1] = module.UnescapeVersion(escVersion)
	return m, ok && errors.Join(errs[:]...) == nil
}

// handleSum is the other end of summing. A node that does not ask the database itself says so: it must not ask another one.
func (n *node) handleSum(r *http.Request) (any, error) {
	q, err := readRequest(r)
	if err != nil {
		return nil, err
	}
	if q.Hop == hopZone {
		q := n.summing(q.Database, q.Query)
		if passed := askCluster(r.Context(), peers{n}, q, n.turnFor(q.key)); passed.said {
			return passed.value, passed.err
		}
	}
	if !n.fetches() {
		return nil, errNoFetcher
	}
	return n.lookUp(r.Context(), q.Database, q.Query)
}

// lookUp answers what this node's own clients would be answered if no other node were asked.
func (n *node) lookUp(ctx context.Context, database, path string) ([]byte, error) {
	i := slices.IndexFunc(n.databases, func(db *sumdb.DB) bool { return db.Name() == database })
	if i < 0 {
		return nil, fmt.Errorf("this node does not know the checksum database %.100q: %w", database, artifact.ErrUnavailable)
	}
	if path != "/latest" && !strings.HasPrefix(path, "/lookup/") && !strings.HasPrefix(path, "/tile/") {
		return nil, fmt.Errorf("%.100q is nothing that a checksum database has: %w", path, artifact.ErrMalformed)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return nil, err
	}
	r.URL.Path = path
	w := &bodyWriter{header: http.Header{}, status: http.StatusOK}
	n.databases[i].ServeOwner(w, r)
	if w.status == http.StatusOK {
		return w.body.Bytes(), nil
	}
	why := map[int]error{http.StatusNotFound: fs.ErrNotExist, http.StatusForbidden: artifact.ErrRefused, http.StatusBadRequest: artifact.ErrMalformed,
		http.StatusGatewayTimeout: errSumSilent}[w.status]
	if why == nil {
		why = artifact.ErrUnavailable
	}
	return nil, fmt.Errorf("%s: %w", strings.TrimSpace(w.body.String()), why)
}

// errSumSilent is for a checksum database that does not answer this node in time: it may answer another one.
var errSumSilent = fmt.Errorf("%w: %w", artifact.ErrUnavailable, context.DeadlineExceeded)

// bodyWriter keeps an answer in memory. Those of a checksum database are small.
type bodyWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *bodyWriter) Header() http.Header         { return w.header }
func (w *bodyWriter) WriteHeader(status int)      { w.status = status }
func (w *bodyWriter) Write(b []byte) (int, error) { return w.body.Write(b) }
