package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// state is the catalog in one transaction: its rows as values. An error of its methods means that the catalog's file is
// damaged, and matches [artifact.ErrDamaged] then, or cannot be written. Absence is not an error here.
type state struct{ tx *bbolt.Tx }

// damaged says that a row is not what was committed. The cause is for people only: as an error it would say that the
// module, and not this node's copy of it, is to be refused.
func damaged(cause error, format string, args ...any) error {
	return fmt.Errorf(format+": %v: %w", append(args, cause, artifact.ErrDamaged)...)
}

func (s state) bucket(name []byte) *bbolt.Bucket { return s.tx.Bucket(name) }

func (s state) initialize() error {
	if err := s.bucket(bucketConfig).Put(keyFormat, []byte{catalogFormat}); err != nil {
		return err
	}
	return s.setMerkle(compact{})
}

// maxKey bounds a key of ours. bbolt refuses keys above 32 KiB, which must never be found out in Apply.
const maxKey = 2 << 10

func moduleKey(m module.Version) []byte { return []byte(m.Path + "@" + m.Version) }

// manifestRow is the manifest of one module version, and the number of the leaf that stands for it.
type manifestRow struct {
	artifact.Manifest
	seq int64
}

// manifest returns the manifest of a module version. It is compared with its leaf of the Merkle tree, so no bit of it can
// be another than when it was committed: what is served, and what is merged with it, depends on it.
func (s state) manifest(key []byte) (row manifestRow, ok bool, err error) {
	v := s.bucket(bucketManifests).Get(key)
	if v == nil {
		return row, false, nil
	}
	row, err = parseManifestRow(v)
	if err == nil && !s.isLeaf(row.seq, key, v[uvarintLen(uint64(row.seq)):]) {
		err = fmt.Errorf("leaf %d of the Merkle tree stands for something else", row.seq)
	}
	if err != nil {
		return manifestRow{}, false, damaged(err, "catalog row %q", key)
	}
	return row, true, nil
}

// isLeaf reports whether leaf seq of the Merkle tree stands for enc, the encoding of the manifest under key.
func (s state) isLeaf(seq int64, key, enc []byte) bool {
	k := bigEndian(seq)
	l, err := parseLeaf(k, s.bucket(bucketLeaves).Get(k))
	return err == nil && l.hash == leafHash(enc, l.stamp) && bytes.Equal(l.key, key)
}

func uvarintLen(n uint64) int { return len(binary.AppendUvarint(nil, n)) }

func parseManifestRow(v []byte) (row manifestRow, err error) {
	seq, n := binary.Uvarint(v)
	if n <= 0 || int64(seq) < 0 {
		return row, errors.New("malformed row")
	}
	if n != uvarintLen(seq) {
		return row, errors.New("malformed row")
	}
	row.seq = int64(seq)
	return row, row.UnmarshalBinary(v[n:])
}

// putManifest stores m as the newest leaf of the tree, and counts it if it is new.
func (s state) putManifest(m artifact.Manifest, isNew bool) (seq int64, err error) {
	enc, err := m.AppendBinary(nil)
	if err != nil {
		return 0, err
	}
	tree, err := s.merkle()
	if err != nil {
		return 0, err
	}
	stamp, err := s.stamp()
	if err != nil {
		return 0, err
	}
	seq, key, hash := tree.size, moduleKey(m.Module), leafHash(enc, stamp)
	tree.add(hash)
	if err := errors.Join(
		s.bucket(bucketManifests).Put(key, append(binary.AppendUvarint(nil, uint64(seq)), enc...)),
		s.bucket(bucketLeaves).Put(bigEndian(seq), slices.Concat(hash[:], key, stamp)),
		s.setMerkle(tree),
	); err != nil {
		return 0, err
	}
	if isNew {
		err = s.count(keyManifests)
	}
	return seq, err
}

