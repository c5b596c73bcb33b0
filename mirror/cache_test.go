package mirror

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A cache holds what was used last, within both bounds, and its links never break.
func TestCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCache[int](4, 100)
		var order []string // used last comes last
		value, cost := map[string]int{}, map[string]int64{}
		use := func(k string) {
			for i, o := range order {
				if o == k {
					order = append(order[:i:i], order[i+1:]...)
					break
				}
			}
			order = append(order, k)
		}
		drop := func(k string) {
			use(k)
			order = order[:len(order)-1]
			delete(value, k)
			delete(cost, k)
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v, n := fmt.Sprint(rapid.IntRange(0, 7).Draw(t, "key")), rapid.Int().Draw(t, "value"), rapid.Int64Range(0, 120).Draw(t, "cost")
				c.put(k, v, n, 0)
				drop(k)
				if n+1 > 100 {
					return
				}
				use(k)
				value[k], cost[k] = v, n+1
				for total := sum(cost); total > 100 || len(order) > 4; total = sum(cost) {
					drop(order[0])
				}
			},
			"get": func(t *rapid.T) {
				k := fmt.Sprint(rapid.IntRange(0, 7).Draw(t, "key"))
				v, ok := c.get(k)
				if want, held := value[k]; ok != held || v != want {
					t.Fatalf("get(%s) = %d, %v, want %d, %v", k, v, ok, want, held)
				}
				if ok {
					use(k)
				}
			},
			"drop": func(t *rapid.T) {
				k := fmt.Sprint(rapid.IntRange(0, 7).Draw(t, "key"))
				c.drop(k)
				drop(k)
			},
			"": func(t *rapid.T) {
				if n, b := c.size(); n != len(value) || b != sum(cost) {
					t.Fatalf("size = %d, %d, want %d, %d", n, b, len(value), sum(cost))
				}
				i := len(order)
				for e := c.first; e != nil; e = e.next {
					if i--; e.key != order[i] {
						t.Fatalf("order is wrong at %d", i)
					}
				}
				if i != 0 {
					t.Fatalf("%d entries are not linked", i)
				}
			},
		})
	})
}

func sum(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

func TestCacheExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[int](4, 100)
		c.put("a", 1, 0, time.Second)
		c.put("b", 2, 0, 0)
		time.Sleep(time.Second - 1)
		if _, ok := c.get("a"); !ok {
			t.Error("gone too early")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := c.get("a"); ok {
			t.Error("still there")
		}
		if v, ok := c.get("b"); !ok || v != 2 {
			t.Error("what does not expire is gone")
		}
		if n, b := c.size(); n != 1 || b != 1 {
			t.Errorf("size = %d, %d", n, b)
		}
	})
}
