package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"modmirror/mirror/artifact"
)

// scrub checks the catalog of a running node once, row by row: what a start is too short for. A bit of a page that has
// turned can hide rows, which would be answered like versions that do not exist. It compares every leaf of the Merkle
// tree with its manifest, found as a request would find it, and the leaves with the root.
//
// It reads a few rows in each transaction and rests in between, so that it takes a quarter of one core at most, and keeps
// neither pages nor locks for long. Rows that are committed meanwhile are of this process, and need not be found.
type scrub struct {
	*checker
	catalog *catalog
	began   uint64 // the catalog's generation at the begin
}

const (
	scrubRows = 512
	scrubRest = 3 // how much longer it rests than it works
)

// errReplaced means that a snapshot was installed: what was read is not of the same catalog.
var errReplaced = errors.New("the catalog was replaced")

// scrub runs until all is checked or ctx ends. It tells what it finds to c.damage.
func (c *catalog) scrub(ctx context.Context) error {
	for {
		problems := 0
		s := &scrub{catalog: c, began: c.generation.Load()}
		s.checker = &checker{ctx: ctx, each: s.rows, yield: func(err error) bool {
			problems++
			if !errors.Is(err, errRotten) {
				err = fmt.Errorf("%v: %w", err, artifact.ErrDamaged) // and nothing else that a cause may be
			}
			c.damage.found(err)
			return problems < maxProblems
		}}
		err := s.run()
		if errors.Is(err, errReplaced) {
			continue
		}
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	}
}

// maxProblems is how many problems a scrub tells of before it leaves the rest to fsck.
const maxProblems = 10

func (s *scrub) run() error {
	var want compact
	if err := s.catalog.view(func(st state) (err error) { want, err = st.merkle(); return err }); err != nil {
		return err
	}
	for _, check := range []check{
		{bucketKeys, s.key}, {bucketHeads, s.treeHead}, {bucketManifests, s.manifestRow}, {bucketConflicts, s.conflict},
		{bucketForks, s.fork}, {bucketListings, s.listingRow},
	} {
		if err := s.rows(check.bucket, check.row); err != nil {
			return err
		}
	}
	tree, _, err := s.leaves(want.size)
	if err != nil {
		return err
	}
	if !bytes.Equal(tree.encode(), want.encode()) {
		return s.bad("Merkle tree: %d leaves have the root %v, the catalog says %d and %v", tree.size, tree.root(), want.size, want.root())
	}
	return nil
}

// rows calls row for each row of a bucket.
func (s *scrub) rows(bucket []byte, row func(key, value []byte) error) error {
	var after []byte
	for {
		begin, more := time.Now(), false
		err := s.catalog.view(func(st state) (err error) {
			if s.began != s.catalog.generation.Load() {
				return errReplaced
			}
			s.state = st
			after, more, err = st.part(bucket, after, scrubRows, row)
			return err
		})
		if err != nil || !more {
			return err
		}
		select {
		case <-time.After(scrubRest * time.Since(begin)):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// part calls row for at most n rows behind the key after, and returns the last key and whether there are more.
func (s state) part(bucket, after []byte, n int, row func(key, value []byte) error) (last []byte, more bool, err error) {
	c := s.bucket(bucket).Cursor()
	k, v := c.Seek(after)
	if after != nil && bytes.Equal(k, after) {
		k, v = c.Next()
	}
	for ; k != nil && n > 0; k, v = c.Next() {
		if err := row(k, v); err != nil {
			return after, false, err
		}
		after = bytes.Clone(k)
		n--
	}
	return after, k != nil, nil
}

// errLast ends the leaves that are looked at.
var errLast = errors.New("last leaf")

// leaves builds the Merkle tree of the first n leaves, and compares each with its manifest and with the one before, up to the
// last.
func (k *checker) leaves(n int64) (tree compact, last leaf, err error) {
	err = k.each(bucketLeaves, func(key, value []byte) error {
		seq := tree.size
		if seq == n {
			return errLast
		}
		l, err := parseLeaf(key, value)
		if err != nil || l.seq != seq {
			return k.bad("leaf %x of the Merkle tree: malformed or out of order, expected %d (%v)", key, seq, err)
		}
		tree.add(l.hash)
		before := last
		last = leaf{seq: seq, stamp: bytes.Clone(l.stamp)}
		if err := last.follows(before); err != nil && seq > 0 {
			if err := k.bad("leaf %d of the Merkle tree: %w", seq, err); err != nil {
				return err
			}
		}
		row, ok, err := k.manifest(l.key)
		if err != nil || !ok || row.seq < seq {
			return k.bad("leaf %d of the Merkle tree stands for %q, which has no manifest that new (%v)", seq, l.key, err)
		}
		return nil
	})
	if errors.Is(err, errLast) {
		err = nil
	}
	return tree, last, err
}

// Scrub checks the catalog row by row as the start of a node does in the background, and takes a quarter of one core at most. What
// it finds is told as all damage is: in the log and in Status. An error says that the catalog could not be looked at.
func (n *Node) Scrub(ctx context.Context) error {
	err := n.catalog.scrub(ctx)
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, artifact.ErrUnavailable) {
		return err
	}
	n.damage.found(fmt.Errorf("check of the catalog: %w", err))
	return nil
}

// scrub is Scrub at the start: it logs how it ends.
func (n *Node) scrub(ctx context.Context) {
	begin := time.Now()
	if err := n.Scrub(ctx); err == nil && n.damage.err() == nil {
		n.log.Debug("the catalog is checked", "took", time.Since(begin))
	}
}
