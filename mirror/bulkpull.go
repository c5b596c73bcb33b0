package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// A node that lacks much, because it is new or was away, pulls in bulk: a request for many blobs, one answer, and one fsync of a
// directory for all of them. They are admitted by their digest, which this node's catalog has, and proven later (prove.go). What
// does not come this way, because a peer lacks it or lies, is pulled by itself, as if there was no other way: from every node
// in turn, and from the upstream if it was lost.

// BulkPeers is a [Peers] that can hand over many blobs at once.
type BulkPeers interface {
	// FetchBulk asks peers for refs, each for some of them, by [AppendBulk], and calls take with the places in refs of those that
	// a peer was asked for, and its answer, which take reads and which may be [Slowed]; several calls may run at the same time. It
	// asks another one for what the first does not have, and returns when all calls have. What came is what take has accepted. If
	// no peer could be asked in this way, the error matches [errors.ErrUnsupported].
	FetchBulk(ctx context.Context, refs []artifact.Ref, take func(asked []int, answer io.Reader, source string) BulkTaken) error
}

// BulkTaken is what became of one answer.
type BulkTaken struct {
	Came   int   // blobs that are here now
	Absent []int // places in refs of those that the peer says it does not have
}

const (
	bulkPulls = 2                // at a time: while one waits for the disk the other one receives
	bulkBlobs = 256              // at most, of each
	bulkBytes = 32 << 20         // likewise, unless it is a single blob
	bulkTries = 2                // of a blob, before it is pulled by itself
	bulkRetry = 10 * time.Second // after which it is tried again if nobody could be asked
)

// bulkLeast is from how many on that are due blobs are pulled in bulk. What comes in one by one, when all is well, is proven at once.
func bulkLeast() int { return int(fault.Limit("bulk-least", 16)) }

// startBulk starts pulls in bulk, as many as may run, if much is due.
func (f *follower) startBulk(ctx context.Context) {
	peers, ok := f.m.config.Peers.(BulkPeers)
	now := time.Now()
	if !ok || now.Before(f.bulkAt) {
		return
	}
	for f.bulks < bulkPulls {
		batch := f.gather(now)
		if batch == nil {
			return
		}
		f.active++
		f.bulks++
		go func() { f.ended <- pulled{batch, f.pullBulk(ctx, peers, batch), true} }()
	}
}

// gather takes what is due and may come in bulk, nil if that is too little.
func (f *follower) gather(now time.Time) (batch []*missing) {
	var others []*missing
	var size int64
	for len(batch) < bulkBlobs && len(others) < bulkBlobs && (size < bulkBytes || len(batch) == 0) {
		b := f.wants.take(now)
		if b == nil {
			break
		}
		if !b.mayComeInBulk() {
			others = append(others, b)
			continue
		}
		batch = append(batch, b)
		size += b.ref.Size
	}
	few := len(batch) < bulkLeast() && size < bulkBytes
	if few {
		others = append(others, batch...)
		batch = nil
	}
	for _, b := range others {
		f.wants.putBack(b)
	}
	for _, b := range batch {
		b.bulk++
	}
	return batch
}

// mayComeInBulk reports whether a blob may be pulled with others: not what was here before, or did not come so.
func (b *missing) mayComeInBulk() bool {
	return !b.lost && b.wait == 0 && b.bulk < bulkTries && b.kind == artifact.Zip
}

// notInBulk notes that a blob did not come with others. It is asked for so again if the answer broke off before it.
func (f *follower) notInBulk(b *missing, err error) {
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		b.bulk--
		f.bulkAt = time.Now().Add(bulkRetry)
	case errors.Is(err, fs.ErrNotExist) || isRefusal(err):
		b.bulk = bulkTries
	}
}

// pullBulk brings blobs here, unproven. It returns an error for each, nil if it is durable here, or not needed.
func (f *follower) pullBulk(ctx context.Context, peers BulkPeers, batch []*missing) (errs []error) {
	f.m.bulks.Add(1)
	defer f.m.bulks.Add(-1)
	p := &bulkPull{f: f, batch: batch, errs: make([]error, len(batch))}
	defer func() {
		if v := recover(); v != nil { // a bug must not stop the others
			p.failRest(fmt.Errorf("panic: %v", v))
			errs = p.errs
		}
	}()
	size := p.look(ctx)
	if len(p.refs) == 0 {
		return p.errs
	}
	ctx, cancel := context.WithTimeout(ctx, f.budget(size))
	defer cancel()
	if err := f.m.room(size); err != nil {
		p.failRest(err)
		return p.errs
	}
	err := peers.FetchBulk(ctx, p.refs, func(asked []int, answer io.Reader, source string) BulkTaken {
		return p.take(ctx, asked, answer, source)
	})
	if err == nil {
		err = fmt.Errorf("no node handed it over: %w", artifact.ErrUnavailable)
	}
	p.failRest(err)
	return p.errs
}