func (s state) merkle() (compact, error) {
	c, err := parseCompact(s.bucket(bucketConfig).Get(keyMerkle))
	if err != nil {
		return c, damaged(err, "catalog row cfg %q", keyMerkle)
	}
	return c, nil
}

func (s state) setMerkle(c compact) error { return s.bucket(bucketConfig).Put(keyMerkle, c.encode()) }

// inlineRow is bytes that the catalog holds, and the number of the leaf that brought them.
type inlineRow struct {
	seq  int64
	data []byte // valid in the transaction only
}

func parseInlineRow(v []byte) (row inlineRow, err error) {
	if len(v) < 2 || v[0] != 0 {
		return row, errors.New("malformed row")
	}
	seq, n := binary.Uvarint(v[1:])
	if n <= 0 || int64(seq) < 0 || n != uvarintLen(seq) {
		return row, errors.New("malformed row")
	}
	return inlineRow{int64(seq), v[1+n:]}, nil
}

func (s state) inline(d artifact.Digest) (row inlineRow, ok bool, err error) {
	v := s.bucket(bucketInline).Get(d[:])
	if v == nil {
		return row, false, nil
	}
	row, err = parseInlineRow(v)
	if err != nil {
		return row, false, rotten(d, "%v", err)
	}
	if have := artifact.DigestOf(row.data); have != d { // the disk lied; a node serves no byte that it has not checked
		return row, false, rotten(d, "the catalog holds %v in their place", have)
	}
	return row, true, nil
}

func (s state) putInline(d artifact.Digest, seq int64, data []byte) error {
	if s.bucket(bucketInline).Get(d[:]) != nil {
		return nil
	}
	return s.bucket(bucketInline).Put(d[:], append(binary.AppendUvarint([]byte{0}, uint64(seq)), data...))
}

// healInline stores the bytes of d again, for the leaf that brought them; where not even that can be read, for the newest
// one of the manifest under key, which names d as well.
func (s state) healInline(d artifact.Digest, key, data []byte) error {
	old, err := parseInlineRow(s.bucket(bucketInline).Get(d[:]))
	if err != nil || s.bucket(bucketLeaves).Get(bigEndian(old.seq)) == nil {
		row, _, err := s.manifest(key)
		if err != nil {
			return err
		}
		old.seq = row.seq
	}
	return s.bucket(bucketInline).Put(d[:], append(binary.AppendUvarint([]byte{0}, uint64(old.seq)), data...))
}

// number and count keep counters in bucket cfg.
func (s state) number(key []byte) int64 {
	n, _ := binary.Uvarint(s.bucket(bucketConfig).Get(key))
	return int64(n)
}

func (s state) count(key []byte) error {
	return s.bucket(bucketConfig).Put(key, binary.AppendUvarint(nil, uint64(s.number(key)+1)))
}

// verifier returns the verifier of a database that is trusted, or nil.
func (s state) verifier(db string) (note.Verifier, error) {
	if db == "" {
		return nil, nil
	}
	key := s.bucket(bucketKeys).Get([]byte(db))
	if key == nil {
		return nil, nil
	}
	v, err := note.NewVerifier(string(key))
	if err == nil && v.Name() != db {
		err = fmt.Errorf("it is the key of %s", v.Name())
	}
	if err != nil {
		return nil, damaged(err, "key of checksum database %q", db)
	}
	return v, nil
}

// headRow is a tree head that is committed. Its signature was verified before it was stored.
type headRow struct {
	tlog.Tree
	note []byte // valid in the transaction only
}

func headPrefix(db string) []byte { return append([]byte(db), 0) }

func parseHeadRow(k, v []byte) (h headRow, err error) {
	if len(k) < 8 || len(v) < tlog.HashSize {
		return h, errors.New("malformed tree head row")
	}
	h.N = int64(binary.BigEndian.Uint64(k[len(k)-8:]))
	h.Hash = tlog.Hash(v[:tlog.HashSize])
	h.note = v[tlog.HashSize:]
	return h, nil
}

