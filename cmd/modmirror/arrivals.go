package main

import (
	"io"
	"sync"
	"sync/atomic"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
)

// arrivals are the blobs whose bytes are on their way to this node from another one: what it pulls out of another zone, and what
// is spread to it. Whoever wants the same blob here waits for that, and so does a node of the zone that would else have it come
// from afar a second time. An arrival waits for nobody but the node that sends it, which has the bytes; so nobody waits in a
// circle.
type arrivals struct {
	mu  sync.Mutex
	all map[artifact.Digest]*arrival // guarded by mu
}

// arrival is one of them.
type arrival struct {
	of         *arrivals
	digest     artifact.Digest
	background *mirror.Background // nil: somebody waits for it
	received   atomic.Int64       // bytes
	held       atomic.Bool        // it makes room for what somebody waits for
	done       chan struct{}      // closed at the end, whether the blob is here then or not
}

// begin notes that a blob is about to come. It is not mine if it comes already: then that arrival is returned, which whoever
// began it ends.
func (s *arrivals) begin(d artifact.Digest, b *mirror.Background) (a *arrival, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.all[d]; a != nil {
		return a, false
	}
	if s.all == nil {
		s.all = map[artifact.Digest]*arrival{}
	}
	a = &arrival{of: s, digest: d, background: b, done: make(chan struct{})}
	s.all[d] = a
	return a, true
}

// get returns the arrival of a blob, nil if it does not come.
func (s *arrivals) get(d artifact.Digest) *arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[d]
}

func (a *arrival) end() {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	delete(a.of.all, a.digest)
	close(a.done)
}

// reading counts what is read of r.
func (a *arrival) reading(r io.Reader) io.Reader { return &arriving{r, a} }

type arriving struct {
	io.Reader
	a *arrival
}

func (r *arriving) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.a.received.Add(int64(n))
	return n, err
}
