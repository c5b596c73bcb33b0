package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// Progress says how far this node holds the blobs that the catalog names.
type Progress struct {
	Watermark int64     // every blob of the changes before this place is durable here
	Looked    int64     // blobs of the changes before this place were looked for: what is missing of them is known
	Missing   int       // blobs that are known to be missing
	Bytes     int64     // of them
	Since     time.Time // since when the oldest of them is missing; zero if none is

	Unproven      int   // blobs that are durable here and whose go.sum hash this node has yet to compare, before it serves them
	UnprovenBytes int64 // of them
}

const (
	cursorFile = "follow.json"
	maxCursor  = 4 << 10 // bytes of it

	followPulls   = 4       // pulls at a time
	followWindow  = 1 << 16 // blobs that are known to be missing; changes after that are read when some are here
	followBurst   = 1 << 20 // bytes that a limit on the speed lets through at once
	followYield   = time.Second
	followSave    = 5 * time.Second // between two fsyncs of the cursor; what was done since is looked at again after a crash
	followRescan  = 10 * time.Second
	firstRepull   = time.Second
	lastRepull    = time.Minute
	lastReheal    = time.Hour      // the same for what was lost, which may be a large download for nothing
	forgedRetry   = 24 * time.Hour // after which the catalog may not name any more what is none of its version
	followSlowest = 8 << 10        // bytes a second: a pull that makes less of the limit it has, and of its turns, is begun again
)

// follower holds every blob that the catalog names, sooner or later. It reads the changes in order and pulls what is missing,
// some at a time and in no order, in bulk where that is much (bulkpull.go); its watermark is the place of the first change of which a blob is missing. The watermark is
// kept in follow.json, as far as every blob before it is proven, and moves only when every blob before it is durable. What is true if the process dies:
//
//	during a pull              a leftover in tmp/; the blob is missing, and the watermark is before it
//	after the blob is durable  the same watermark; the next process finds the blob and goes on
//	after follow.json          the new watermark
//
// A follow.json that cannot be read counts as one that says 0: everything is looked at again, and what is here is not pulled.
// So does one of another node, whose changes were others: this one may have been started in its directory. Its blobs are read then,
// each once, as a disk that turned bits may be why there is a new node. That costs nothing later: what this process has pulled it
// has read.
type follower struct {
	m     *Mirror
	files *dataFiles
	limit *rate.Limiter // nil: none

	next    int64       // place of the first change that has not been read
	doubt   bool        // a blob that is here when its change is read is read too: there was another node here before; set by load only
	wants   wants       // what is missing
	active  int         // pulls under way
	bulks   int         // of them, those that pull in bulk
	ended   chan pulled // of them
	saved   int64       // the watermark in follow.json
	saveAt  time.Time   // not to be saved again before
	scanAt  time.Time   // not to be read again before, after an error
	bulkAt  time.Time   // nothing is to be pulled in bulk before
	waiting bool        // what is due waits for the end of a pull in bulk

	found chan *missing // blobs that were here and were lost

	mu       sync.Mutex
	progress Progress                // guarded by mu, as the rest
	read     int64                   // next, once the follower runs
	lacks    map[artifact.Digest]int // how often each blob is among wants that may have it
}

// missing is a blob that is not here. All of it belongs to the loop.
type missing struct {
	seq    int64
	module module.Version
	kind   artifact.Kind
	ref    artifact.Ref
	since  time.Time
	at     time.Time // not to be tried before
	wait   time.Duration
	bulk   int  // how often it was asked for in bulk
	lost   bool // it was here before
	here   bool // it is here now: wants is done with it
	forged bool // no bytes that are here are those of the version, nor will any be
}

// pulled is the end of a pull.
type pulled struct {
	what []*missing
	errs []error // for each
	bulk bool
}

// Progress returns how far Follow has come. It is all zero before Follow has read its cursor.
func (m *Mirror) Progress() Progress {
	m.followed.mu.Lock()
	p := m.followed.progress
	m.followed.mu.Unlock()
	p.Unproven, p.UnprovenBytes = m.config.Store.Unproven()
	return p
}

