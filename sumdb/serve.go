package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/module"
	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// How long others may keep an answer. A tile never changes, and a narrow one stays a prefix of the wider. A lookup's record
// never changes either, and the head that it came with stays right for ever, because tiles of older heads stay served; an
// hour bounds how long a client is sent to an older anchor than need be. /latest is asked by whoever wants to know now.
const (
	cacheTile   = "public, max-age=31536000, immutable"
	cacheLookup = "public, max-age=3600"
	cacheLatest = "public, max-age=30"
	cacheNever  = "no-store"
)

// maxPath bounds the path of a request, in bytes.
const maxPath = 2 << 10

// composed is what a lookup is answered with.
type composed struct {
	record artifact.Record
	head   head  // the head that goes with it
	newest int64 // what the newest committed head was when this was put together; it is not good for another
}

// ServeHTTP answers the protocol of the checksum database: /supported, /latest, /lookup/… and /tile/…. The prefix
// /sumdb/<name> is already taken off r.URL.Path. Everything that can go wrong is found out here, with the status that it
// deserves; x/mod's sumdb.Server, which knows only 404 and 500, is handed what is sure to work.
//
// With the header "Disable-Module-Fetch: true" the answer is put together from what is held, or is 404; no source is asked,
// not even in the background.
func (db *DB) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	class, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	only, err := strconv.ParseBool(r.Header.Get("Disable-Module-Fetch"))
	only, err = only && err == nil, nil
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		class = "other"
		w.Header().Set("Allow", "GET, HEAD")
		err = &statusError{http.StatusMethodNotAllowed, "only GET and HEAD are answered"}
	case len(r.URL.Path) > maxPath:
		class = "other"
		err = badRequest("path is too long")
	case r.URL.Path == "/supported":
		err = db.serveSupported(w, r, only)
	case r.URL.Path == "/latest":
		err = db.serveLatest(w, r, only)
	case strings.HasPrefix(r.URL.Path, "/lookup/"):
		err = db.serveLookup(w, r, only)
	case strings.HasPrefix(r.URL.Path, "/tile/"):
		err = db.serveTile(w, r, only)
	default:
		class = "other"
		err = &statusError{http.StatusNotFound, "a checksum database has /supported, /latest, /lookup and /tile"}
	}
	status := http.StatusOK
	if err != nil {
		status = writeError(w, db.Log, err)
	}
	db.metrics.served.WithLabelValues(class, strconv.Itoa(status)).Inc()
}

// serveSupported says whether this node can answer lookups: 200, or 503 whatever the reason, and above all never 404: a
// client would go to the database itself.
func (db *DB) serveSupported(w http.ResponseWriter, r *http.Request, only bool) error {
	ctx, cancel := context.WithTimeout(r.Context(), supportedBudget)
	defer cancel()
	if _, err := db.headOrHeld(ctx, only); err != nil {
		return fmt.Errorf("no lookup can be answered yet: %v: %w", err, artifact.ErrUnavailable)
	}
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.Header().Set("Content-Length", "0")
	w.Header().Set("Cache-Control", cacheNever)
	w.WriteHeader(http.StatusOK)
	return nil
}

// headOrHeld returns the newest committed head. If there is none, it makes the first, unless only what is held will do:
// then, and only then, an error matches [fs.ErrNotExist].
func (db *DB) headOrHeld(ctx context.Context, only bool) (head, error) {
	if !only {
		h, err := db.ensureHead(ctx)
		return h, absence(err)
	}
	h, err := db.committed(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return h, fmt.Errorf("no tree head of %s is held: %w", db.name, fs.ErrNotExist)
	}
	return h, err
}

// held returns err for an answer that only what is held will do for: a tile that is not is a reason for 404 then.
func held(err error) error {
	if errors.Is(err, errNotHeld) && !errors.Is(err, artifact.ErrDamaged) {
		return fmt.Errorf("%v: %w", err, fs.ErrNotExist)
	}
	return err
}

func (db *DB) serveLatest(w http.ResponseWriter, r *http.Request, only bool) error {
	ctx, cancel := context.WithTimeout(r.Context(), fetchBudget)
	defer cancel()
	now, err := db.headOrHeld(ctx, only)
	if err != nil {
		return err
	}
	h, err := db.heldHead(ctx, now, func(h head) error { // a head whose own edge this node can serve
		if !db.edgeHeld(ctx, h, h, false) {
			return fmt.Errorf("the edge of the tree of %d records %w", h.N, errNotHeld)
		}
		return nil
	})
	if err != nil && only {
		return held(err)
	}
	if err != nil && !db.edgeHeld(ctx, now, now, true) {
		return err
	}
	if err != nil {
		h = now
	}
	w.Header().Set("Cache-Control", cacheLatest)
	xsumdb.NewServer(ops{head: h}).ServeHTTP(w, r)
	return nil
}

