package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// early is an info or go.mod that is fetched while its record is looked up: a client waits for the slower of the two, not for
// both. It is bytes in memory until it has passed the gate like anything else. A nil early is none.
type early struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when all below is final
	body   []byte
	source string
	err    error
}

// errNotEarly is for a body that has to be fetched the usual way: it is too large for memory, or was cut short.
var errNotEarly = errors.New("not to be taken from memory")

// fetchEarly begins to fetch what is likely to be wanted soon. The caller must drop it.
func (m *Mirror) fetchEarly(ctx context.Context, mv module.Version, k artifact.Kind, have artifact.Manifest) *early {
	if k == artifact.Zip || !have.Record.IsZero() {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	e := &early{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		defer func() {
			if p := recover(); p != nil { // the usual way meets it again, if it is more than chance
				e.err = errNotEarly
			}
		}()
		e.err = m.config.Upstream.Fetch(ctx, mv, k, e.read)
	}()
	return e
}

// read keeps a body that is small and complete.
func (e *early) read(body io.Reader, size int64, source string) error {
	if size > artifact.MaxInline {
		return errNotEarly
	}
	b, err := io.ReadAll(io.LimitReader(body, artifact.MaxInline+1))
	if err != nil || len(b) > artifact.MaxInline || size >= 0 && int64(len(b)) != size {
		return fmt.Errorf("%w: %d bytes of %d, %v", errNotEarly, len(b), size, err)
	}
	e.body, e.source = b, source
	return nil
}

// admit waits for the body and lets it through the gate. It is not done if the usual way has to be gone: also after a refusal,
// for which the usual way asks the next source, and raises the alarm.
func (e *early) admit(ctx context.Context, in *intake) (done bool, err error) {
	if e == nil {
		return false, nil
	}
	<-e.done // soon after the end of ctx
	if errors.Is(e.err, errNotEarly) {
		return false, nil
	}
	if e.err != nil {
		return true, e.err
	}
	in.mute = true
	err = in.accept(ctx, bytes.NewReader(e.body), int64(len(e.body)), e.source)
	in.mute = false
	return !isRefusal(err), err
}

// absent waits for the body and reports whether there is none: the upstream does not know the version.
func (e *early) absent() bool {
	if e == nil {
		return false
	}
	<-e.done
	return isAbsent(e.err)
}

// drop ends the fetch, if it is still under way, and waits for that.
func (e *early) drop() {
	if e != nil {
		e.cancel()
		<-e.done
	}
}
