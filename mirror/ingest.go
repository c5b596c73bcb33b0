package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// The gate. Every artifact that this node serves came in through ingest, in this order; whatever hands the bytes over
// is only a source in front of it. If the process dies
//
//  1. record    after asking the checksum database: nothing is stored here
//  2. download  while or after bytes stream to a draft: a leftover in tmp/, which is swept at the next start
//  3. check     after the bytes proved to be those of the record, and of a module: the same
//  4. store     after they were fsynced (which begins with the check), renamed, and the directory fsynced: a blob that no manifest names, so nobody
//     is served it; the next ingest of the version finds it and goes on
//  5. spread    while or after other nodes take copies, which begins after the download, beside steps 3 and 4: here a blob as
//     after 4; at the others nothing, or the same, because each has checked the bytes itself (see admit.go)
//  6. publish   after the catalog committed the manifest: all is done, the version is served after the restart
//
// then the artifact is complete or absent, and asking again repeats the steps that are missing. There is no repair code.
//
// The record comes first so that the hashes are known before a byte of a zip is fetched. An info or go.mod never pulls a zip,
// and is small: it is fetched into memory while the record is looked up (see early), and checked when both are there.
// If two nodes let different bytes in (an info with another time, a zip packed again with the same h1), the catalog
// keeps the first; what is served is always the catalog's. Without a quorum nothing is published: what passed the gate is
// kept, and may be passed through (see passthrough.go).

// intake is one artifact on its way through the gate.
type intake struct {
	m    *Mirror
	kind artifact.Kind
	man  artifact.Manifest // the record and its sums, no parts
	want artifact.Ref      // what is committed already, if only the bytes are missing here
	id   string            // of the request that asked first
	pace pacer             // holds the download back; nil: nothing does
	mute bool              // a refusal is not the last word: raise no alarm

	ref    artifact.Ref // set once accept has said yes
	source string       // who sent it, likewise
	small  []byte       // of an info or go.mod
	copies *copies      // of a blob, to other nodes; nil: none

	release func() // of the blob, which is not collected before; nil: none
}

// ingest brings one artifact in, unless it has come in meanwhile, and returns the manifest that has it. The bytes are
// returned if they are small and at hand. Errors do not name the artifact; the caller does.
func (m *Mirror) ingest(ctx context.Context, mv module.Version, k artifact.Kind, id string, pace pacer) (artifact.Manifest, []byte, error) {
	have, err := m.manifest(ctx, mv)
	if err != nil {
		return have, nil, err
	}
	small, f, err := m.load(ctx, have, k)
	if err == nil {
		return have, small, closed(f)
	}
	if isForged(err) { // the right bytes have another digest
		return have, nil, err
	}
	if err := cmp.Or(m.config.Store.Err(), m.room(0)); err != nil {
		return have, nil, err // nobody is asked for what cannot be kept
	}
	start := time.Now()
	in := &intake{m: m, kind: k, want: have.Ref(k), id: id, pace: pace}
	defer in.endSpread()
	defer in.letGo()
	ahead := m.fetchEarly(ctx, mv, k, have)
	defer ahead.drop()
	if in.man, err = m.recorded(ctx, mv, have, ahead, id); err != nil {
		return have, nil, err
	}
	fault.Point(fault.RecordKnown)
	done, err := ahead.admit(ctx, in)
	if !done {
		err = m.config.Upstream.Fetch(ctx, mv, k, func(body io.Reader, size int64, source string) error {
			return in.accept(ctx, body, size, source)
		})
	}
	if err != nil {
		return have, nil, m.flights.inTime(ctx, "the upstream", err)
	}
	if in.ref.IsZero() {
		return have, nil, fmt.Errorf("no upstream had anything to accept: %w", artifact.ErrUnavailable)
	}
	if in.want == in.ref { // only the bytes were missing
		in.mend(ctx)
		in.stored(start)
		return have, in.small, nil
	}
	won, err := in.publish(ctx)
	if err != nil {
		return have, nil, in.passThrough(err)
	}
	m.published(ctx, mv)
	if won.Ref(k) != in.ref {
		return won, nil, nil
	}
	in.stored(start)
	return won, in.small, nil
}

