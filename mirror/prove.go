package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What was pulled in bulk is durable here and has the digest that the cluster committed. Its go.sum hash is compared later, by this
// node itself: at the latest when a client or another node asks for it for the first time, before they get a byte, and otherwise
// in the background, while nothing else is to be done. Until then it stands apart from what can be served (artifact.Store.Keep), so
// that no path to a client can pass by here. Why not at once: to inflate and hash the files of zips takes a processor twenty times
// as long as their digest, and a new node counts for the safety of what is committed as soon as it has the bytes.
//
// A zip whose digest is committed and whose go.sum hash is another is a lie of whoever published it, and of all who gave acks for
// it: it is told as a failed verification, goes into quarantine and counts as lost, so that this node's watermark falls behind
// it. Bytes that have rotted since count as lost, too. What is true if the process dies: see artifact/unproven.go; the next
// one finds in the catalog what they are of.

const (
	proveYield    = 250 * time.Millisecond // for which the background waits at most before each zip while others are busy
	proveLook     = proveYield / 25
	proveRetry    = 10 * time.Second // after a catalog or a disk that did not answer
	proveTogether = 64               // whose new names are made durable at once
)

// prover is what is to be proven.
type prover struct {
	wake chan struct{} // has room for one

	mu    sync.Mutex
	of    map[artifact.Digest]namer // guarded by mu
	queue []artifact.Digest         // guarded by mu; in the order in which they came, and some that are proven by now
}

// namer says what names a blob: the manifest of a module version, in a change at place seq or a later one.
type namer struct {
	seq    int64
	module module.Version
	kind   artifact.Kind
}

func newProver() *prover {
	return &prover{wake: make(chan struct{}, 1), of: map[artifact.Digest]namer{}}
}

// add has a blob proven.
func (p *prover) add(d artifact.Digest, by namer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.of[d]; !ok {
		p.queue = append(p.queue, d)
	}
	p.of[d] = by
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// forget is called when a blob is proven, or is not here any more.
func (p *prover) forget(d artifact.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.of, d)
}

// again has d, if it is still to be proven, proven after the others.
func (p *prover) again(d artifact.Digest) {
	if by, ok := p.namerOf(d); ok {
		p.forget(d)
		p.add(d, by)
	}
}

// namerOf returns what names d; ok is false if d is not to be proven.
func (p *prover) namerOf(d artifact.Digest) (by namer, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	by, ok = p.of[d]
	return by, ok
}

// first returns the first place of a change that names one of them; ok is false if there are none. It looks at all: it is asked for
// now and then.
func (p *prover) first() (seq int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, by := range p.of {
		if !ok || by.seq < seq {
			seq, ok = by.seq, true
		}
	}
	return seq, ok
}

// next returns a blob that is to be proven.
func (p *prover) next() (d artifact.Digest, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		d, p.queue = p.queue[0], p.queue[1:]
		if _, ok := p.of[d]; ok {
			return d, true
		}
	}
	p.queue = nil // and what stood before it
	return d, false
}

// proveAll proves what is unproven, in the background, until ctx ends.
func (m *Mirror) proveAll(ctx context.Context) {
	var proven []artifact.Ref // to be made durable together
	settle := func() {
		if err := m.settleProven(proven); err != nil {
			m.log.Warn("blobs that are proven cannot get their place; they are served from where they are", "blobs", len(proven), "err", err)
			m.proveLater(ctx, proven)
		}
		proven = proven[:0]
	}
	defer settle()
	for ctx.Err() == nil {
		d, ok := m.prover.next()
		if !ok || len(proven) >= proveTogether {
			settle()
		}
		if !ok {
			select {
			case <-m.prover.wake:
			case <-ctx.Done():
			}
			continue
		}
		m.whileOthersWork(ctx)
		ref, err := m.proveNext(ctx, d)
		switch {
		case err == nil && !ref.IsZero():
			proven = append(proven, ref)
		case err != nil && !errors.Is(err, artifact.ErrDamaged) && ctx.Err() == nil && m.config.Store.Err() == nil:
			m.log.Warn("a blob cannot be proven for now", "digest", d, "err", err)
			m.prover.again(d)
			pause(ctx, proveRetry)
		}
	}
}

// proveLater has blobs proven once more, after a while, if the disk may take them then.
func (m *Mirror) proveLater(ctx context.Context, refs []artifact.Ref) {
	if m.config.Store.Err() != nil {
		return
	}
	for _, r := range refs {
		m.prover.again(r.Digest)
	}
	pause(ctx, proveRetry)
}

// pause waits, and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// whileOthersWork lets clients, and pulls in bulk, have the processors, but not for ever.
func (m *Mirror) whileOthersWork(ctx context.Context) {
	for waited := time.Duration(0); m.serving.Load()+m.bulks.Load() > 0 && waited < proveYield; waited += proveLook {
		if !pause(ctx, proveLook) {
			return
		}
	}
}