func (db *DB) serveLookup(w http.ResponseWriter, r *http.Request, only bool) error {
	m, err := parseLookupPath(r.URL.Path)
	if err != nil {
		return badRequest(err.Error())
	}
	if db.Private != nil && db.Private(m.Path) { // also if it was answered before
		return fmt.Errorf("%s is private and not asked of %s; set GONOSUMDB for it: %w", m.Path, db.name, errPrivate)
	}
	ctx, cancel := context.WithTimeout(r.Context(), db.LookupBudget)
	defer cancel()
	c, err := db.compose(ctx, m, only)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", cacheLookup)
	xsumdb.NewServer(ops{record: c.record, head: c.head}).ServeHTTP(w, r)
	return nil
}

// parseLookupPath returns the module version that a path /lookup/<escaped path>@<escaped version> asks for.
func parseLookupPath(p string) (m module.Version, err error) {
	p, ok := strings.CutPrefix(p, "/lookup/")
	escPath, escVersion, ok2 := strings.Cut(p, "@")
	if !ok || !ok2 {
		return m, fmt.Errorf("want /lookup/<module>@<version>")
	}
	if m.Path, err = module.UnescapePath(escPath); err != nil {
		return m, err
	}
	if m.Version, err = module.UnescapeVersion(escVersion); err != nil {
		return m, err
	}
	return m, checkModule(m)
}

// compose returns the record of m with the head to answer it with, whose tiles are held. If only is set, no source is asked.
func (db *DB) compose(ctx context.Context, m module.Version, only bool) (composed, error) {
	now, err := db.committed(ctx)
	if c, ok := db.composed.get(m); ok && err == nil && c.newest == now.N {
		return c, nil
	}
	ask := db.Record
	if only {
		ask = db.recordHeld
	}
	record, err := ask(ctx, m)
	if err != nil {
		return composed{}, err
	}
	if now, err = db.headOrHeld(ctx, only); err != nil { // after the record: that may have moved it
		return composed{}, err
	}
	c := composed{record: record, newest: now.N}
	c.head, err = db.headHeld(ctx, record, now)
	switch {
	case err != nil && only:
		return composed{}, fmt.Errorf("answer for %s: %w", m, held(err))
	case err != nil:
		c.head, err = db.bestHead(ctx, record, now, true)
	}
	if err != nil {
		return composed{}, fmt.Errorf("answer for %s: %w", m, absence(err))
	}
	if !only {
		db.wantEdges(ctx, record, now)
	}
	c.record.Proof = nil // nobody asks for it here
	if !only {           // else a better one may be had
		db.composed.put(m, c, int64(len(record.Text)+len(c.head.note)))
	}
	return c, nil
}

// recordHeld returns the record of m without a word to any source. An error matches [fs.ErrNotExist] if it is not held.
func (db *DB) recordHeld(ctx context.Context, m module.Version) (artifact.Record, error) {
	r, err := db.Catalog.Record(ctx, db.name, m)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if r, ok := db.verified.get(m); ok {
		return r, nil
	}
	return r, fmt.Errorf("the record of %s is not held: %w", m, fs.ErrNotExist)
}

// headHeld returns the head to answer record with from what the store has. What [DB.bestHead] finds there comes first, and
// if that is nothing, an older head has to do.
func (db *DB) headHeld(ctx context.Context, record artifact.Record, now head) (head, error) {
	h, err := db.bestHead(ctx, record, now, false)
	if err == nil {
		return h, nil
	}
	older, err2 := db.heldHead(ctx, now, func(h head) error {
		_, err := db.prove(ctx, h, record, false)
		return err
	})
	if err2 == nil {
		return older, nil
	}
	return h, err
}

// wantEdges has the edges of now's anchors, where they are not held, fetched in the background: the next answer for record
// can take them.
func (db *DB) wantEdges(ctx context.Context, record artifact.Record, now head) {
	for _, bits := range []uint{deepBits, anchorBits} {
		if a, err := db.anchor(ctx, now, bits); err == nil && record.ID < a.N && !db.edgeHeld(ctx, a, now, false) {
			db.witness(a)
		}
	}
}

// bestHead returns the head to answer record with: the deep anchor, the anchor, or now, the newest head. It is one with
// which a client without any state gets all it needs from this node, tried out as such a client would.
func (db *DB) bestHead(ctx context.Context, record artifact.Record, now head, online bool) (head, error) {
	for _, bits := range []uint{deepBits, anchorBits} {
		a, err := db.anchor(ctx, now, bits)
		if err != nil || record.ID >= a.N {
			continue
		}
		if !db.edgeHeld(ctx, a, now, online) {
			continue
		}
		if _, err := db.prove(ctx, a, record, online); err == nil {
			return a, nil
		}
	}
	_, err := db.prove(ctx, now, record, online)
	return now, err
}

