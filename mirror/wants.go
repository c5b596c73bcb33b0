package mirror

import (
	pq "container/heap"
	"time"

	"modmirror/mirror/artifact"
)

// wants is what a follower knows to be missing, in two orders: by the place of the change, which the watermark is, and by the time
// of the next try. Nothing that happens once for a blob costs more than the logarithm of their number: of 65,000 that nobody has, a
// look at each with every blob that comes would take all of a processor.
type wants struct {
	byPlace placeHeap // all, and some that are here by now
	byTime  timeHeap  // those that no pull is under way for
	of      map[artifact.Ref][]*missing
	bytes   int64
	count   int
}

// add takes up a blob that is not in it.
func (w *wants) add(b *missing) {
	if w.of == nil {
		w.of = map[artifact.Ref][]*missing{}
	}
	w.of[b.ref] = append(w.of[b.ref], b)
	w.count++
	w.bytes += b.ref.Size
	pq.Push(&w.byPlace, b)
	pq.Push(&w.byTime, b)
}

// known returns the blobs with these bytes: a go.mod may be that of two versions.
func (w *wants) known(r artifact.Ref) []*missing { return w.of[r] }

// first returns the one whose change came first, nil if there is none.
func (w *wants) first() *missing {
	for len(w.byPlace) > 0 && w.byPlace[0].here {
		pq.Pop(&w.byPlace)
	}
	if len(w.byPlace) == 0 {
		return nil
	}
	return w.byPlace[0]
}

// due returns when the next one may be tried; ok is false if there is none.
func (w *wants) due() (at time.Time, ok bool) {
	if len(w.byTime) == 0 {
		return at, false
	}
	return w.byTime[0].at, true
}

// take returns the next one to be tried, nil if none is due; it must be put back, or done with.
func (w *wants) take(now time.Time) *missing {
	if at, ok := w.due(); !ok || now.Before(at) {
		return nil
	}
	return pq.Pop(&w.byTime).(*missing)
}

// putBack has one that was taken tried again, at its time.
func (w *wants) putBack(b *missing) { pq.Push(&w.byTime, b) }

// done forgets one that was taken.
func (w *wants) done(b *missing) {
	b.here = true
	w.count--
	w.bytes -= b.ref.Size
	same := w.of[b.ref]
	for i, o := range same {
		if o == b {
			same = append(same[:i], same[i+1:]...)
			break
		}
	}
	if len(same) == 0 {
		delete(w.of, b.ref)
		return
	}
	w.of[b.ref] = same
}

// placeHeap is ordered by the place of the change.
type placeHeap []*missing

func (h placeHeap) Len() int           { return len(h) }
func (h placeHeap) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h placeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *placeHeap) Push(x any)        { *h = append(*h, x.(*missing)) }
func (h *placeHeap) Pop() any          { return pop((*[]*missing)(h)) }

// timeHeap is ordered by the time of the next try, then by the place.
type timeHeap []*missing

func (h timeHeap) Len() int { return len(h) }
func (h timeHeap) Less(i, j int) bool {
	if c := h[i].at.Compare(h[j].at); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}
func (h timeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *timeHeap) Push(x any)   { *h = append(*h, x.(*missing)) }
func (h *timeHeap) Pop() any     { return pop((*[]*missing)(h)) }

// pop removes the last.
func pop(h *[]*missing) *missing {
	last := len(*h) - 1
	b := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return b
}