// findUnproven finds out, until ctx ends, what those blobs are of that an earlier process left unproven, and removes what the catalog
// does not name. It looks at once, but removes nothing before the catalog has all that is committed anywhere: the one of a new node
// that was given the directory of an old one knows nothing at first.
func (m *Mirror) findUnproven(ctx context.Context) {
	for looked := false; ; {
		whole := m.catalogSettled(ctx) // asked before the catalog is read
		if whole || !looked {
			left, err := m.lookUnproven(ctx)
			if err == nil && whole {
				m.dropUnproven(left)
			}
			if err == nil && (whole || len(left) == 0) {
				return
			}
			looked = err == nil
		}
		m.reached("unproven")
		if !pause(ctx, proveRetry) {
			return
		}
	}
}

// catalogSettled reports whether this node's catalog has all that is committed anywhere.
func (m *Mirror) catalogSettled(ctx context.Context) bool {
	if m.config.Names == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return m.config.Names.Settle(ctx) == nil
}

// lookUnproven has those blobs proven that are unproven and that the catalog names, and returns the others.
func (m *Mirror) lookUnproven(ctx context.Context) (left map[artifact.Digest]bool, err error) {
	left = map[artifact.Digest]bool{}
	for _, d := range m.config.Store.UnprovenDigests() {
		if _, known := m.prover.namerOf(d); !known {
			left[d] = true
		}
	}
	if len(left) == 0 {
		return left, nil
	}
	for c, err := range m.config.Changes.Changes(ctx, 0) {
		if err != nil {
			m.log.Warn("the catalog cannot say what unproven blobs are of", "blobs", len(left), "err", err)
			return left, err
		}
		for k, ref := range blobsOf(c.Manifest) {
			if left[ref.Digest] {
				delete(left, ref.Digest)
				m.prover.add(ref.Digest, namer{c.Seq, c.Manifest.Module, k})
			}
		}
		if len(left) == 0 {
			break
		}
	}
	return left, context.Cause(ctx)
}

// dropUnproven removes blobs that nothing names.
func (m *Mirror) dropUnproven(unnamed map[artifact.Digest]bool) {
	for d := range unnamed {
		if _, known := m.prover.namerOf(d); known { // the follower has just brought it
			continue
		}
		if err := m.config.Store.DropUnproven(d); err != nil {
			m.log.Warn("an unproven blob that nothing names cannot be removed", "digest", d, "err", err)
		}
	}
}

// manifestOf returns the manifest that names d, which is that of by. Its newest change may be a later one than by knows of.
func (m *Mirror) manifestOf(ctx context.Context, d artifact.Digest, by namer) (artifact.Manifest, error) {
	man, err := m.config.Index.Manifest(ctx, by.module)
	if err != nil {
		return artifact.Manifest{}, notAbsent(err)
	}
	if man.Ref(by.kind).Digest != d {
		return artifact.Manifest{}, fmt.Errorf("the %s of %s is %v here, not sha256:%v: %w", by.kind, by.module, man.Ref(by.kind), d, artifact.ErrUnavailable)
	}
	return man, nil
}

// proveNext proves a blob in the background. It returns its ref if its place among the blobs is yet to be given.
func (m *Mirror) proveNext(ctx context.Context, d artifact.Digest) (artifact.Ref, error) {
	by, ok := m.prover.namerOf(d)
	if !ok {
		return artifact.Ref{}, nil
	}
	man, err := m.manifestOf(ctx, d, by)
	if err != nil {
		return artifact.Ref{}, err
	}
	select {
	case m.checks <- struct{}{}:
		defer func() { <-m.checks }()
	case <-ctx.Done():
		return artifact.Ref{}, context.Cause(ctx)
	}
	err = m.compare(ctx, man, by.kind)
	if errors.Is(err, fs.ErrNotExist) { // somebody who waited for it was faster
		m.prover.forget(d)
		return artifact.Ref{}, nil
	}
	if err != nil {
		return artifact.Ref{}, m.disprove(man, by.kind, err)
	}
	return man.Ref(by.kind), nil
}

// settleProven gives blobs whose go.sum hash is right their place among those that are served.
func (m *Mirror) settleProven(refs []artifact.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	if err := m.config.Store.Prove(refs); err != nil {
		return err
	}
	for _, r := range refs {
		m.prover.forget(r.Digest)
	}
	m.reached("proven")
	return nil
}