// accept is steps 2 to 4, for the body that one source sends. It says no with ErrRefused or ErrMalformed if that is the
// source's fault.
func (in *intake) accept(ctx context.Context, body io.Reader, size int64, source string) (err error) {
	if err := in.m.room(max(size, 0)); size <= in.kind.Limit() && err != nil {
		return err
	}
	create := in.m.config.Store.Hold // an info or go.mod is published with its bytes, but for a very large one
	if in.kind == artifact.Zip {
		create = in.m.config.Store.Create
	}
	d, err := create(in.kind.Limit())
	if err != nil {
		return err
	}
	defer d.Discard()
	start := time.Now()
	if in.pace != nil {
		body = &paced{ctx, body, in.pace}
	}
	if err := in.download(d, body, size); err != nil {
		if isRefusal(err) {
			in.reject(d, failContent, err, source)
		}
		return err
	}
	if in.kind == artifact.Zip {
		d.Flush() // while it is checked
	}
	if err := in.spread(ctx, d); err != nil {
		return err
	}
	in.m.reached("download")
	start = in.m.metrics.stageDone(stageDownload, start)
	keep := d // what becomes a blob; an info is rewritten and travels inline
	switch in.kind {
	case artifact.Zip:
		err = in.checkZip(ctx, d)
	case artifact.Mod:
		err = in.checkMod(d)
	case artifact.Info:
		err, keep = in.checkInfo(d), nil
	}
	if err == nil && !in.want.IsZero() && in.want != in.refOf(d) {
		err = fmt.Errorf("the upstream now has other bytes than those that were published, %v, not %v; what was published once does not change: %w", in.refOf(d), in.want, artifact.ErrRefused)
	}
	if err != nil {
		if isRefusal(err) {
			in.reject(d, reasonOf(err), err, source)
		}
		return err
	}
	in.m.reached("check")
	start = in.m.metrics.stageDone(stageCheck, start)
	ref := in.refOf(d)
	if keep != nil && (in.kind == artifact.Zip || ref.Size > artifact.MaxInline) {
		if err := in.hold(ref.Digest); err != nil {
			return err
		}
		if _, err := keep.Commit(); err != nil { // it replaces damaged bytes, and only those
			return err
		}
		in.m.returned(ref.Digest, fromUpstream)
	}
	in.ref, in.source = ref, source
	in.m.reached("store")
	in.m.metrics.stageDone(stageStore, start)
	return nil
}

// hold keeps the blob from being collected until letGo.
func (in *intake) hold(d artifact.Digest) (err error) {
	in.letGo() // of what an earlier source sent
	in.release, err = in.m.hold(d)
	return err
}

func (in *intake) letGo() {
	if in.release != nil {
		in.release()
		in.release = nil
	}
}

// refOf returns the name of what is to be published: of the small bytes, or of the draft's.
func (in *intake) refOf(d *artifact.Draft) artifact.Ref {
	if in.small != nil {
		return artifact.RefOf(in.small)
	}
	return d.Ref()
}

