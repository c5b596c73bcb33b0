package mirror

import (
	"strings"
	"sync"
	"time"
)

// cache keeps what was used last, up to a number of bytes: of values, keys and its own bookkeeping. What has expired makes
// room as soon as the cache is used. It is safe for many goroutines.
type cache[V any] struct {
	maxBytes int64

	mu    sync.Mutex // guards everything below and the links of the entries
	byKey map[string]*cached[V]
	first *cached[V] // used last
	last  *cached[V] // evicted next
	bytes int64
}

type cached[V any] struct {
	key        string
	value      V
	cost       int64
	until      time.Time // zero: for ever
	prev, next *cached[V]
}

// entryCost is about what an entry takes besides its key and what its value points to: a cached, and its place in the map,
// a part of which is empty.
const entryCost = 160

func newCache[V any](maxBytes int64) *cache[V] {
	return &cache[V]{maxBytes: maxBytes, byKey: make(map[string]*cached[V])}
}

// get returns the value of key, if it is held and has not expired.
func (c *cache[V]) get(key string) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire()
	e := c.byKey[key]
	if e == nil {
		return v, false
	}
	if e.expired() {
		c.remove(e)
		return v, false
	}
	if c.first != e {
		c.unlink(e)
		c.pushFront(e)
	}
	return e.value, true
}

// put keeps v under key, for ever if ttl is zero. cost is what it points to, in bytes. What is larger than the whole cache
// is not kept.
func (c *cache[V]) put(key string, v V, cost int64, ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.byKey[key]; old != nil {
		c.remove(old)
	}
	c.expire()
	cost += entryCost + int64(len(key))
	if cost > c.maxBytes {
		return
	}
	key = strings.Clone(key) // it may be a part of something large, such as the line of a request with a long query
	e := &cached[V]{key: key, value: v, cost: cost}
	if ttl > 0 {
		e.until = time.Now().Add(ttl)
	}
	c.byKey[key] = e
	c.bytes += cost
	c.pushFront(e)
	for c.bytes > c.maxBytes {
		c.remove(c.last)
	}
}

// expire removes what has expired among the entries that nobody has used for longest.
func (c *cache[V]) expire() {
	for c.last != nil && c.last.expired() {
		c.remove(c.last)
	}
}

func (e *cached[V]) expired() bool { return !e.until.IsZero() && !time.Now().Before(e.until) }

// drop forgets key.
func (c *cache[V]) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		c.remove(e)
	}
}

// size returns the number of entries and their bytes.
func (c *cache[V]) size() (count int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byKey), c.bytes
}

func (c *cache[V]) remove(e *cached[V]) {
	c.unlink(e)
	delete(c.byKey, e.key)
	c.bytes -= e.cost
}

func (c *cache[V]) pushFront(e *cached[V]) {
	e.prev, e.next = nil, c.first
	if c.first != nil {
		c.first.prev = e
	} else {
		c.last = e
	}
	c.first = e
}

func (c *cache[V]) unlink(e *cached[V]) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		c.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		c.last = e.prev
	}
	e.prev, e.next = nil, nil
}
