package wannet

import "sync/atomic"

// flow is one host's packets to another one, counted.
type flow struct {
	from, to string // names
	link     atomic.Pointer[link]
	hand     func([]byte) error // writes to the other host's device

	counts [5]struct{ packets, bytes, payload atomic.Int64 } // by fate; at underway what was sent
}

func (f *flow) count(what fate, b []byte) {
	f.counts[what].packets.Add(1)
	f.counts[what].bytes.Add(int64(len(b)))
	f.counts[what].payload.Add(int64(payload(b)))
}

// payload returns how many bytes of an IPv4 packet are above TCP (RFC 9293, section 3.1) or UDP. Those of other protocols, and of
// what is no packet, are none.
func payload(b []byte) int {
	const tcp, udp = 6, 17
	if len(b) < 20 {
		return 0
	}
	above := len(b) - int(b[0]&15)*4
	switch {
	case b[9] == tcp && above >= 20:
		return max(above-int(b[len(b)-above+12]>>4)*4, 0)
	case b[9] == udp:
		return max(above-8, 0)
	}
	return 0
}

// send sends a packet, which may be reused when it returns.
func (f *flow) send(b []byte) {
	f.count(underway, b)
	switch what := f.link.Load().send(f, b); what {
	case underway:
	case arrived:
		f.arrive(b)
	default:
		f.count(what, b)
	}
}

// arrive hands a packet over. A device that takes none drops it, as the queue of a host does.
func (f *flow) arrive(b []byte) {
	if f.hand(b) != nil {
		f.count(full, b)
		return
	}
	f.count(arrived, b)
}

func (f *flow) traffic() Traffic {
	at := func(what fate) Count {
		return Count{f.counts[what].packets.Load(), f.counts[what].bytes.Load(), f.counts[what].payload.Load()}
	}
	return Traffic{Sent: at(underway), Delivered: at(arrived), Lost: at(lost), Full: at(full), Blocked: at(blocked)}
}
