package sumdb

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Without a quorum a new record is verified against a signed head that continues the committed one, and clients can verify
// it. It is marked as uncommitted. When the quorum is back the head is committed, and the record can be published as it is.
func TestNoQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 1000, nil)
		kept := l.seed(t, "kept") // 1001
		background(t, l.DB)
		time.Sleep(time.Second)
		l.cat.SetDown(true)
		var ms []module.Version
		var rs []artifact.Record
		for i := range 3 {
			l.src.Grow(300)
			m := mv(fmt.Sprintf("example.com/new%d@v1.0.0", i))
			l.add(m)
			r := want(t, l.DB, m)
			if err := r.Check(l.src.Root(r.TreeSize)); err != nil || r.TreeSize != l.src.Size() {
				t.Errorf("tree of %d, %v", r.TreeSize, err)
			}
			if _, err := l.Commit(t.Context(), r); !errors.Is(err, artifact.ErrNoQuorum) {
				t.Errorf("Commit: %v", err)
			}
			ms, rs = append(ms, m), append(rs, r)
		}
		cl := newGoClient(l, l.Key, nil)
		for i, m := range append(ms, kept) {
			wantLines(t, cl, m)
			wantLines(t, newGoClient(l, l.Key, nil), m)
			w := get(t, l, "/lookup/"+m.String())
			if new := i < 3; w.Code != http.StatusOK || new != (w.Header().Get("Cache-Control") == cacheNever[0]) || new != (w.Header().Get("Modmirror-Committed") == "false") {
				t.Errorf("%s: %d %v", m, w.Code, w.Header())
			}
		}
		if w := get(t, l, "/latest"); !strings.Contains(w.Body.String(), "tree\n1001\n") {
			t.Errorf("latest: %s", w.Body)
		}
		if s, err := l.Status(t.Context()); err != nil || s.Size != 1001 || s.Ahead != 1904 {
			t.Errorf("%+v, %v", s, err)
		}
		before := l.src.Count("lookup")
		want(t, l.DB, ms[2])
		if l.src.Count("lookup") != before {
			t.Error("looked up again")
		}

		l.cat.SetDown(false)
		time.Sleep(16 * time.Second)
		for i, m := range ms {
			r, err := l.Commit(t.Context(), rs[i])
			if err != nil || r.TreeSize != rs[i].TreeSize {
				t.Errorf("Commit: tree of %d, %v", r.TreeSize, err)
			}
			if err := l.cat.Publish(m, rs[i]); err != nil {
				t.Error(err)
			}
			if w := get(t, l, "/lookup/"+m.String()); w.Code != http.StatusOK || w.Header().Get("Cache-Control") != cacheLookup[0] || w.Header().Get("Modmirror-Committed") != "" {
				t.Errorf("%s: %d %v", m, w.Code, w.Header())
			}
			wantLines(t, cl, m)
		}
		if s, err := l.Status(t.Context()); err != nil || s.Size != 1904 || s.Ahead != 0 || len(l.ahead.all()) != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// Another node moved the head past the one that waits here: that is committed as an older one, for the records with a proof
