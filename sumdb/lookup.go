package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// answer is a lookup response, taken apart.
type answer struct {
	id   int64
	text []byte
	note []byte // all that follows the record
}

// parseLookup takes a lookup response apart. It checks the shape and nothing else. The id must be in the one form that
// the database writes (tlog.ParseRecord alone takes "-5" and "007"), and something must follow the record: a response
// without a tree head would leave a client without one to check against. An error matches [artifact.ErrMalformed].
func parseLookup(msg []byte) (answer, error) {
	if len(msg) > maxLookup {
		return answer{}, fmt.Errorf("lookup response of %d bytes: %w", len(msg), artifact.ErrMalformed)
	}
	id, text, rest, err := tlog.ParseRecord(msg)
	if err != nil {
		return answer{}, fmt.Errorf("lookup response is no record: %v: %w", err, artifact.ErrMalformed)
	}
	line, _, _ := bytes.Cut(msg, []byte("\n"))
	if id < 0 || id >= maxTree || string(line) != strconv.FormatInt(id, 10) {
		return answer{}, fmt.Errorf("lookup response has the record id %.40q: %w", line, artifact.ErrMalformed)
	}
	if len(text) > artifact.MaxRecord {
		return answer{}, fmt.Errorf("lookup response has a record of %d bytes: %w", len(text), artifact.ErrMalformed)
	}
	if len(rest) == 0 {
		return answer{}, fmt.Errorf("lookup response has no tree head: %w", artifact.ErrMalformed)
	}
	return answer{id, bytes.Clone(text), bytes.Clone(rest)}, nil
}

// checkModule reports whether m is something that a checksum database can know. Stricter than what a database would
// refuse by itself, so that nothing else is ever asked of one.
func checkModule(m module.Version) error {
	if err := module.Check(m.Path, m.Version); err != nil {
		return err
	}
	if module.CanonicalVersion(m.Version) != m.Version {
		return fmt.Errorf("%s: version is not canonical", m)
	}
	host, _, _ := strings.Cut(m.Path, "/")
	if _, err := netip.ParseAddr(host); err == nil {
		return fmt.Errorf("%s: module path begins with an IP address", m)
	}
	return nil
}

// escape returns m as it stands in the path of a lookup.
func escape(m module.Version) (string, error) {
	p, err := module.EscapePath(m.Path)
	if err != nil {
		return "", err
	}
	v, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", err
	}
	return p + "@" + v, nil
}

// lookup asks the sources for m until one gives an answer that holds. A source that says "not found" is believed, as the
// go command believes it; one that fails, talks rubbish or lies is passed over. But where an answer did not hold, "not
// found" is not the whole truth, and a client that was told so would go on to fetch m elsewhere: the failed check counts.
func (db *DB) lookup(ctx context.Context, m module.Version) (r artifact.Record, err error) {
	end, path, err := db.beginLookup(m)
	if err != nil {
		return r, err
	}
	defer end()
	for a := range ask(ctx, db, classLookup, func(ctx context.Context, s *source) (artifact.Record, error) {
		return db.lookupAt(ctx, s, m, path)
	}) {
		if errors.Is(a.err, fs.ErrNotExist) && noGood(err) {
			return r, err
		}
		db.noteLookup(m, a)
		if a.err == nil || errors.Is(a.err, fs.ErrNotExist) || errors.Is(a.err, errFrozen) {
			return a.val, a.err
		}
		err = worse(err, a.err)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = fmt.Errorf("no proxy speaks for it, and it is not to be asked directly: %w", artifact.ErrUnavailable)
	}
	return r, err
}

// beginLookup returns the path of the lookup of m, and what ends it: there is a bound on how many there are at a time.
func (db *DB) beginLookup(m module.Version) (end func(), path string, err error) {
	esc, err := escape(m)
	if err != nil {
		return nil, "", fmt.Errorf("%v: %w", err, artifact.ErrPolicy)
	}
	select {
	case db.lookups <- struct{}{}:
		return func() { <-db.lookups }, "/lookup/" + esc, nil
	default:
		return nil, "", fmt.Errorf("too many lookups at once: %w", artifact.ErrUnavailable)
	}
}

// noteLookup remembers what a source said of m.
func (db *DB) noteLookup(m module.Version, a result[artifact.Record]) {
	switch {
	case a.err == nil:
		db.verified.put(m, a.val, nameCost(m)+recordCost(a.val))
	case errors.Is(a.err, fs.ErrNotExist):
		db.absent.put(m, time.Now(), nameCost(m))
	case noGood(a.err):
		db.metrics.badRecords.Inc()
		db.Log.Warn("lookup answer is no good", "module", m.Path, "version", m.Version, "source", a.source.String(), "err", a.err)
	}
}

