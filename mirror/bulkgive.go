package mirror

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"modmirror/mirror/artifact"
)

// What a node does for others that pull in bulk comes after what its own clients ask for.
const (
	bulkGives = 4 // answers under way at a time; who asks for more waits
	giveWait  = 5 * time.Second
	giveBuf   = 128 << 10             // bytes that are written at a time
	giveYield = 20 * time.Millisecond // for which each of them waits at most while clients are answered
)

// GiveBulk writes the answer to a request for refs, see [ParseBulk]. What it has not written when it returns an error cannot be made
// up for: the connection must be cut.
func (m *Mirror) GiveBulk(ctx context.Context, refs []artifact.Ref, w io.Writer) error {
	wait := time.NewTimer(giveWait)
	defer wait.Stop()
	select {
	case m.gives <- struct{}{}:
		defer func() { <-m.gives }()
	case <-wait.C:
		return fmt.Errorf("this node hands over blobs to %d others: %w", bulkGives, artifact.ErrUnavailable)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	out := bufio.NewWriterSize(&yielding{ctx, m, w}, giveBuf)
	for _, ref := range refs {
		if err := m.giveOne(ctx, ref, out); err != nil {
			return err
		}
	}
	return out.Flush()
}

func (m *Mirror) giveOne(ctx context.Context, ref artifact.Ref, out *bufio.Writer) error {
	f, err := m.Hand(ctx, ref)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		why := byte(bulkLater)
		if errors.Is(err, fs.ErrNotExist) {
			why = bulkAbsent
		}
		return out.WriteByte(why)
	}
	defer f.Close()
	if _, err := out.Write(appendPart(nil, ref)); err != nil {
		return err
	}
	if n, err := io.Copy(out, io.LimitReader(f, ref.Size)); err != nil || n < ref.Size {
		return fmt.Errorf("read %v: %d bytes: %w", ref, n, errors.Join(err, artifact.ErrUnavailable))
	}
	return nil
}

// Hand opens a blob that another node asks for. It is read and found right before the first byte is sent, once in a process, and
// its go.sum hash is compared if that was not done yet: bytes that are not proven leave this node no more than they reach a client.
// The error matches [io/fs.ErrNotExist] if this node does not have it.
func (m *Mirror) Hand(ctx context.Context, ref artifact.Ref) (*os.File, error) {
	f, err := m.open(ctx, ref, func() error { return m.proveUnnamed(ctx, ref) })
	if errors.Is(err, artifact.ErrDamaged) { // so this node does not have it
		m.ReportDamage(ref.Digest, err)
		err = fmt.Errorf("%v: %w", err, fs.ErrNotExist)
	}
	return f, err
}

// yielding lets clients' answers go first, but not for ever.
type yielding struct {
	ctx context.Context
	m   *Mirror
	w   io.Writer
}

func (y *yielding) Write(p []byte) (int, error) {
	const look = giveYield / 10
	for waited := time.Duration(0); y.m.serving.Load() > 0 && waited < giveYield; waited += look {
		select {
		case <-time.After(look):
		case <-y.ctx.Done():
			return 0, context.Cause(y.ctx)
		}
	}
	return y.w.Write(p)
}
