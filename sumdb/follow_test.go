package sumdb

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// watched counts how a feed is read.
type watched struct {
	*sumdbtest.Replica
	reads atomic.Int64
	from  atomic.Int64 // of the last read
	end   atomic.Int64 // if not 0: what Next says
}

func (w *watched) Records(ctx context.Context, db string, from int64) iter.Seq2[artifact.Change, error] {
	w.reads.Add(1)
	w.from.Store(from)
	return w.Replica.Records(ctx, db, from)
}

func (w *watched) Next(ctx context.Context) (int64, error) {
	if n := w.end.Load(); n != 0 {
		return n, nil
	}
	return w.Replica.Next(ctx)
}

// Once a node has followed, it alone answers for every committed record, to a client without a tree and to one with any
// committed head, although others looked all up; and it got all of it from the other node.
func TestFollower(t *testing.T) {
	c := newCluster(t, 1, 60000, nil)
	var ms []module.Version
	for i := range 24 {
		c.src.Grow(450 * (i % 3))
		ms = append(ms, c.bury(t, c.nodes[0], fmt.Sprint("m", i)))
	}
	c.passes(t)
	p := c.join(t, nil)
	p.replica.Apply(1 << 30)
	before := c.src.Count("")
	c.passes(t)
	if n := c.src.Count("") - before; n != 0 {
		t.Errorf("the source was asked %d times", n)
	}
	if s := p.progress.status(); s.Err != nil || s.Gaps != 0 {
		t.Errorf("%+v", s)
	}
	c.nodes[0].down.Store(true)
	alone := open(t, Config{Key: p.Key, Catalog: p.replica, Tiles: openTiles(t, p.Tiles.root.Name()), Offline: true})
	heads := [][]byte{nil}
	for _, n := range c.cat.Commits() {
		heads = append(heads, c.src.Head(n))
	}
	for _, h := range heads {
		cl := newGoClient(strict(t, alone), p.Key, h)
		for _, m := range ms {
			wantLines(t, cl, m)
		}
	}
}

// What was held in the shape of one head is held in that of the next, also of those that this node never saw as the newest.
func TestFollowerFollowsHeads(t *testing.T) {
	c := newCluster(t, 2, 1000, nil)
	var ms []module.Version
	step := func() {
		for i := range 5 {
			c.src.Grow(137)
			ms = append(ms, c.bury(t, c.nodes[0], fmt.Sprint("m", len(ms), "-", i)))
		}
		c.nodes[1].replica.Apply(1 << 30)
		c.passes(t)
	}
	for range 4 {
		step()
	}
	p := c.nodes[1]
	alone := open(t, Config{Key: p.Key, Catalog: p.replica, Tiles: openTiles(t, p.Tiles.root.Name()), Offline: true})
	for _, n := range c.cat.Commits() {
		h, err := alone.committedBelow(t.Context(), n+1)
		if err != nil {
			t.Fatal(err)
		}
		now, _ := alone.committed(t.Context())
		if err := alone.holdEdge(t.Context(), h.Tree, now.Tree, false); err != nil {
			t.Error(err)
		}
	}
	for _, m := range ms {
		r, err := p.replica.Record(t.Context(), p.Name(), m)
		if err != nil {
			t.Fatal(err)
		}
		now, _ := alone.committed(t.Context())
		if err := CheckOffline(alone.Tiles, now.Tree, r); err != nil {
			t.Error(err)
		}
	}
}

// follows returns a cluster of two nodes with some records, whose second node reads its feed through w.
func follows(t *testing.T) (c *cluster, p *peerNode, w *watched) {
	t.Helper()
	c = newCluster(t, 1, 3000, nil)
	for i := range 10 {
		c.log(t, c.nodes[0], fmt.Sprint("m", i))
		c.src.Grow(300)
	}
	p = c.join(t, func(conf *Config) {
		w = &watched{Replica: conf.Changes.(*sumdbtest.Replica)}
		conf.Changes = w
	})
	p.replica.Apply(1 << 30)
	return c, p, w
}

