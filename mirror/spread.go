package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"

	"modmirror/mirror/artifact"
)

// copies are the bytes of one intake on their way to other voters. It has a file of its own, because that of the draft ends
// with the commit.
type copies struct {
	spreading Spreading
	body      *os.File
}

// spread begins to copy what was downloaded into d, while it is checked and made durable here. What the catalog has already
// is on the disks of a majority, and what travels in the log needs no copies.
func (in *intake) spread(ctx context.Context, d *artifact.Draft) error {
	in.endSpread() // of what an earlier source sent
	blob := in.kind == artifact.Zip || in.kind == artifact.Mod && d.Size() > artifact.MaxInline
	if in.m.config.Peers == nil || !blob || !in.want.IsZero() {
		return nil
	}
	f, err := os.Open(d.Name())
	if err != nil {
		return fmt.Errorf("read a draft back: %v: %w", err, artifact.ErrUnavailable)
	}
	in.spreadFile(ctx, d.Ref(), f)
	return nil
}

// spreadFile begins to copy f, and closes it at the end.
func (in *intake) spreadFile(ctx context.Context, ref artifact.Ref, f *os.File) {
	in.copies = &copies{in.m.config.Peers.Spread(ctx, in.man, in.kind, ref, f), f}
}

// endSpread cancels the copying, if it is still under way.
func (in *intake) endSpread() {
	if c := in.copies; c != nil {
		in.copies = nil
		c.spreading.Cancel()
		_ = c.body.Close() // it was only read
	}
}

// copied waits for enough copies. An error matches artifact.ErrNoQuorum, unless the other nodes refuse the bytes or the time
// of ctx is over. What is here stays here: a blob that no manifest names, which the next try finds.
func (in *intake) copied(ctx context.Context) ([]artifact.Ack, error) {
	c := in.copies
	if c == nil {
		return nil, nil
	}
	in.copies = nil
	defer c.body.Close()
	budget := pullTime(in.ref.Size)
	waiting, cancel := context.WithTimeoutCause(ctx, budget, &budgetError{budget})
	defer cancel()
	acks, err := c.spreading.Wait(waiting)
	switch {
	case err == nil || errors.Is(err, artifact.ErrStale): // something else is committed: the log tells what
		return acks, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case isRefusal(err):
		return nil, fmt.Errorf("copy to other nodes: %w", err)
	}
	return nil, fmt.Errorf("too few other nodes have a copy: %v: %w", err, artifact.ErrNoQuorum)
}

// outrun returns what another node published of the same artifact meanwhile.
func (in *intake) outrun(ctx context.Context) (artifact.Manifest, bool) {
	have, err := in.m.manifest(ctx, in.man.Module)
	same := have.ZipSum == in.man.ZipSum && have.ModSum == in.man.ModSum
	return have, err == nil && same && !have.Ref(in.kind).IsZero()
}
