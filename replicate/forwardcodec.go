package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"modmirror/mirror/artifact"
)

// What a node sends to the leader is
//
//	byte 1, uvarint number of acks, each: string node, uvarint starts, 32 bytes SHA-256, uvarint size, uvarint milliseconds
//	since 1970; then one command as it stands in an entry
//
// and the answer is one of
//
//	byte 1, byte 0 (done), byte forked, uvarint index (0: nothing was proposed), an outcome, a manifest as an optional string
//	byte 1, byte 1 (not the leader), string id, string address of the one that is; both empty: not known
//
// An outcome is uvarint classes, string text. Bit i of the classes says that the error matches sentinels[i]; the highest bit,
// behind them all, that there is an error. Everything has one encoding only.
const forwardFormat = 1

const maxAcks = 256

// request is a proposal on its way to the leader.
type request struct {
	acks []artifact.Ack
	cmd  []byte // one command, as appendCommand makes it
}

func appendRequest(b []byte, r request) []byte {
	b = append(b, forwardFormat)
	b = binary.AppendUvarint(b, uint64(len(r.acks)))
	for _, a := range r.acks {
		b = appendString(b, a.Node)
		b = binary.AppendUvarint(b, a.Starts)
		b = append(b, a.Ref.Digest[:]...)
		b = binary.AppendUvarint(b, uint64(max(a.Ref.Size, 0)))
		b = binary.AppendUvarint(b, uint64(max(a.At.UnixMilli(), 0)))
	}
	return append(b, r.cmd...)
}

func parseRequest(data []byte) (r request, c command, err error) {
	d := decoder{b: data}
	if f := d.byte(); f != forwardFormat {
		return r, nil, unknownFormat("a forwarded proposal", f, forwardFormat)
	}
	count := d.int()
	if count > maxAcks {
		d.fail("%d acks", count)
	}
	for ; count > 0 && d.err == nil; count-- {
		a := artifact.Ack{Node: d.string(), Starts: uint64(d.int())}
		copy(a.Ref.Digest[:], d.take(len(a.Ref.Digest)))
		a.Ref.Size = d.int()
		a.At = time.UnixMilli(d.int()).UTC()
		r.acks = append(r.acks, a)
	}
	r.cmd = d.b
	kind, body := d.byte(), d.bytes()
	if err := d.end(); err != nil {
		return r, nil, err
	}
	if len(r.cmd) > maxCommand {
		return r, nil, fmt.Errorf("a command of %d bytes", len(r.cmd))
	}
	if c, err = parseCommand(kind, body); err != nil {
		return r, nil, err
	}
	if r.cmd, err = appendCommand(nil, c); err != nil {
		return r, nil, err
	}
	if !bytes.Equal(appendRequest(nil, r), data) {
		return r, nil, errors.New("forwarded proposal is not in canonical form")
	}
	return r, c, nil
}

// answer is what the leader says of a proposal.
type answer struct {
	result
	moved  bool   // it does not lead
	leader Member // who does, then
}

// sentinels are the errors that an error from the leader may match. The place of one never changes. None may be added without
// a feature level of its own: to a node that knows fewer, every answer with an error would be malformed.
var sentinels = []error{
	artifact.ErrRefused, artifact.ErrConflict, artifact.ErrMalformed, artifact.ErrUnavailable, artifact.ErrNoQuorum,
	artifact.ErrPolicy, artifact.ErrDamaged, artifact.ErrStale, fs.ErrNotExist, ErrTooFewAcks, ErrRemoved, ErrClone, ErrNameTaken,
}

// remoteError is an error that another node told.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }

func appendOutcome(b []byte, err error) []byte {
	if err == nil {
		return appendString(append(b, 0), "")
	}
	classes := uint64(1) << len(sentinels)
	for i, s := range sentinels {
		if errors.Is(err, s) {
			classes |= 1 << i
		}
	}
	return appendString(binary.AppendUvarint(b, classes), err.Error())
}

func decodeOutcome(d *decoder) error {
	classes, text := uint64(d.int()), d.string()
	if classes == 0 && text == "" {
		return nil
	}
	if classes>>len(sentinels) != 1 {
		d.fail("malformed classes %#x", classes)
		return nil
	}
	e := &remoteError{text: text}
	for i, s := range sentinels {
		if classes&(1<<i) != 0 {
			e.is = append(e.is, s)
		}
	}
	return e
}

func appendAnswer(b []byte, a answer) ([]byte, error) {
	b = append(b, forwardFormat)
	if a.moved {
		return appendString(appendString(append(b, 1), a.leader.ID), a.leader.Address), nil
	}
	b = append(b, 0, map[bool]byte{true: 1}[a.forked])
	b = binary.AppendUvarint(b, a.index)
	b = appendOutcome(b, a.err)
	if a.manifest.Module.Path == "" {
		return appendOptional(b, nil), nil
	}
	m, err := a.manifest.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	return appendOptional(b, m), nil
}

func parseAnswer(data []byte) (a answer, err error) {
	d := decoder{b: data}
	if f := d.byte(); f != forwardFormat {
		return a, unknownFormat("an answer", f, forwardFormat)
	}
	if a.moved = d.flag(); a.moved {
		a.leader = Member{ID: d.string(), Address: d.string()}
		a.leader.Voter = a.leader.ID != ""
	} else {
		a.forked = d.flag()
		a.index = uint64(d.int())
		a.err = decodeOutcome(&d)
		if m := d.optional(); m != nil && d.err == nil {
			d.err = a.manifest.UnmarshalBinary(m)
		}
	}
	if err := d.end(); err != nil {
		return answer{}, err
	}
	if again, err := appendAnswer(nil, a); err != nil || !bytes.Equal(again, data) {
		return answer{}, errors.New("answer is not in canonical form")
	}
	return a, nil
}