// against it.
func TestOvertakenHead(t *testing.T) {
	c := newCluster(t, 2, 1000, nil)
	c.log(t, c.nodes[1], "kept")
	c.syncAll()
	p := c.nodes[0]
	p.replica.Cut(true)
	add(c.src, hello)
	r := want(t, p.DB, hello)
	c.src.Grow(500)
	c.log(t, c.nodes[1], "newer")
	p.replica.Cut(false)
	p.replica.Apply(1 << 30)
	if err := p.settleAll(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.replica.Publish(hello, r); err != nil {
		t.Error(err)
	}
	if n := len(p.ahead.all()); n != 0 {
		t.Errorf("%d heads wait", n)
	}
}

// A head that waits, and another one that contradicts it, are a fork, whichever of them is committed, if any.
func TestForkOfWaitingHead(t *testing.T) {
	for _, how := range []string{"looked up here", "looked up here, further on", "committed elsewhere"} {
		t.Run(how, func(t *testing.T) {
			c := newCluster(t, 2, 1000, nil)
			kept := c.log(t, c.nodes[1], "kept")
			c.syncAll()
			c.passes(t)
			fork := c.src.Fork(c.src.Size())
			p := c.nodes[0]
			p.replica.Cut(true)
			add(c.src, hello)
			want(t, p.DB, hello)
			other := mv("example.com/other@v1.0.0")
			if how == "looked up here, further on" {
				fork.Grow(300)
			}
			add(fork, other)
			fork.Grow(500)
			c.src.AnswerAs(fork)
			switch how {
			case "looked up here, further on":
				if _, err := p.Record(t.Context(), other); !errors.Is(err, errFrozen) {
					t.Errorf("Record: %v", err)
				}
			case "looked up here":
				if r, err := p.Record(t.Context(), other); err == nil {
					t.Errorf("Record: %+v", r)
				}
				drain(t, p.DB)
				if _, err := p.Record(t.Context(), other); !errors.Is(err, errFrozen) {
					t.Errorf("Record: %v", err)
				}
			case "committed elsewhere":
				c.publish(t, c.nodes[1], other)
				p.replica.Cut(false)
				p.replica.Apply(1 << 30)
				if err := p.settleAll(t.Context()); !errors.Is(err, errFrozen) {
					t.Errorf("settle: %v", err)
				}
				if _, err := c.cat.Fork(t.Context(), p.Name()); err != nil {
					t.Errorf("evidence: %v", err)
				}
			}
			if err := p.Frozen(t.Context()); !errors.Is(err, errFrozen) {
				t.Errorf("Frozen: %v", err)
			}
			if w := get(t, p, "/lookup/"+kept.String()); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// The head of a first lookup is not believed without a quorum: there is nothing that it continues.
func TestNoQuorumAtFirst(t *testing.T) {
	l := newLab(t, 100, nil)
	l.add(hello)
	l.cat.SetDown(true)
	if _, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Record: %v", err)
	}
	if w := get(t, l, "/lookup/"+hello.String()); w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// The heads that wait are bounded, and a record whose head was dropped gets another proof.
func TestWaitingHeadsAreBounded(t *testing.T) {
	l := newLab(t, 1000, nil)
	l.seed(t, "kept")
	l.cat.SetDown(true)
	var first artifact.Record
	var last int64
	for i := range maxAhead + 5 {
		m := mv(fmt.Sprintf("example.com/new%d@v1.0.0", i))
		l.add(m)
		r := want(t, l.DB, m)
		if i == 0 {
			first = r
		}
		last = r.TreeSize
	}
	if n := len(l.ahead.all()); n != maxAhead {
		t.Errorf("%d heads", n)
	}
	l.cat.SetDown(false)
	if err := l.settleAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h, _ := l.committed(t.Context()); h.N != last {
		t.Errorf("head %d, want %d", h.N, last)
	}
	r, err := l.Commit(t.Context(), first)
	if err != nil || r.TreeSize == first.TreeSize {
		t.Errorf("tree of %d, %v", r.TreeSize, err)
	}
	if err := l.cat.Publish(mv("example.com/new0@v1.0.0"), r); err != nil {
		t.Error(err)
	}
	if _, err := l.Commit(t.Context(), artifact.Record{Database: first.Database, ID: 1 << 30, TreeSize: 1<<30 + 1}); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("record that nobody knows: %v", err)
	}
}

// Three nodes without a quorum, as one URL: new records, and old ones, verify at each of them in turn.
func TestRoundRobinWithoutQuorum(t *testing.T) {
	c := newCluster(t, 3, 60000, nil)
	var ms []module.Version
	for i := range 10 {
		c.src.Grow(rand.N(400))
		ms = append(ms, c.log(t, c.nodes[i%3], fmt.Sprint("m", i)))
	}
	for i, p := range c.nodes {
		p.replica.Apply(6 * i)
		p.replica.Cut(true)
	}
	mixed(t, c, c.src.Key(), 300, func() []module.Version { return ms }, func(i int) {
		if i%5 == 0 {
			c.src.Grow(rand.N(600))
			m := mv(fmt.Sprintf("example.com/new%d@v1.0.0", i))
			add(c.src, m)
			ms = append(ms, m)
		}
	})
	for _, p := range c.nodes {
		p.replica.Cut(false)
	}
	for _, p := range c.nodes {
		p.replica.Apply(1 << 30)
		for range 3 {
			if err := p.settleAll(t.Context()); err != nil && !errors.Is(err, errWaits) {
				t.Error(err)
			}
		}
	}
	mixed(t, c, c.src.Key(), 100, func() []module.Version { return ms }, func(i int) {})
}
