package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// spreading copies a blob to as many voters as make a majority with this node. It begins with as many as are needed, the
// nearest first; in the place of one that fails or is slow the next is tried. It implements [mirror.Spreading].
type spreading struct {
	p      peers
	cancel context.CancelFunc
	acks   chan artifact.Ack
	done   chan struct{} // closed when nothing is under way any more, and err is final
	need   int
	slow   time.Duration // after this long another voter is tried as well
	err    error
}

// slowSpread is after how long another voter is tried as well, plus a second for each slowRate bytes.
const (
	slowSpread = 3 * time.Second
	slowRate   = 16 << 20
)

func (p peers) Spread(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.ReaderAt) mirror.Spreading {
	ctx, cancel := context.WithCancel(ctx)
	targets, need := p.n.spreadTo()
	s := &spreading{p: p, cancel: cancel, acks: make(chan artifact.Ack, len(targets)), done: make(chan struct{}), need: need,
		slow: slowSpread + time.Duration(ref.Size/slowRate)*time.Second}
	head, err := spreadHead(man, k)
	if err != nil {
		s.err = err
		close(s.done)
		return s
	}
	go s.run(ctx, targets, head, ref, body)
	return s
}

// spreadHead is what stands before the bytes of a blob, so that whoever takes them can check them: the manifest without this
// blob proves which sums they must have.
//
//	byte kind, uvarint length, manifest
func spreadHead(man artifact.Manifest, k artifact.Kind) ([]byte, error) {
	enc, err := man.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	b := binary.AppendUvarint([]byte{byte(k)}, uint64(len(enc)))
	return append(b, enc...), nil
}

const maxManifest = 64 << 10

// readSpreadHead is the inverse of spreadHead.
func readSpreadHead(r interface {
	io.Reader
	io.ByteReader
}) (man artifact.Manifest, k artifact.Kind, err error) {
	kind, err := r.ReadByte()
	if err != nil {
		return man, 0, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil || n > maxManifest {
		return man, 0, fmt.Errorf("manifest of %d bytes: %v: %w", n, err, artifact.ErrMalformed)
	}
	enc := make([]byte, n)
	if _, err := io.ReadFull(r, enc); err != nil {
		return man, 0, err
	}
	if err := man.UnmarshalBinary(enc); err != nil {
		return man, 0, fmt.Errorf("%w: %w", err, artifact.ErrMalformed)
	}
	return man, artifact.Kind(kind), nil
}

// run sends to need voters at a time until need have answered.
func (s *spreading) run(ctx context.Context, targets []peer.Member, head []byte, ref artifact.Ref, body io.ReaderAt) {
	defer close(s.done)
	type outcome struct {
		ack artifact.Ack
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	outcomes := make(chan outcome, len(targets))
	started, running, acked := 0, 0, 0
	defer func() { // nobody reads the body after this
		cancel()
		for ; running > 0; running-- {
			<-outcomes
		}
	}()
	next := func() bool {
		if started == len(targets) {
			return false
		}
		m := targets[started]
		started++
		running++
		go func() {
			ack, err := s.p.send(ctx, m, head, ref, body)
			outcomes <- outcome{ack, err}
		}()
		return true
	}
	for range s.need {
		next()
	}
	patience := time.NewTicker(s.slow)
	defer patience.Stop()
	var errs []error
	for acked < s.need {
		if running == 0 {
			s.err = fmt.Errorf("%v is on the disks of %d of the %d other voters that it must be on: %w: %w", ref, acked, s.need, errors.Join(errs...), artifact.ErrUnavailable)
			return
		}
		select {
		case o := <-outcomes:
			running--
			if o.err != nil {
				errs = append(errs, o.err)
				next()
				continue
			}
			acked++
			s.acks <- o.ack
		case <-patience.C:
			next()
		case <-ctx.Done():
			s.err = context.Cause(ctx)
			return
		}
	}
}

// Wait returns what the voters said.
func (s *spreading) Wait(ctx context.Context) ([]artifact.Ack, error) {
	defer s.cancel()
	var err error
	select {
	case <-s.done:
		err = s.err
	case <-ctx.Done():
		s.cancel()
		<-s.done
		err = context.Cause(ctx)
	}
	close(s.acks)
	var acks []artifact.Ack
	for a := range s.acks {
		acks = append(acks, a)
	}
	return acks, err
}

func (s *spreading) Cancel() {
	s.cancel()
	<-s.done
}

// send sends a blob to one voter, which checks it, makes it durable, and says so.
func (p peers) send(ctx context.Context, m peer.Member, head []byte, ref artifact.Ref, body io.ReaderAt) (artifact.Ack, error) {
	ctx, cancel := p.n.whileAlive(ctx, m)
	defer cancel()
	r := io.MultiReader(bytes.NewReader(head), io.NewSectionReader(body, 0, ref.Size))
	at := time.Now() // of this node: it only has to be before the voter's disk had it
	header, err := p.n.appliedSoFar(ctx)
	if err != nil {
		return artifact.Ack{}, err
	}
	resp, err := p.n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPut, Path: blobPath(ref), Bulk: true,
		Header: header, Body: r, Size: int64(len(head)) + ref.Size})
	if err != nil {
		return artifact.Ack{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	b, _, err := answerOf(resp)
	if err != nil {
		return artifact.Ack{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	var said ack
	if err := json.Unmarshal(b, &said); err != nil || said.Node != m.ID {
		return artifact.Ack{}, fmt.Errorf("node %s answers for %q: %v", m.Name, said.Node, err)
	}
	return artifact.Ack{Node: said.Node, Starts: said.Starts, Ref: ref, At: at}, nil
}

// appliedSoFar is the header that says which entry of the log this node has applied: whoever judges what it sends needs the
// tree heads up to there.
func (n *node) appliedSoFar(ctx context.Context) (http.Header, error) {
	index, err := n.replica.Applied(ctx)
	return http.Header{appliedHeader: {strconv.FormatUint(index, 10)}}, err
}
