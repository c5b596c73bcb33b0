package mirror

import (
	"context"
	"fmt"
	"io"

	"modmirror/mirror/artifact"
)

// A node without room on its disk takes part in nothing that would fill it further: it fetches nothing from the upstream, takes
// no copies for other nodes, and does not pull what they have committed. What little room is left is for the log and the catalog,
// so that it goes on to know what the cluster knows. What a client asks it for it has others bring in; bytes that it cannot keep
// are verified as always, sent, and forgotten.

// maxPassing bounds bytes that are sent and not kept: they stand in memory, after having been checked in a temporary file.
const maxPassing = 16 << 20

// room says why this node has no room for so many bytes more; nil: it has. The error matches artifact.ErrNoSpace.
func (m *Mirror) room(need int64) error {
	if m.config.Room == nil {
		return nil
	}
	return m.config.Room(need)
}

// starved says why nothing that others commit can arrive here now; nil: it can.
func (m *Mirror) starved() error {
	if m.config.Starved == nil {
		return nil
	}
	return m.config.Starved()
}

// fetchPassing has a published blob for which there is no room pass the gate, and returns its bytes. One at a time does.
func (m *Mirror) fetchPassing(ctx context.Context, man artifact.Manifest, k artifact.Kind) (b []byte, err error) {
	select {
	case m.passing <- struct{}{}:
		defer func() { <-m.passing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ref := man.Ref(k)
	err = m.config.Peers.Fetch(ctx, Want{Module: man.Module, Kind: k, Ref: ref}, func(body io.Reader, size int64, source string) (err error) {
		if size >= 0 && size != ref.Size {
			return fromPeer(source, fmt.Errorf("it has %d of %d bytes: %w", size, ref.Size, artifact.ErrUnavailable))
		}
		b, err = m.admitPassing(ctx, man, k, ref, body, source)
		return err
	})
	if err == nil && b == nil {
		err = fmt.Errorf("no peer had anything to accept: %w", artifact.ErrUnavailable)
	}
	m.metrics.pulled(err)
	return b, err
}

// admitPassing is admit for bytes that are not kept.
func (m *Mirror) admitPassing(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.Reader, source string) ([]byte, error) {
	a := &admission{m: m, mv: man.Module, kind: k, ref: ref, source: source}
	if err := a.prove(ctx, man); err != nil {
		return nil, a.refuse(nil, err)
	}
	d, err := m.config.Store.Create(ref.Size + 1)
	if err != nil {
		return nil, err
	}
	defer d.Discard()
	if err := a.take(ctx, d, body); err != nil {
		return nil, a.refuse(d, err)
	}
	return readDraft(d)
}

// whileWriting returns a context that ends also when nothing can be written any more: what is waited for will not come then.
func (m *Mirror) whileWriting(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.config.Store.Writing(), func() { cancel(m.config.Store.Err()) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}
