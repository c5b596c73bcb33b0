package mirror

import (
	"context"
	"hash/maphash"
	"iter"

	"modmirror/mirror/artifact"
)

// Names is the catalog, as the collector of garbage asks it: which blobs manifests name.
type Names interface {
	// Next returns the place of the change that will be the next one here.
	Next(ctx context.Context) (int64, error)
	// Manifests yields all that the catalog has; what comes in meanwhile may be left out.
	Manifests(ctx context.Context) iter.Seq2[artifact.Manifest, error]
	// Changes is that of the interface Changes.
	Changes(ctx context.Context, from int64) iter.Seq2[artifact.Change, error]
	// Settle returns nil once this catalog has everything that was committed before the call, on any node, and everything that
	// was in any node's log then and can still be committed. It fails while there is no leader, if this node is cut off from
	// it or behind, and if its catalog cannot be trusted: damaged, diverged, or of a cluster that does not take the node.
	Settle(ctx context.Context) error
}

// named is the set of blobs that manifests name, or may name: a Bloom filter, as a mirror of millions of versions must not need
// memory for each of them. A blob that it wrongly takes for named, one of some hundreds at most, is kept for this time: every pass
// has a filter with another seed.
type named struct {
	names Names
	seed  maphash.Seed
	bits  []uint64
	next  int64 // all changes before this place are in the filter
}

const (
	namedBits    = 32      // for each change of the catalog, which names two blobs at most
	minNamed     = 1 << 10 // words
	maxNamed     = 8 << 20 // words: 64 MiB
	namedProbes  = 6       // bits that are set for a digest
	namedPerStep = 1024    // manifests that are read between two pauses
)

// readNames reads the whole catalog, with a pause now and then.
func readNames(ctx context.Context, names Names, pause func(context.Context) error) (*named, error) {
	next, err := names.Next(ctx) // before the manifests are read: what comes in meanwhile is read afterwards
	if err != nil {
		return nil, err
	}
	s := &named{names: names, seed: maphash.MakeSeed(), next: next,
		bits: make([]uint64, min(max(next*namedBits/64, minNamed), maxNamed))}
	count := 0
	for man, err := range names.Manifests(ctx) {
		if err != nil {
			return nil, err
		}
		s.add(man)
		if count++; count%namedPerStep == 0 {
			if err := pause(ctx); err != nil {
				return nil, err
			}
		}
	}
	return s, ctx.Err()
}

// catchUp adds what has come in since. It must not be called while a blob is reserved alone for longer than the few new changes
// take.
func (s *named) catchUp(ctx context.Context) error {
	for c, err := range s.names.Changes(ctx, s.next) {
		if err != nil {
			return err
		}
		s.add(c.Manifest)
		s.next = c.Seq + 1
	}
	return ctx.Err()
}

// add adds what a manifest names.
func (s *named) add(man artifact.Manifest) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		if ref := man.Ref(k); !ref.IsZero() {
			s.each(ref.Digest, func(word *uint64, bit uint64) bool { *word |= bit; return true })
		}
	}
}

// has reports whether a manifest names d, or may name it.
func (s *named) has(d artifact.Digest) bool {
	return s.each(d, func(word *uint64, bit uint64) bool { return *word&bit != 0 })
}

// each calls f with the bits of d as long as it returns true, and reports whether it always did.
func (s *named) each(d artifact.Digest, f func(word *uint64, bit uint64) bool) bool {
	h := maphash.Bytes(s.seed, d[:])
	step := h>>32 | 1
	for range namedProbes {
		at := h % uint64(len(s.bits)*64)
		if !f(&s.bits[at/64], 1<<(at%64)) {
			return false
		}
		h += step
	}
	return true
}
