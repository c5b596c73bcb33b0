package replicate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// result is what becomes of one command. It goes back to the proposer; every node computes the same.
type result struct {
	err      error             // nil, or why the command was refused
	manifest artifact.Manifest // of a publication: what is committed now
	listed   string            // the path of a listing that changed
	forked   bool              // the evidence of a fork was kept, now or before
	peers    bool              // the node table changed
	index    uint64            // of the entry; 0: there is none
}

func refused(format string, args ...any) result {
	return result{err: fmt.Errorf(format+": %w", append(args, artifact.ErrRefused)...)}
}

func frozen(db string) result {
	return result{err: fmt.Errorf("checksum database %s signed two histories and is frozen until the fork is acknowledged: %w", db, artifact.ErrUnavailable)}
}

// apply applies one command. It depends on s and c alone, so every node computes the same. An error means that this
// node's catalog could not be read or written; nothing else is an error here.
func (s state) apply(c command) (result, error) {
	switch c := c.(type) {
	case publishCommand:
		return s.applyPublish(c.Publication)
	case listingCommand:
		return s.applyListing(c.Listing)
	case trustCommand:
		return s.applyTrust(c.Key)
	case headCommand:
		return s.applyHead(c)
	case forkCommand:
		return s.applyFork(c.Fork)
	case ackForkCommand:
		return s.applyAckFork(c.Database)
	case clusterCommand:
		return s.applyCluster(c.ID)
	case registerCommand:
		return s.applyRegister(c.Peer)
	case forgetCommand:
		return s.applyForget(c.ID)
	case holdCommand:
		return s.applyHold(c)
	case auditCommand:
		return s.applyAudit(c.Audit)
	case levelCommand:
		return s.applyLevel(c)
	case clockCommand:
		return s.applyClock(c)
	case rebalanceCommand:
		return s.applyRebalance(c.To)
	}
	panic(fmt.Sprintf("replicate: command of unknown type %T", c))
}

func (s state) applyPublish(p artifact.Publication) (result, error) {
	m := p.Manifest
	if err := checkManifest(m); err != nil {
		return result{err: err}, nil
	}
	if res, err := s.checkRecord(m.Record); err != nil || res.err != nil {
		return res, err
	}
	lookup := func(d artifact.Digest) ([]byte, bool, error) {
		row, ok, err := s.inline(d)
		return row.data, ok, err
	}
	if bad, err := checkParts(p, lookup); err != nil || bad != nil {
		return result{err: bad}, err
	}
	key := moduleKey(m.Module)
	old, ok, err := s.manifest(key)
	if err != nil {
		return result{}, err
	}
	merged := m
	if ok {
		if merged, err = old.Merge(m); errors.Is(err, artifact.ErrConflict) {
			return result{err: err, manifest: old.Manifest}, s.putConflict(key, old.Manifest, m)
		} else if err != nil {
			return result{err: err}, nil
		}
		if sameParts(merged, old.Manifest) {
			return result{manifest: old.Manifest}, nil
		}
	}
	seq, err := s.putManifest(merged, !ok)
	if err != nil {
		return result{}, err
	}
	if p.Info != nil && merged.Info == m.Info {
		err = s.putInline(m.Info.Digest, seq, p.Info)
	}
	if p.Mod != nil && merged.Mod == m.Mod {
		err = errors.Join(err, s.putInline(m.Mod.Digest, seq, p.Mod))
	}
	return result{manifest: merged}, err
}

func sameParts(m, n artifact.Manifest) bool {
	return m.Info == n.Info && m.Mod == n.Mod && m.Zip == n.Zip
}

// checkRecord checks r against the committed head of exactly the tree that its proof speaks about.
func (s state) checkRecord(r artifact.Record) (result, error) {
	v, err := s.verifier(r.Database)
	if err != nil {
		return result{}, err
	}
	if v == nil {
		return refused("%q is not a trusted checksum database", r.Database), nil
	}
	if _, isFrozen, err := s.frozen(r.Database); err != nil || isFrozen {
		return frozen(r.Database), err
	}
	head, ok, err := s.head(r.Database, r.TreeSize)
	if err != nil {
		return result{}, err
	}
	if !ok {
		return refused("record %d of %s speaks about a tree of %d records, whose head is not committed", r.ID, r.Database, r.TreeSize), nil
	}
	return result{err: r.Check(head.Hash)}, nil
}

