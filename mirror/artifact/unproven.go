package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// What a node pulls in bulk has the digest that the cluster committed, and is durable, before its go.sum hash is computed, which
// takes many times as long. Until then it stands apart from what may be served:
//
//	unproven/ab01…   the bytes with the SHA-256 ab01…, whose go.sum hash this node has not compared yet
//	unproven/….pack  many small ones, see pack.go
//
// The place is the mark: nothing else says of a blob that it is proven, so the mark cannot be lost without the bytes, and a
// version of the program that knows nothing of the directory takes the blobs for missing. What is true if the process dies, or
// the power fails:
//
//	while drafts are written  leftovers in tmp/, which the next OpenStore removes
//	after Keep                the bytes are here, complete, and unproven
//	in Prove                  each is in one of the two places, or in both, and whole; what is still unproven is proven again
//
// All are in one directory, so that one fsync of it is enough for all that came together: in 256 it would be nearly one for each.
const unprovenDir = "unproven"

// keepSyncs is how many fsyncs of one Keep are under way at a time, and how many that Flush began: the file system makes one commit of
// its journal for many.
const keepSyncs = 32

func unprovenName(d Digest) string { return unprovenDir + "/" + d.String() }

// loadUnproven finds what an earlier process left to be proven. The directory is fsynced: that process may have died before it
// did so, and what is listed here counts as durable.
func (s *Store) loadUnproven(durably bool) error {
	entries, err := fs.ReadDir(s.root.FS(), unprovenDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && durably {
		err = s.disk.SyncDir(unprovenDir)
	}
	if err != nil {
		return err
	}
	dirs := map[string]bool{}
	for _, e := range entries {
		if isPack(e.Name()) {
			s.loadPack(unprovenDir+"/"+e.Name(), dirs)
			continue
		}
		d, err := ParseDigest(e.Name())
		if err != nil {
			continue // nobody asks for it
		}
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			s.unproven.add(Ref{Digest: d, Size: fi.Size()})
		}
	}
	if !durably {
		return nil
	}
	for dir := range dirs {
		if err := s.disk.SyncDir(dir); err != nil {
			return err
		}
	}
	return s.removeEmptied()
}

// Unproven returns how many blobs are here, durably, whose go.sum hash is not known to be right, and their bytes.
func (s *Store) Unproven() (blobs int, bytes int64) {
	s.unproven.mu.Lock()
	defer s.unproven.mu.Unlock()
	return len(s.unproven.places), s.unproven.bytes
}

// UnprovenDigests returns their digests, in no order.
func (s *Store) UnprovenDigests() []Digest {
	s.unproven.mu.Lock()
	defer s.unproven.mu.Unlock()
	all := make([]Digest, 0, len(s.unproven.places))
	for d := range s.unproven.places {
		all = append(all, d)
	}
	return all
}

// HasUnproven reports whether r is here, durably, and unproven. Like [Store.Durable] it looks at the size only.
func (s *Store) HasUnproven(r Ref) bool {
	at, ok := s.unproven.at(r)
	if !ok {
		return false
	}
	if at.pack != nil {
		fi, err := s.root.Lstat(at.pack.name)
		return err == nil && fi.Mode().IsRegular() && fi.Size() >= at.end()
	}
	fi, err := s.root.Lstat(unprovenName(r.Digest))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == r.Size
}

// OpenUnproven opens the bytes of r, which must not be served, to compute their go.sum hash, and reads them: they have their digest,
// or the error matches [ErrDamaged]. It matches [fs.ErrNotExist] if r is not here unproven. The caller closes the file.
func (s *Store) OpenUnproven(ctx context.Context, r Ref) (*os.File, error) {
	at, ok := s.unproven.at(r)
	if !ok {
		return nil, fmt.Errorf("open unproven %v: %w", r, fs.ErrNotExist)
	}
	f, err := s.openAt(ctx, r, at)
	if errors.Is(err, fs.ErrNotExist) && s.goneFrom(r, at) {
		return nil, fmt.Errorf("open unproven %v: it is gone: %w", r, ErrDamaged)
	}
	return f, err
}

// goneFrom reports whether r is not where it is said to be, and is not proven.
func (s *Store) goneFrom(r Ref, at place) bool {
	s.renaming.Lock()
	defer s.renaming.Unlock()
	now, ok := s.unproven.at(r)
	switch {
	case !ok || now != at || s.HasUnproven(r):
		return false
	case s.Has(r): // it came twice, and was proven in between
		s.unproven.drop(r.Digest)
		return false
	}
	return true
}

// openAt is OpenUnproven for what is at a place.
func (s *Store) openAt(ctx context.Context, r Ref, at place) (*os.File, error) {
	if at.pack != nil {
		return s.openPacked(ctx, r, at)
	}
	f, err := openIn(s.root, unprovenName(r.Digest), r)
	if err != nil {
		return nil, err
	}
	got, err := digestAll(ctx, s.content(f, r))
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("open unproven %v: %w", r, context.Cause(ctx))
	case err != nil:
		err = fmt.Errorf("open unproven %v: %v: %w", r, err, ErrDamaged)
	case got != r:
		err = fmt.Errorf("open unproven %v: the file is %v: %w", r, got, ErrDamaged)
	default:
		return f, nil
	}
	_ = f.Close() // it was only read
	return nil, err
}

// openPassed opens what is read where it is, because it could not be moved when it was proven.
func (s *Store) openPassed(ctx context.Context, r Ref) (*os.File, error) {
	if !s.unproven.hasPassed(r.Digest) || !s.HasUnproven(r) {
		return nil, fmt.Errorf("open %v: %w", r, fs.ErrNotExist)
	}
	if at, ok := s.unproven.at(r); ok && at.pack != nil {
		return s.openPacked(ctx, r, at)
	}
	f, err := openIn(s.root, unprovenName(r.Digest), r)
	if err != nil {
		return nil, err
	}
	if err := s.verifyOnce(ctx, f, r); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
