package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// heal puts the inline bytes of p in the place of those of a committed manifest that this node's disk has lost. The bytes
// of a digest are the same on all nodes, so this is no change of what is agreed on, and needs no log.
func (n *Node) heal(ctx context.Context, have artifact.Manifest, p artifact.Publication) error {
	for _, part := range []struct {
		kind artifact.Kind
		data []byte
	}{{artifact.Info, p.Info}, {artifact.Mod, p.Mod}} {
		ref := have.Ref(part.kind)
		if part.data == nil || artifact.RefOf(part.data) != ref || ref.Size > artifact.MaxInline {
			continue
		}
		_, err := n.Inline(ctx, ref.Digest)
		if !errors.Is(err, artifact.ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return err
			}
			continue
		}
		if err := n.latch.guard("write lost bytes again", n.config.hung, func() error {
			return n.update(func(s state) error { return s.healInline(ref.Digest, moduleKey(have.Module), part.data) })
		}); err != nil {
			return err
		}
		n.log.Warn("bytes that the disk had lost are replaced", "module", have.Module.Path, "version", have.Module.Version, "kind", part.kind)
	}
	return nil
}

// Publish adds what p has to the manifest of its module version and returns what is committed and applied here then: of
// what was there before, the first wins, so the caller serves the parts of the returned manifest and not its own. Blobs
// must be durable before.
//
// An error matches [artifact.ErrConflict] if something else is committed for the module version (both sides are kept as
// evidence; the manifest returned is the committed one), [artifact.ErrRefused] if p does not prove itself, and
// [artifact.ErrUnavailable] if the log cannot take it now or its checksum database is frozen by a fork: [ErrNoQuorum] if
// that is for want of a leader, [ErrTooFewAcks] for want of acks.
func (n *Node) Publish(ctx context.Context, p artifact.Publication) (artifact.Manifest, error) {
	if err := checkManifest(p.Manifest); err != nil {
		return artifact.Manifest{}, err
	}
	have, err := n.Manifest(ctx, p.Manifest.Module)
	if err == nil {
		if merged, err := have.Merge(p.Manifest); err == nil && sameParts(merged, have) {
			return have, n.heal(ctx, have, p)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return artifact.Manifest{}, err
	}
	lookup := func(d artifact.Digest) ([]byte, bool, error) {
		data, err := n.Inline(ctx, d)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, false, nil
		}
		return data, err == nil, err
	}
	if bad, err := checkParts(p, lookup); err != nil || bad != nil {
		return artifact.Manifest{}, errors.Join(bad, err)
	}
	if len(blobs(p.Manifest)) > 0 {
		n.introduced(ctx)
	}
	r, err := n.propose(ctx, publishCommand{p}, n.ownAcks(p)...)
	return r.manifest, err
}

// PublishListing replaces the halves of a listing that have a time. If nothing but a time would change, nothing is
// written. An error matches [artifact.ErrMalformed] or [artifact.ErrUnavailable].
func (n *Node) PublishListing(ctx context.Context, l artifact.Listing) error {
	if err := checkListing(l); err != nil {
		return err
	}
	have, err := n.Listing(ctx, l.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, changed := mergeListing(have, l); !changed {
		return nil
	}
	_, err = n.propose(ctx, listingCommand{l})
	return err
}

// TrustDatabase makes every node accept tree heads signed by key, a note verifier key, and records that they prove. What
// is trusted is part of the replicated state, so that all nodes judge alike, whatever their flags say. For a name that
// is trusted by another key the error matches [artifact.ErrRefused].
func (n *Node) TrustDatabase(ctx context.Context, key string) error {
	v, err := note.NewVerifier(key)
	if err != nil || !validName(v.Name()) {
		return refused("%q is not the key of a checksum database: %v", key, err).err
	}
	known := false
	if err := n.read(ctx, func(s state) error {
		known = string(s.bucket(bucketKeys).Get([]byte(v.Name()))) == key
		return nil
	}); err != nil || known {
		return err
	}
	_, err = n.propose(ctx, trustCommand{key})
	return err
}

// CommitTreeHead commits msg, a signed tree head of db. For the very first one base is 0 and there is no proof. Otherwise
// base must be the size of the newest committed head: if msg's tree is larger, proof is that of
// tlog.CheckTree(proof, n, root, base, baseRoot) and msg becomes the newest; if it is smaller, proof is that of
// tlog.CheckTree(proof, base, baseRoot, n, root) and msg is kept as an anchor. A head that is known is no error.
//
// An error matches [artifact.ErrStale] if base is not the newest any more; [artifact.ErrRefused] if the signature or the
// proof is bad, or if another root of the same size is committed, which is a fork: both notes are kept as evidence and
// freeze db. It matches [artifact.ErrUnavailable] while db is frozen or nothing can be committed.
func (n *Node) CommitTreeHead(ctx context.Context, db string, msg []byte, base int64, proof tlog.TreeProof) error {
	var bad error
	known := false
	if err := n.read(ctx, func(s state) error {
		v, err := s.verifier(db)
		if err != nil {
			return err
		}
		if v == nil {
			bad = refused("%q is not a trusted checksum database", db).err
			return nil
		}
		var tree tlog.Tree
		if tree, bad = artifact.OpenTreeHead(v, msg); bad != nil {
			return nil
		}
		have, ok, err := s.head(db, tree.N)
		known = ok && have.Hash == tree.Hash
		return err
	}); err != nil || bad != nil || known {
		return errors.Join(err, bad)
	}
	if base < 0 {
		return fmt.Errorf("tree head of %s builds on %d records: %w", db, base, artifact.ErrStale)
	}
	fault.Point(fault.HeadCommit)
	_, err := n.propose(ctx, headCommand{Database: db, Note: msg, Base: base, Proof: proof})
	if err == nil {
		fault.Point(fault.HeadCommitted)
	}
	return err
}

// CommitFork records the proof that a checksum database signed two histories. From then on its records are not published
// and its head does not advance, until AckFork. What was committed before stays. An error matches [artifact.ErrRefused]
// if f proves nothing.
func (n *Node) CommitFork(ctx context.Context, f artifact.Fork) error {
	_, err := n.propose(ctx, forkCommand{f})
	return err
}

// AckFork ends the freeze of db; the evidence is kept. An error matches [fs.ErrNotExist] if db is not frozen.
func (n *Node) AckFork(ctx context.Context, db string) error {
	_, err := n.propose(ctx, ackForkCommand{db})
	return err
}
