package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror/artifact"
)

// fill commits so many module versions through node 0, and returns their zips in the order of the log.
func (c *cluster) fill(count int) (refs []artifact.Ref) {
	c.t.Helper()
	for i := range count {
		mv := c.up.Add(fmt.Sprintf("example.com/m%d@v1.0.0\n-- go.mod --\nmodule example.com/m%d\n-- a.go --\npackage a\n", i, i))
		zip, mod := c.up.Sums(mv)
		c.sums.set(mv, zip, mod)
		c.nodes[0].want("/"+mv.Path+"/@v/v1.0.0.zip", 200, "PK")
		refs = append(refs, artifact.RefOf(c.up.Artifact(mv, artifact.Zip)))
	}
	return refs
}

// follow runs Follow in the background; what it returns stops it as the end of the process does.
func (n *node) follow() (stop func()) {
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	m := n.Mirror
	go func() { done <- m.Follow(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	}
}

// until waits for something that Progress tells.
func (n *node) until(ok func(Progress) bool) {
	n.t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok(n.Progress()) {
		select {
		case <-n.moved:
		case <-time.After(20 * time.Millisecond): // for conditions on something else
		case <-deadline:
			n.t.Fatalf("%s stays at %+v\n%s", name(n.id), n.Progress(), n.logs)
		}
	}
}

func (n *node) cursor() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, cursorFile))
	return string(b)
}

// An empty node gets every blob, and goes on with what is committed later.
func TestFollow(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[2] = true })
	refs := c.fill(12)
	c.set(func() { c.down[2] = false })
	n := c.nodes[2]
	if n.store.Has(refs[0]) {
		t.Fatal("the test needs a node without blobs")
	}
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 12 && p.Missing == 0 && p.Bytes == 0 && p.Since.IsZero() })
	for _, ref := range refs {
		if err := n.store.Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	c.nodes[0].want(zipPath, 200, "PK")
	n.until(func(p Progress) bool { return p.Watermark == 13 })
	stop()
	if got := n.cursor(); got != `{"next":13}` {
		t.Errorf("%s: %s", cursorFile, got)
	}
}

// A blob that nobody has holds the watermark and nothing else; the node says what it lacks and since when.
func TestFollowHole(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[2] = true })
	refs := c.fill(8)
	c.set(func() { c.down[2] = false })
	c.nodes[0].lose(refs[3])
	c.nodes[1].lose(refs[3])
	c.up.Down(true) // or it would be fetched from there
	n := c.nodes[2]
	begin := time.Now()
	stop := n.follow()
	hole := func(p Progress) bool {
		return p.Watermark == 3 && p.Looked > 3 && p.Missing == 1 && p.Bytes == refs[3].Size && !p.Since.Before(begin)
	}
	n.until(hole)
	for i, ref := range refs {
		if n.store.Has(ref) != (i != 3) {
			t.Errorf("blob %d: %v", i, n.store.Has(ref))
		}
	}
	stop()
	if got := n.cursor(); got != `{"next":3}` {
		t.Errorf("%s: %s", cursorFile, got)
	}
	// The next process does not forget the hole, and fills it when it can.
	n.boot()
	defer n.follow()()
	n.until(hole)
	mv := helloV
	mv.Path = "example.com/m3"
	zip := c.up.Artifact(mv, artifact.Zip)
	if err := c.nodes[1].Admit(t.Context(), c.manifestOf(mv), artifact.Zip, refs[3], bytes.NewReader(zip), "node9"); err != nil {
		t.Fatal(err)
	}
	n.until(func(p Progress) bool { return p.Watermark == 8 && p.Missing == 0 })
}

// Whatever the cursor's file holds, no blob is skipped, and none is pulled that is here.
func TestFollowRestart(t *testing.T) {
	for _, content := range []string{"", "{", "null", `{"next":-5}`, `{"next":"x"}`, strings.Repeat("9", maxCursor+1), `{"next":2}`, `{"next":4,"node":"of a node before"}`, `{"format":2,"next":4}`, "none"} {
		c := newCluster(t, 3)
		refs := c.fill(4)
		n := c.nodes[2]
		for _, ref := range refs {
			n.lose(ref)
		}
		if content != "none" {
			if err := os.WriteFile(filepath.Join(n.dir, cursorFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := c.fetches(2, 0) + c.fetches(2, 1)
		stop := n.follow()
		n.until(func(p Progress) bool { return p.Watermark == 4 })
		stop()
		want := 4
		if content == `{"next":2}` {
			want = 2
		}
		if got := c.fetches(2, 0) + c.fetches(2, 1) - before; got != want {
			t.Errorf("%.20q: %d pulls, want %d", content, got, want)
		}
		n.boot()
		stop = n.follow()
		n.until(func(p Progress) bool { return p.Watermark == 4 })
		stop()
		if got := c.fetches(2, 0) + c.fetches(2, 1) - before; got != want {
			t.Errorf("%.20q: %d pulls after a restart, want %d", content, got, want)
		}
	}
}

// A new node in the directory of another one reads the blobs that it finds, and pulls those that are damaged, also if it is
// started again before it has come to them. Its own it does not read again.
func TestFollowDoubts(t *testing.T) {
	for _, begin := range []string{`{"next":4,"node":"of a node before"}`, `{"next":0,"doubt":true}`} {
		c := newCluster(t, 3)
		refs := c.fill(4)
		n := c.nodes[2]
		stop := n.follow()
		n.until(func(p Progress) bool { return p.Watermark == 4 })
		stop()
		before := c.fetches(2, 0) + c.fetches(2, 1)
		n.boot() // a process that has read nothing yet
		n.rot(refs[1])
		if err := os.WriteFile(filepath.Join(n.dir, cursorFile), []byte(begin), 0o600); err != nil {
			t.Fatal(err)
		}
		stop = n.follow()
		n.until(func(p Progress) bool { return p.Watermark == 4 })
		stop()
		if got := c.fetches(2, 0) + c.fetches(2, 1) - before; got != 1 {
			t.Errorf("%s: %d pulls, want that of the damaged one", begin, got)
		}
		if err := n.store.Verify(t.Context(), refs[1]); err != nil {
			t.Error(err)
		}
		if got := n.cursor(); !strings.Contains(got, `"doubt":true`) {
			t.Errorf("the cursor is %s", got)
		}
	}
}

// A process that dies with pulls under way has a cursor from before them.
func TestFollowCrash(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[2] = true })
	refs := c.fill(9)
	c.set(func() { c.down[2] = false })
	n := c.nodes[2]
	gate := make(chan struct{})
	var begun, most atomic.Int64
	c.set(func() {
		c.tamper = func(from int, body io.Reader) io.Reader {
			now := begun.Add(1)
			if now <= 2 {
				return body
			}
			most.Store(max(most.Load(), now-2))
			return io.MultiReader(body, &waiting{gate}) // all of it came, and its end does not
		}
	})
	stop := n.follow()
	n.until(func(p Progress) bool { return begun.Load() == 6 && p.Missing == 7 })
	if most.Load() != followPulls {
		t.Errorf("%d pulls at a time", most.Load())
	}
	stop()
	close(gate)
	for _, ref := range refs[:n.Progress().Watermark] {
		if !n.store.Has(ref) {
			t.Error("the watermark is after a blob that is missing")
		}
	}
	if got, want := n.cursor(), fmt.Sprintf(`{"next":%d}`, n.Progress().Watermark); got != want && n.Progress().Watermark > 0 {
		t.Errorf("%s: %s, want %s", cursorFile, got, want)
	}
	c.set(func() { c.tamper = nil })
	n.boot()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == 9 })
	for _, ref := range refs {
		if err := n.store.Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
}

