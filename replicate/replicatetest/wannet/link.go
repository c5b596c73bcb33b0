package wannet

import (
	"container/heap"
	"context"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// link carries the packets of one direction between two zones, or two hosts, by one policy: they share its rate and its queue.
type link struct {
	wake chan struct{} // one of capacity: the next packet is due at another time

	mu     sync.Mutex
	policy Policy     // guarded by mu, as all that follows
	dice   *rand.Rand // thrown twice for each packet, whatever the policy: the fate of the n-th depends on nothing before it
	free   time.Time  // when the last bit that waits will have left
	held   int64      // bytes under way
	seq    uint64
	way    packets
}

// fate is what becomes of a packet.
type fate int

const (
	underway fate = iota
	arrived
	lost
	full
	blocked
)

// packet is one that is under way. Only a link without a delay passes on bytes that it has not copied.
type packet struct {
	bytes []byte
	flow  *flow
	due   time.Time
	seq   uint64
}

// newLink returns a link between two names. Call run.
func newLink(seed uint64, from, to string) *link {
	h := fnv.New64a()
	_, _ = h.Write([]byte(from + "\x00" + to)) // never fails
	return &link{wake: make(chan struct{}, 1), dice: rand.New(rand.NewPCG(seed, h.Sum64()))}
}

func (l *link) set(p Policy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.policy = p
	if p.Rate == 0 {
		l.free = time.Time{}
	}
}

func (l *link) get() Policy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.policy
}

// send decides about a packet. If it has arrived the caller hands it over, and if it is underway run does.
func (l *link) send(f *flow, b []byte) fate {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, now, size := l.policy, time.Now(), int64(len(b))
	loss, jitter := l.dice.Float64(), l.dice.Float64()
	if p.Block {
		return blocked
	}
	due := now
	if p.Rate > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		if waiting := int64(l.free.Sub(now).Seconds() * float64(p.Rate) / 8); waiting+size > p.queue() {
			return full
		}
		l.free = l.free.Add(time.Duration(float64(size*8) / float64(p.Rate) * float64(time.Second)))
		due = l.free
	}
	if loss < p.Loss { // behind the queue: its bits have left
		return lost
	}
	due = due.Add(p.Delay + time.Duration(jitter*float64(p.Jitter)))
	if due.Equal(now) && len(l.way) == 0 {
		return arrived
	}
	if l.held+size > maxHeld {
		return full
	}
	l.held += size
	l.seq++
	heap.Push(&l.way, packet{append([]byte(nil), b...), f, due, l.seq})
	if l.way[0].seq == l.seq {
		l.rouse()
	}
	return underway
}

func (l *link) rouse() {
	select {
	case l.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// run hands over what is due, until ctx ends.
func (l *link) run(ctx context.Context, deliver func(*flow, []byte)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var ready []packet
	for {
		var next time.Duration
		ready, next = l.take(ready[:0])
		for i, p := range ready {
			deliver(p.flow, p.bytes)
			ready[i] = packet{}
		}
		if len(ready) > 0 {
			continue // that took time
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-l.wake:
		case <-ctx.Done():
			return
		}
	}
}

// take moves what is due to ready, in order, and says for how long nothing more will be.
func (l *link) take(ready []packet) ([]packet, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for len(l.way) > 0 {
		if wait := l.way[0].due.Sub(now); wait > 0 {
			return ready, wait
		}
		p := heap.Pop(&l.way).(packet)
		l.held -= int64(len(p.bytes))
		ready = append(ready, p)
	}
	return ready, time.Hour
}

// packets is a heap, by time and then by order of sending.
type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if !p[i].due.Equal(p[j].due) {
		return p[i].due.Before(p[j].due)
	}
	return p[i].seq < p[j].seq
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	old := *p
	last := old[len(old)-1]
	old[len(old)-1] = packet{}
	*p = old[:len(old)-1]
	return last
}
