package artifact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"modmirror/mirror/artifact/fault"
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
//	in Prove                  each is in one of the two places, and whole; what is still unproven is proven again
//
// All are in one directory, so that one fsync of it is enough for all that came together: in 256 it would be nearly one for each.
const unprovenDir = "unproven"

// keepSyncs is how many fsyncs of one Keep are under way at a time, and how many that Flush began: the file system makes one commit of
// its journal for many.
const keepSyncs = 32

// shelved is what stands in unproven/, durably.
type shelved struct {
	making sync.Mutex // held while the directory is made
	made   bool       // guarded by making

	mu     sync.Mutex
	places map[Digest]place // guarded by mu
	bytes  int64            // guarded by mu
	passed map[Digest]bool  // guarded by mu; their go.sum hashes are right, and they could not be moved so far
	empty  []string         // guarded by mu; packs of which nothing is unproven any more, and that are still there
}

// place is where an unproven blob is: in a file of its own if pack is nil.
type place struct {
	size int64
	pack *pack
	off  int64
}

// end is how long the file must be in which r is.
func (p place) end() int64 { return p.off + p.size }

func (u *shelved) add(r Ref) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.put(r, place{size: r.Size})
}

// addPack adds what is in a pack.
func (u *shelved) addPack(name string, in []packed) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := &pack{name: name, left: 1} // it is not empty before all are in
	for _, b := range in {
		p.left++
		u.put(b.ref, place{b.ref.Size, p, b.off})
	}
	u.leave(p)
}

// put notes where r is, in place of where it was: there may have been a file of another size, which had rotted. The caller holds mu.
func (u *shelved) put(r Ref, at place) {
	if old, ok := u.places[r.Digest]; ok {
		u.bytes -= old.size
		u.leave(old.pack)
	}
	u.bytes += at.size
	u.places[r.Digest] = at
}

// leave notes that a pack has one blob less that is unproven. The caller holds mu.
func (u *shelved) leave(p *pack) {
	if p == nil {
		return
	}
	if p.left--; p.left == 0 {
		u.empty = append(u.empty, p.name)
	}
}

func (u *shelved) drop(d Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(d)
}

// dropAt is drop for what is still at a place: it may have come again meanwhile.
func (u *shelved) dropAt(d Digest, at place) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.places[d] == at {
		u.remove(d)
	}
}

// remove is drop for who holds mu.
func (u *shelved) remove(d Digest) {
	if at, ok := u.places[d]; ok {
		u.bytes -= at.size
		u.leave(at.pack)
	}
	delete(u.places, d)
	delete(u.passed, d)
}

// at returns where r is; ok is false if it is not here, or has another size.
func (u *shelved) at(r Ref) (at place, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, ok = u.places[r.Digest]
	return at, ok && at.size == r.Size
}

// emptied returns the packs that may be removed, once.
func (u *shelved) emptied() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	names := u.empty
	u.empty = nil
	return names
}

// pass notes that the go.sum hashes of refs are right.
func (u *shelved) pass(refs []Ref) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range refs {
		if _, ok := u.places[r.Digest]; ok {
			u.passed[r.Digest] = true
		}
	}
}

func (u *shelved) hasPassed(d Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.passed[d]
}

// doubt takes back what pass noted of d.
func (u *shelved) doubt(d Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.passed, d)
}

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
			if err := s.loadPack(unprovenDir+"/"+e.Name(), dirs); err != nil {
				return err
			}
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

// Keep is Commit for many drafts at once, whose go.sum hashes have not been compared: their bytes become durable, and unproven.
// It ends all of them, and returns an error for each, nil if its bytes are durable.
func (s *Store) Keep(drafts []*Draft) []error {
	errs := make([]error, len(drafts))
	if err := s.makeUnproven(); err != nil {
		for i, d := range drafts {
			d.Discard()
			errs[i] = err
		}
		return errs
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, keepSyncs)
	for i, d := range drafts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = d.ready()
		})
	}
	wg.Wait()
	s.shelve(drafts, errs)
	for _, d := range drafts {
		d.Discard()
	}
	return errs
}

// shelve gives those drafts that are ready their names, and makes these durable.
func (s *Store) shelve(drafts []*Draft, errs []error) {
	named := false
	for i, d := range drafts {
		if errs[i] == nil {
			errs[i] = d.shelve()
		}
		named = named || errs[i] == nil
	}
	if !named {
		return
	}
	err := s.syncUnproven()
	for i, d := range drafts {
		if errs[i] != nil {
			continue
		}
		if errs[i] = err; err == nil {
			s.unproven.add(d.Ref())
		}
	}
	if err == nil {
		fault.Point(fault.UnprovenKept)
	}
}

// syncUnproven makes the names of what is unproven durable.
func (s *Store) syncUnproven() error {
	err := s.watch("fsync a directory", func() error {
		if err := fault.Error(fault.UnprovenDirSync); err != nil {
			return err
		}
		return s.disk.SyncDir(unprovenDir)
	})
	if err != nil {
		return s.latch("fsync the directory of unproven blobs", err)
	}
	return nil
}

// nameUnproven gives a draft or a pack its name among what is unproven.
func (s *Store) nameUnproven(from, to string) error {
	err := s.watch("rename a file", func() error {
		if err := fault.Error(fault.UnprovenRename); err != nil {
			return err
		}
		return s.disk.Rename(from, to)
	})
	if err != nil {
		return s.fault("rename a draft", err)
	}
	return nil
}

// ready makes the draft's bytes durable, and compares them with what was written.
func (d *Draft) ready() error {
	if d.f == nil {
		return d.closed("keep")
	}
	if d.err != nil {
		return d.err
	}
	if err := d.s.Err(); err != nil {
		return err
	}
	if err := d.spill(); err != nil {
		return err
	}
	if err := d.sync(); err != nil {
		return err
	}
	return d.readBack()
}

// shelve gives the draft its name among what is unproven.
func (d *Draft) shelve() error {
	if err := d.s.nameUnproven(d.name, unprovenName(d.Ref().Digest)); err != nil {
		return err
	}
	d.name = ""
	return nil
}

// makeUnproven makes the directory, durably, when it is needed first.
func (s *Store) makeUnproven() error {
	if err := s.Err(); err != nil {
		return err
	}
	u := &s.unproven
	u.making.Lock()
	defer u.making.Unlock()
	if u.made {
		return nil
	}
	if err := s.disk.Mkdir(unprovenDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return s.fault("make the directory of unproven blobs", err)
	}
	if err := s.disk.SyncDir("."); err != nil {
		return s.latch("fsync the data directory", err)
	}
	u.made = true
	return nil
}

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
