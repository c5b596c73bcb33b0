package wannet

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

// arrival is a packet by its first byte, and when it arrived.
type arrival struct {
	id byte
	at time.Duration
}

// cross sends packets over a link, so many bytes of each, one after the other with a pause between, and returns what arrives.
func cross(t *testing.T, seed uint64, p Policy, packets, size int, pause time.Duration) (got []arrival, sent Traffic) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		l := newLink(seed, "a", "b")
		l.set(p)
		f := &flow{hand: func(b []byte) error {
			got = append(got, arrival{b[0], time.Since(begin)})
			return nil
		}}
		f.link.Store(l)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.run(ctx, (*flow).arrive); close(done) }()
		b := make([]byte, size)
		for i := range packets {
			b[0] = byte(i)
			f.send(b)
			if pause > 0 {
				time.Sleep(pause) // simulated, as all time here
			}
		}
		time.Sleep(time.Hour)
		cancel()
		<-done
		sent = f.traffic()
	})
	return got, sent
}

func TestPolicy(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		name    string
		policy  Policy
		packets int
		pause   time.Duration
		want    []arrival
	}{
		{"no policy", Policy{}, 3, ms, []arrival{{0, 0}, {1, ms}, {2, 2 * ms}}},
		{"delay", Policy{Delay: 40 * ms}, 2, ms, []arrival{{0, 40 * ms}, {1, 41 * ms}}},
		{"block", Policy{Block: true}, 3, 0, nil},
		{"all lost", Policy{Loss: 1}, 3, 0, nil},
		{"rate", Policy{Rate: 8000, Queue: 10000}, 3, 0, []arrival{{0, 1000 * ms}, {1, 2000 * ms}, {2, 3000 * ms}}}, // 1000 bytes are a second
		{"rate and delay", Policy{Rate: 8000, Queue: 10000, Delay: 40 * ms}, 2, 0, []arrival{{0, 1040 * ms}, {1, 2040 * ms}}},
		{"a queue that is full", Policy{Rate: 8000, Queue: 2000}, 4, 0, []arrival{{0, 1000 * ms}, {1, 2000 * ms}}},
		{"a rate is not saved up", Policy{Rate: 8000, Queue: 10000}, 2, 10 * time.Second, []arrival{{0, 1000 * ms}, {1, 11000 * ms}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := cross(t, 1, tt.policy, tt.packets, 1000, tt.pause); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("arrived %v, want %v", got, tt.want)
			}
		})
	}
}

// The same seed loses the same packets, another one others, and as many as the policy says.
func TestLoss(t *testing.T) {
	p := Policy{Loss: 0.3, Delay: time.Millisecond, Jitter: 200 * time.Millisecond}
	first, sent := cross(t, 1, p, 200, 100, time.Millisecond)
	again, _ := cross(t, 1, p, 200, 100, time.Millisecond)
	other, _ := cross(t, 2, p, 200, 100, time.Millisecond)
	if fmt.Sprint(first) != fmt.Sprint(again) || fmt.Sprint(first) == fmt.Sprint(other) {
		t.Errorf("seed 1 delivers %v, then %v; seed 2 %v", first, again, other)
	}
	if n := len(first); n < 115 || n > 165 || sent.Lost.Packets != int64(200-n) || sent.Delivered.Bytes != int64(100*n) || sent.Sent.Bytes != 20000 {
		t.Errorf("%d of 200 packets arrive with a loss of 0.3, counted as %+v", n, sent)
	}
	overtaken := false
	for i := 1; i < len(first); i++ {
		overtaken = overtaken || first[i].id < first[i-1].id
	}
	for _, a := range first {
		if late := a.at - time.Duration(a.id)*time.Millisecond; late < p.Delay || late > p.Delay+p.Jitter {
			t.Errorf("packet %d is under way for %v", a.id, late)
		}
	}
	if !overtaken {
		t.Errorf("no packet overtakes another: %v", first)
	}
}

// The fate of a packet does not depend on the policy of those before it.
func TestDiceOfEachPacket(t *testing.T) {
	l, o := newLink(1, "a", "b"), newLink(1, "a", "b")
	o.set(Policy{Loss: 0.5})
	f := &flow{hand: func([]byte) error { return nil }}
	for range 50 {
		l.send(f, []byte{1})
		o.send(f, []byte{1})
	}
	l.set(Policy{Loss: 0.5})
	for i := range 50 {
		if a, b := l.send(f, []byte{1}), o.send(f, []byte{1}); a != b {
			t.Fatalf("packet %d: %d and %d", 50+i, a, b)
		}
	}
}

// What is under way is bounded, also without a rate.
func TestHeld(t *testing.T) {
	l := newLink(1, "a", "b")
	l.set(Policy{Delay: time.Hour})
	f := &flow{}
	b := make([]byte, 1<<16)
	for i := range maxHeld / len(b) {
		if got := l.send(f, b); got != underway {
			t.Fatalf("packet %d: %v", i, got)
		}
	}
	if got := l.send(f, b); got != full {
		t.Errorf("one packet too many: %v", got)
	}
}

func TestTraffic(t *testing.T) {
	a := Traffic{Sent: Count{3, 300, 30}, Delivered: Count{2, 200, 20}, Lost: Count{1, 100, 10}}
	b := a
	b.Add(Traffic{Sent: Count{1, 50, 5}, Full: Count{1, 50, 5}})
	if got, want := b.Minus(a), (Traffic{Sent: Count{1, 50, 5}, Full: Count{1, 50, 5}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestPayload(t *testing.T) {
	packet := func(protocol byte, ip, above, size int) []byte {
		b := make([]byte, size)
		b[0], b[9] = byte(4<<4|ip/4), protocol
		if protocol == 6 && len(b) > ip+12 {
			b[ip+12] = byte(above/4) << 4
		}
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want int
	}{
		{"TCP", packet(6, 20, 32, 1500), 1448},
		{"TCP behind options of IP", packet(6, 24, 20, 1500), 1456},
		{"an acknowledgement", packet(6, 20, 32, 52), 0},
		{"a header that is longer than the packet", packet(6, 20, 60, 44), 0},
		{"TCP cut short", packet(6, 20, 20, 30), 0},
		{"UDP", packet(17, 20, 8, 128), 100},
		{"ICMP", packet(1, 20, 8, 84), 0},
		{"no packet", []byte{1}, 0},
	} {
		if got := payload(tt.b); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
