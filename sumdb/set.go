package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Set is an ordered list of databases.
type Set struct {
	dbs []*DB
}

// NewSet returns the Set of dbs. Two of the same name are an error.
func NewSet(dbs ...*DB) (*Set, error) {
	for i, db := range dbs {
		if slices.ContainsFunc(dbs[:i], func(o *DB) bool { return o.name == db.name }) {
			return nil, fmt.Errorf("checksum database %s is listed twice", db.name)
		}
	}
	return &Set{dbs: slices.Clone(dbs)}, nil
}

// All returns the databases, in order.
func (s *Set) All() []*DB { return slices.Clone(s.dbs) }

// Record returns the record of m from the first database that knows m. Errors are those of [DB.Record]; one database that
// cannot say ends the search, because what the next one says is not what this one would have said.
func (s *Set) Record(ctx context.Context, m module.Version) (artifact.Record, error) {
	err := fmt.Errorf("no checksum database is configured: %w", artifact.ErrUnavailable)
	for _, db := range s.dbs {
		var r artifact.Record
		r, err = db.Record(ctx, m)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return artifact.Record{}, err
}

// ServeHTTP answers /sumdb/<name>/…, where <name> may have slashes. Only configured names are answered; an unknown one is
// not asked of anybody.
func (s *Set) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, (*DB).serve)
}

// ServePeer is [DB.ServePeer] at the paths of ServeHTTP.
func (s *Set) ServePeer(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, (*DB).servePeer)
}

func (s *Set) serve(w http.ResponseWriter, r *http.Request, answer func(*DB, http.ResponseWriter, *http.Request, string)) {
	var best *DB
	var path string // what follows its name
	for _, db := range s.dbs {
		rest, ok := strings.CutPrefix(r.URL.Path, "/sumdb/"+db.name)
		if ok && strings.HasPrefix(rest, "/") && (best == nil || len(db.name) > len(best.name)) {
			best, path = db, rest
		}
	}
	if best == nil {
		writeError(w, slog.New(slog.DiscardHandler), &statusError{http.StatusNotFound, "this mirror does not speak for that checksum database"})
		return
	}
	answer(best, w, r, path)
}
