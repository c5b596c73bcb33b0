package mirror

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// Whatever is done with it, wants knows the first by place and hands out what is due, the earliest first.
func TestWants(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var w wants
	all, out := map[*missing]bool{}, map[*missing]bool{}
	check := func(step int) {
		t.Helper()
		var first *missing
		var bytes int64
		for b := range all {
			bytes += b.ref.Size
			if first == nil || b.seq < first.seq {
				first = b
			}
		}
		if got := w.first(); got != first || w.count != len(all) || w.bytes != bytes {
			t.Fatalf("step %d: first %v, count %d, bytes %d; want %v, %d, %d", step, got, w.count, w.bytes, first, len(all), bytes)
		}
	}
	for step := range 5000 {
		switch r.IntN(4) {
		case 0:
			b := &missing{seq: int64(step), ref: artifact.RefOf(fmt.Append(nil, r.IntN(50))), at: now.Add(time.Duration(r.IntN(10)) * time.Second)}
			w.add(b)
			all[b] = true
			if len(w.known(b.ref)) == 0 {
				t.Fatal("what is added is not known")
			}
		case 1, 2:
			at := now.Add(time.Duration(r.IntN(10)) * time.Second)
			b := w.take(at)
			var want *missing
			for o := range all {
				if !out[o] && !o.at.After(at) && (want == nil || o.at.Before(want.at) || o.at.Equal(want.at) && o.seq < want.seq) {
					want = o
				}
			}
			if b != want {
				t.Fatalf("step %d: take = %+v, want %+v", step, b, want)
			}
			if b != nil {
				out[b] = true
			}
		case 3:
			for b := range out {
				delete(out, b)
				if r.IntN(2) == 0 {
					b.at = now.Add(time.Duration(r.IntN(20)) * time.Second)
					w.putBack(b)
				} else {
					w.done(b)
					delete(all, b)
				}
				break
			}
		}
		check(step)
	}
}

// BenchmarkWants is what a blob costs that comes while 60,000 are missing that nobody has.
func BenchmarkWants(b *testing.B) {
	var w wants
	later := time.Now().Add(time.Hour)
	for i := range 60_000 {
		w.add(&missing{seq: int64(i), ref: artifact.Ref{Size: int64(i)}, at: later})
	}
	now := time.Now()
	for i := 0; b.Loop(); i++ {
		w.add(&missing{seq: int64(100_000 + i), ref: artifact.Ref{Size: int64(100_000 + i)}, at: now})
		if m := w.take(now); m != nil {
			w.done(m)
		}
		w.first()
		w.due()
	}
}
