package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

// The collector of garbage. A blob that no manifest names is left over by a node that lost the race for a version, by a crash
// between store and publish, by a copy for a publication that never came, by bytes that were passed through and never committed.
// Nobody is served it, and it may be needed all the same: by a publication under way, of this node or of one that counts on
// this node's ack. It is moved to the trash only if
//
//	named     no manifest of this node's catalog names it, read at a place that is not before anything that was committed on any
//	          node, or may still be committed from any node's log, when the blob was listed (Names.Settle, then Changes)
//	promised  this node has neither stored it, nor acked it, nor found it for a publication in the last 24 hours of its time:
//	          each of these takes it out of leftovers, where it must have been for so long. No other clock is asked.
//	pending   no publication that waits for a quorum has it
//	reserved  nobody is about to do any of this: see [artifact.Store.Reserve]
//
// and all four are looked at again while nobody else can begin to rely on it. Why that is enough:
//
//   - An ack, Admit: the blob is reserved, forgotten durably, looked for or brought in, and released; then the ack is given. If the
//     collector has the blob alone before the reservation, Admit does not find it, or finds it in the trash and brings it back.
//     If after, the blob is not in leftovers any more, and promised keeps it for 24 hours, also after a crash. The leader takes no
//     ack that is older than an hour: so none is proposed with a blob that may be gone.
//   - A publication of this node: the same, and the reservation lasts until it is committed or given up. One whose outcome is not
//     known then gets into a log within the hour that its acks last, or never. If a log has it, Settle waits for it, however long
//     the nodes that have that log were down.
//   - The follower, which counts blobs as held: it reads the change, then looks, in a reservation (Durable). If the collector had
//     the blob alone before, the follower brings it back. If after, the change is in the catalog already, and named sees it.
//   - A commit that comes when all is over, with the acks of other nodes: the follower, or a client's read, finds the blob in the
//     trash and brings it back. What is removed from the trash passes named, pending and reserved once more.
//   - Two nodes that collect at once: no step asks what another node has. The catalog is all that they share.
//
// If the process dies, nothing has to be repaired: see trash.go and leftovers. If this node has no leader, is cut off, or does not
// trust its catalog, Settle fails and nothing is moved or removed. What was a leftover before grows older all the same: a
// publication that waited meanwhile needs new acks. What is not collected: tiles of checksum databases (any may be asked for
// again), the quarantine (bounded by itself), intents in pending/ (dropped when they are committed or refused), drafts in tmp/
// (swept at the start), and what is under blobs/ and no blob (fsck tells).

// Leftover is for how long a node must know a blob as one that nothing names before it is collected, in time in which it runs.
// Acks are promises for so long; the leader counts none that is older than an hour.
const Leftover = 24 * time.Hour

const (
	firstCollect  = 10 * time.Minute      // after the start, for nodes that are restarted often
	retryCollect  = 10 * time.Minute      // after a pass that could not be done, or did not make enough room
	collectPause  = 25 * time.Millisecond // after each shard, and each blob that was moved or removed
	lookForRoom   = time.Minute
	settleTimeout = 30 * time.Second
)

// Garbage is what a pass of the collector found and did; of a dry run, what it would have done.
type Garbage struct {
	Time      time.Time `json:"time"`
	DryRun    bool      `json:"dryRun,omitempty"`
	Blobs     int64     `json:"blobs"`     // under blobs/
	Leftovers Amount    `json:"leftovers"` // of these: named by nothing, and kept for now
	Collected Amount    `json:"collected"` // moved to the trash
	Trash     Amount    `json:"trash"`     // in it afterwards
	Removed   Amount    `json:"removed"`   // from the trash, for good
	Early     bool      `json:"early"`     // before their time, because the disk was nearly full
	Oldest    int64     `json:"oldest"`    // age of the oldest leftover that is kept, in seconds
}

// Amount is a number of blobs and their bytes.
type Amount struct {
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) { a.Blobs++; a.Bytes += bytes }

// collector is the state of Collect.
type collector struct {
	every time.Duration // a pause after each part of the work

	pass sync.Mutex // held during one

	mu     sync.Mutex
	last   Garbage   // guarded by mu; of the last pass that was done
	err    error     // guarded by mu; why the last one was not
	failed time.Time // guarded by mu; when that was
}

