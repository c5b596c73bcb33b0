package mirror

import "sync"

// hurried knows which artifacts are being acquired at a limit, and which ones somebody waits for: whoever joins what was begun for
// later is not held to the limit of that.
type hurried struct {
	mu      sync.Mutex
	waiting map[string]int         // how many wait, by the key of a flight; guarded by mu
	paced   map[string]*Background // what is acquired now; guarded by mu
}

func newHurried() *hurried {
	return &hurried{waiting: make(map[string]int), paced: make(map[string]*Background)}
}

// wait says that somebody waits for what has the key, until done is called.
func (h *hurried) wait(key string) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting[key]++
	h.paced[key].Hurry()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.waiting[key]--; h.waiting[key] == 0 {
			delete(h.waiting, key)
		}
	}
}

// begin says that what has the key is acquired, until end is called. There is one flight of a key at a time.
func (h *hurried) begin(key string) (b *Background, end func()) {
	b = NewBackground()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paced[key] = b
	if h.waiting[key] > 0 {
		b.Hurry()
	}
	return b, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.paced, key)
	}
}
