package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Changes is the feed of what the catalog of this node has committed.
type Changes interface {
	// Records yields the changes whose Seq is from or more, in order, as far as there are any now. Those of other databases
	// than db may be among them, and are left alone. It ends with an error that it yields, if any. Whoever reads may break
	// off, and does so before any slow work.
	Records(ctx context.Context, db string, from int64) iter.Seq2[artifact.Change, error]

	// Next returns the Seq that the next change will have. If it is less than it once was, the changes are others.
	Next(ctx context.Context) (int64, error)

	// Wake returns a channel that is closed, or sent to, once something (also a tree head) is committed after the call.
	Wake() <-chan struct{}
}

const (
	followIdle  = 10 * time.Second       // how often to look without being woken
	followPause = 200 * time.Millisecond // between two looks, however often something is committed
	followRetry = time.Minute            // how long to wait at most after what failed
	followSave  = 5 * time.Second        // how old a cursor may become that moved a little

	followRead  = 512     // changes that are read at once
	followBatch = 64      // records whose tiles are read, fetched and stored together
	maxGaps     = 4 << 10 // records, and heads, whose tiles could not be had
)

// follower makes sure that this node holds every tile that a client without any state needs for every committed record,
// and the edges of every committed head in the shape of the newest: what another node that looked the record up, or moved
// the head, has since then. It is for one goroutine.
//
// What holds at any time: the tiles of every record before next, but for those in records, are held in the shape of tree.
// That stays so when tree becomes a larger one, once the edge of the old tree is held in the shape of the new one: all its
// other tiles were full.
type follower struct {
	*DB
	next  int64
	tree  tlog.Tree
	saved cursor
	at    time.Time // when it was saved

	records map[int64]artifact.Record // by Seq: whose tiles could not be had
	heads   map[int64]head            // by size: whose edges could not be had
	retry   time.Time                 // when to try these again
	wait    time.Duration             // and for how long it was put off then
}

// keepUp runs a follower until ctx is done.
func (db *DB) keepUp(ctx context.Context) {
	f := db.newFollower()
	fail := time.Second
	for ctx.Err() == nil {
		wake, wait, least := db.Changes.Wake(), followIdle, followPause
		err := db.guard("hold tiles", func() error { return f.pass(ctx) })
		db.progress.set(f, err)
		if err != nil && ctx.Err() == nil {
			db.Log.Warn("tiles of what is committed are not held yet", "behind", db.progress.status().Behind, "err", err)
			least, fail = jitter(fail), min(2*fail, followRetry)
		} else {
			fail = time.Second
		}
		pause(ctx, least)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-time.After(wait):
		}
	}
	f.save(true)
}

func (db *DB) newFollower() *follower {
	f := &follower{DB: db, records: make(map[int64]artifact.Record), heads: make(map[int64]head), at: time.Now()}
	c, err := db.Tiles.cursor()
	if err != nil {
		db.Log.Warn("tiles are looked through from the beginning", "err", err)
	}
	f.next, f.tree, f.saved = c.next, c.tree, c
	return f
}

// pass holds what there is to hold now.
func (f *follower) pass(ctx context.Context) error {
	defer f.save(false)
	if err := f.follow(ctx); err != nil {
		return err
	}
	f.fillGaps(ctx)
	for ctx.Err() == nil {
		changes, next, err := f.read(ctx)
		if err != nil || next == f.next {
			return err
		}
		for batch := range slices.Chunk(changes, followBatch) {
			if err := f.follow(ctx); err != nil { // a record may lie beyond the tree of a moment ago
				return err
			}
			if err := f.take(ctx, batch); err != nil {
				return err
			}
			f.next = batch[len(batch)-1].Seq + 1
			f.progress.set(f, nil)
		}
		f.next = next
		f.save(false)
	}
	return ctx.Err()
}

// read returns the changes of this database from f.next on, as many as are read at once, and where to go on.
func (f *follower) read(ctx context.Context) (changes []artifact.Change, next int64, err error) {
	end, err := f.Changes.Next(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("changes of %s: %w", f.name, err)
	}
	f.progress.saw(end)
	if end < f.next {
		f.restart(fmt.Errorf("%d changes were covered, and there are %d", f.next, end))
		return nil, 0, fmt.Errorf("what is committed is not what it was: %w", artifact.ErrUnavailable)
	}
	read, last := 0, f.next-1
	for c, err := range f.Changes.Records(ctx, f.name, f.next) {
		if err != nil {
			return nil, 0, fmt.Errorf("changes of %s from %d: %w", f.name, f.next, err)
		}
		if last = c.Seq; c.Manifest.Record.Database == f.name {
			changes = append(changes, c)
		}
		if read++; read == followRead {
			return changes, last + 1, nil
		}
	}
	return changes, max(last+1, end), nil
}