// download streams body into d, which hashes it, and says whether all of it came. What a connection cut short is nobody's
// lie: only a body that came to its end, or passed its limit, can be refused.
func (in *intake) download(d *artifact.Draft, body io.Reader, size int64) error {
	if size > in.kind.Limit() {
		return fmt.Errorf("%d bytes, more than the limit of %d: %w", size, in.kind.Limit(), artifact.ErrRefused)
	}
	n, err := io.Copy(d, body)
	switch {
	case err == nil && size >= 0 && n != size:
		return fmt.Errorf("cut short after %d of %d bytes: %w", n, size, artifact.ErrUnavailable)
	case err != nil && statusOf(err) == statusOf(errUnknown):
		return fmt.Errorf("broken off after %d bytes: %w: %w", n, err, artifact.ErrUnavailable)
	case err != nil:
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	fault.Point(fault.DraftWritten)
	return nil
}

var errUnknown = errors.New("not classified")

// checkZip is step 3 for a zip.
func (in *intake) checkZip(ctx context.Context, d *artifact.Draft) error {
	select {
	case in.m.checks <- struct{}{}:
		defer func() { <-in.m.checks }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	sums, err := artifact.CheckZip(ctx, d, d.Size(), in.man.Module)
	if isRefusal(err) { // there is no h1 to compare; the hashes come first, so that no long reason pushes them out
		return fmt.Errorf("not a module zip: upstream sha256:%v (%d bytes), sumdb %s (zip): %w", d.Ref().Digest, d.Size(), in.man.ZipSum, err)
	}
	if err != nil {
		return err
	}
	return compareSums(sums, in.man)
}

// compareSums compares what a zip was found to have with what man, whose record is proven, says that it must.
func compareSums(sums artifact.ZipSums, man artifact.Manifest) error {
	if sums.H1 != man.ZipSum {
		return &mismatch{got: sums.H1, want: man.ZipSum, line: "zip"}
	}
	if sums.GoMod != nil {
		if sum := artifact.ModSum(sums.GoMod); sum != man.ModSum {
			return &mismatch{got: sum, want: man.ModSum, line: "go.mod in the zip"}
		}
	}
	return nil
}

// checkMod is step 3 for a go.mod.
func (in *intake) checkMod(d *artifact.Draft) (err error) {
	if in.small, err = readDraft(d); err != nil {
		return err
	}
	if sum := artifact.ModSum(in.small); sum != in.man.ModSum {
		return &mismatch{got: sum, want: in.man.ModSum, line: "go.mod"}
	}
	return nil
}

// checkInfo is step 3 for an info, of which only the version can be checked.
func (in *intake) checkInfo(d *artifact.Draft) error {
	b, err := readDraft(d)
	if err == nil {
		in.small, err = artifact.CanonicalInfo(b, in.man.Module)
	}
	return err
}

func readDraft(d *artifact.Draft) ([]byte, error) {
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read a draft back: %v: %w", err, artifact.ErrUnavailable)
	}
	return b, nil
}

// publish is what is left of step 5, and step 6.
func (in *intake) publish(ctx context.Context) (artifact.Manifest, error) {
	start := time.Now()
	p := artifact.Publication{Manifest: in.man}
	switch in.kind {
	case artifact.Info:
		p.Manifest.Info, p.Info = in.ref, in.small
	case artifact.Mod:
		p.Manifest.Mod = in.ref
		if in.ref.Size <= artifact.MaxInline {
			p.Mod = in.small
		}
	case artifact.Zip:
		p.Manifest.Zip = in.ref
	}
	acks, err := in.copied(ctx)
	if err != nil {
		if won, ok := in.outrun(ctx); ok {
			return won, nil
		}
		return artifact.Manifest{}, err
	}
	fault.Point(fault.AcksCounted)
	p.Acks = acks
	won, err := in.m.config.Index.Publish(ctx, p)
	if err != nil {
		err = fmt.Errorf("publish: %w", err)
		if isRefusal(err) {
			in.m.alarm(in.id, failConflict, err, Event{Module: in.man.Module, Kind: in.kind, Source: in.source})
		}
		return artifact.Manifest{}, notAbsent(err)
	}
	fault.Point(fault.PublishDone)
	in.m.metrics.stageDone(stagePublish, start)
	in.m.reached("publish")
	return won, nil
}

// mend gives bytes that the catalog has lost back to it. Those in hand are right, whether it takes them or not.
func (in *intake) mend(ctx context.Context) {
	if in.kind == artifact.Zip || in.ref.Size > artifact.MaxInline {
		return // the store has them
	}
	if _, err := in.publish(ctx); err != nil {
		in.m.log.Warn("bytes that the catalog lost are not stored again", "module", in.man.Module.Path, "version", in.man.Module.Version, "kind", in.kind, "err", err)
	}
}

// mismatch is bytes that are not those of the record: the evidence of a wrong upstream, or of worse.
type mismatch struct {
	got, want string // go.sum hashes
	line      string // which of the two lines of the record
}

func (e *mismatch) Error() string {
	return fmt.Sprintf("checksum mismatch: upstream %s, sumdb %s (%s): %v", e.got, e.want, e.line, artifact.ErrRefused)
}
func (e *mismatch) Unwrap() error { return artifact.ErrRefused }

func reasonOf(err error) string {
	var sum *mismatch
	if errors.As(err, &sum) {
		return failSum
	}
	return failContent
}

// isRefusal reports whether err is somebody's fault that must be seen by whoever runs the mirror.
func isRefusal(err error) bool {
	return errors.Is(err, artifact.ErrRefused) || errors.Is(err, artifact.ErrConflict) || errors.Is(err, artifact.ErrMalformed)
}

// notAbsent keeps an error of the catalog or the disk from looking like "no such version".
func notAbsent(err error) error {
	if isAbsent(err) {
		return fmt.Errorf("%v: %w", err, artifact.ErrUnavailable)
	}
	return err
}

// reject keeps what a source sent, and raises the alarm.
func (in *intake) reject(d *artifact.Draft, reason string, err error, source string) {
	if in.mute {
		return
	}
	mv := in.man.Module
	in.m.alarm(in.id, reason, err, Event{Module: mv, Kind: in.kind, Source: source, Bytes: d.Size()}, "digest", d.Ref().Digest)
	if d.Size() == 0 {
		return
	}
	if qerr := d.Quarantine(fmt.Sprintf("%s %s from %s: %v", mv, in.kind, source, err)); qerr != nil {
		in.m.log.Warn("cannot quarantine what an upstream sent", "module", mv.Path, "version", mv.Version, "kind", in.kind, "err", qerr)
	}
}

// stored tells that an artifact has come in, whose ingest began at start.
func (in *intake) stored(start time.Time) {
	in.m.happened(Event{What: Stored, Module: in.man.Module, Kind: in.kind, Bytes: in.ref.Size, Took: time.Since(start), Source: in.source}, nil)
}

// alarm counts, logs and tells a failed check of what e is about, with all its evidence.
func (m *Mirror) alarm(id string, reason string, err error, e Event, attrs ...any) {
	m.metrics.failures.WithLabelValues(reason).Inc()
	m.log.Error("verification failed", slices.Concat(e.attrs(), attrs, []any{"reason", reason, "err", err, "id", id})...)
	e.What = Refused
	m.happened(e, err)
}

// reached lets a test stop the process, as it were, after a step.
func (m *Mirror) reached(step string) {
	if m.step != nil {
		m.step(step)
	}
}