// A liar does not hold a follower up, and is named.
func TestFollowLies(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[2] = true })
	c.fill(3)
	c.set(func() {
		c.down[2] = false
		c.tamper = func(from int, body io.Reader) io.Reader {
			if from == 0 {
				return io.MultiReader(strings.NewReader("x"), body)
			}
			return body
		}
	})
	n := c.nodes[2]
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == 3 })
	if got := n.metric("verification_failures_total", "peer"); got != 3 {
		t.Errorf("%v refused", got)
	}
}

// What others publish is in this node's lists as soon as it is followed.
func TestFollowLists(t *testing.T) {
	c := newCluster(t, 2)
	n := c.nodes[1]
	defer n.follow()()
	for range 2 { // the second finds in memory what the log brought while the first was answered
		n.want(helloPath+"list", 200, "v1.0.0\n")
	}
	c.up.Add("example.com/hello@v1.9.0\n-- go.mod --\nmodule example.com/hello\n")
	mv := helloV
	mv.Version = "v1.9.0"
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	c.nodes[0].want(helloPath+"v1.9.0.mod", 200, "")
	n.until(func(p Progress) bool { return p.Watermark == 1 })
	n.want(helloPath+"list", 200, "v1.0.0\nv1.9.0\n")
}

// The follower's pulls give way to clients' pulls, but not for ever, and keep to the limit.
func TestFollowPace(t *testing.T) {
	m := newCluster(t, 1).nodes[0].Mirror
	synctest.Test(t, func(t *testing.T) {
		f := &follower{m: m}
		took := func(n int) time.Duration {
			start := time.Now()
			for range n {
				if err := f.pace(t.Context(), paceStep); err != nil {
					t.Error(err)
				}
			}
			return time.Since(start)
		}
		if d := took(10); d != 0 {
			t.Errorf("waits %v for nothing", d)
		}
		m.clients.Add(1)
		if d := took(2); d != 2*followYield {
			t.Errorf("gives way for %v, want %v", d, 2*followYield)
		}
		go func() {
			time.Sleep(followYield / 2)
			m.clients.Add(-1)
		}()
		if d := took(1); d < followYield/2 || d >= followYield {
			t.Errorf("goes on %v after a client's pull that took %v", d, followYield/2)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		m.clients.Add(1)
		if err := f.pace(ctx, 1); err == nil {
			t.Error("heeds no context")
		}
		m.clients.Add(-1)
		f.limit = newLimit(1 << 20)
		took(followBurst / paceStep)
		if d := took(5 << 20 / paceStep).Round(time.Millisecond); d != 5*time.Second {
			t.Errorf("5 MiB take %v at 1 MiB a second", d)
		}
	})
	// A limit is no reason to begin again and again.
	slow := &follower{m: m, limit: newLimit(1 << 10)}
	if d := slow.budget(artifact.MaxZip); d < followPulls*artifact.MaxZip/(1<<10)*time.Second {
		t.Errorf("%v for the largest zip at 1 KiB a second", d)
	}
	if newLimit(0) != nil {
		t.Error("no limit is one")
	}
}

// A node that holds something else than its cluster answers nothing any more, not even what it has in memory; its pages say why.
func TestStopServing(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	for range 2 { // the second time from memory
		n.want(zipPath, 200, "PK")
	}
	n.StopServing(fmt.Errorf("another root than the others: %w", artifact.ErrDamaged))
	n.StopServing(errors.New("a later reason"))
	for _, path := range []string{zipPath, "/example.com/hello/@v/list", "/sumdb/sum.example.org/latest"} {
		n.want(path, 503, "another root")
	}
	n.want("/healthz", 200, "ok")
}
