package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"

	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// Check proves the catalog again from nothing but itself and the trusted keys, and yields every problem that it finds:
// pages, encodings, manifests and their proofs, inline bytes, the Merkle tree, signatures of tree heads, evidence; that
// node.json and the log belong to it, and that every entry of the log can be read. It reads everything, the catalog in
// one transaction. What is not printable in a problem's text is quoted. progress, if not nil, is called now and then with the rows that are done and the
// number there are. If ctx ends, its error is the last one that is yielded.
func (c *Catalog) Check(ctx context.Context, progress func(done, total int)) iter.Seq[error] {
	return func(yield func(error) bool) {
		k := checker{ctx: ctx, yield: yield, progress: progress}
		err := safely(true, func() error {
			return c.read(ctx, func(s state) error {
				k.state, k.each = s, k.rows
				if healthy, err := k.pages(c.path); err != nil || !healthy {
					return err
				}
				if err := k.run(); err != nil || c.dir == "" {
					return err
				}
				return k.files(c)
			})
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(printable(err))
		}
	}
}

// errEnough means that the caller of Check wants to hear no more.
var errEnough = errors.New("enough")

type checker struct {
	state
	ctx         context.Context
	yield       func(error) bool
	each        func(bucket []byte, row func(key, value []byte) error) error // calls row for each row of a bucket
	progress    func(done, total int)
	done, total int
}

// bad reports a problem. Its error ends the check.
func (k *checker) bad(format string, args ...any) error {
	if !k.yield(printable(fmt.Errorf(format, args...))) {
		return errEnough
	}
	return nil
}

// check is what is done with each row of a bucket.
type check struct {
	bucket []byte
	row    func(key, value []byte) error
}

// run checks the rows.
func (k *checker) run() error {
	checks := []check{
		{bucketKeys, k.key}, {bucketHeads, k.treeHead}, {bucketManifests, k.manifestRow}, {bucketInline, k.inlineRow},
		{bucketConflicts, k.conflict}, {bucketForks, k.fork}, {bucketListings, k.listingRow},
	}
	k.total = k.bucket(bucketLeaves).Stats().KeyN
	for _, check := range checks {
		k.total += k.bucket(check.bucket).Stats().KeyN
	}
	for _, check := range checks {
		if err := k.rows(check.bucket, check.row); err != nil {
			return err
		}
	}
	if err := k.config(); err != nil {
		return err
	}
	return k.tree()
}

// config checks what the catalog says of itself.
func (k *checker) config() error {
	err := k.bucket(bucketConfig).ForEach(func(key, value []byte) error {
		if err := checkConfigRow(key, value); err != nil {
			return k.bad("%w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := k.checkEnd(); err != nil {
		return k.bad("%w", err)
	}
	return nil
}

// rows calls row for each row of a bucket.
func (k *checker) rows(name []byte, row func(key, value []byte) error) error {
	return k.bucket(name).ForEach(func(key, value []byte) error {
		if err := k.step(); err != nil {
			return err
		}
		return row(key, value)
	})
}

func (k *checker) step() error {
	k.done++
	if k.done%1024 == 0 || k.done == k.total {
		if k.progress != nil {
			k.progress(k.done, k.total)
		}
		return k.ctx.Err()
	}
	return nil
}

// pages checks the file's structure. What follows is of no use, and not safe to read, if that is damaged.
func (k *checker) pages(path string) (healthy bool, err error) {
	if err := checkPages(path); err != nil { // before bbolt's own check, whose goroutine would end the process
		return false, k.bad("pages: %w", err)
	}
	healthy = true
	problems := k.tx.Check(bbolt.WithKVStringer(bbolt.HexKVStringer()))
	for p := range problems { // to the end: otherwise its goroutine would wait for ever
		healthy = false
		if err == nil {
			err = k.bad("pages: %v", p)
		}
	}
	return healthy, err
}

func (k *checker) key(name, key []byte) error {
	v, err := k.verifier(string(name))
	if err != nil || v == nil || v.Name() != string(name) {
		return k.bad("key of database %q: %q is not one (%v)", name, key, err)
	}
	return nil
}

func (k *checker) treeHead(key, value []byte) error {
	row, err := parseHeadRow(key, value)
	if err != nil || len(key) < 10 || key[len(key)-9] != 0 {
		return k.bad("tree head %q: malformed row", key)
	}
	db := string(key[:len(key)-9])
	v, err := k.verifier(db)
	if err != nil || v == nil {
		return k.bad("tree head of %q with %d records: the database is not trusted (%v)", db, row.N, err)
	}
	tree, err := artifact.OpenTreeHead(v, row.note)
	if err != nil {
		return k.bad("tree head of %s with %d records: %w", db, row.N, err)
	}
	if tree != row.Tree {
		return k.bad("tree head of %s with %d records and root %v: the signed note says %d and %v", db, row.N, row.Hash, tree.N, tree.Hash)
	}
	return nil
}

func (k *checker) manifestRow(key, value []byte) error {
	row, err := parseManifestRow(value)
	if err != nil {
		return k.bad("manifest %q: %w", key, err)
	}
	m := row.Manifest
	if string(moduleKey(m.Module)) != string(key) {
		return k.bad("manifest %q is that of %s", key, m.Module)
	}
	if err := checkManifest(m); err != nil {
		return k.bad("manifest of %s: %w", m.Module, err)
	}
	enc, err := m.AppendBinary(nil)
	if err != nil {
		return k.bad("manifest of %s: %w", m.Module, err)
	}
	if !k.isLeaf(row.seq, key, enc) {
		if err := k.bad("manifest of %s is not what leaf %d of the Merkle tree stands for", m.Module, row.seq); err != nil {
			return err
		}
	}
	if err := k.record(m); err != nil {
		return err
	}
	return k.parts(m)
}

func (k *checker) record(m artifact.Manifest) error {
	r := m.Record
	head, ok, err := k.head(r.Database, r.TreeSize)
	if err != nil || !ok {
		return k.bad("manifest of %s: tree head of %s with %d records is missing (%v)", m.Module, r.Database, r.TreeSize, err)
	}
	if err := r.Check(head.Hash); err != nil {
		return k.bad("manifest of %s: %w", m.Module, err)
	}
	return nil
}

// parts checks the inline bytes of m.
func (k *checker) parts(m artifact.Manifest) error {
	for _, kind := range []artifact.Kind{artifact.Info, artifact.Mod} {
		ref := m.Ref(kind)
		if ref.IsZero() || ref.Size > artifact.MaxInline {
			continue
		}
		row, ok, err := k.inline(ref.Digest)
		if err == nil && !ok {
			err = rotten(ref.Digest, "the catalog does not hold its bytes")
		}
		if err == nil {
			err = checkPart(m, kind, ref, row.data)
		}
		if err != nil {
			if err := k.bad("%s of %s: %w", kind, m.Module, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// inlineRow checks that bytes are those of their digest, and belong to the manifest that brought them.
func (k *checker) inlineRow(key, value []byte) error {
	row, err := parseInlineRow(value)
	if err != nil || len(key) != len(artifact.Digest{}) {
		return k.bad("inline bytes %x: malformed row", key)
	}
	d := artifact.Digest(key)
	if have := artifact.DigestOf(row.data); have != d {
		if err := k.bad("inline bytes %v are those of %v", d, have); err != nil {
			return err
		}
	}
	at := bigEndian(row.seq)
	if l, err := parseLeaf(at, k.bucket(bucketLeaves).Get(at)); err == nil {
		m, ok, err := k.manifest(l.key)
		if err == nil && ok && (m.Info.Digest == d || m.Mod.Digest == d) {
			return nil
		}
	}
	return k.bad("inline bytes %v belong to no manifest", d)
}

func (k *checker) conflict(key, value []byte) error {
	d := decoder{b: value}
	a, b := d.bytes(), d.bytes()
	var committed, refused artifact.Manifest
	if err := errors.Join(d.end(), committed.UnmarshalBinary(a), refused.UnmarshalBinary(b)); err != nil {
		return k.bad("conflict %q: %w", key, err)
	}
	if _, err := committed.Merge(refused); !errors.Is(err, artifact.ErrConflict) {
		return k.bad("conflict %q: its two sides do not contradict each other (%v)", key, err)
	}
	return nil
}

func (k *checker) fork(key, value []byte) error {
	row, err := parseForkRow(value)
	if err != nil {
		return k.bad("evidence of a fork %q: %w", key, err)
	}
	v, err := k.verifier(row.Database)
	if err != nil || v == nil {
		return k.bad("evidence of a fork of %q: the database is not trusted (%v)", row.Database, err)
	}
	if err := row.Check(v); err != nil {
		return k.bad("evidence of a fork of %s: %w", row.Database, err)
	}
	return nil
}

func (k *checker) listingRow(key, _ []byte) error {
	l, _, err := k.listing(string(key))
	if err == nil && l.Path != string(key) {
		err = fmt.Errorf("it is that of %s", l.Path)
	}
	if err == nil {
		err = checkListing(l)
	}
	if err != nil {
		return k.bad("listing of %q: %w", key, err)
	}
	return nil
}

// tree computes the Merkle tree again from its leaves, and compares the newest leaf of each key with its manifest.
func (k *checker) tree() error {
	tree, last, err := k.leaves(math.MaxInt64)
	if err != nil {
		return err
	}
	if now, err := k.clock(); err != nil || tree.size > 0 && now < last.at() {
		if err := k.bad("the catalog's clock shows %d µs, and leaf %d is of %d µs (%v)", now, last.seq, last.at(), err); err != nil {
			return err
		}
	}
	have, err := k.merkle()
	if err != nil || !bytes.Equal(have.encode(), tree.encode()) {
		if err := k.bad("Merkle tree: %d leaves have the root %v, the catalog says %d and %v (%v)", tree.size, tree.root(), have.size, have.root(), err); err != nil {
			return err
		}
	}
	for _, n := range []struct{ key, bucket []byte }{{keyManifests, bucketManifests}, {keyConflicts, bucketConflicts}} {
		if have, want := k.number(n.key), int64(k.bucket(n.bucket).Stats().KeyN); have != want {
			if err := k.bad("the catalog counts %d %s, and holds %d", have, n.key, want); err != nil {
				return err
			}
		}
	}
	return nil
}