// prove compares the go.sum hash of a blob that somebody waits for, or joins who does. Bytes that do not pass are gone when it
// returns, and the error matches artifact.ErrDamaged.
func (m *Mirror) prove(ctx context.Context, man artifact.Manifest, k artifact.Kind) error {
	ref := man.Ref(k)
	_, err := fly(ctx, m.flights, "prove "+ref.Digest.String(), m.config.ClientWait, m.config.ZipBudget, m.checks, func(ctx context.Context) (struct{}, error) {
		err := m.compare(ctx, man, k)
		if errors.Is(err, fs.ErrNotExist) { // it is proven
			return struct{}{}, nil
		}
		if err != nil {
			return struct{}{}, m.disprove(man, k, err)
		}
		if err := m.settleProven([]artifact.Ref{ref}); err != nil { // it is right all the same
			m.log.Warn("a blob that is proven cannot get its place; it is served from where it is", "digest", ref.Digest, "err", err)
		}
		return struct{}{}, nil
	})
	return err
}

// open opens a blob that is here, after prove has compared it if it is unproven. The error matches fs.ErrNotExist if it is not here.
func (m *Mirror) open(ctx context.Context, ref artifact.Ref, prove func() error) (*os.File, error) {
	f, err := m.config.Store.OpenContext(ctx, ref)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	m.reached("absent")
	if m.config.Store.HasUnproven(ref) {
		if err := prove(); err != nil {
			return nil, notAbsent(err)
		}
	}
	return m.config.Store.OpenContext(ctx, ref) // also if it has got its place since the first look
}

// intact is DurableIntact of the store for a published blob, which is proven if that was not done yet.
func (m *Mirror) intact(ctx context.Context, man artifact.Manifest, k artifact.Kind) error {
	ref := man.Ref(k)
	err := m.config.Store.DurableIntact(ctx, ref)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.reached("absent")
	if m.config.Store.HasUnproven(ref) {
		if err := m.prove(ctx, man, k); err != nil {
			return err
		}
	}
	return m.config.Store.DurableIntact(ctx, ref) // also if it has got its place since the first look
}

// proveUnnamed is prove for who knows only the bytes' name.
func (m *Mirror) proveUnnamed(ctx context.Context, ref artifact.Ref) error {
	by, ok := m.prover.namerOf(ref.Digest)
	if !ok {
		return fmt.Errorf("this node does not know yet what %v is of: %w", ref, artifact.ErrUnavailable)
	}
	man, err := m.manifestOf(ctx, ref.Digest, by)
	if err != nil {
		return err
	}
	return m.prove(ctx, man, by.kind)
}

// compare reads an unproven blob and compares its digest and its go.sum hash with what is committed. The caller has a slot of
// checks. The error matches fs.ErrNotExist if it is not here unproven.
func (m *Mirror) compare(ctx context.Context, man artifact.Manifest, k artifact.Kind) error {
	f, err := m.config.Store.OpenUnproven(ctx, man.Ref(k))
	if err != nil {
		return err
	}
	defer f.Close()
	return m.compareFile(ctx, man, k, f)
}

func (m *Mirror) compareFile(ctx context.Context, man artifact.Manifest, k artifact.Kind, f *os.File) error {
	if k != artifact.Zip {
		b := make([]byte, man.Ref(k).Size)
		if n, err := f.ReadAt(b, 0); n < len(b) {
			return fmt.Errorf("read: %v: %w", err, artifact.ErrDamaged)
		}
		if sum := artifact.ModSum(b); sum != man.ModSum {
			return &mismatch{got: sum, want: man.ModSum, line: "go.mod"}
		}
		return nil
	}
	sums, err := artifact.CheckZip(ctx, f, man.Ref(k).Size, man.Module)
	if err != nil {
		return err
	}
	return compareSums(sums, man)
}

// disprove is called for a blob that did not pass, because of why: it is moved out of the way, and counts as lost. It returns why, or
// an error that matches artifact.ErrDamaged.
func (m *Mirror) disprove(man artifact.Manifest, k artifact.Kind, why error) error {
	ref, l := man.Ref(k), &loss{damage: artifact.WrongBytes, by: byRead, reason: artifact.Truncate(why.Error(), maxWhy), module: man.Module, kind: k}
	var err error
	switch {
	case isRefusal(why):
		m.alarm("prove", reasonOf(why), fmt.Errorf("the cluster has committed bytes that are not those of the record: %w", why), Event{Module: man.Module, Kind: k, Bytes: ref.Size}, "digest", ref.Digest)
		if err = m.config.Store.Disprove(ref, fmt.Sprintf("%s %s, pulled in bulk: %v", man.Module, k, why)); errors.Is(err, artifact.ErrNoSpace) {
			err = errors.Join(err, m.config.Store.DropUnproven(ref.Digest)) // rather none than these
		}
	case errors.Is(why, artifact.ErrDamaged):
		err = m.config.Store.DropUnproven(ref.Digest)
	default:
		return why // it cannot be told
	}
	m.prover.forget(ref.Digest)
	if err != nil {
		m.log.Error("a blob that did not pass cannot be moved out of the way; it is not served, and does not count as here", "digest", ref.Digest, "err", err)
	}
	m.lost(ref.Digest, l)
	return fmt.Errorf("%v: %w", why, artifact.ErrDamaged)
}
