package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"modmirror/mirror/artifact"
)

// Without a quorum nothing can be committed. With Config.OnQuorumLoss "passthrough" a client gets what it asks for all the same:
// the bytes have passed the gate. But nobody may rely on them being the same tomorrow, here or at another node: another one may
// commit other bytes of the same sum first. So they have no ETag and no ranges, no cache may keep them, and
//
//	Modmirror-Committed: false
//
// says so. They are kept, and committed when that is possible again (see pending.go).

// passThrough is the value of Config.OnQuorumLoss.
const passThrough = "passthrough"

var notCommitted = []string{"false"}

// uncommitted is the error of an ingest that went well up to its last step. To whoever does not look for it, it is the error
// of that step.
type uncommitted struct {
	intent *intent
	err    error
}

func (e *uncommitted) Error() string { return e.err.Error() }
func (e *uncommitted) Unwrap() error { return e.err }

// passThrough keeps what could not be published if that is only for want of a quorum.
func (in *intake) passThrough(err error) error {
	if in.m.config.OnQuorumLoss != passThrough || !errors.Is(err, artifact.ErrNoQuorum) {
		return err
	}
	it := &intent{Kind: in.kind, Manifest: in.man, Ref: in.ref, Small: in.small}
	if in.ref.Size > artifact.MaxInline || in.kind == artifact.Zip {
		it.Small = nil // the store has it
	}
	in.m.pending.add(it)
	return &uncommitted{it, err}
}

// passedThrough returns what is in err for a client, if there is anything.
func (m *Mirror) passedThrough(err error) (found, error) {
	var u *uncommitted
	if errors.As(err, &u) {
		return m.uncommitted(u.intent)
	}
	return found{}, err
}

// uncommitted returns the bytes that it stands for.
func (m *Mirror) uncommitted(it *intent) (found, error) {
	out := found{ref: it.Ref, small: it.Small, outcome: outcomeFetched, pending: true}
	if it.Small != nil {
		return out, nil
	}
	var err error
	if out.file, err = m.config.Store.Open(it.Ref); err != nil {
		if isAbsent(err) || errors.Is(err, artifact.ErrDamaged) {
			m.pending.drop(it) // it is brought in again
		}
		return found{}, notAbsent(fmt.Errorf("%s %s: %w", it.Manifest.Module, it.Kind, err))
	}
	return out, nil
}

// sendUncommitted answers with all of the bytes, once.
func (m *Mirror) sendUncommitted(w *response, r *http.Request, k artifact.Kind, got found) error {
	body := io.Reader(bytes.NewReader(got.small))
	if got.file != nil {
		defer got.file.Close()
		body = got.file
	}
	h := w.Header()
	h["Content-Type"] = typeOf(k)
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	h["Modmirror-Committed"] = notCommitted
	h["Content-Length"] = []string{strconv.FormatInt(got.ref.Size, 10)}
	sendWithin(w, sendTime(got.ref.Size))
	m.metrics.passed.Inc()
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(w, body) // the client sees by the length if it is cut short
	}
	return nil
}

// typeOf returns the Content-Type of an artifact.
func typeOf(k artifact.Kind) []string {
	switch k {
	case artifact.Info:
		return typeJSON
	case artifact.Zip:
		return typeZip
	}
	return typeText
}
