package artifact

import "sync"

// reservations keep a blob where it is while somebody relies on it: between the look whether it is here and the moment at
// which others are told so. Who moves it to the trash, or out of there for good, must have it alone.
type reservations struct {
	mu sync.Mutex
	of map[Digest]*reservation // guarded by mu
}

// reservation is one of a digest. Either somebody holds it or somebody has it alone.
type reservation struct {
	holders int
	alone   chan struct{} // closed when whoever has it alone is done; nil: nobody has
}

// Reserve keeps the bytes of d from being moved to the trash, or removed from there, until release is called, whether there are
// any or not. Several may hold a reservation of the same digest, also one caller two. It waits while the bytes are moved.
func (s *Store) Reserve(d Digest) (release func()) {
	all := &s.reserved
	for {
		all.mu.Lock()
		r := all.of[d]
		if r == nil {
			r = &reservation{}
			all.of[d] = r
		}
		if r.alone == nil {
			r.holders++
			all.mu.Unlock()
			return sync.OnceFunc(func() { all.release(d, r) })
		}
		wait := r.alone
		all.mu.Unlock()
		<-wait
	}
}

func (all *reservations) release(d Digest, r *reservation) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if r.holders--; r.holders == 0 {
		delete(all.of, d)
	}
}

// takeAlone keeps others from reserving d until done is called. It fails if somebody has.
func (all *reservations) takeAlone(d Digest) (done func(), ok bool) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.of[d] != nil {
		return nil, false
	}
	r := &reservation{alone: make(chan struct{})}
	all.of[d] = r
	return func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		delete(all.of, d)
		close(r.alone)
	}, true
}
