package sumdb

import (
	"container/list"
	"sync"
)

// cache is a map whose entries cost something and whose total cost is bounded: the least recently used entries go first.
type cache[K comparable, V any] struct {
	max int64

	mu    sync.Mutex
	used  int64               // guarded by mu; never more than max
	items map[K]*list.Element // guarded by mu
	order list.List           // guarded by mu; of *entry[K, V], most recently used first
}

type entry[K comparable, V any] struct {
	key  K
	val  V
	cost int64
}

// entryCost is about what the bookkeeping of one entry takes in memory.
const entryCost = 200

func newCache[K comparable, V any](limit int64) *cache[K, V] {
	return &cache[K, V]{max: limit, items: make(map[K]*list.Element)}
}

func (c *cache[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).val, true
}

// put sets the value of k, which costs cost and the bookkeeping. A value that alone is too large is not kept.
func (c *cache[K, V]) put(k K, v V, cost int64) {
	c.update(k, v, cost, func(V) bool { return true })
}

// update is put, unless k has a value for which replace says no.
func (c *cache[K, V]) update(k K, v V, cost int64, replace func(old V) bool) {
	cost += entryCost
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		if !replace(e.Value.(*entry[K, V]).val) {
			return
		}
		c.drop(e)
	}
	if cost > c.max {
		return
	}
	c.items[k] = c.order.PushFront(&entry[K, V]{k, v, cost})
	c.used += cost
	for c.used > c.max {
		c.drop(c.order.Back())
	}
}

// forget removes k.
func (c *cache[K, V]) forget(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		c.drop(e)
	}
}

// size returns the total cost.
func (c *cache[K, V]) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// drop removes e. The caller holds mu.
func (c *cache[K, V]) drop(e *list.Element) {
	x := c.order.Remove(e).(*entry[K, V])
	delete(c.items, x.key)
	c.used -= x.cost
}
