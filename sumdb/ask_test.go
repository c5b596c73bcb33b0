package sumdb

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/sumdb/sumdbtest"
)

// took fails the test unless f is done after want.
func took(t *testing.T, what string, want time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d != want {
		t.Errorf("%s took %v, want %v", what, d, want)
	}
}

// twins returns two sources of one history with hello and size records before it, and a DB that asks them in this order.
func twins(t *testing.T, size int) (first, second *sumdbtest.Database, db *DB) {
	first = sumdbtest.New("sum.example.com")
	first.Grow(size)
	add(first, hello)
	second = first.Fork(first.Size())
	db = open(t, Config{Key: first.Key(), Catalog: sumdbtest.NewCatalog(first.Key()), Proxies: []Source{first}, Direct: second})
	return first, second, db
}

// One of two sources says that it speaks for the database, and hangs: everything is found at the other one, and once that
// is known, without delay.
func TestOneSourceHangs(t *testing.T) {
	for _, class := range []string{"latest", "tile", "lookup"} {
		for _, hangs := range []string{"first", "second"} {
			t.Run(class+" of the "+hangs, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					first, second, db := twins(t, 2000)
					late := map[string]time.Duration{}
					if first.Lie(sumdbtest.Lies{Silent: class}); hangs == "second" {
						first.Lie(sumdbtest.Lies{})
						second.Lie(sumdbtest.Lies{Silent: class})
					} else {
						late = map[string]time.Duration{"latest": fetchPatience, "tile": fetchPatience}
					}
					took(t, "the first head", late[class], func() {
						if h, err := db.ensureHead(t.Context()); err != nil || h.N != 2001 {
							t.Errorf("first head: %d, %v", h.N, err)
						}
					})
					took(t, "a tile", 0, func() {
						if w := get(t, db, "/tile/8/0/003"); w.Code != http.StatusOK {
							t.Errorf("tile: %d %s", w.Code, w.Body)
						}
					})
					first.Grow(1000)
					second.Grow(1000)
					time.Sleep(absentFor) // until then the head is believed
					want := time.Duration(0)
					if class == "latest" {
						want = latestBudget
					}
					took(t, "a newer head", want, func() {
						if w := get(t, db, "/tile/8/0/009"); w.Code != http.StatusOK {
							t.Errorf("tile beyond the tree: %d %s", w.Code, w.Body)
						}
					})
					if h, err := db.committed(t.Context()); err != nil || h.N != 3001 {
						t.Errorf("head: %d, %v", h.N, err)
					}
					want = 0
					if class == "lookup" && hangs == "first" {
						want = lookupPatience
					}
					took(t, "a lookup", want, func() {
						if w := get(t, db, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusOK {
							t.Errorf("lookup: %d %s", w.Code, w.Body)
						}
					})
				})
			})
		}
	}
}

// A source that hangs costs one lookup its patience, once a minute, however many there are; and it is first again once it
// answers.
func TestHangingSourceIsAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, db := twins(t, 3)
		if _, err := db.ensureHead(t.Context()); err != nil {
			t.Fatal(err)
		}
		first.Lie(sumdbtest.Lies{Silent: "lookup"})
		n := 0
		lookups := func(many int) (late int) {
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range many {
				m := mv(fmt.Sprintf("example.com/m%d@v1.0.0", n))
				n++
				add(first, m)
				add(second, m)
				wg.Go(func() {
					start := time.Now()
					want(t, db, m)
					mu.Lock()
					defer mu.Unlock()
					if time.Since(start) > 0 {
						late++
					}
				})
			}
			wg.Wait()
			return late
		}
		const many = 2 * maxFetches // more than may be under way to one source
		// They take all places there are at the first source, so that tiles are not to be had there either.
		took(t, "the first lookups", lookupPatience+fetchPatience, func() { lookups(many) })
		for range 3 {
			took(t, "more lookups", 0, func() { lookups(many) })
			time.Sleep(hangingFor)
			if late := lookups(many); late != 1 {
				t.Errorf("after a minute %d lookups were late, want 1", late)
			}
		}
		first.Lie(sumdbtest.Lies{})
		time.Sleep(hangingFor)
		lookups(1)
		before := second.Count("lookup")
		if lookups(many); second.Count("lookup") != before {
			t.Error("the first source answers again, and the second is asked")
		}
	})
}

// slow is a source that takes a while for every lookup.
type slow struct {
	Source
	d time.Duration
}

func (s slow) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if strings.HasPrefix(path, "/lookup/") {
		select {
		case <-time.After(s.d):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Source.Get(ctx, path, limit)
}

// A source that is slow is waited for until the budget is spent, whatever the others do: they do not speak for the
// database, or hang, or fail.
func TestSlowSource(t *testing.T) {
	for name, c := range map[string]struct {
		lies        sumdbtest.Lies
		first, last bool // where the other one stands
		want        time.Duration
	}{
		"the other is unsupported": {sumdbtest.Lies{Unsupported: true}, true, false, 100 * time.Second},
		"the other hangs, first":   {sumdbtest.Lies{Silent: "lookup"}, true, false, 100*time.Second + lookupPatience},
		"the other hangs, last":    {sumdbtest.Lies{Silent: "lookup"}, false, true, 100 * time.Second},
		"the other is down":        {sumdbtest.Lies{Down: true}, false, true, 100 * time.Second},
		"there is no other":        {sumdbtest.Lies{}, false, false, 100 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := sumdbtest.New("sum.example.com")
				add(src, hello)
				other := src.Fork(1)
				other.Lie(c.lies)
				proxies := []Source{slow{src, 100 * time.Second}}
				if c.first {
					proxies = append([]Source{other}, proxies...)
				}
				if c.last {
					proxies = append(proxies, other)
				}
				db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Proxies: proxies})
				took(t, "lookup", c.want, func() { want(t, db, hello) })
			})
		})
	}
}

// The time of a source's patience is cut to its share of the budget, and no source is asked after the budget is spent.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		for n, want := range map[int]time.Duration{1: 10 * time.Second, 2: 6 * time.Second, 4: 3 * time.Second} {
			if d := share(ctx, 10*time.Second, n); d != want {
				t.Errorf("share of one of %d: %v, want %v", n, d, want)
			}
		}
		if d := share(t.Context(), time.Second, 9); d != time.Second {
			t.Errorf("share of endless time: %v", d)
		}
		_, _, db := twins(t, 3)
		cancel()
		for r := range ask(ctx, db, classTile, func(context.Context, *source) (int, error) { return 0, fs.ErrInvalid }) {
			t.Errorf("asked %v", r)
		}
	})
}
