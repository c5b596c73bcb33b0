package wannet

import (
	"fmt"
	"time"
)

// Policy is how packets travel in one direction. The zero Policy carries all of them at once.
type Policy struct {
	Block  bool          // none arrives, and nobody is told
	Delay  time.Duration // how long each travels
	Jitter time.Duration // up to how much longer, evenly spread and for each packet by itself, so that they overtake each other
	Loss   float64       // the chance of each to be lost, between 0 and 1
	Rate   int64         // bits that leave in a second; 0: no limit
	Queue  int64         // bytes that wait for their turn at most, more are dropped; 0: what leaves within 100 ms
}

// maxHeld bounds what is under way on a link without a limit of its own, in bytes.
const maxHeld = 64 << 20

func (p Policy) queue() int64 {
	switch {
	case p.Rate == 0:
		return maxHeld
	case p.Queue > 0:
		return p.Queue
	}
	return max(p.Rate/8/10, 1500)
}

func (p Policy) check() error {
	if p.Delay < 0 || p.Jitter < 0 || p.Loss < 0 || p.Loss > 1 || p.Rate < 0 || p.Queue < 0 {
		return fmt.Errorf("policy %+v: a number is negative, or the loss is above 1", p)
	}
	return nil
}

// Count is a number of IP packets, their bytes with all headers, and without those of IP, TCP and UDP.
type Count struct{ Packets, Bytes, Payload int64 }

// Traffic is what one host has sent to another, or one zone to another. What is under way is in Sent alone.
type Traffic struct {
	Sent      Count
	Delivered Count
	Lost      Count // by Policy.Loss
	Full      Count // of a queue that had no room
	Blocked   Count // by Policy.Block
}

func (c *Count) add(o Count) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
	c.Payload += o.Payload
}

func (c Count) minus(o Count) Count {
	return Count{c.Packets - o.Packets, c.Bytes - o.Bytes, c.Payload - o.Payload}
}

// Minus returns what was added since an earlier t.
func (t Traffic) Minus(earlier Traffic) Traffic {
	return Traffic{t.Sent.minus(earlier.Sent), t.Delivered.minus(earlier.Delivered), t.Lost.minus(earlier.Lost),
		t.Full.minus(earlier.Full), t.Blocked.minus(earlier.Blocked)}
}

// Add adds what another pair of hosts has sent.
func (t *Traffic) Add(o Traffic) {
	t.Sent.add(o.Sent)
	t.Delivered.add(o.Delivered)
	t.Lost.add(o.Lost)
	t.Full.add(o.Full)
	t.Blocked.add(o.Blocked)
}
