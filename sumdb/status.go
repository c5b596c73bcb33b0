package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Status is what an operator wants to know of a database.
type Status struct {
	Name, Key    string
	Size         int64     // records in the newest committed head; 0: there is none
	Root         tlog.Hash // of that head
	Anchor, Deep int64     // sizes of the anchor and the deep anchor; 0: there is none
	Checked      time.Time // when a source last confirmed the head, since Open; zero: never
	Forked       bool      // frozen by a fork
	Offline      bool      // no source is asked
	Ahead        int64     // size of the newest head that is proven and not committed; 0: there is none
	Follow       FollowStatus
	Sources      []SourceStatus
	Peers        []SourceStatus // of now
}

// SourceStatus is what is known of one source.
type SourceStatus struct {
	Name      string
	Proxy     bool  // asked for /supported
	Usable    bool  // the database itself, or a proxy that lately said that it speaks for it
	LastError error // nil: none since Open
	LastAt    time.Time
	Refused   int64 // reads of tiles from it that did not lead to the signed root
}

func (s *source) status() SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SourceStatus{
		Name: s.String(), Proxy: s.proxy, Usable: !s.proxy || s.usable, LastError: s.lastErr, LastAt: s.lastErrAt, Refused: s.refused,
	}
}

// Status returns the state of db. An error is one of the catalog's.
func (db *DB) Status(ctx context.Context) (Status, error) {
	s := Status{Name: db.name, Key: db.Key, Offline: db.Offline}
	if at := db.checked.Load(); at != 0 {
		s.Checked = time.Unix(0, at)
	}
	for _, src := range db.sources {
		s.Sources = append(s.Sources, src.status())
	}
	for _, p := range db.peers() {
		s.Peers = append(s.Peers, p.status())
	}
	s.Follow = db.progress.status()
	if err := db.Frozen(ctx); errors.Is(err, errFrozen) {
		s.Forked = true
	} else if err != nil {
		return s, err
	}
	now, err := db.committed(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.Size, s.Root = now.N, now.Hash
	if h, ok := db.ahead.over(now.N, false); ok {
		s.Ahead = h.N
	}
	if a, err := db.anchor(ctx, now, anchorBits); err == nil {
		s.Anchor = a.N
	}
	if a, err := db.anchor(ctx, now, deepBits); err == nil {
		s.Deep = a.N
	}
	return s, nil
}

// CheckOffline reports whether store holds everything that a client without any state needs to verify r under head, and
// whether it is right. It asks nobody. An error that matches [artifact.ErrRefused] or
// [artifact.ErrDamaged] means that something held is wrong.
func CheckOffline(store *TileStore, head tlog.Tree, r artifact.Record) error {
	if r.ID < 0 || r.ID >= head.N {
		return fmt.Errorf("record id %d of %s is not in the tree of %d records: %w", r.ID, r.Database, head.N, artifact.ErrRefused)
	}
	v := &heldTiles{store: store}
	proof, err := proveRecord(head, r, tlog.TileHashReader(head, v))
	switch {
	case v.err != nil:
		return fmt.Errorf("record %d of %s: %w", r.ID, r.Database, v.err)
	case err != nil && !errors.Is(err, artifact.ErrRefused):
		return fmt.Errorf("record %d of %s: tiles do not lead to the signed root of %d records: %v: %w", r.ID, r.Database, head.N, err, artifact.ErrRefused)
	case err != nil:
		return err
	}
	if r.TreeSize != head.N {
		r.TreeSize, r.Proof = head.N, proof
	}
	return r.Check(head.Hash)
}

// heldTiles reads tiles from a store and nowhere else.
type heldTiles struct {
	store *TileStore
	err   error
}

func (h *heldTiles) Height() int { return tileHeight }

func (h *heldTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		if data[i], h.err = h.store.Tile(t); h.err != nil {
			if errors.Is(h.err, fs.ErrNotExist) {
				h.err = fmt.Errorf("%s %w", t.Path(), errNotHeld)
			} else {
				h.err = fmt.Errorf("%s: %w", t.Path(), h.err)
			}
			return nil, h.err
		}
	}
	return data, nil
}

func (h *heldTiles) SaveTiles([]tlog.Tile, [][]byte) {}