// checked returns h if it is what its note says. The signature was verified before h was stored.
func (h headRow) checked(err error, db string) (headRow, bool, error) {
	var said tlog.Tree
	if err == nil {
		said, err = tlog.ParseTree(h.note)
	}
	if err == nil && said != h.Tree {
		err = fmt.Errorf("its note says %d and %v", said.N, said.Hash)
	}
	if err != nil {
		return headRow{}, false, damaged(err, "tree head of %s with %d records and root %v", db, h.N, h.Hash)
	}
	return h, true, nil
}

// head returns the head of exactly n records.
func (s state) head(db string, n int64) (h headRow, ok bool, err error) {
	k := append(headPrefix(db), bigEndian(n)...)
	v := s.bucket(bucketHeads).Get(k)
	if v == nil {
		return h, false, nil
	}
	h, err = parseHeadRow(k, v)
	return h.checked(err, db)
}

// newest returns the largest head with fewer than below records.
func (s state) newest(db string, below int64) (h headRow, ok bool, err error) {
	prefix := headPrefix(db)
	c := s.bucket(bucketHeads).Cursor()
	var k, v []byte
	if beyond, _ := c.Seek(append(bytes.Clone(prefix), bigEndian(max(below, 0))...)); beyond == nil {
		k, v = c.Last()
	} else {
		k, v = c.Prev()
	}
	if k == nil || !bytes.HasPrefix(k, prefix) || len(k) != len(prefix)+8 {
		return h, false, nil
	}
	h, err = parseHeadRow(k, v)
	return h.checked(err, db)
}

func (s state) last(db string) (headRow, bool, error) { return s.newest(db, math.MaxInt64) }

func (s state) putHead(db string, t tlog.Tree, note []byte) error {
	return s.bucket(bucketHeads).Put(append(headPrefix(db), bigEndian(t.N)...), append(t.Hash[:], note...))
}

// forkRow is the evidence of a fork. As long as one is not acknowledged, its database is frozen.
type forkRow struct {
	artifact.Fork
	acked bool
}

func parseForkRow(v []byte) (row forkRow, err error) {
	d := decoder{b: v}
	acked := d.byte()
	if acked > 1 {
		d.fail("malformed flag")
	}
	row.acked, row.Fork = acked == 1, decodeFork(&d)
	return row, d.end()
}

func (s state) forks(db string, f func(key []byte, row forkRow) error) error {
	prefix := headPrefix(db)
	c := s.bucket(bucketForks).Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		row, err := parseForkRow(v)
		if err != nil {
			return damaged(err, "evidence of a fork of %s", db)
		}
		if err := f(k, row); err != nil {
			return err
		}
	}
	return nil
}

// frozen returns the first fork that is not acknowledged.
func (s state) frozen(db string) (fork artifact.Fork, ok bool, err error) {
	err = s.forks(db, func(_ []byte, row forkRow) error {
		if !row.acked && !ok {
			fork, ok = row.Fork, true
		}
		return nil
	})
	return fork, ok, err
}

func (s state) listing(path string) (l artifact.Listing, ok bool, err error) {
	v := s.bucket(bucketListings).Get([]byte(path))
	if v == nil {
		return l, false, nil
	}
	d := decoder{b: v}
	l = decodeListing(&d)
	if err := d.end(); err != nil {
		return l, false, damaged(err, "listing of %s", path)
	}
	return l, true, nil
}

// checkConfig reports whether what bucket cfg says of where the catalog ends can be relied on. What is malformed must not
// pass for absent: the catalog would be applied again from its first entry.
func (s state) checkConfig() error {
	if err := s.bucket(bucketConfig).ForEach(checkConfigRow); err != nil {
		return err
	}
	return s.checkEnd()
}

