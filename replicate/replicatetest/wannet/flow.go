package wannet

import "sync/atomic"

// flow is one host's packets to another one, counted.
type flow struct {
	from, to string // names
	link     atomic.Pointer[link]
	hand     func([]byte) error // writes to the other host's device

	counts [5]struct{ packets, bytes atomic.Int64 } // by fate; at underway what was sent
}

func (f *flow) count(what fate, size int) {
	f.counts[what].packets.Add(1)
	f.counts[what].bytes.Add(int64(size))
}

// send sends a packet, which may be reused when it returns.
func (f *flow) send(b []byte) {
	f.count(underway, len(b))
	switch what := f.link.Load().send(f, b); what {
	case underway:
	case arrived:
		f.arrive(b)
	default:
		f.count(what, len(b))
	}
}

// arrive hands a packet over. A device that takes none drops it, as the queue of a host does.
func (f *flow) arrive(b []byte) {
	if f.hand(b) != nil {
		f.count(full, len(b))
		return
	}
	f.count(arrived, len(b))
}

func (f *flow) traffic() Traffic {
	at := func(what fate) Count {
		return Count{f.counts[what].packets.Load(), f.counts[what].bytes.Load()}
	}
	return Traffic{Sent: at(underway), Delivered: at(arrived), Lost: at(lost), Full: at(full), Blocked: at(blocked)}
}