// Follow brings here what the catalog names and this node does not hold, until ctx ends: from other nodes, and from the upstream
// what none of them has, and what was here and is lost if no other node hands it over now. It needs Changes and Dir, and is
// called once. A blob that nobody has is tried again for ever, and stops none of the others.
func (m *Mirror) Follow(ctx context.Context) error {
	if m.config.Changes == nil || m.config.Dir == "" {
		return errors.New("follow: Changes and Dir are needed")
	}
	f := &m.followed
	files, err := openFiles(m.config.Dir, m.config.Store)
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	defer files.root.Close()
	f.m, f.files, f.ended = m, files, make(chan pulled, followPulls+bulkPulls)
	f.limit = m.pullLimit
	f.load()
	m.resume()
	var others sync.WaitGroup
	others.Go(func() { m.locate(ctx) })
	others.Go(func() { m.findUnproven(ctx) })
	others.Go(func() { m.proveAll(ctx) })
	f.run(ctx)
	others.Wait()
	f.save(true) // some may have been proven
	return nil
}

// seen returns the place of the first change that has not been looked at: 0 if the follower does not run.
func (f *follower) seen() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read
}

// lacking reports whether the follower knows that d is not here.
func (f *follower) lacking(d artifact.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lacks[d] > 0
}

// full reports whether the follower has no room for more that is missing.
func (f *follower) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.lacks) >= followWindow
}

// want hands a blob that was lost over to the follower, as soon as it takes it.
func (f *follower) want(ctx context.Context, b *missing) {
	select {
	case f.found <- b:
	case <-ctx.Done():
	}
}

// take notes a blob that was here and was lost. The watermark falls behind its change.
func (f *follower) take(b *missing) {
	known := false
	for _, o := range f.wants.known(b.ref) {
		o.lost = o.lost || b.lost
		known = known || o.module == b.module && o.kind == b.kind
	}
	if known {
		return
	}
	if b.seq >= f.next || f.wants.count >= followWindow { // it is found when the changes are read; or by the next scrub
		return
	}
	f.add(b)
}

// add notes one more that is missing.
func (f *follower) add(b *missing) {
	f.wants.add(b)
	if !b.forged {
		f.lack(b.ref.Digest, 1)
	}
}

// lack notes that so many more of wants may have d.
func (f *follower) lack(d artifact.Digest, more int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lacks == nil {
		f.lacks = map[artifact.Digest]int{}
	}
	if f.lacks[d] += more; f.lacks[d] <= 0 {
		delete(f.lacks, d)
	}
}

// newLimit returns a limit of so many bytes a second, nil for 0.
func newLimit(speed int64) *rate.Limiter {
	if speed <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(speed), followBurst)
}

// run is the loop, which owns all but progress.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		wake := f.m.wake()
		f.scan(ctx)
		f.start(ctx)
		f.report()
		f.save(false)
		timer := time.NewTimer(f.idle())
		select {
		case <-ctx.Done():
		case <-wake:
		case r := <-f.ended:
			f.finish(r)
		case b := <-f.found:
			f.take(b)
		case <-timer.C:
		}
		timer.Stop()
	}
	for f.active > 0 {
		f.finish(<-f.ended)
	}
	f.save(true)
	f.report()
}

// scan reads the changes that it has not read, and looks which of their blobs are here.
func (f *follower) scan(ctx context.Context) {
	if time.Now().Before(f.scanAt) || f.wants.count >= followWindow {
		return
	}
	for c, err := range f.m.config.Changes.Changes(ctx, f.next) {
		if err == nil && c.Seq < f.next {
			err = fmt.Errorf("change %d instead of %d: %w", c.Seq, f.next, artifact.ErrDamaged)
		}
		if err == nil {
			err = f.look(ctx, c)
		}
		if err != nil {
			if ctx.Err() == nil {
				f.m.log.Warn("the blob follower cannot go on for now", "seq", f.next, "err", err)
				f.scanAt = time.Now().Add(followRescan)
			}
			return
		}
		f.next = c.Seq + 1
		if f.wants.count >= followWindow {
			return
		}
	}
}

