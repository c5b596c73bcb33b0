package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// How long others may keep an answer. A tile never changes, and a narrow one stays a prefix of the wider. A lookup's record
// never changes either, and the head that it came with stays right for ever, because tiles of older heads stay served; an
// hour bounds how long a client is sent to an older anchor than need be. /latest is asked by whoever wants to know now.
var (
	cacheTile   = []string{"public, max-age=31536000, immutable"}
	cacheLookup = []string{"public, max-age=3600"}
	cacheLatest = []string{"public, max-age=30"}
	cacheNever  = []string{"no-store"}
)

// maxPath bounds the path of a request, in bytes.
const maxPath = 2 << 10

// ServeHTTP answers the protocol of the checksum database: /supported, /latest, /lookup/… and /tile/…. The prefix
// /sumdb/<name> is already taken off r.URL.Path. Everything that can go wrong is found out here, with the status that it
// deserves. A good answer is, byte for byte, that of x/mod's sumdb.Server, which knows no other errors than 404 and 500.
//
// With the header "Disable-Module-Fetch: true" the answer is put together from what is held, or is 404; no source is asked,
// not even in the background.
func (db *DB) ServeHTTP(w http.ResponseWriter, r *http.Request) { db.serve(w, r, r.URL.Path) }

// serve is ServeHTTP for path instead of r.URL.Path.
func (db *DB) serve(w http.ResponseWriter, r *http.Request, path string) {
	db.answer(w, r, path, (*DB).recordInTurn)
}

// lookingUp is how the record of a lookup is found: [DB.Record], or what comes before it.
type lookingUp func(*DB, context.Context, module.Version) (artifact.Record, error)

// answer is serve. Records that may be asked of sources are found by ask.
func (db *DB) answer(w http.ResponseWriter, r *http.Request, path string, ask lookingUp) {
	class, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	only := onlyHeld(r)
	var err error
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		class = "other"
		w.Header().Set("Allow", "GET, HEAD")
		err = &statusError{http.StatusMethodNotAllowed, "only GET and HEAD are answered"}
	case len(path) > maxPath:
		class = "other"
		err = badRequest("path is too long")
	case path == "/supported":
		err = db.serveSupported(w, r, only)
	case path == "/latest":
		err = db.serveLatest(w, r, only)
	case strings.HasPrefix(path, "/lookup/"):
		err = db.serveLookup(w, r, path, only, ask)
	case strings.HasPrefix(path, "/tile/"):
		err = db.serveTile(w, r, path, only)
	default:
		class = "other"
		err = &statusError{http.StatusNotFound, "a checksum database has /supported, /latest, /lookup and /tile"}
	}
	status := http.StatusOK
	if err != nil {
		status = writeError(w, db.Log, err)
	}
	db.metrics.answered(class, status)
}

// onlyHeld reports whether r has the header that forbids to ask a source.
func onlyHeld(r *http.Request) bool {
	v := r.Header["Disable-Module-Fetch"]
	if len(v) == 0 {
		return false
	}
	only, err := strconv.ParseBool(v[0])
	return only && err == nil
}

// serveSupported says whether this node can answer lookups: 200, or 503 whatever the reason, and above all never 404: a
// client would go to the database itself.
func (db *DB) serveSupported(w http.ResponseWriter, r *http.Request, only bool) error {
	ctx, cancel := context.WithTimeout(r.Context(), supportedBudget)
	defer cancel()
	if _, err := db.headOrHeld(ctx, only); err != nil {
		return fmt.Errorf("no lookup can be answered yet: %v: %w", err, artifact.ErrUnavailable)
	}
	newReply(nil, typeText, cacheNever).send(w, r)
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
	newReply(h.note, typeText, cacheLatest).send(w, r)
	return nil
}

func (db *DB) serveLookup(w http.ResponseWriter, r *http.Request, path string, only bool, ask lookingUp) error {
	c, composed := db.composed.get(path)
	if !composed {
		m, err := parseLookupPath(path)
		if err != nil {
			return badRequest(err.Error())
		}
		c.module = m
	}
	m := c.module
	if db.Private != nil && db.Private(m.Path) { // also if it was answered before
		return fmt.Errorf("%s is private and not asked of %s; set GONOSUMDB for it: %w", m.Path, db.name, errPrivate)
	}
	if now, err := db.committed(r.Context()); composed && err == nil && now.N == c.newest {
		c.reply.send(w, r)
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), db.LookupBudget)
	defer cancel()
	if only {
		ask = (*DB).recordHeld
	}
	c, err := db.compose(ctx, m, only, ask)
	if err != nil {
		return err
	}
	if c.uncommitted {
		w.Header()["Modmirror-Committed"] = notCommitted
	} else if !only { // else a better one may be had
		db.composed.put(strings.Clone(path), c, c.cost()+int64(len(path))) // a clone: path is part of a string with all of the URL
	}
	c.reply.send(w, r)
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

// compose returns the answer for m: its record, as ask finds it, and the head that goes with it, whose tiles are held. If
// only is set, no source is asked.
func (db *DB) compose(ctx context.Context, m module.Version, only bool, ask lookingUp) (composed, error) {
	record, err := ask(db, ctx, m)
	if err != nil {
		return composed{}, err
	}
	now, err := db.headOrHeld(ctx, only) // after the record: that may have moved it
	if err != nil {
		return composed{}, err
	}
	if record.ID >= now.N {
		return db.composeAhead(ctx, m, record, only)
	}
	h, err := db.headHeld(ctx, record, now)
	switch {
	case err != nil && only:
		return composed{}, fmt.Errorf("answer for %s: %w", m, held(err))
	case err != nil:
		h, err = db.bestHead(ctx, record, now, true)
	}
	if err != nil {
		return composed{}, fmt.Errorf("answer for %s: %w", m, absence(err))
	}
	if !only {
		db.wantEdges(ctx, record, now)
	}
	return answerWith(m, record, h, cacheLookup, now.N)
}

// answerWith puts an answer together.
func answerWith(m module.Version, record artifact.Record, h head, cacheFor []string, newest int64) (composed, error) {
	text, err := tlog.FormatRecord(record.ID, record.Text)
	if err != nil {
		return composed{}, fmt.Errorf("answer for %s: %w", m, err)
	}
	return composed{module: m, reply: newReply(slices.Concat(text, h.note), typeText, cacheFor), newest: newest}, nil
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

func (db *DB) serveTile(w http.ResponseWriter, r *http.Request, path string, only bool) error {
	t, known := db.tilePaths.get(path)
	if !known {
		var err error
		if t, err = parseTilePath(path); err != nil {
			return err
		}
	}
	data, err := db.tile(r.Context(), t, only)
	if err != nil {
		return err
	}
	if !known {
		db.tilePaths.put(strings.Clone(path), t, int64(len(path)))
	}
	newReply(data, typeBinary, cacheTile).send(w, r)
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
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	now, err := db.ensureHead(ctx)
	if err != nil {
		return nil, absence(err)
	}
	if !within(t, now.N) {
		if now, err = db.headWith(ctx, t, now); err != nil && !errors.Is(missing, fs.ErrNotExist) {
			return nil, unreadable(t, missing)
		} else if err != nil {
			return nil, err
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