// noGood reports whether err says that there was an answer and that it did not hold.
func noGood(err error) bool {
	return errors.Is(err, artifact.ErrRefused) || errors.Is(err, artifact.ErrMalformed)
}

// lookupAt asks s for m and verifies the answer.
func (db *DB) lookupAt(ctx context.Context, s *source, m module.Version, path string) (r artifact.Record, err error) {
	msg, err := db.get(ctx, s, path, maxLookup)
	if err != nil && s.isShunned() {
		return r, absence(err)
	}
	if err != nil {
		return r, err
	}
	r, err = db.verify(ctx, s.String(), m, msg)
	if noGood(err) {
		err = fmt.Errorf("answer of %s: %w", s, err) // what did not hold may be a tile of another source
		s.blame(err)
	}
	return r, absence(err)
}

// absence makes sure that err does not look like one: only a source's own 404 for a lookup is.
func absence(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%v: %w", err, artifact.ErrUnavailable)
	}
	return err
}

// verify checks msg, a lookup response for m from a source, and returns its record with a proof against a committed head.
func (db *DB) verify(ctx context.Context, from string, m module.Version, msg []byte) (r artifact.Record, err error) {
	a, err := parseLookup(msg)
	if err != nil {
		return r, err
	}
	h, err := db.openHead(a.note)
	if err != nil {
		return r, err
	}
	h.from = from
	var at head // the committed head that r is proven against
	defer func() {
		if at.Tree != h.Tree {
			db.witness(h) // whatever became of r: the head of a record that did not hold may be half of a fork
		}
	}()
	if a.id >= h.N {
		return r, fmt.Errorf("record id %d is not in the tree of %d records that it came with: %w", a.id, h.N, artifact.ErrMalformed)
	}
	r = artifact.Record{Database: db.name, ID: a.id, Text: a.text}
	if _, _, err := r.Sums(m); err != nil {
		return r, err
	}
	if at, err = db.headFor(ctx, a.id, h); err != nil {
		return r, err
	}
	return db.prove(ctx, at, r, true)
}

// prove returns r with its proof against h, a committed head, checked. What a client without any state needs to do the
// same is held durably then. If online is not set, only the store is asked.
func (db *DB) prove(ctx context.Context, h head, r artifact.Record, online bool) (artifact.Record, error) {
	if r.ID >= h.N {
		return r, fmt.Errorf("record id %d is not in the tree of %d records of %s: %w", r.ID, h.N, db.name, artifact.ErrRefused)
	}
	var err error
	view := view{db: db, ctx: ctx, tree: h.Tree, online: online}
	r.TreeSize = h.N
	if r.Proof, err = proveRecord(h.Tree, r, &view); err != nil {
		return r, err
	}
	return r, r.Check(h.Hash)
}

// proveRecord returns the proof of r in tree. The record's own hash is read along with the proof's, so that its tile is
// among those that hr reads, authenticates and holds, whatever the shape of the tree.
func proveRecord(tree tlog.Tree, r artifact.Record, hr tlog.HashReader) (tlog.RecordProof, error) {
	index := tlog.StoredHashIndex(0, r.ID)
	var leaf []tlog.Hash
	proof, err := tlog.ProveRecord(tree.N, r.ID, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := hr.ReadHashes(append(slices.Clone(indexes), index))
		if err != nil {
			return nil, err
		}
		leaf = hashes[len(indexes):]
		return hashes[:len(indexes)], nil
	}))
	if err == nil && leaf == nil { // a tree of one record has an empty proof
		leaf, err = hr.ReadHashes([]int64{index})
	}
	if err != nil {
		return nil, err
	}
	if want := tlog.RecordHash(r.Text); leaf[0] != want {
		return nil, fmt.Errorf("record %d of %s has the hash %v, its signed tree of %d records has %v there; text %.300q: %w",
			r.ID, r.Database, want, tree.N, leaf[0], r.Text, artifact.ErrRefused)
	}
	return proof, nil
}

// renew returns r, which was verified before, with a proof against the newest committed head, or against one that is ahead
// of it if it lies beyond.
func (db *DB) renew(ctx context.Context, r artifact.Record) (artifact.Record, error) {
	h, err := db.committed(ctx)
	if err == nil && h.N <= r.ID {
		h, _ = db.ahead.over(r.ID, false) // without one, or a quorum again, r is looked up again
		h, err = db.beyond(ctx, r.ID, h)
	}
	if err != nil || h.N == r.TreeSize {
		return r, err
	}
	return db.prove(ctx, h, r, true)
}

// nameCost is what a key takes: a client may send long ones.
func nameCost(m module.Version) int64 { return int64(len(m.Path) + len(m.Version)) }

func recordCost(r artifact.Record) int64 {
	return int64(len(r.Text) + len(r.Proof)*tlog.HashSize)
}
