package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"modmirror/mirror/artifact"
)

// held returns the published bytes of kind k like load, and pulls a blob from another node if it is missing here, or damaged,
// after it was moved out of the way. Who waits for that has the whole of it, verified. An error is that of load, or that of a
// client's patience.
func (m *Mirror) held(ctx context.Context, man artifact.Manifest, k artifact.Kind) ([]byte, *os.File, error) {
	small, f, err := m.load(ctx, man, k)
	ref := man.Ref(k)
	blob := k == artifact.Zip || ref.Size > artifact.MaxInline
	if err == nil || !blob || !errors.Is(err, artifact.ErrDamaged) {
		return small, f, err
	}
	m.damaged(ctx, man, k, err)
	if small, f, err := m.load(ctx, man, k); err == nil { // it was a fluke, or somebody was faster
		return small, f, nil
	}
	if m.config.Peers == nil {
		return nil, nil, err
	}
	passing, perr := m.pull(ctx, man, k)
	if passing != nil {
		return passing, nil, nil
	}
	if isForged(perr) {
		return nil, nil, fmt.Errorf("%s %s: %w", man.Module, k, perr)
	}
	if perr != nil {
		if late := (*waitError)(nil); errors.As(perr, &late) || ctx.Err() != nil {
			return nil, nil, fmt.Errorf("%s %s: %w", man.Module, k, perr)
		}
		m.log.Info("no other node has the bytes that are missing here", "module", man.Module.Path, "version", man.Module.Version, "kind", k, "digest", ref.Digest, "err", perr)
		return nil, nil, fmt.Errorf("%w; other nodes: %v", err, perr)
	}
	return m.load(ctx, man, k)
}

// pull brings a published blob here for a client, or joins whoever does. If there is no room to keep it, it returns its bytes.
func (m *Mirror) pull(ctx context.Context, man artifact.Manifest, k artifact.Kind) ([]byte, error) {
	if err := m.config.Store.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := m.whileWriting(ctx)
	defer cancel()
	ref := man.Ref(k)
	key := "pull " + ref.Digest.String()
	l, err := fly(ctx, m.flights, key, m.config.ClientWait, m.config.ZipBudget, m.pulls, func(ctx context.Context) ([]byte, error) {
		if _, f, err := m.load(ctx, man, k); err == nil { // somebody was done just before
			return nil, closed(f)
		}
		m.clients.Add(1)
		defer m.clients.Add(-1)
		err := m.fetchBlob(ctx, man, k, nil)
		if errors.Is(err, artifact.ErrNoSpace) && ref.Size <= maxPassing {
			return m.fetchPassing(ctx, man, k)
		}
		return nil, err
	})
	return l.value, err
}

// closed closes f, which was only read, if there is one.
func closed(f *os.File) error {
	if f != nil {
		_ = f.Close()
	}
	return nil
}

// fetchBlob takes a published blob from the nearest peer that has the right bytes, through the gate. With a pace it is one that
// nobody waits for.
func (m *Mirror) fetchBlob(ctx context.Context, man artifact.Manifest, k artifact.Kind, pace pacer) error {
	w := Want{Module: man.Module, Kind: k, Ref: man.Ref(k)}
	if pace != nil {
		w.Background = NewBackground()
	}
	return m.fetchWanted(ctx, man, w, pace)
}

// fetchWanted is fetchBlob for a blob that is wanted as w says.
func (m *Mirror) fetchWanted(ctx context.Context, man artifact.Manifest, w Want, pace pacer) error {
	if err := m.room(w.Ref.Size); err != nil {
		return err
	}
	if pace != nil {
		pace = w.Background.unhurried(pace)
	}
	admitted := false
	err := m.config.Peers.Fetch(ctx, w, func(body io.Reader, size int64, source string) error {
		if size >= 0 && size != w.Ref.Size {
			return fromPeer(source, fmt.Errorf("it has %d of %d bytes: %w", size, w.Ref.Size, artifact.ErrUnavailable))
		}
		err := m.admit(ctx, man, w.Kind, w.Ref, body, source, slowedBy(pace, body))
		admitted = err == nil
		return err
	})
	if err == nil && !admitted && m.intact(ctx, man, w.Kind) != nil { // else another pull was joined
		err = fmt.Errorf("no peer had anything to accept: %w", artifact.ErrUnavailable)
	}
	m.metrics.pulled(err)
	return err
}

// pacer slows the reading of a body down: it returns when n more bytes may be read.
type pacer func(ctx context.Context, n int) error

// paced is a body that is read no faster than its pacer lets it.
type paced struct {
	ctx  context.Context
	r    io.Reader
	pace pacer
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), paceStep)])
	if n > 0 {
		if perr := p.pace(p.ctx, n); perr != nil {
			return n, perr
		}
	}
	return n, err
}

const paceStep = 32 << 10 // bytes that are read at a time by who is paced