// follow brings f to the newest committed head.
func (f *follower) follow(ctx context.Context) error {
	now, err := f.committed(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || now.Tree == f.tree {
		return err
	}
	if f.tree.N > now.N {
		f.restart(fmt.Errorf("the tree had %d records, and has %d", f.tree.N, now.N))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*fetchBudget)
	defer cancel()
	if f.tree.N > 0 {
		err := f.holdEdge(ctx, f.tree, now.Tree, true)
		if errors.Is(err, errOtherTree) {
			f.restart(err)
		} else if err != nil {
			return err
		}
	}
	if err := f.holdEdge(ctx, now.Tree, now.Tree, true); err != nil {
		return err
	}
	f.followHeads(ctx, now)
	f.tree = now.Tree
	return nil
}

// followHeads holds the edges of the heads between f.tree and now in the shape of now: another node may answer with any of
// them, and a client that was answered with one comes back with it. One that cannot be had does not delay the others.
func (f *follower) followHeads(ctx context.Context, now head) {
	failed := 0
	for h := now; len(f.heads) < maxGaps; {
		older, err := f.committedBelow(ctx, h.N)
		if err != nil || older.N <= f.tree.N {
			return
		}
		h = older
		if failed < 16 && f.holdEdge(ctx, h.Tree, now.Tree, true) == nil {
			failed = 0
			continue
		}
		failed++
		f.heads[h.N] = h
	}
}

// restart has everything looked through again.
func (f *follower) restart(why error) {
	f.Log.Warn("tiles are looked through from the beginning", "err", why)
	f.next, f.tree = 0, tlog.Tree{}
	clear(f.records)
	clear(f.heads)
	f.save(true)
}

// take holds the tiles of the records of batch. Those that cannot be had are remembered, but if that is none of them.
func (f *follower) take(ctx context.Context, batch []artifact.Change) error {
	err := f.holdRecords(ctx, batch)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var bad []artifact.Change
	for _, c := range batch {
		if err2 := f.holdRecords(ctx, []artifact.Change{c}); err2 != nil {
			err, bad = err2, append(bad, c)
		}
	}
	if len(bad) == len(batch) || len(f.records)+len(bad) > maxGaps || ctx.Err() != nil {
		return err
	}
	for _, c := range bad {
		f.records[c.Seq] = c.Manifest.Record
		f.Log.Warn("tiles of a committed record are not held yet", "module", c.Manifest.Module.Path, "version", c.Manifest.Module.Version, "err", err)
	}
	return nil
}

// holdRecords reads the hash of every record of batch out of tiles, as a client without any state does, which holds them.
func (f *follower) holdRecords(ctx context.Context, batch []artifact.Change) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	indexes := make([]int64, len(batch))
	for i, c := range batch {
		if c.Manifest.Record.ID >= f.tree.N {
			return fmt.Errorf("record %d of %s lies beyond the committed tree of %d records: %w", c.Manifest.Record.ID, f.name, f.tree.N, artifact.ErrUnavailable)
		}
		indexes[i] = tlog.StoredHashIndex(0, c.Manifest.Record.ID)
	}
	v := &view{db: f.DB, ctx: ctx, tree: f.tree, online: true}
	hashes, err := v.ReadHashes(indexes)
	if err != nil {
		return err
	}
	for i, c := range batch {
		if r := c.Manifest.Record; hashes[i] != tlog.RecordHash(r.Text) {
			return fmt.Errorf("committed record %d of %s has another hash in the tree of %d records; text %.300q: %w", r.ID, f.name, f.tree.N, r.Text, artifact.ErrRefused)
		}
	}
	return nil
}

// fillGaps tries again what could not be had.
func (f *follower) fillGaps(ctx context.Context) {
	if len(f.records)+len(f.heads) == 0 || time.Now().Before(f.retry) {
		return
	}
	for _, seq := range slices.Sorted(maps.Keys(f.records)) {
		c := artifact.Change{Seq: seq, Manifest: artifact.Manifest{Record: f.records[seq]}}
		if f.holdRecords(ctx, []artifact.Change{c}) == nil {
			delete(f.records, seq)
		}
	}
	for n, h := range f.heads {
		if f.holdEdge(ctx, h.Tree, f.tree, true) == nil {
			delete(f.heads, n)
		}
	}
	if len(f.records)+len(f.heads) == 0 {
		f.wait = 0
	}
	f.wait = min(max(2*f.wait, followIdle), 10*followRetry)
	f.retry = time.Now().Add(jitter(f.wait))
}

// save makes durable how far f is, if that is worth it, or now.
func (f *follower) save(now bool) {
	c := cursor{next: f.next, tree: f.tree}
	for seq := range f.records {
		c.next = min(c.next, seq)
	}
	if c == f.saved || !now && c.next < f.saved.next+followRead && time.Since(f.at) < followSave {
		return
	}
	if err := f.Tiles.setCursor(c); err != nil {
		f.Log.Warn("how far tiles are held is not stored", "err", err)
		return
	}
	f.saved, f.at = c, time.Now()
}

// FollowStatus says how far the tiles of what is committed are held.
type FollowStatus struct {
	Next   int64 // the tiles of every change before this one are held, but for gaps
	Behind int64 // changes whose tiles this node does not hold yet, as far as it knows
	Gaps   int   // records and heads among what was passed over because their tiles could not be had
	Size   int64 // records of the head that this is about
	Err    error // why the last attempt failed; nil: it did not
}

// followed is a FollowStatus that many may read.
type followed struct {
	mu   sync.Mutex
	last FollowStatus // guarded by mu
	next int64        // guarded by mu; where the follower is
	end  int64        // guarded by mu; how far there are changes
}

func (p *followed) status() FollowStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.last
	s.Next = p.next
	s.Behind = max(p.end-p.next, 0) + int64(s.Gaps)
	return s
}

// saw says that there are changes up to end.
func (p *followed) saw(end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end = end
}

// set says where f is, and what came of its last pass.
func (p *followed) set(f *follower, err error) {
	p.mu.Lock()
	p.next = f.next
	p.last = FollowStatus{Gaps: len(f.records) + len(f.heads), Size: f.tree.N, Err: err}
	p.mu.Unlock()
	f.metrics.behind.Set(float64(p.status().Behind))
}