// maxConflicts bounds the evidence that is kept for one module version.
const maxConflicts = 16

// putConflict keeps both sides of a conflict for ever, each pair once.
func (s state) putConflict(key []byte, committed, refused artifact.Manifest) error {
	a, err := committed.AppendBinary(nil)
	if err != nil {
		return err
	}
	b, err := refused.AppendBinary(nil)
	if err != nil {
		return err
	}
	prefix := append(bytes.Clone(key), 0)
	sum := sha256.Sum256(b)
	id := append(bytes.Clone(prefix), sum[:]...)
	if s.bucket(bucketConflicts).Get(id) != nil {
		return nil
	}
	n := 0
	c := s.bucket(bucketConflicts).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		n++
	}
	if n >= maxConflicts {
		return nil
	}
	if err := s.bucket(bucketConflicts).Put(id, appendString(appendString(nil, a), b)); err != nil {
		return err
	}
	return s.count(keyConflicts)
}

func (s state) applyListing(l artifact.Listing) (result, error) {
	if err := checkListing(l); err != nil {
		return result{err: err}, nil
	}
	old, _, err := s.listing(l.Path)
	if err != nil {
		return result{}, err
	}
	merged, changed := mergeListing(old, l)
	if !changed {
		return result{}, nil
	}
	v, err := appendListing(nil, merged)
	if err != nil {
		return result{err: err}, nil
	}
	return result{listed: l.Path}, s.bucket(bucketListings).Put([]byte(l.Path), v)
}

func (s state) applyTrust(key string) (result, error) {
	v, err := note.NewVerifier(key)
	if err != nil || !validName(v.Name()) {
		return refused("%q is not the key of a checksum database: %v", key, err), nil
	}
	b := s.bucket(bucketKeys)
	if have := b.Get([]byte(v.Name())); have != nil {
		if string(have) == key {
			return result{}, nil
		}
		return refused("checksum database %s is trusted by the key %s, not by %s", v.Name(), have, key), nil
	}
	return result{}, b.Put([]byte(v.Name()), []byte(key))
}

func (s state) applyHead(c headCommand) (result, error) {
	v, err := s.verifier(c.Database)
	if err != nil {
		return result{}, err
	}
	if v == nil {
		return refused("%q is not a trusted checksum database", c.Database), nil
	}
	tree, err := artifact.OpenTreeHead(v, c.Note)
	if err != nil {
		return result{err: err}, nil
	}
	known, ok, err := s.head(c.Database, tree.N)
	if err != nil {
		return result{}, err
	}
	if ok && known.Hash == tree.Hash {
		return result{}, nil
	}
	if ok {
		f := artifact.Fork{Database: c.Database, A: bytes.Clone(known.note), B: c.Note}
		res := result{err: fmt.Errorf("%v: %w", f, artifact.ErrRefused), forked: true}
		return res, s.putFork(f, known.Tree, tree)
	}
	if _, isFrozen, err := s.frozen(c.Database); err != nil || isFrozen {
		return frozen(c.Database), err
	}
	last, ok, err := s.last(c.Database)
	if err != nil {
		return result{}, err
	}
	if err := checkAdvance(c, tree, last, ok); err != nil {
		return result{err: err}, nil
	}
	return result{}, s.putHead(c.Database, tree, c.Note)
}

// checkAdvance reports whether tree, which is not known yet, may be committed beside last, the newest head (if any is).
func checkAdvance(c headCommand, tree tlog.Tree, last headRow, any bool) error {
	if tree.N == 0 {
		return fmt.Errorf("tree head of %s without any record: %w", c.Database, artifact.ErrRefused)
	}
	if !any {
		if c.Base != 0 {
			return fmt.Errorf("tree head of %s builds on %d records, but none is committed: %w", c.Database, c.Base, artifact.ErrStale)
		}
		if len(c.Proof) != 0 {
			return fmt.Errorf("first tree head of %s comes with a proof of nothing: %w", c.Database, artifact.ErrRefused)
		}
		return nil
	}
	if c.Base != last.N {
		return fmt.Errorf("tree head of %s builds on %d records, but the newest committed one has %d: %w", c.Database, c.Base, last.N, artifact.ErrStale)
	}
	older, newer := last.Tree, tree
	if tree.N < last.N {
		older, newer = tree, last.Tree
	}
	if err := tlog.CheckTree(c.Proof, newer.N, newer.Hash, older.N, older.Hash); err != nil {
		return fmt.Errorf("tree head of %s with %d records and root %v is not proven consistent with the committed one with %d records and root %v: %v: %w",
			c.Database, tree.N, tree.Hash, last.N, last.Hash, err, artifact.ErrRefused)
	}
	return nil
}

