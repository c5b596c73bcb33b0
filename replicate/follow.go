package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Changes iterates over the manifests whose newest leaf has the number from or a later one, by leaf, and ends with those
// that are committed here now; then wait for Wake, and go on behind the last one. A leaf that was followed by a later one
// of the same module version is left out. It reads page by page, so the loop's body may take its time. A row that is
// damaged, or is not there and has to be, is an error with its Seq, and the next one follows if the loop goes on; any other
// error ends it.
func (c *catalog) Changes(ctx context.Context, from int64) iter.Seq2[artifact.Change, error] {
	return func(yield func(artifact.Change, error) bool) {
		for {
			var page []artifact.Change
			var bad []error
			next, more := max(from, 0), false
			err := c.read(ctx, func(s state) error {
				tree, err := s.merkle()
				if err != nil {
					return err
				}
				cur := s.bucket(bucketLeaves).Cursor()
				k, v := cur.Seek(bigEndian(next))
				for end := next + pageSize; next < min(tree.size, end); next++ {
					for k != nil && bytes.Compare(k, bigEndian(next)) < 0 {
						k, v = cur.Next()
					}
					change, ok, err := s.changeAt(next, k, v)
					if ok || err != nil {
						page, bad = append(page, change), append(bad, err)
					}
					if k == nil {
						return nil // one error is enough for all that are not there behind the last
					}
				}
				more = next < tree.size
				return nil
			})
			if err != nil {
				yield(artifact.Change{Seq: from}, err)
				return
			}
			for i, change := range page {
				if bad[i] != nil {
					c.damage.found(bad[i])
				}
				if !yield(change, bad[i]) {
					return
				}
			}
			if !more {
				return
			}
			from = next
		}
	}
}

// changeAt returns what leaf seq stands for, unless a later leaf stands for it. The row k of bucketLeaves is the first that is not
// before it; nil: none is.
func (s state) changeAt(seq int64, k, v []byte) (c artifact.Change, ok bool, err error) {
	c.Seq = seq
	if !bytes.Equal(k, bigEndian(seq)) {
		return c, false, damaged(errors.New("it is not there"), "catalog row s %x", bigEndian(seq))
	}
	l, err := parseLeaf(k, v)
	if err != nil {
		return c, false, damaged(err, "catalog row s %x", k)
	}
	row, ok, err := s.manifest(bytes.Clone(l.key))
	if err != nil {
		return c, false, err
	}
	if !ok {
		return c, false, damaged(errors.New("its manifest is not there"), "catalog row s %x", k)
	}
	if row.seq < seq {
		return c, false, damaged(fmt.Errorf("its manifest is that of leaf %d", row.seq), "catalog row s %x", k)
	}
	c.Manifest, c.At = row.Manifest, time.UnixMicro(l.at()).UTC()
	return c, row.seq == seq, nil
}

// Place returns the number of the newest leaf of m: the Seq with which Changes yields it. An error matches [fs.ErrNotExist] if
// nothing is committed for it.
func (c *catalog) Place(ctx context.Context, m module.Version) (seq int64, err error) {
	err = c.read(ctx, func(s state) error {
		row, ok, err := s.manifest(moduleKey(m))
		if err == nil && !ok {
			err = fmt.Errorf("manifest of %s: %w", m, fs.ErrNotExist)
		}
		seq = row.seq
		return err
	})
	return seq, err
}

func leafSeq(k []byte) (int64, error) {
	d := decoder{b: k}
	b := d.take(8)
	if err := d.end(); err != nil {
		return 0, err
	}
	return fromBigEndian(b), nil
}

// Wake returns a channel that is closed when something is applied next. Ask for it before looking at what is there.
func (n *Node) Wake() <-chan struct{} { return n.applied.wait() }

// maxRoots is of how many of the newest leaves the roots are kept.
const maxRoots = 4096

// roots keeps the root of the tree after each of the newest leaves. Root, in the catalog, is only the last of them.
type roots struct {
	mu   sync.Mutex
	tree compact             // guarded by mu
	of   map[int64]tlog.Hash // guarded by mu; by number of leaves
}

// RootAt returns the root of the tree of the first seq leaves, if it is one of the newest few thousand.
func (n *Node) RootAt(seq int64) (tlog.Hash, bool) {
	n.followRoots()
	return n.roots.at(seq)
}

// at returns the root of the first seq leaves, as of the last followRoots.
func (r *roots) at(seq int64) (tlog.Hash, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.of[seq]
	return h, ok
}

// followRoots takes in the leaves that were added.
func (n *Node) followRoots() {
	r := &n.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := n.view(func(s state) error { return r.follow(s) }); err != nil && !errors.Is(err, artifact.ErrUnavailable) {
		n.log.Error("follow the roots of the catalog", "err", err)
	}
}

// follow goes on to the leaves of s. The caller holds mu.
func (r *roots) follow(s state) error {
	now, err := s.merkle()
	if err != nil {
		return err
	}
	if r.of == nil || now.size < r.tree.size || now.size-r.tree.size > maxRoots {
		r.of, r.tree = map[int64]tlog.Hash{now.size: now.root()}, now
		return nil
	}
	cur := s.bucket(bucketLeaves).Cursor()
	for k, v := cur.Seek(bigEndian(r.tree.size)); k != nil && r.tree.size < now.size; k, v = cur.Next() {
		if seq, err := leafSeq(k); err != nil || seq != r.tree.size || len(v) < tlog.HashSize {
			break
		}
		r.tree.add(tlog.Hash(v[:tlog.HashSize]))
		r.of[r.tree.size] = r.tree.root()
		delete(r.of, r.tree.size-maxRoots)
	}
	if r.tree.size != now.size || r.tree.root() != now.root() { // another catalog took its place, or a leaf is damaged
		r.of, r.tree = map[int64]tlog.Hash{now.size: now.root()}, now
	}
	return nil
}
