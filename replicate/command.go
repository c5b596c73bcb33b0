package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// An entry of the Raft log carries one or more commands:
//
//	byte     format, 1
//	then, for each command: byte kind, uvarint length, body
//
// A command's body is a fixed row of fields (codec.go); see each type's encode. There is one encoding of each entry, and
// parseEntry refuses every other one, so that an entry means the same thing on every node or stops the node.
const entryFormat = 1

// Kinds of commands. A number, once used, keeps its meaning for ever.
const (
	kindPublish byte = iota + 1
	kindListing
	kindTrust
	kindHead
	kindFork
	kindAckFork
	kindCluster
	kindRegister
	kindForget
	kindHold
	kindAudit
	kindLevel
	kindClock
	kindRebalance
)

// Sizes that bound an entry. raft advises at most 512 KiB (SuggestedMaxDataSize) and sends up to 64 in one RPC.
const (
	maxBatch   = 256 << 10 // commands are coalesced up to here
	maxCommand = 512 << 10 // a single command may be this large, and travels alone then
)

// command is one change of the catalog. Its encoding is canonical.
type command interface {
	kind() byte
	encode(b []byte) ([]byte, error)
}

type (
	publishCommand struct{ artifact.Publication }
	listingCommand struct{ artifact.Listing }
	trustCommand   struct{ Key string }
	headCommand    struct {
		Database string
		Note     []byte
		Base     int64 // size of the head that Proof speaks about; 0: none is known
		Proof    tlog.TreeProof
	}
	forkCommand    struct{ artifact.Fork }
	ackForkCommand struct{ Database string }
	clusterCommand struct{ ID string }

	registerCommand struct{ Peer }      // a node has started
	forgetCommand   struct{ ID string } // a node is to be removed
	holdCommand     struct {            // a node is not to be promoted, or may be again
		ID   string
		Held bool
	}
)

func (publishCommand) kind() byte  { return kindPublish }
func (listingCommand) kind() byte  { return kindListing }
func (trustCommand) kind() byte    { return kindTrust }
func (headCommand) kind() byte     { return kindHead }
func (forkCommand) kind() byte     { return kindFork }
func (ackForkCommand) kind() byte  { return kindAckFork }
func (clusterCommand) kind() byte  { return kindCluster }
func (registerCommand) kind() byte { return kindRegister }
func (forgetCommand) kind() byte   { return kindForget }
func (holdCommand) kind() byte     { return kindHold }

func (c publishCommand) encode(b []byte) ([]byte, error) {
	m, err := c.Manifest.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	b = appendString(b, m)
	b = appendOptional(b, c.Info)
	return appendOptional(b, c.Mod), nil
}

func (c listingCommand) encode(b []byte) ([]byte, error) { return appendListing(b, c.Listing) }

func (c trustCommand) encode(b []byte) ([]byte, error) { return appendString(b, c.Key), nil }

func (c headCommand) encode(b []byte) ([]byte, error) {
	if c.Base < 0 || len(c.Proof) > maxHashes {
		return nil, errors.New("tree head out of range")
	}
	b = appendString(b, c.Database)
	b = appendString(b, c.Note)
	b = binary.AppendUvarint(b, uint64(c.Base))
	return appendHashes(b, c.Proof), nil
}

func (c forkCommand) encode(b []byte) ([]byte, error) { return appendFork(b, c.Fork) }

func (c ackForkCommand) encode(b []byte) ([]byte, error) { return appendString(b, c.Database), nil }

func (c clusterCommand) encode(b []byte) ([]byte, error) { return appendString(b, c.ID), nil }

func (c registerCommand) encode(b []byte) ([]byte, error) {
	if c.Held || c.Starts > 1<<62 {
		return nil, errors.New("a node registers what it is, not what it was made")
	}
	return appendPeer(appendString(b, c.ID), c.Peer), nil
}

func (c forgetCommand) encode(b []byte) ([]byte, error) { return appendString(b, c.ID), nil }

func (c holdCommand) encode(b []byte) ([]byte, error) {
	return append(appendString(b, c.ID), map[bool]byte{true: 1}[c.Held]), nil
}