// heldHead returns the newest committed head, of now and a few before it, for which held finds the tiles that it wants.
// Another node may have moved the head since this one last held all of its tiles.
func (db *DB) heldHead(ctx context.Context, now head, held func(head) error) (head, error) {
	h, err := now, held(now)
	for range 16 {
		if err == nil || ctx.Err() != nil {
			break
		}
		older, err2 := db.committedBelow(ctx, h.N)
		if err2 != nil {
			break
		}
		h, err = older, held(older)
	}
	return h, err
}

func (db *DB) serveTile(w http.ResponseWriter, r *http.Request, only bool) error {
	t, err := parseTilePath(r.URL.Path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), fetchBudget)
	defer cancel()
	data, err := db.tile(ctx, t, only)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", cacheTile)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	xsumdb.NewServer(ops{tile: data}).ServeHTTP(w, r)
	return nil
}

// parseTilePath returns the tile that a path /tile/8/… asks for, if it is one that a tree of any believable size can have.
// tlog.ParseTilePath alone takes heights up to 30, for which a tile has 32 GiB.
func parseTilePath(p string) (tlog.Tile, error) {
	p, ok := strings.CutPrefix(p, "/")
	if !ok || len(p) > 64 {
		return tlog.Tile{}, badRequest("malformed tile path")
	}
	t, err := tlog.ParseTilePath(p)
	if err != nil {
		return t, badRequest(err.Error())
	}
	if t.L == -1 {
		return t, &statusError{http.StatusNotFound, "data tiles are not served here"}
	}
	if t.H != tileHeight {
		return t, &statusError{http.StatusNotFound, "the only tile height is 8"}
	}
	if checkTile(t) != nil {
		return t, &statusError{http.StatusNotFound, "there is no such tile"}
	}
	return t, nil
}

// tile returns t: from the store, else from a source, authenticated against the committed head. A tile that lies beyond
// it may be known to a newer one: a client may have seen that elsewhere. If only is set, no source is asked.
func (db *DB) tile(ctx context.Context, t tlog.Tile, only bool) ([]byte, error) {
	b, missing := db.Tiles.Tile(t)
	switch {
	case missing == nil:
		return b, nil
	case only && errors.Is(missing, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is not held: %w", t.Path(), fs.ErrNotExist)
	case only:
		return nil, unreadable(t, missing)
	}
	now, err := db.ensureHead(ctx)
	if err != nil {
		return nil, absence(err)
	}
	if !within(t, now.N) {
		if len(db.sources) > 0 {
			if err := db.refreshed(ctx); err != nil {
				return nil, fmt.Errorf("%s is beyond the tree of %d records, and there is no newer one: %w", t.Path(), now.N, err)
			}
			if now, err = db.committed(ctx); err != nil {
				return nil, absence(err)
			}
		}
		if !errors.Is(missing, fs.ErrNotExist) && !within(t, now.N) {
			return nil, unreadable(t, missing)
		}
		if !within(t, now.N) {
			return nil, fmt.Errorf("%s is beyond the tree of %d records: %w", t.Path(), now.N, fs.ErrNotExist)
		}
	}
	last := tlog.StoredHashIndex(t.L*tileHeight, t.N<<tileHeight+int64(t.W)-1)
	v := &view{db: db, ctx: ctx, tree: now.Tree, online: true}
	if _, err := v.ReadHashes([]int64{last}); err != nil {
		if db.Offline && errors.Is(err, errNotHeld) {
			return nil, fmt.Errorf("%s is not held, and this mirror is offline: %w", t.Path(), fs.ErrNotExist)
		}
		return nil, absence(err)
	}
	b, err = db.Tiles.Tile(t)
	return b, absence(err)
}

// within reports whether a tree of n records has all the hashes of t.
func within(t tlog.Tile, n int64) bool {
	return t.N<<tileHeight+int64(t.W) <= n>>uint(t.L*tileHeight)
}

// ops hands x/mod's server what is found already.
type ops struct {
	record artifact.Record
	head   head
	tile   []byte
}

func (o ops) Signed(context.Context) ([]byte, error) { return o.head.note, nil }

func (o ops) ReadRecords(context.Context, int64, int64) ([][]byte, error) {
	return [][]byte{o.record.Text}, nil
}

func (o ops) Lookup(context.Context, module.Version) (int64, error) { return o.record.ID, nil }

func (o ops) ReadTileData(context.Context, tlog.Tile) ([]byte, error) { return o.tile, nil }