// look notes what is missing of one change.
func (f *follower) look(ctx context.Context, c artifact.Change) error {
	for k, ref := range blobsOf(c.Manifest) {
		err := f.here(ctx, c.Manifest, k)
		switch {
		case err == nil && f.m.config.Store.HasUnproven(ref): // an earlier process left it
			f.m.prover.add(ref.Digest, namer{c.Seq, c.Manifest.Module, k})
		case err == nil:
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, artifact.ErrDamaged):
			b := &missing{seq: c.Seq, module: c.Manifest.Module, kind: k, ref: ref, since: time.Now(), lost: f.m.losses.has(ref.Digest)}
			f.add(b)
		case isForged(err):
			b := &missing{seq: c.Seq, module: c.Manifest.Module, kind: k, ref: ref, since: time.Now(), forged: true}
			b.putOff()
			f.add(b)
		default:
			return err
		}
	}
	f.m.published(ctx, c.Manifest.Module) // what this node says of the path may be out of date
	return nil
}

// here reports whether a blob is here, durably, and is of its version. One that is unproven is read before it is served.
func (f *follower) here(ctx context.Context, man artifact.Manifest, k artifact.Kind) error {
	ref, err := man.Ref(k), f.m.config.Store.Err()
	switch {
	case f.m.config.Store.HasUnproven(ref):
	case f.doubt:
		err = f.m.config.Store.DurableIntact(ctx, ref)
	default:
		err = f.m.config.Store.Durable(ref)
	}
	if err != nil {
		return err
	}
	return f.m.genuine(ctx, man, k)
}

// start starts the pulls that are due, as many as may run.
func (f *follower) start(ctx context.Context) {
	f.startBulk(ctx)
	now := time.Now()
	var left []*missing // for the next pull in bulk
	for f.active-f.bulks < followPulls && len(left) < followPulls {
		b := f.wants.take(now)
		if b == nil {
			break
		}
		if f.bulks > 0 && b.mayComeInBulk() {
			left = append(left, b)
			continue
		}
		f.active++
		lost := b.lost // which may change meanwhile
		go func() { f.ended <- pulled{what: []*missing{b}, errs: []error{f.pull(ctx, b, lost)}} }()
	}
	for _, b := range left {
		f.wants.putBack(b)
	}
	f.waiting = len(left) > 0
}