func checkConfigRow(k, v []byte) error {
	if known, err := checkNodeRow(k, v); known {
		if err != nil {
			err = fmt.Errorf("catalog row cfg %q = %x is malformed: %v", k, v, err)
		}
		return err
	}
	if known, err := checkAuditRow(k, v); known {
		if err != nil {
			err = fmt.Errorf("catalog row cfg %q = %x is malformed: %v", k, v, err)
		}
		return err
	}
	if known, err := checkWasRow(k, v); known {
		if err != nil {
			err = fmt.Errorf("catalog row cfg %q = %x is malformed: %v", k, v, err)
		}
		return err
	}
	if string(k) == string(keyLevel) {
		if err := checkLevelRow(v); err != nil {
			return fmt.Errorf("catalog row cfg %q: %w", k, err)
		}
		return nil
	}
	ok := false
	switch string(k) {
	case string(keyFormat):
		ok = len(v) == 1 && v[0] == catalogFormat
	case string(keyApplied):
		ok = len(v) == 16 && binary.BigEndian.Uint64(v) > 0
	case string(keyMembers):
		ok = checkMembers(v)
	case string(keyMerkle):
		_, err := parseCompact(v)
		ok = err == nil
	case string(keyManifests), string(keyConflicts):
		n, _ := binary.Uvarint(v)
		ok = bytes.Equal(binary.AppendUvarint(nil, n), v)
	case string(keyRebalance):
		ok = validName(string(v))
	case string(keyClock):
		ok = checkClockRow(v)
	case string(keyCluster):
		ok = len(v) > 0 && len(v) <= maxCluster
	default:
		return fmt.Errorf("catalog row cfg %q = %.100x is not known to this version of modmirror; if a later version wrote it, start that (docs/upgrade.md)", k, v)
	}
	if !ok {
		return fmt.Errorf("catalog row cfg %q = %x is malformed", k, v)
	}
	return nil
}

// checkMembers reports whether v is the members' row, as far as raft can read it. It panics if it cannot.
func checkMembers(v []byte) (ok bool) {
	defer func() { ok = recover() == nil && ok }()
	conf := raft.DecodeConfiguration(bytes.Clone(v[8:]))
	for _, s := range conf.Servers {
		if s.ID == "" {
			return false
		}
	}
	return len(conf.Servers) > 0
}

// checkEnd reports whether the catalog says where it ends, as all but a new one do.
func (s state) checkEnd() error {
	if index, _ := s.applied(); index > 0 {
		if _, at := s.members(); at > index {
			return fmt.Errorf("the catalog ends at index %d, but its members are those of index %d", index, at)
		}
		return nil
	}
	empty := s.cluster() == "" && s.bucket(bucketConfig).Get(keyMembers) == nil
	for _, name := range buckets {
		k, _ := s.bucket(name).Cursor().First()
		empty = empty && (k == nil || bytes.Equal(name, bucketConfig))
	}
	if !empty {
		return errors.New("the catalog does not say at which index it ends")
	}
	return nil
}

// applied returns index and term of the last entry that is in the catalog.
func (s state) applied() (index, term uint64) {
	v := s.bucket(bucketConfig).Get(keyApplied)
	if len(v) != 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
}

func (s state) setApplied(index, term uint64) error {
	v := binary.BigEndian.AppendUint64(nil, index)
	return s.bucket(bucketConfig).Put(keyApplied, binary.BigEndian.AppendUint64(v, term))
}

// members returns the last configuration that was applied, and the index of its entry.
func (s state) members() (conf raft.Configuration, index uint64) {
	v := s.bucket(bucketConfig).Get(keyMembers)
	if len(v) < 8 {
		return conf, 0
	}
	return raft.DecodeConfiguration(bytes.Clone(v[8:])), binary.BigEndian.Uint64(v)
}

func (s state) setMembers(index uint64, data []byte) error {
	return s.bucket(bucketConfig).Put(keyMembers, append(binary.BigEndian.AppendUint64(nil, index), data...))
}

func (s state) cluster() string { return string(s.bucket(bucketConfig).Get(keyCluster)) }
