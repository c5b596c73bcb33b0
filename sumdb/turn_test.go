package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// ownerNode is a node as it answers others whose turn it is not.
type ownerNode struct {
	*DB
	say   func(ctx context.Context) ([]byte, error) // what it says instead; nil: what it finds
	asked int
}

func (o *ownerNode) String() string { return "the owner" }

func (o *ownerNode) Get(ctx context.Context, path string, _ int64) ([]byte, error) {
	o.asked++
	if o.say != nil {
		return o.say(ctx)
	}
	w := httptest.NewRecorder()
	o.ServeOwner(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx))
	switch w.Code {
	case http.StatusOK:
		return w.Body.Bytes(), nil
	case http.StatusNotFound:
		return nil, fs.ErrNotExist
	}
	return nil, fmt.Errorf("%d %s: %w", w.Code, w.Body, artifact.ErrUnavailable)
}

// newTurn returns a lab and the owner of everything that is looked up there, which has the same database and catalog.
func newTurn(t *testing.T) (*lab, *ownerNode) {
	o := &ownerNode{}
	l := newLab(t, 300, func(c *Config) { c.Owner = func(module.Version) Source { return o } })
	o.DB = open(t, Config{Key: l.src.Key(), Catalog: l.cat, Direct: l.src, Owner: func(module.Version) Source {
		t.Error("the owner asks for an owner")
		return nil
	}})
	return l, o
}

func lookupPath(m module.Version) string { return "/lookup/" + m.Path + "@" + m.Version }

// What a client looks up the owner finds; what is known is not asked of it again, and neither is what an artifact needs.
func TestOwnerLooksUp(t *testing.T) {
	l, o := newTurn(t)
	l.add(hello)
	for range 3 {
		if w := get(t, l, lookupPath(hello)); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), hello.Path) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if n := l.src.Count("lookup"); n != 1 || o.asked != 1 {
		t.Errorf("%d lookups, %d of the owner", n, o.asked)
	}
	nothing := mv("example.com/nothing@v1.0.0")
	for range 3 {
		if w := get(t, l, lookupPath(nothing)); w.Code != http.StatusNotFound {
			t.Errorf("what does not exist: %d %s", w.Code, w.Body)
		}
	}
	if n := l.src.Count("lookup"); n != 2 || o.asked != 2 {
		t.Errorf("%d lookups, %d of the owner", n, o.asked)
	}
	m := mv("example.com/m@v1.0.0")
	l.add(m)
	if want(t, l.DB, m); o.asked != 2 {
		t.Error("the owner is asked for the record of an artifact")
	}
}

// Whatever an owner says but the truth, and if it says nothing, this node finds out by itself; and a failed check is not the
// absence of anything.
func TestOwnerIsNotBelieved(t *testing.T) {
	other := sumdbtest.New("sum.example.com")
	other.Grow(300)
	add(other, hello)
	lookup, err := other.Get(t.Context(), lookupPath(hello), maxLookup)
	if err != nil {
		t.Fatal(err)
	}
	saying := func(b []byte, err error) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return b, err }
	}
	for _, test := range []struct {
		name   string
		say    func(context.Context) ([]byte, error)
		status int // if the database does not know it
	}{
		{"rubbish", saying([]byte("<html>log in</html>"), nil), http.StatusBadGateway},
		{"another key's word", saying(lookup, nil), http.StatusForbidden},
		{"it cannot say", saying(nil, artifact.ErrUnavailable), http.StatusNotFound},
		{"it fails", saying(nil, errors.New("what is this")), http.StatusNotFound},
		{"a check of its own failed", saying(nil, artifact.ErrRefused), http.StatusForbidden},
		{"it panics", func(context.Context) ([]byte, error) { panic("no") }, http.StatusNotFound},
	} {
		l, o := newTurn(t)
		o.say = test.say
		if w := get(t, l, lookupPath(hello)); w.Code != test.status {
			t.Errorf("%s: absent: %d %s, want %d", test.name, w.Code, w.Body, test.status)
		}
		l.add(mv("example.com/m@v1.0.0"))
		if w := get(t, l, "/lookup/example.com/m@v1.0.0"); w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", test.name, w.Code, w.Body)
		}
		l.src.Lie(sumdbtest.Lies{Down: true})
		if w := get(t, l, "/lookup/example.com/n@v1.0.0"); w.Code == http.StatusOK || w.Code == http.StatusNotFound {
			t.Errorf("%s: down: %d %s", test.name, w.Code, w.Body)
		}
	}
}

// A silent owner costs its patience once a minute, and an answer of this node's own none.
func TestSilentOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, o := newTurn(t)
		l.LookupBudget = 2 * time.Minute
		o.say = func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		for i, wait := range []time.Duration{ownerPatience, 0, 0} {
			m := mv(fmt.Sprintf("example.com/m%d@v1.0.0", i))
			l.add(m)
			took(t, m.String(), wait, func() {
				if w := get(t, l, lookupPath(m)); w.Code != http.StatusOK {
					t.Errorf("%s: %d %s", m, w.Code, w.Body)
				}
			})
		}
		time.Sleep(hangingFor)
		o.say = nil
		l.add(hello)
		if w := get(t, l, lookupPath(hello)); w.Code != http.StatusOK || o.asked != 2 {
			t.Errorf("when it answers again: %d %s, asked %d times", w.Code, w.Body, o.asked)
		}
		l.LookupBudget = ownerPatience
		o.say = func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		m := mv("example.com/short@v1.0.0")
		l.add(m)
		took(t, "with little time", ownerPatience/2, func() {
			if w := get(t, l, lookupPath(m)); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	})
}

// Many clients who look the same up ask the owner once, also if the first of them goes away; and two nodes that take each other
// for the owner both get their answer.
func TestOwnersOfEachOther(t *testing.T) {
	src := sumdbtest.New("sum.example.com")
	src.Grow(300)
	add(src, hello)
	cat := sumdbtest.NewCatalog(src.Key())
	var a, b ownerNode
	owned := func(o *ownerNode) *DB {
		return open(t, Config{Key: src.Key(), Catalog: cat, Direct: src, Owner: func(module.Version) Source { return o }})
	}
	a.DB, b.DB = owned(&b), owned(&a)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, lookupPath(hello), nil).WithContext(gone))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if w := get(t, []*DB{a.DB, b.DB}[i%2], lookupPath(hello)); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	if n := src.Count("lookup"); n > 2 || a.asked > 1 || b.asked > 1 {
		t.Errorf("%d lookups; the one was asked %d times, the other one %d times", n, a.asked, b.asked)
	}
}

// After a fork nothing new is taken, from the owner no more than from a source.
func TestOwnerOfAFrozenDatabase(t *testing.T) {
	l, o := newTurn(t)
	if _, err := l.ensureHead(t.Context()); err != nil {
		t.Fatal(err)
	}
	fork := l.src.Fork(200)
	add(fork, mv("example.com/other@v1.0.0"))
	fork.Grow(150)
	l.add(hello)
	lookup, err := l.src.Get(t.Context(), lookupPath(hello), maxLookup)
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.openHead(fork.Head(fork.Size()))
	if err != nil {
		t.Fatal(err)
	}
	l.src.AnswerAs(fork)
	if err := l.advance(t.Context(), h); err == nil {
		t.Fatal("a fork is taken")
	}
	l.src.AnswerAs(nil)
	o.say = func(context.Context) ([]byte, error) { return lookup, nil }
	if w := get(t, l, lookupPath(hello)); w.Code != http.StatusServiceUnavailable || o.asked != 0 {
		t.Errorf("%d %s, asked %d times", w.Code, w.Body, o.asked)
	}
}
