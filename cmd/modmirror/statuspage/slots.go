package statuspage

import (
	"net/netip"
	"sync"
)

// slots are for what may be done so many times at the same time, and so many of these times by one client.
type slots struct {
	max, perClient int

	mu   sync.Mutex
	all  int                // taken; guarded by mu
	held map[netip.Addr]int // of these, by each client; guarded by mu
}

// taken is how it went to take a slot.
type taken int

const (
	free taken = iota
	full
	fullOfClient // the client has as many as one may have
)

func newSlots(max, perClient int) *slots {
	return &slots{max: max, perClient: perClient, held: make(map[netip.Addr]int)}
}

// take takes a slot for client if there is one, which is to be given back by free.
func (s *slots) take(client netip.Addr) taken {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.held[client] >= s.perClient:
		return fullOfClient
	case s.all >= s.max:
		return full
	}
	s.all++
	s.held[client]++
	return free
}

// free gives a slot of client back.
func (s *slots) free(client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.held[client]--; s.held[client] == 0 {
		delete(s.held, client)
	}
}
