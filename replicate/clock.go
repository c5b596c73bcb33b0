package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Every change of the catalog has a time. It is the same on every node, and later than that of the change before, so that
// whoever has read the changes up to a time can go on from there: nothing is added behind his back, and no two changes share
// a time that the end of a page could fall between.
//
// Apply reads no clock. The leader says in each entry with a publication what its clock shows, as the entry's first command;
// the changes after that get the next microseconds, each one its own. A clock that goes back, or another leader's that is
// slow, changes nothing: times go on by a microsecond each until that clock has caught up. A clock that was ahead, of a
// leader that has been put right, does the same for as long as it was ahead: the order stays, nothing is lost or repeated, and
// the times are of no other use meanwhile. Status says by how much. A clock beyond maxClock is not heeded at all.
//
// A change from before feature level 3 has no time in the catalog. It counts as one microsecond after the change before, the
// first of all as 1970 began: earlier than each that has one, and nothing has to be written again.
const maxClock = 7258118400e6 // microseconds since 1970: the year 2200

// clockCommand says that what is committed from here on is later than a time.
type clockCommand struct {
	At int64 // microseconds since 1970
}

func (clockCommand) kind() byte { return kindClock }

func (c clockCommand) encode(b []byte) ([]byte, error) {
	if c.At < 0 {
		return nil, errors.New("time before 1970")
	}
	return binary.AppendUvarint(b, uint64(c.At)), nil
}

func (s state) applyClock(c clockCommand) (result, error) {
	if s.level() < clockLevel {
		return refused("the time of a change needs feature level %d", clockLevel), nil
	}
	if c.At > maxClock {
		return refused("the leader's clock shows %s", time.UnixMicro(c.At).UTC().Format(time.RFC3339)), nil
	}
	now, err := s.clock()
	if err != nil || c.At <= now {
		return result{}, err
	}
	return result{}, s.setClock(c.At)
}

// clock returns the time that every change so far is at or before, and every later one is after.
func (s state) clock() (int64, error) {
	v := s.bucket(bucketConfig).Get(keyClock)
	if v == nil { // no change has a time yet
		tree, err := s.merkle()
		return tree.size - 1, err
	}
	if !checkClockRow(v) {
		return 0, damaged(errors.New("malformed"), "catalog row cfg %q = %x", keyClock, v)
	}
	at, _ := binary.Uvarint(v)
	return int64(at), nil
}

func (s state) setClock(at int64) error {
	return s.bucket(bucketConfig).Put(keyClock, binary.AppendUvarint(nil, uint64(at)))
}

func checkClockRow(v []byte) bool {
	at, n := binary.Uvarint(v)
	return n == len(v) && n == uvarintLen(at) && at <= math.MaxInt64
}

// stamp takes the next time, and returns it as it stands at the end of a leaf's row: nothing before feature level 3.
func (s state) stamp() ([]byte, error) {
	if s.level() < clockLevel {
		return nil, nil
	}
	now, err := s.clock()
	if err != nil {
		return nil, err
	}
	return append([]byte{0}, bigEndian(now+1)...), s.setClock(now + 1)
}

// leaf is a row of bucketLeaves: what stands at one place of the order of changes.
type leaf struct {
	seq   int64
	hash  tlog.Hash
	key   []byte // valid in the transaction only, as stamp is
	stamp []byte // byte 0 and eight bytes of microseconds since 1970; empty: from before there were times
}

func parseLeaf(k, v []byte) (l leaf, err error) {
	if l.seq, err = leafSeq(k); err != nil {
		return l, err
	}
	if len(v) < tlog.HashSize {
		return l, errors.New("malformed")
	}
	l.hash, l.key = tlog.Hash(v[:tlog.HashSize]), v[tlog.HashSize:]
	if i := bytes.IndexByte(l.key, 0); i >= 0 { // none is in a path or a version
		l.key, l.stamp = l.key[:i], l.key[i:]
		if len(l.stamp) != 1+8 || l.at() < 0 {
			return l, errors.New("malformed time")
		}
	}
	return l, nil
}

// leafHash returns the hash of a leaf of the Merkle tree: what is committed for a module version, and when.
func leafHash(manifest, stamp []byte) tlog.Hash {
	return tlog.RecordHash(append(bytes.Clone(manifest), stamp...))
}

// at returns the time of the change in microseconds since 1970.
func (l leaf) at() int64 {
	if len(l.stamp) == 0 {
		return l.seq
	}
	return fromBigEndian(l.stamp[1:])
}

// follows reports why l cannot stand after the leaf before.
func (l leaf) follows(before leaf) error {
	switch {
	case len(l.stamp) == 0 && len(before.stamp) > 0:
		return fmt.Errorf("it has no time, and leaf %d has one", before.seq)
	case l.at() <= before.at():
		return fmt.Errorf("its time, %d µs, is not after that of leaf %d, %d µs", l.at(), before.seq, before.at())
	}
	return nil
}

// TimeAt returns the time of the leaf seq, also if a later one stands for its module version. An error matches [fs.ErrNotExist] if
// there are not that many.
func (c *catalog) TimeAt(ctx context.Context, seq int64) (t time.Time, err error) {
	err = c.read(ctx, func(s state) error {
		k := bigEndian(max(seq, 0))
		v := s.bucket(bucketLeaves).Get(k)
		if v == nil || seq < 0 {
			return fmt.Errorf("leaf %d: %w", seq, fs.ErrNotExist)
		}
		l, err := parseLeaf(k, v)
		if err != nil {
			return damaged(err, "catalog row s %x", k)
		}
		t = time.UnixMicro(l.at()).UTC()
		return nil
	})
	return t, err
}

// SeqAt returns the number of the first leaf whose time is t or later: how many leaves there are, if none is.
func (c *catalog) SeqAt(ctx context.Context, t time.Time) (seq int64, err error) {
	err = c.read(ctx, func(s state) error {
		tree, err := s.merkle()
		if err != nil {
			return err
		}
		var bad error
		seq = int64(sort.Search(int(tree.size), func(i int) bool {
			k := bigEndian(int64(i))
			l, err := parseLeaf(k, s.bucket(bucketLeaves).Get(k))
			if err != nil && bad == nil {
				bad = damaged(err, "catalog row s %x", k)
			}
			return !time.UnixMicro(l.at()).Before(t)
		}))
		return bad
	})
	return seq, err
}

// Clock returns the time up to which this node has every change: each one that it does not have is, or will be, later.
func (c *catalog) Clock(ctx context.Context) (t time.Time, err error) {
	err = c.read(ctx, func(s state) error {
		at, err := s.clock()
		t = time.UnixMicro(max(at, 0)).UTC()
		return err
	})
	return t, err
}

// date returns the command that begins an entry with a publication: what this node's clock shows, if the cluster knows of
// times.
func (n *Node) date(batch []*proposal) (cmd []byte, err error) {
	isPublication := func(p *proposal) bool { return p.cmd[0] == kindPublish }
	now := n.config.now().UnixMicro()
	if !slices.ContainsFunc(batch, isPublication) || now < 0 || now > maxClock {
		return nil, nil
	}
	err = n.view(func(s state) error {
		if s.level() >= clockLevel {
			cmd, err = appendCommand(nil, clockCommand{now})
		}
		return err
	})
	return cmd, err
}
