package mirror

import (
	"bytes"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/mod/module"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
)

// A cache holds what was used last, within its bound, and its links never break.
func TestCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 4*entryCost + 100
		c := newCache[int](limit)
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
				k, v, n := fmt.Sprint(rapid.IntRange(0, 7).Draw(t, "key")), rapid.Int().Draw(t, "value"), rapid.Int64Range(0, limit).Draw(t, "cost")
				c.put(k, v, n, 0)
				drop(k)
				n += 1 + entryCost
				if n > limit {
					return
				}
				use(k)
				value[k], cost[k] = v, n
				for sum(cost) > limit {
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
		c := newCache[int](1000)
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
		if n, b := c.size(); n != 1 || b != 1+entryCost {
			t.Errorf("size = %d, %d", n, b)
		}
	})
}

// What has expired makes room, whether anybody asks for it again or not.
func TestCacheDropsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, use := range map[string]func(*cache[int]){
			"put": func(c *cache[int]) { c.put("new", 1, 0, time.Minute) },
			"get": func(c *cache[int]) { c.get("nothing") },
		} {
			c := newCache[int](1 << 20)
			for i := range 100 {
				c.put(fmt.Sprint(i), i, 0, time.Minute)
			}
			c.get("0")
			time.Sleep(time.Minute)
			use(c)
			if n, _ := c.size(); n > 1 {
				t.Errorf("%s: %d entries are kept after their time", name, n)
			}
		}
	})
}

// A key is often a part of a line of a request, which may have a query of 30 KB: that must not stay in memory with it.
func TestCacheOwnsItsKeys(t *testing.T) {
	c := newCache[int](1000)
	line := "GET /key " + strings.Repeat("x", 30<<10)
	key := line[4:8]
	c.put(key, 1, 0, 0)
	for k, e := range c.byKey {
		if unsafe.StringData(k) == unsafe.StringData(key) || unsafe.StringData(e.key) == unsafe.StringData(key) {
			t.Error("the cache holds on to the whole line")
		}
	}
}

// Each cache takes about as much memory as it says, when it is full of the smallest that it is meant for.
func TestCachesTakeWhatTheySay(t *testing.T) {
	const limit = 4 << 20
	b := newBench(t, &lister{}, newMemIndex(), func(c *Config) { c.HotBytes, c.ListBytes = limit, limit })
	info := []byte(`{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}`)
	etag := `"sha256:` + strings.Repeat("0", 64) + `"`
	for name, c := range map[string]struct {
		fill func(i int)
		size func() (int, int64)
	}{
		"hot": {func(i int) {
			a := newAnswer(bytes.Clone(info), typeJSON, immutable, strings.Clone(etag))
			b.hot.put(fmt.Sprintf("/example.com/m%d/@v/v1.0.0.info", i), &hotAnswer{*a, classInfo}, a.cost(), 0)
		}, b.hot.size},
		"lists": {func(i int) {
			versions := artifact.ParseList([]byte("v1.0.0\nv1.1.0\nv1.10.0-rc.1\n"), "example.com/m")
			b.list.keep(fmt.Sprintf("example.com/m%d", i), &seen{versions: versions,
				answer: newAnswer(artifact.FormatList(versions), typeText, shortCached, ""), at: time.Now()})
		}, b.list.memory.size},
		"@latest": {func(i int) {
			b.latest.keep(fmt.Sprintf("example.com/m%d", i), &seen{answer: newAnswer(bytes.Clone(info), typeJSON, shortCached, ""), at: time.Now()})
		}, b.latest.memory.size},
		"not found": {func(i int) {
			mv := module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}
			b.forget(flightKey(artifact.Mod, mv), fmt.Errorf("%s: the upstream: http://127.0.0.1:1/%s: 404 Not Found: not found: %w", mv, mv, fs.ErrNotExist))
		}, b.negative.size},
		"asked for": {func(i int) {
			b.ahead.wanted(module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"})
		}, b.ahead.clients.size},
	} {
		before := heap()
		n := 0
		for last := int64(-1); ; n++ {
			_, bytes := c.size()
			if bytes < last {
				break // something had to go: it is full
			}
			last = bytes
			c.fill(n)
		}
		took := heap() - before
		count, says := c.size()
		if took > says*5/4 || took < says/2 {
			t.Errorf("%s: %d entries take %d bytes, and it says %d", name, count, took, says)
		}
		t.Logf("%s: %d entries of %d bytes; it says %d", name, count, took/int64(count), says/int64(count))
	}
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}