// ErrNoPass is for a pass of the collector that cannot be done now. It matches [artifact.ErrUnavailable].
var ErrNoPass = fmt.Errorf("no garbage is collected: %w", artifact.ErrUnavailable)

// CollectGarbage does a pass every GCEvery, and one at once when the disk is nearly full and there is something in the trash,
// until ctx ends. It needs Names and Dir, and is called once.
func (m *Mirror) CollectGarbage(ctx context.Context) error {
	if m.leftovers == nil || m.config.GCEvery <= 0 {
		<-ctx.Done()
		return nil
	}
	next, tried := time.Now().Add(min(firstCollect, m.config.GCEvery)), time.Time{}
	tick := time.NewTicker(min(lookForRoom, m.config.GCEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		pressed := now.Sub(tried) >= retryCollect && m.Garbage().Trash.Blobs > 0 && m.diskLow()
		if now.Before(next) && !pressed {
			continue
		}
		next, tried = now.Add(m.config.GCEvery), now
		if _, err := m.Collect(ctx, false); err != nil && ctx.Err() == nil {
			m.log.Info("the garbage stays for now", "err", err)
			next = now.Add(min(retryCollect, m.config.GCEvery))
		}
	}
}

func (m *Mirror) diskLow() bool { return m.config.DiskLow != nil && m.config.DiskLow() }

// Garbage returns what the last pass found. It is all zero before the first.
func (m *Mirror) Garbage() Garbage {
	m.collector.mu.Lock()
	defer m.collector.mu.Unlock()
	return m.collector.last
}

// GarbageError returns why the last pass was not done, and since when; nil if it was.
func (m *Mirror) GarbageError() (since time.Time, err error) {
	m.collector.mu.Lock()
	defer m.collector.mu.Unlock()
	return m.collector.failed, m.collector.err
}

// Collect does one pass now, or finds out what one would do.
func (m *Mirror) Collect(ctx context.Context, dryRun bool) (Garbage, error) {
	c := &m.collector
	if m.leftovers == nil {
		return Garbage{}, fmt.Errorf("this node has no data directory of its own: %w", ErrNoPass)
	}
	if !c.pass.TryLock() {
		return Garbage{}, fmt.Errorf("another pass is under way: %w", ErrNoPass)
	}
	defer c.pass.Unlock()
	p := &collection{m: m, found: Garbage{Time: time.Now().UTC(), DryRun: dryRun}}
	err := p.run(ctx)
	if dryRun {
		return p.found, err
	}
	c.mu.Lock()
	c.err = err
	if err == nil {
		c.last = p.found
	} else {
		c.failed = time.Now()
	}
	c.mu.Unlock()
	m.metrics.collected(p.found, err)
	if g := p.found; g.Collected.Blobs+g.Removed.Blobs > 0 {
		m.log.Info("garbage collected", "blobs", g.Collected.Blobs, "bytes", g.Collected.Bytes, "removed", g.Removed.Blobs, "removedBytes", g.Removed.Bytes, "early", g.Early)
	}
	return p.found, err
}

// collection is one pass.
type collection struct {
	m     *Mirror
	named *named
	found Garbage
}

func (p *collection) run(ctx context.Context) error {
	if err := p.m.config.Store.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoPass, err)
	}
	if err := p.settle(ctx); err != nil { // before anything that costs more
		return err
	}
	var err error
	if p.named, err = readNames(ctx, p.m.config.Names, p.pause); err != nil {
		return fmt.Errorf("%w: read the catalog: %w", ErrNoPass, notAbsent(err))
	}
	var bad error
	for shard := range artifact.Shards {
		err := p.shard(ctx, byte(shard))
		if err != nil && (errors.Is(err, ErrNoPass) || ctx.Err() != nil || p.m.config.Store.Err() != nil) {
			return err
		}
		bad = cmp.Or(bad, err) // the others go on: what is in their trash may be the room that is missing here
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	return bad
}

// pause lets others have the disk.
func (p *collection) pause(ctx context.Context) error {
	select {
	case <-time.After(p.m.collector.every):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *collection) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	if err := p.m.config.Names.Settle(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNoPass, notAbsent(err))
	}
	return nil
}