// pull brings one blob here.
func (f *follower) pull(ctx context.Context, b *missing, lost bool) (err error) {
	defer func() {
		if p := recover(); p != nil { // a bug must not stop the others
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	man, err := f.m.manifest(ctx, b.module)
	if err != nil {
		return err
	}
	if man.Ref(b.kind) != b.ref {
		return nil // the catalog does not name it any more
	}
	if unproven := f.m.config.Store.HasUnproven(b.ref); unproven || f.m.config.Store.DurableIntact(ctx, b.ref) == nil { // a client was faster
		if err := f.m.genuine(ctx, man, b.kind); err != nil {
			return err
		}
		if !unproven && lost && f.m.losses.has(b.ref.Digest) {
			return errJustBack
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.budget(b.ref.Size))
	defer cancel()
	if err := f.m.bringBack(ctx, man, b.kind, lost, f.pace); err != nil {
		return err
	}
	return f.m.genuine(ctx, man, b.kind) // whoever was joined may have wanted it for another version
}

// bringBack fetches a published blob in the background. The upstream is asked if every other node says that it does not have the
// bytes, and for what was here and is lost also if none of them hands it over now: a node that is merely behind waits for the
// others, so that the upstream is not asked by each.
func (m *Mirror) bringBack(ctx context.Context, man artifact.Manifest, k artifact.Kind, lost bool, pace pacer) error {
	err := fmt.Errorf("there is no other node: %w", fs.ErrNotExist)
	if m.config.Peers != nil {
		if err = m.fetchBlob(ctx, man, k, pace); err == nil {
			return nil
		}
	}
	if m.config.Upstream == nil || ctx.Err() != nil || !lost && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, uerr := m.own(ctx, man.Module, k, flightKey(k, man.Module), "heal", m.slots(k)); uerr != nil {
		return fmt.Errorf("other nodes: %v; upstream: %w", err, uerr)
	}
	return nil
}

// budget returns how long a pull may take in all: what it waits for, besides a peer, is the limit, which it shares with the
// other pulls, and the pulls of clients.
func (f *follower) budget(size int64) time.Duration {
	slowest := int64(followSlowest)
	if f.limit != nil {
		slowest = max(min(slowest, int64(f.limit.Limit())/(2*followPulls)), 1)
	}
	return 10*time.Minute + time.Duration(size/slowest)*time.Second
}

// pace lets a pull go on when the limit and the clients' pulls let it.
func (f *follower) pace(ctx context.Context, n int) error {
	fault.Point(fault.PullRead)
	return f.m.giveWay(ctx, n, f.limit)
}

// errJustBack is for a blob that is here again, of which nobody has said where it came from.
var errJustBack = errors.New("it is here again")

// finish notes the end of a pull.
func (f *follower) finish(r pulled) {
	f.active--
	if r.bulk {
		f.bulks--
	}
	for i, b := range r.what {
		f.finishOne(b, r.errs[i], r.bulk)
	}
}

func (f *follower) finishOne(b *missing, err error, bulk bool) {
	switch {
	case errors.Is(err, errJustBack) && b.wait == 0: // whoever brought it is about to say so
		b.wait = firstRepull
		b.at = time.Now().Add(b.wait)
		f.wants.putBack(b)
	case err == nil || errors.Is(err, errJustBack):
		f.wants.done(b)
		if !b.forged {
			f.lack(b.ref.Digest, -1)
		}
		f.m.returned(b.ref.Digest, fromNode) // unless whoever brought it back has said so
	case isForged(err):
		if !b.forged {
			f.lack(b.ref.Digest, -1)
		}
		b.forged = true
		b.putOff()
		f.wants.putBack(b)
	case bulk: // it is asked for once more, by itself if need be
		f.notInBulk(b, err)
		f.wants.putBack(b)
	default:
		f.failed(b, err)
		f.wants.putBack(b)
	}
}

// putOff has a blob that is forged looked at again when the catalog may not name it any more.
func (b *missing) putOff() {
	b.wait = forgedRetry
	b.at = time.Now().Add(b.wait)
}

// failed notes that a blob could not be brought here, and when that is tried again.
func (f *follower) failed(b *missing, err error) {
	before, last := b.wait, lastRepull
	if b.lost {
		last = lastReheal
	}
	b.wait = min(max(2*b.wait, firstRepull), last)
	b.at = time.Now().Add(b.wait/2 + rand.N(b.wait/2+1))
	first, lasts := before == 0, b.wait == lastRepull && before < lastRepull // once now, and once when it seems to last
	tries := f.m.losses.tried(b.ref.Digest, b.at, err)
	if tries > 0 {
		lasts = b.wait == last
	}
	switch {
	case !first && !lasts || !f.m.losses.tries.Allow():
	case tries > 0:
		f.m.log.Error("a damaged blob is not healed: neither another node nor the upstream gives the right bytes; it is tried again",
			"module", b.module.Path, "version", b.module.Version, "kind", b.kind, "digest", b.ref.Digest, "tries", tries, "retry", b.wait, "err", err)
	default:
		f.m.log.Info("a blob is missing here and could not be pulled", "module", b.module.Path, "version", b.module.Version, "kind", b.kind, "digest", b.ref.Digest, "retry", b.wait, "err", err)
	}
}

// watermark returns the place before which every blob is durable.
func (f *follower) watermark() int64 {
	if b := f.wants.first(); b != nil {
		return b.seq
	}
	return f.next
}

// idle returns how long there is nothing to do, unless something happens.
func (f *follower) idle() time.Duration {
	now, wait := time.Now(), time.Hour
	if at, ok := f.wants.due(); ok && f.active-f.bulks < followPulls && !(f.waiting && !at.After(now)) {
		wait = min(wait, at.Sub(now))
	}
	if f.watermark() != f.saved {
		wait = min(wait, f.saveAt.Sub(now))
	}
	if f.scanAt.After(now) {
		wait = min(wait, f.scanAt.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// report tells Progress.
func (f *follower) report() {
	p := Progress{Watermark: f.watermark(), Looked: f.next, Missing: f.wants.count, Bytes: f.wants.bytes}
	if b := f.wants.first(); b != nil {
		p.Since = b.since // they are noted in order
	}
	f.mu.Lock()
	f.progress, f.read = p, f.next
	f.mu.Unlock()
	f.m.reached("follow")
}