// bulkPull is one pull in bulk.
type bulkPull struct {
	f     *follower
	batch []*missing
	errs  []error // guarded by mu while take runs; for each of batch

	refs []artifact.Ref      // that are asked for
	of   []int               // which of batch each is
	mans []artifact.Manifest // of each

	mu   sync.Mutex
	came map[int]bool // guarded by mu; which of batch are done with, by an error in errs or without one
}

// look finds out what there is to ask for, and returns how many bytes it has.
func (p *bulkPull) look(ctx context.Context) (size int64) {
	p.came = map[int]bool{}
	for i, b := range p.batch {
		man, err := p.f.m.manifest(ctx, b.module)
		switch {
		case err != nil:
			p.end(i, notAbsent(err))
		case man.Ref(b.kind) != b.ref: // the catalog does not name it any more
			p.end(i, nil)
		default:
			if err := p.f.here(ctx, man, b.kind); err == nil || isForged(err) { // a client was faster
				p.end(i, err)
				continue
			}
			p.refs, p.of, p.mans = append(p.refs, b.ref), append(p.of, i), append(p.mans, man)
			size += b.ref.Size
		}
	}
	return size
}

// end notes what became of one of batch.
func (p *bulkPull) end(i int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came[i], p.errs[i] = true, err
}

// failRest notes that the others did not come.
func (p *bulkPull) failRest(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.batch {
		if !p.came[i] {
			p.came[i], p.errs[i] = true, err
		}
	}
}

// take reads what one node hands over, and makes it durable.
func (p *bulkPull) take(ctx context.Context, asked []int, answer io.Reader, source string) (t BulkTaken) {
	m := p.f.m
	var refs []artifact.Ref
	var size int64
	for _, n := range asked {
		refs = append(refs, p.refs[n])
		size += p.refs[n].Size
	}
	timed := newTimedBody(ctx, answer, size)
	defer timed.close()
	r := &received{p: p, source: source, pack: m.config.Store.NewPack(), buf: make([]byte, artifact.MaxPacked)}
	err := readBulk(&paced{ctx, timed, slowedBy(p.f.pace, answer)}, refs, func(i int, body io.Reader, absent error) error {
		if errors.Is(absent, fs.ErrNotExist) {
			t.Absent = append(t.Absent, asked[i])
		}
		if err := r.receive(asked[i], body, absent); err != nil {
			p.end(p.of[asked[i]], err)
			return fatal(ctx, m, err)
		}
		return nil
	})
	if errors.Is(err, artifact.ErrMalformed) {
		m.log.Error("a node answers with what is no answer to a pull in bulk", "source", source, "err", err)
		m.metrics.failures.WithLabelValues(failPeer).Inc()
	}
	t.Came = r.keep()
	if err != nil {
		m.log.Info("a pull in bulk breaks off; the rest is asked for again", "source", source, "blobs", len(refs), "came", t.Came, "err", err)
	}
	return t
}

// fatal returns err if nothing more can be received because of it.
func fatal(ctx context.Context, m *Mirror, err error) error {
	if ctx.Err() != nil || m.config.Store.Err() != nil || errors.Is(err, artifact.ErrNoSpace) || errors.Is(err, errCut) {
		return err
	}
	return nil
}

// errCut is for an answer that ends before it should.
var errCut = errors.New("the answer breaks off")

// received is what came of one answer: small blobs in a pack, the others in drafts.
type received struct {
	p      *bulkPull
	source string
	pack   *artifact.Pack
	packed []int // of refs
	drafts []*artifact.Draft
	drawn  []int  // of refs, for each of drafts
	buf    []byte // for bytes on their way
}

// receive reads one blob, compares its digest, and looks whether it is of its version.
func (r *received) receive(n int, body io.Reader, absent error) error {
	if absent != nil {
		return fromPeer(r.source, absent)
	}
	if size := r.p.refs[n].Size; size <= r.p.f.m.packMost && artifact.CanPack(size) {
		return r.intoPack(n, body)
	}
	return r.intoDraft(n, body)
}

