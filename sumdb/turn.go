package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What follows has the cluster ask the sources once for what clients look up at many of its nodes: see [Config.Owner].

const (
	ownerPatience = lookupPatience + 5*time.Second // for the owner, which goes on to its next source after lookupPatience
	maxOwners     = 64                             // owners of which something is known
)

// ownerSet holds what is known of each owner from one question to the next.
type ownerSet struct {
	mu    sync.Mutex
	known map[string]*source // guarded by mu; by name
}

// of returns what is known of src.
func (o *ownerSet) of(src Source) *source {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.known[src.String()]
	if s == nil {
		if o.known == nil || len(o.known) == maxOwners {
			o.known = make(map[string]*source)
		}
		s = newSource(0, src, false)
		s.peer = true
		o.known[src.String()] = s
	}
	return s
}

// recordInTurn is [DB.Record] for a client: what is not known here the owner looks up, if it answers.
func (db *DB) recordInTurn(ctx context.Context, m module.Version) (artifact.Record, error) {
	owner := db.owner(ctx, m)
	if owner == nil {
		return db.Record(ctx, m)
	}
	v, err := db.once(ctx, "ask the owner for "+m.String(), share(ctx, ownerPatience, 2), func(ctx context.Context) (any, error) {
		return db.lookupByOwner(ctx, owner, m)
	})
	if ctx.Err() != nil {
		return artifact.Record{}, ctx.Err()
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		db.metrics.looked("owner", err)
		r, _ := v.(artifact.Record)
		return r, err
	}
	db.Log.Debug("the node whose turn it is looks nothing up", "module", m.Path, "version", m.Version, "err", err)
	r, err2 := db.Record(ctx, m)
	switch {
	case err2 == nil:
		return r, nil
	case errors.Is(err2, fs.ErrNotExist) && noGood(err): // see lookup
		return r, err
	case errors.Is(err2, fs.ErrNotExist):
		return r, err2
	}
	return r, fmt.Errorf("%w; before that: %v", err2, err)
}

// owner returns the node to ask for m. It is nil if that is this node, if m or its absence is known here, if nothing new is
// taken, and while the owner does not answer.
func (db *DB) owner(ctx context.Context, m module.Version) *source {
	if db.Owner == nil || len(db.sources) == 0 || db.frozen(ctx) != nil {
		return nil
	}
	if _, err := db.recordHeld(ctx, m); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if at, ok := db.absent.get(m); ok && time.Since(at) < absentFor {
		return nil
	}
	src := db.Owner(m)
	if src == nil {
		return nil
	}
	s := db.owners.of(src)
	if s.failing(classLookup, time.Now()) {
		return nil
	}
	return s
}

// lookupByOwner asks the owner for m and verifies its answer.
func (db *DB) lookupByOwner(ctx context.Context, owner *source, m module.Version) (artifact.Record, error) {
	end, path, err := db.beginLookup(m)
	if err != nil {
		return artifact.Record{}, err
	}
	defer end()
	r, err := db.lookupAt(ctx, owner, m, path)
	db.noteLookup(m, result[artifact.Record]{source: owner, val: r, err: err})
	if err != nil {
		return r, fmt.Errorf("look up %s at %s: %w", m, db.name, err)
	}
	return r, nil
}

// ServeOwner answers another node whose turn it is not: see [Config.Owner]. It is ServeHTTP, but asks nobody but the sources,
// so that two nodes which take each other for the owner do not wait for each other.
func (db *DB) ServeOwner(w http.ResponseWriter, r *http.Request) {
	db.answer(w, r, r.URL.Path, (*DB).Record)
}