// appendListing appends the canonical encoding of l, which is also what the catalog stores.
func appendListing(b []byte, l artifact.Listing) ([]byte, error) {
	b = appendString(b, l.Path)
	for _, t := range []time.Time{l.Listed, l.Latested} {
		var s int64
		if !t.IsZero() {
			s = t.Unix()
		}
		if s < 0 || !t.IsZero() && s == 0 {
			return nil, fmt.Errorf("listing of %s at %v: time out of range", l.Path, t)
		}
		b = binary.AppendUvarint(b, uint64(s))
	}
	b = binary.AppendUvarint(b, uint64(len(l.Versions)))
	for _, v := range l.Versions {
		b = appendString(b, v)
	}
	return appendOptional(b, l.Latest), nil
}

func decodeListing(d *decoder) (l artifact.Listing) {
	l.Path = d.string()
	for _, t := range []*time.Time{&l.Listed, &l.Latested} {
		if s := d.int(); s != 0 {
			*t = time.Unix(s, 0).UTC()
		}
	}
	for n := d.int(); n > 0 && d.err == nil; n-- {
		l.Versions = append(l.Versions, d.string())
	}
	l.Latest = bytes.Clone(d.optional())
	return l
}

// appendFork appends the canonical encoding of f, which is also what the catalog stores.
func appendFork(b []byte, f artifact.Fork) ([]byte, error) {
	if len(f.Proof) > maxHashes {
		return nil, fmt.Errorf("fork of %s: proof of %d hashes", f.Database, len(f.Proof))
	}
	b = appendString(b, f.Database)
	b = appendString(b, f.A)
	b = appendString(b, f.B)
	b = append(b, f.Derived[:]...)
	return appendHashes(b, f.Proof), nil
}

func decodeFork(d *decoder) (f artifact.Fork) {
	f.Database = d.string()
	f.A, f.B = bytes.Clone(d.bytes()), bytes.Clone(d.bytes())
	f.Derived = d.hash()
	f.Proof = d.hashes()
	return f
}

// appendCommand appends c as it stands inside an entry.
func appendCommand(b []byte, c command) ([]byte, error) {
	body, err := c.encode(nil)
	if err != nil {
		return nil, err
	}
	return appendString(append(b, c.kind()), body), nil
}

// parseEntry decodes an entry of the log, strictly.
func parseEntry(data []byte) ([]command, error) {
	d := decoder{b: data}
	if f := d.byte(); f != entryFormat {
		return nil, unknownFormat("the entry", f, entryFormat)
	}
	again := []byte{entryFormat}
	var cmds []command
	for len(d.b) > 0 && d.err == nil {
		kind, body := d.byte(), d.bytes()
		if d.err != nil {
			break
		}
		c, err := parseCommand(kind, body)
		if err != nil {
			return nil, fmt.Errorf("command %d of the entry: %w", len(cmds), err)
		}
		if again, err = appendCommand(again, c); err != nil {
			return nil, fmt.Errorf("command %d of the entry: %w", len(cmds), err)
		}
		cmds = append(cmds, c)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	if len(cmds) == 0 || !bytes.Equal(again, data) {
		return nil, errors.New("entry is not in canonical form")
	}
	return cmds, nil
}

func parseCommand(kind byte, body []byte) (c command, err error) {
	d := decoder{b: body}
	switch kind {
	case kindPublish:
		var p artifact.Publication
		m := d.bytes()
		p.Info, p.Mod = bytes.Clone(d.optional()), bytes.Clone(d.optional())
		if d.err == nil {
			d.err = p.Manifest.UnmarshalBinary(m)
		}
		c = publishCommand{p}
	case kindListing:
		c = listingCommand{decodeListing(&d)}
	case kindTrust:
		c = trustCommand{Key: d.string()}
	case kindHead:
		c = headCommand{Database: d.string(), Note: bytes.Clone(d.bytes()), Base: d.int(), Proof: d.hashes()}
	case kindFork:
		c = forkCommand{decodeFork(&d)}
	case kindAckFork:
		c = ackForkCommand{Database: d.string()}
	case kindCluster:
		c = clusterCommand{ID: d.string()}
	case kindRegister:
		id := d.string()
		c = registerCommand{decodePeer(&d, id)}
	case kindForget:
		c = forgetCommand{ID: d.string()}
	case kindHold:
		c = holdCommand{ID: d.string(), Held: d.flag()}
	case kindAudit:
		c = auditCommand{decodeAudit(&d)}
	case kindLevel:
		c = levelCommand{Level: d.int(), By: d.string()}
	case kindClock:
		c = clockCommand{At: d.int()}
	case kindRebalance:
		c = rebalanceCommand{To: d.string()}
	default:
		return nil, newer("it is of kind", uint64(kind), uint64(kindRebalance))
	}
	return c, d.end()
}