// shard does one part of the blobs and of the trash.
func (p *collection) shard(ctx context.Context, shard byte) error {
	all, err := p.m.config.Store.ShardDigests(shard)
	if err != nil {
		return err
	}
	trash, err := p.m.config.Store.TrashDigests(shard)
	if err != nil {
		return err
	}
	p.found.Blobs += int64(len(all))
	unnamed := p.unnamed(all)
	if len(unnamed)+len(trash) > 0 { // the catalog is asked after the lists were made
		if err := p.settle(ctx); err != nil {
			return err
		}
		if err := p.named.catchUp(ctx); err != nil {
			return fmt.Errorf("%w: read the catalog: %w", ErrNoPass, notAbsent(err))
		}
		unnamed = p.unnamed(unnamed)
	}
	if !p.found.DryRun {
		if err := p.m.leftovers.observe(shard, unnamed, trash); err != nil {
			return err
		}
	}
	for _, d := range trash { // first: it makes room
		if err := p.remove(ctx, d); err != nil {
			return err
		}
	}
	for _, d := range unnamed {
		if err := p.collect(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// unnamed returns those that neither a manifest nor a publication that waits for a quorum names.
func (p *collection) unnamed(all []artifact.Digest) (out []artifact.Digest) {
	for _, d := range all {
		if !p.named.has(d) && !p.m.pending.names(d) {
			out = append(out, d)
		}
	}
	return out
}

// free reports whether nothing names d, as far as this node knows. It is asked while p has d alone.
func (p *collection) free(ctx context.Context, d artifact.Digest) bool {
	if err := p.named.catchUp(ctx); err != nil {
		return false
	}
	return !p.named.has(d) && !p.m.pending.names(d)
}

// collect moves d to the trash if it has been a leftover for long enough.
func (p *collection) collect(ctx context.Context, d artifact.Digest) error {
	size := p.m.config.Store.BlobSize(d)
	due := func() bool { age, ok := p.m.leftovers.age(d); return ok && age >= Leftover }
	if !due() {
		p.found.Leftovers.add(size)
		age, _ := p.m.leftovers.age(d)
		p.found.Oldest = max(p.found.Oldest, int64(age/time.Second))
		return nil
	}
	if p.found.DryRun {
		p.found.Collected.add(size)
		return nil
	}
	moved, err := p.m.config.Store.Trash(d, func() bool { return due() && p.free(ctx, d) })
	if err != nil || !moved {
		return err
	}
	p.m.leftovers.collected(d)
	p.found.Collected.add(size)
	p.found.Trash.add(size)
	return p.pause(ctx) // two fsyncs
}

// remove removes d from the trash if it has been there for long enough. A blob that is named after all is brought back, if it is
// not here twice.
func (p *collection) remove(ctx context.Context, d artifact.Digest) error {
	s := p.m.config.Store
	size := s.TrashSize(d)
	if p.named.has(d) && s.BlobSize(d) == 0 && !p.found.DryRun && s.Durable(artifact.Ref{Digest: d, Size: size}) == nil {
		return nil
	}
	age, ok := p.m.leftovers.trashed(d)
	due := ok && age >= p.m.config.TrashKeep
	early := !due && p.m.diskLow()
	if !due && !early {
		p.found.Trash.add(size)
		return nil
	}
	if p.found.DryRun {
		p.found.Removed.add(size)
		return nil
	}
	removed, err := s.Drop(d, func() bool { return p.free(ctx, d) || s.BlobSize(d) > 0 })
	if err != nil || !removed {
		p.found.Trash.add(size)
		return err
	}
	p.found.Removed.add(size)
	p.found.Early = p.found.Early || early
	return p.pause(ctx)
}

// hold reserves d, and has the collector count its age from now on. The caller releases it when it has told nobody that the
// bytes are here, or has told it to the log.
func (m *Mirror) hold(d artifact.Digest) (release func(), err error) {
	release = m.config.Store.Reserve(d)
	if err := m.leftovers.forget(d); err != nil {
		release()
		return nil, fmt.Errorf("keep sha256:%v from being collected: %w", d, err)
	}
	return release, nil
}
