package artifact

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"modmirror/mirror/artifact/fault"
)

// Prove takes blobs for proven, from which on they are as any other: the caller has read each whole through [Store.OpenUnproven] and
// compared its go.sum hash. What is not here unproven is left out. When it returns nil the new names are durable. What cannot be
// moved, on a disk that is full or not written to any more, is read where it is from now on, as long as this process lives.
func (s *Store) Prove(refs []Ref) error {
	s.unproven.pass(refs)
	if err := s.Err(); err != nil {
		return err
	}
	dirs := map[string]bool{}
	var mu sync.Mutex
	unpacked := map[Digest]place{}
	var bad error
	var wg sync.WaitGroup
	slots := make(chan struct{}, keepSyncs)
	for _, r := range refs { // one that cannot be moved keeps none of the others
		defer s.Reserve(r.Digest)()
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			at, here := s.unproven.at(r)
			dir, err := s.shard(r.Digest)
			if err == nil && here {
				err = s.proveOne(r, at)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				dirs[dir] = true
			}
			if err == nil && here && at.pack != nil {
				unpacked[r.Digest] = at
			}
			bad = cmp.Or(bad, err)
		})
	}
	wg.Wait()
	if err := s.syncProven(dirs); err != nil {
		return err
	}
	for d, at := range unpacked { // and not before
		s.unproven.dropAt(d, at)
	}
	return cmp.Or(bad, s.removeEmptied())
}

// proveOne gives a blob that is at a place its name. It is not durable yet.
func (s *Store) proveOne(r Ref, at place) error {
	if at.pack != nil {
		if s.intact(r, false) { // it came another way meanwhile, or another one was faster
			return nil
		}
		err := s.unpack(r, at)
		if errors.Is(err, fs.ErrNotExist) && s.intact(r, false) { // another one was faster
			return nil
		}
		return err
	}
	s.renaming.Lock()
	defer s.renaming.Unlock()
	if now, ok := s.unproven.at(r); !ok || now != at { // another one was faster
		return nil
	}
	if s.intact(r, false) { // it came another way meanwhile, through all checks
		return s.removeUnproven(r.Digest)
	}
	if !s.HasUnproven(r) {
		return fmt.Errorf("prove %v: it is not where it was: %w", r, ErrUnavailable)
	}
	err := s.watch("rename a file", func() error {
		if err := fault.Error(fault.ProvenRename); err != nil {
			return err
		}
		return s.disk.Rename(unprovenName(r.Digest), blobName(r.Digest))
	})
	if err != nil {
		return s.fault("rename a blob", err)
	}
	s.unproven.drop(r.Digest)
	if fi, err := s.root.Lstat(blobName(r.Digest)); err == nil {
		s.verified.add(r.Digest, fileIDOf(fi)) // it was read to be proven
	}
	return nil
}

// syncProven makes the names of what was proven durable, some directories at a time, before they are gone from where they were.
func (s *Store) syncProven(dirs map[string]bool) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(dirs))
	slots := make(chan struct{}, keepSyncs)
	for dir := range dirs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs <- s.disk.SyncDir(dir)
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return s.latch("fsync the directory of a blob", err)
		}
	}
	if err := s.disk.SyncDir(unprovenDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.latch("fsync the directory of unproven blobs", err)
	}
	return nil
}

// Disprove moves the bytes of r, which are unproven and not what they should be, into quarantine, with the reason. They do not count
// as here any more, whatever it returns: where the disk does not let go of them the next process finds them, unproven.
func (s *Store) Disprove(r Ref, reason string) error {
	s.renaming.Lock()
	defer s.renaming.Unlock()
	at, ok := s.unproven.at(r)
	if !ok {
		return s.Err()
	}
	if !s.HasUnproven(r) { // its file is not what it was
		s.unproven.drop(r.Digest)
		return s.Err()
	}
	if at.pack != nil {
		return s.disprovePacked(r, at, reason)
	}
	s.unproven.drop(r.Digest)
	if err := s.Err(); err != nil {
		return err
	}
	if r.Size > s.quarantine.maxBytes {
		return s.removeUnproven(r.Digest)
	}
	name := unprovenName(r.Digest)
	if err := s.quarantine.takeFile(&name, r, reason); err != nil {
		return err
	}
	if name != "" { // the same bytes are there already
		return s.removeUnproven(r.Digest)
	}
	return nil
}

// disprovePacked is Disprove for what was in a pack.
func (s *Store) disprovePacked(r Ref, at place, reason string) error {
	d, err := s.draftOf(r, at)
	s.unproven.drop(r.Digest) // and not before: the pack may go then
	if err == nil {
		err = d.Quarantine(reason)
	}
	return cmp.Or(err, s.removeEmptied())
}

// removeEmptied removes packs of which nothing is left to be proven. That they come back after a power cut does no harm.
func (s *Store) removeEmptied() (bad error) {
	for _, name := range s.unproven.emptied() { // one that stays until the next start keeps none of the others
		bad = cmp.Or(bad, s.removeFile(name))
	}
	return bad
}

// DropUnproven removes the bytes of d from what is unproven: nothing names them any more, or they have rotted. They do not count as
// here any more, whatever it returns.
func (s *Store) DropUnproven(d Digest) error {
	s.renaming.Lock()
	defer s.renaming.Unlock()
	s.unproven.drop(d)
	if err := s.Err(); err != nil {
		return err
	}
	return s.removeUnproven(d)
}

// removeUnproven is DropUnproven for who holds renaming. That the bytes come back after a power cut does no harm.
func (s *Store) removeUnproven(d Digest) error {
	if err := s.removeFile(unprovenName(d)); err != nil {
		return err
	}
	s.unproven.drop(d)
	return s.removeEmptied()
}

func (s *Store) removeFile(name string) error {
	err := s.disk.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if fault := s.Err(); fault != nil {
		return fault
	}
	return fmt.Errorf("remove %s: %v: %w", name, err, ErrUnavailable)
}