// The cursor survives a restart. One that is damaged, or speaks of another past, is not believed.
func TestCursor(t *testing.T) {
	c, p, w := follows(t)
	f := p.newFollower()
	if err := f.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.save(true)
	again := func() *follower {
		t.Helper()
		conf := p.Config
		conf.Tiles = openTiles(t, p.Tiles.root.Name())
		f := open(t, conf).newFollower()
		if err := f.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return f
	}
	reads := w.reads.Load()
	if f := again(); f.next != 10 || w.from.Load() != 10 || w.reads.Load() != reads+1 {
		t.Errorf("next %d, read from %d, %d times", f.next, w.from.Load(), w.reads.Load()-reads)
	}
	good, err := p.Tiles.root.ReadFile(cursorFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if c, err := parseCursor(string(bad)); err == nil || c != (cursor{}) {
			t.Errorf("byte %d: %+v, %v", i, c, err)
		}
	}
	if err := p.Tiles.root.WriteFile(cursorFile, good[:40], 0o666); err != nil {
		t.Fatal(err)
	}
	if again(); w.from.Load() != 10 || w.reads.Load() != reads+3 { // from 0, and once more at the end
		t.Errorf("damaged: read from %d, %d times", w.from.Load(), w.reads.Load()-reads)
	}

	w.end.Store(4) // another past, with fewer changes
	if err := f.pass(t.Context()); !errors.Is(err, artifact.ErrUnavailable) || f.next != 0 {
		t.Errorf("another past: next %d, %v", f.next, err)
	}
	w.end.Store(0)
	if cur, err := p.Tiles.cursor(); err != nil || cur.next != 0 {
		t.Errorf("cursor %+v, %v", cur, err)
	}
	other := c.src.Fork(100)
	other.Grow(200)
	f.next, f.tree = 10, tlog.Tree{N: 200, Hash: other.Root(150)}
	if err := f.pass(t.Context()); err != nil || f.next != 10 || f.tree.N == 200 {
		t.Errorf("another tree: %d, %v", f.tree.N, err)
	}
}

// A full disk or a failed fsync does not move the cursor past what is durable, and is no panic.
func TestCursorIsDurable(t *testing.T) {
	_, p, _ := follows(t)
	p.Tiles.latch(errors.New("fsync: injected"))
	f := p.newFollower()
	if err := f.pass(t.Context()); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("pass: %v", err)
	}
	f.save(true)
	if _, err := p.Tiles.root.ReadFile(cursorFile); err == nil || f.next != 0 {
		t.Errorf("moved to %d", f.next)
	}
}

// A record whose tiles cannot be had delays no other. It counts as behind, also after a restart, until it is held.
func TestFollowerGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, _ := follows(t)
		gone := c.nodes[0]
		lie := func(path string, code int, b []byte) []byte {
			if strings.HasPrefix(path, "/tile/8/0/012") { // record m1
				return b[:len(b)-1]
			}
			return nil
		}
		gone.edit.Store(&lie)
		c.src.Lie(sumdbtest.Lies{Down: true})
		f := p.newFollower()
		if err := f.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.save(true); len(f.records) != 1 || f.next != 10 || f.saved.next != 1 {
			t.Errorf("%d gaps, next %d, saved %d", len(f.records), f.next, f.saved.next)
		}
		p.progress.set(f, nil)
		if s, _ := p.Status(t.Context()); s.Follow.Behind < 1 || s.Follow.Gaps < 1 {
			t.Errorf("%+v", s.Follow)
		}
		gone.edit.Store(nil)
		time.Sleep(2 * time.Minute) // until then the peer is asked last, and it is not tried again
		if err := f.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.save(true); len(f.records)+len(f.heads) != 0 || f.saved.next != 10 {
			t.Errorf("%d gaps, saved %d", len(f.records), f.saved.next)
		}
		p.progress.set(f, nil)
		if s, _ := p.Status(t.Context()); s.Follow.Behind != 0 {
			t.Errorf("%+v", s.Follow)
		}
	})
}

// A follower looks when it is woken, seldom else, and not in a hurry while it fails.
func TestFollowerIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, w := follows(t)
		background(t, p.DB)
		time.Sleep(time.Second)
		if s, err := p.Status(t.Context()); err != nil || s.Follow.Behind != 0 || s.Follow.Size == 0 {
			t.Errorf("%+v, %v", s.Follow, err)
		}
		before := w.reads.Load()
		time.Sleep(time.Hour)
		if n := w.reads.Load() - before; n > 3600/10+1 || n < 300 {
			t.Errorf("read %d times in an hour", n)
		}
		c.log(t, c.nodes[0], "newer")
		p.replica.Apply(1 << 30)
		time.Sleep(time.Second)
		if s, _ := p.Status(t.Context()); s.Follow.Behind != 0 || w.from.Load() != 11 {
			t.Errorf("not woken: %+v, from %d", s.Follow, w.from.Load())
		}
		c.src.Grow(3000)
		c.log(t, c.nodes[0], "newest")
		c.src.Lie(sumdbtest.Lies{Down: true})
		c.nodes[0].down.Store(true)
		p.replica.Apply(1 << 30)
		tiles := c.src.Count("tile")
		time.Sleep(time.Hour)
		if s, _ := p.Status(t.Context()); s.Follow.Err == nil || c.src.Count("tile")-tiles > 300 {
			t.Errorf("%+v, asked for %d tiles", s.Follow, c.src.Count("tile")-tiles)
		}
		c.nodes[0].down.Store(false)
		time.Sleep(3 * time.Minute)
		if s, _ := p.Status(t.Context()); s.Follow.Err != nil || s.Follow.Behind != 0 {
			t.Errorf("%+v", s.Follow)
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	f.Add(cursor{next: 5, tree: tlog.Tree{N: 7}}.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := parseCursor(s); err == nil && c.String() != s {
			t.Errorf("parseCursor(%q).String() = %q", s, c.String())
		}
	})
}