func (r *received) intoPack(n int, body io.Reader) error {
	ref := r.p.refs[n]
	b := r.buf[:ref.Size]
	if got, err := io.ReadFull(body, b); err != nil {
		return r.breaksOff(int64(got), ref, err)
	}
	if err := artifact.CheckHead(b, r.p.mans[n], r.p.batch[r.p.of[n]].kind); err != nil && artifact.RefOf(b) == ref {
		return r.forged(n, err)
	}
	err := r.pack.Add(ref, b)
	if err == nil {
		r.packed = append(r.packed, n)
		return nil
	}
	if !errors.Is(err, artifact.ErrRefused) {
		return err
	}
	d, derr := r.p.f.m.config.Store.Create(ref.Size) // of what is to be looked at
	if derr == nil {
		_, derr = d.Write(b)
	}
	if derr != nil {
		r.p.f.m.log.Warn("cannot quarantine what a peer sent", "source", r.source, "digest", ref.Digest, "err", derr)
	}
	return r.refuse(n, d, err)
}

// intoDraft writes one blob to a draft, whose fsync has begun when it returns.
func (r *received) intoDraft(n int, body io.Reader) error {
	ref := r.p.refs[n]
	d, err := r.p.f.m.config.Store.Create(ref.Size)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{d}, struct{ io.Reader }{body}, r.buf); err != nil || d.Size() < ref.Size {
		d.Discard()
		return r.breaksOff(d.Size(), ref, err)
	}
	if got := d.Ref(); got != ref {
		return r.refuse(n, d, fmt.Errorf("%v, not %v: %w", got, ref, artifact.ErrRefused))
	}
	head := make([]byte, artifact.HeadLen)
	got, _ := d.ReadAt(head, 0) // of what cannot be read nothing is known
	if err := artifact.CheckHead(head[:got], r.p.mans[n], r.p.batch[r.p.of[n]].kind); err != nil {
		d.Discard()
		return r.forged(n, err)
	}
	d.Flush()
	r.drafts, r.drawn = append(r.drafts, d), append(r.drawn, n)
	return nil
}

// forged notes that a blob, which has its digest, is of another version than the one that it was asked for.
func (r *received) forged(n int, why error) error {
	return r.p.f.m.foundForged(r.p.mans[n], r.p.batch[r.p.of[n]].kind, why)
}

// breaksOff is the error for an answer that ended after got bytes of a blob.
func (r *received) breaksOff(got int64, ref artifact.Ref, err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fromPeer(r.source, fmt.Errorf("%w after %d of %d bytes: %w: %w", errCut, got, ref.Size, err, artifact.ErrUnavailable))
}

// refuse tells of a node that lies, and keeps what it sent. d may be nil.
func (r *received) refuse(n int, d *artifact.Draft, err error) error {
	b := r.p.batch[r.p.of[n]]
	a := &admission{m: r.p.f.m, mv: b.module, kind: b.kind, ref: b.ref, source: r.source}
	err = a.refuse(d, err)
	if d != nil {
		d.Discard()
	}
	return err
}

// keep makes what was received durable. Only then it counts as here. It returns how many blobs came.
func (r *received) keep() (came int) {
	if len(r.packed)+len(r.drafts) == 0 {
		r.pack.Discard()
		return 0
	}
	err := r.pack.Keep()
	for _, n := range r.packed {
		came += r.kept(n, err)
	}
	if len(r.drafts) > 0 {
		for k, err := range r.p.f.m.config.Store.Keep(r.drafts) {
			came += r.kept(r.drawn[k], err)
		}
	}
	r.p.f.m.reached("kept")
	return came
}

// kept notes what became of a blob that was received, and returns 1 if it is durable.
func (r *received) kept(n int, err error) (came int) {
	m, b := r.p.f.m, r.p.batch[r.p.of[n]]
	if err == nil {
		came = 1
		m.prover.add(b.ref.Digest, namer{b.seq, b.module, b.kind})
		m.metrics.peerBytes.Add(float64(b.ref.Size))
		m.happened(Event{What: Stored, Module: b.module, Kind: b.kind, Bytes: b.ref.Size, Source: r.source}, nil)
	}
	m.metrics.pulled(err)
	r.p.end(r.p.of[n], err)
	return came
}
