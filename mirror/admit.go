package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Admit is the gate for bytes that come from a peer: copies that another node spreads before it publishes, and what this node
// pulls because the catalog has it. The bytes are ref, the blob of kind k of the module version of man. Neither man nor the
// body is believed:
//
//	record   man's sums are those of its record, and the record is in a tree head that the cluster committed; or else they
//	         are those that this node's own catalog has for the version
//	download size and SHA-256 are those of ref
//	check    the zip is one of the module and has the record's h1; the go.mod has the record's sum
//	store    fsynced, renamed, directory fsynced: when Admit returns nil, an ack may be given, which is a promise not to collect
//	         the blob for 24 hours (see collect.go)
//
// Nothing is published by it, and no client is served what no manifest of the catalog names. Bytes that are here already, and
// right, also for this version, are admitted without reading the body. What fails a check matches artifact.ErrRefused; it is logged with the name of
// the source, counted, and its bytes are quarantined. What was cut short, came too slowly, or cannot be judged here yet
// matches artifact.ErrUnavailable. An error that matches artifact.ErrStale means that other bytes are committed already.
func (m *Mirror) Admit(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.Reader, source string) error {
	return m.admit(ctx, man, k, ref, body, source, nil)
}

// admit is Admit, no faster than pace lets it, if there is one.
func (m *Mirror) admit(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.Reader, source string, pace pacer) error {
	if err := cmp.Or(m.config.Store.Err(), m.room(ref.Size)); err != nil { // at once: whoever sends it asks another node
		return err
	}
	waiting, cancel := m.whileWriting(ctx) // what has a slot may hang in the disk
	defer cancel()
	select {
	case m.admits <- struct{}{}:
		defer func() { <-m.admits }()
	case <-waiting.Done():
		return context.Cause(waiting)
	}
	a := &admission{m: m, mv: man.Module, kind: k, ref: ref, source: source, pace: pace}
	if err := a.prove(ctx, man); err != nil {
		return a.refuse(nil, err)
	}
	release, err := m.hold(ref.Digest)
	if err != nil {
		return err
	}
	defer release() // what was forgotten is no leftover for long enough
	switch err := m.config.Store.DurableIntact(ctx, ref); {
	case err == nil && a.known:
		return m.genuine(ctx, a.blob(), k)
	case err == nil:
		if err := a.compareHere(ctx); err != nil {
			return a.refuse(nil, err)
		}
		return nil
	case errors.Is(err, artifact.ErrDamaged):
		_, _ = m.condemn(ctx, ref.Digest, byPeer, err) // what cannot be moved is replaced where it is
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	start := time.Now()
	d, err := m.config.Store.Create(ref.Size + 1)
	if err != nil {
		return err
	}
	defer d.Discard()
	if err := a.take(ctx, d, body); err != nil {
		return a.refuse(d, err)
	}
	if _, err := d.Commit(); err != nil {
		return err
	}
	m.returned(ref.Digest, fromNode)
	m.metrics.peerBytes.Add(float64(ref.Size))
	m.happened(Event{What: Stored, Module: man.Module, Kind: k, Bytes: ref.Size, Took: time.Since(start), Source: source}, nil)
	return nil
}

// admission is a blob on its way through the gate for peers.
type admission struct {
	m      *Mirror
	mv     module.Version
	kind   artifact.Kind
	ref    artifact.Ref
	source string
	pace   pacer
	sums   artifact.Manifest // proven: the record and its sums, no parts
	known  bool              // the catalog names ref as this blob of this version
}

// blob is the manifest that has the blob, and nothing else.
func (a *admission) blob() artifact.Manifest {
	man := a.sums
	man.Info, man.Mod, man.Zip = artifact.Ref{}, artifact.Ref{}, artifact.Ref{}
	if a.kind == artifact.Zip {
		man.Zip = a.ref
	} else {
		man.Mod = a.ref
	}
	return man
}

// compareHere compares bytes that are here already, and not committed as what they are wanted for, with the sums that they must
// have: they may have come here as something else, as the zip of another module.
func (a *admission) compareHere(ctx context.Context) error {
	select {
	case a.m.checks <- struct{}{}:
		defer func() { <-a.m.checks }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f, err := a.m.config.Store.OpenContext(ctx, a.ref)
	if err != nil {
		return notAbsent(err)
	}
	defer f.Close()
	return a.m.compareFile(ctx, a.blob(), a.kind, f)
}

// prove decides whether the bytes may be wanted at all, and which sums they must have.
func (a *admission) prove(ctx context.Context, man artifact.Manifest) error {
	blob := a.kind == artifact.Zip || a.kind == artifact.Mod && a.ref.Size > artifact.MaxInline
	if !blob || a.ref.Size < 0 || a.ref.Size > a.kind.Limit() {
		return fmt.Errorf("a %s of %d bytes is no blob: %w", a.kind, a.ref.Size, artifact.ErrRefused)
	}
	if err := man.Validate(); err != nil {
		return fmt.Errorf("manifest: %w: %w", err, artifact.ErrRefused)
	}
	have, err := a.m.manifest(ctx, man.Module)
	if err != nil {
		return notAbsent(err)
	}
	a.sums = man
	if have.Record.IsZero() {
		return a.m.proven(ctx, man)
	}
	if have.ZipSum != man.ZipSum || have.ModSum != man.ModSum {
		return fmt.Errorf("manifest: committed zip %s and go.mod %s, not zip %s and go.mod %s: %w", have.ZipSum, have.ModSum, man.ZipSum, man.ModSum, artifact.ErrConflict)
	}
	if is := have.Ref(a.kind); !is.IsZero() && is != a.ref {
		return fmt.Errorf("%v is committed already, not %v: %w", is, a.ref, artifact.ErrStale)
	}
	a.known = !have.Ref(a.kind).IsZero()
	return nil
}

// proven checks the record of man against the heads that this node has.
func (m *Mirror) proven(ctx context.Context, man artifact.Manifest) error {
	if m.config.Proofs == nil {
		return fmt.Errorf("this node cannot check records: %w", artifact.ErrUnavailable)
	}
	if err := m.config.Proofs.Proven(ctx, man); err != nil {
		return fmt.Errorf("record: %w", notAbsent(err))
	}
	return nil
}

// take downloads and checks.
func (a *admission) take(ctx context.Context, d *artifact.Draft, body io.Reader) error {
	p := newTimedBody(ctx, body, a.ref.Size)
	defer p.close()
	from := io.Reader(p)
	if a.pace != nil {
		from = &paced{ctx, p, a.pace}
	}
	in := &intake{m: a.m, kind: a.kind, man: a.sums}
	if err := in.download(d, io.LimitReader(from, a.ref.Size+1), -1); err != nil { // one byte too many is enough of a proof
		return err
	}
	if d.Size() < a.ref.Size {
		return fmt.Errorf("cut short after %d of %d bytes: %w", d.Size(), a.ref.Size, artifact.ErrUnavailable)
	}
	if got := d.Ref(); got != a.ref {
		return fmt.Errorf("%v, not %v: %w", got, a.ref, artifact.ErrRefused)
	}
	err := a.check(ctx, in, d)
	if a.known && isRefusal(err) { // whoever sends it has what the cluster has committed
		err = &forged{a.ref, err}
		a.m.forgeries.add(a.blob(), a.kind, err)
	}
	return err
}

// check compares what was downloaded with the sums that it must have.
func (a *admission) check(ctx context.Context, in *intake, d *artifact.Draft) error {
	if a.kind == artifact.Zip {
		return in.checkZip(ctx, d)
	}
	return in.checkMod(d)
}

// refuse names the source in err and raises the alarm if it is the source's fault. d is what it sent, if it sent anything.
func (a *admission) refuse(d *artifact.Draft, err error) error {
	err = fmt.Errorf("%s %s: %w", a.mv, a.kind, fromPeer(a.source, err))
	if !isRefusal(err) {
		return err
	}
	e := Event{Module: a.mv, Kind: a.kind, Source: a.source, Bytes: a.ref.Size}
	a.m.alarm("peer", failPeer, err, e, "digest", a.ref.Digest)
	if d == nil || d.Size() == 0 {
		return err
	}
	if qerr := d.Quarantine(err.Error()); qerr != nil {
		a.m.log.Warn("cannot quarantine what a peer sent", append(e.attrs(), "digest", a.ref.Digest, "err", qerr)...)
	}
	return err
}