// maxForks bounds how many forks that nobody acknowledged are kept of one database. One is enough to freeze it.
const maxForks = 4

func (s state) applyFork(f artifact.Fork) (result, error) {
	v, err := s.verifier(f.Database)
	if err != nil {
		return result{}, err
	}
	if v == nil {
		return refused("%q is not a trusted checksum database", f.Database), nil
	}
	if err := f.Check(v); err != nil {
		return result{err: err}, nil
	}
	a, errA := artifact.OpenTreeHead(v, f.A)
	b, errB := artifact.OpenTreeHead(v, f.B)
	if err := errors.Join(errA, errB); err != nil {
		return result{err: err}, nil
	}
	return result{forked: true}, s.putFork(f, a, b)
}

// putFork keeps the evidence f of two contradicting trees. What shows only heads of another history that were acknowledged
// before does not freeze again, whatever committed head it is held against; a further head of that history does.
func (s state) putFork(f artifact.Fork, a, b tlog.Tree) error {
	if a.N == b.N && bytes.Compare(a.Hash[:], b.Hash[:]) > 0 {
		a, b = b, a
	}
	sum := sha256.Sum256(append(tlog.FormatTree(a), tlog.FormatTree(b)...))
	key := append(headPrefix(f.Database), sum[:]...)
	if s.bucket(bucketForks).Get(key) != nil {
		return nil
	}
	if known, err := s.acknowledged(f.Database, a, b); err != nil || known {
		return err
	}
	open := 0
	if err := s.forks(f.Database, func(_ []byte, row forkRow) error {
		if !row.acked {
			open++
		}
		return nil
	}); err != nil || open >= maxForks {
		return err
	}
	v, err := appendFork([]byte{0}, f)
	if err != nil {
		return err
	}
	return s.bucket(bucketForks).Put(key, v)
}

// acknowledged reports whether of two contradicting trees one is committed, and the other was acknowledged before as the
// head of another history.
func (s state) acknowledged(db string, a, b tlog.Tree) (bool, error) {
	other, ok, err := s.otherHistory(db, a, b)
	if err != nil || !ok {
		return false, err
	}
	v, err := s.verifier(db)
	if err != nil {
		return false, err
	}
	known := false
	err = s.forks(db, func(_ []byte, row forkRow) error {
		for _, msg := range [][]byte{row.A, row.B} {
			if tree, err := artifact.OpenTreeHead(v, msg); err != nil {
				return fmt.Errorf("evidence of a fork of %s: %w", db, err)
			} else if row.acked && tree == other {
				known = true
			}
		}
		return nil
	})
	return known, err
}

// otherHistory returns the one of two contradicting trees whose head is not committed. It is not ok unless the other's is.
func (s state) otherHistory(db string, a, b tlog.Tree) (other tlog.Tree, ok bool, err error) {
	headA, okA, errA := s.head(db, a.N)
	headB, okB, errB := s.head(db, b.N)
	okA, okB = okA && headA.Tree == a, okB && headB.Tree == b
	if other = a; okA {
		other = b
	}
	return other, okA != okB, errors.Join(errA, errB)
}

func (s state) applyAckFork(db string) (result, error) {
	acks := map[string][]byte{}
	err := s.forks(db, func(k []byte, row forkRow) error {
		if row.acked {
			return nil
		}
		v, err := appendFork([]byte{1}, row.Fork)
		acks[string(k)] = v
		return err
	})
	if err != nil {
		return result{}, err
	}
	if len(acks) == 0 {
		return result{err: fmt.Errorf("fork of %q: %w", db, fs.ErrNotExist)}, nil
	}
	for k, v := range acks {
		if err := s.bucket(bucketForks).Put([]byte(k), v); err != nil {
			return result{}, err
		}
	}
	return result{}, nil
}

// maxCluster bounds the id of a cluster.
const maxCluster = 256

func (s state) applyCluster(id string) (result, error) {
	have := s.cluster()
	if have != "" && have != id || id == "" || len(id) > maxCluster {
		return refused("cluster %q cannot become %q", have, id), nil
	}
	return result{}, s.bucket(bucketConfig).Put(keyCluster, []byte(id))
}
