package artifact

import (
	"sync"
)

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
