package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// rooms says which nodes have how much room.
type rooms struct{ free [3]atomic.Int64 }

func (r *rooms) of(id int) func(*Config) {
	return func(c *Config) {
		c.Room = func(need int64) error {
			if free := r.free[id].Load(); free <= need {
				return fmt.Errorf("%w: need %d, have %d", artifact.ErrNoSpace, need, free)
			}
			return nil
		}
	}
}

// FAULTS 33: a mirror without room asks nobody for what it could not keep, says what is the matter, serves what it holds, and
// goes on by itself when there is room.
func TestNoRoom(t *testing.T) {
	var r rooms
	r.free[0].Store(1 << 30)
	g := newRig(t, r.of(0))
	other := g.add("example.com/other@v1.0.0\n-- go.mod --\nmodule example.com/other\n-- a.go --\npackage a\n")
	zip := g.want(zipPath, 200, "PK").body
	asked := g.up.Count("/example.com/other/@v/v1.0.0.zip")
	r.free[0].Store(0)
	for _, kind := range []string{"info", "mod", "zip"} {
		g.want("/example.com/other/@v/v1.0.0."+kind, 503, "no space: need 0, have 0")
	}
	if n := g.up.Count("/example.com/other/@v/v1.0.0.zip"); n != asked {
		t.Error("the upstream is asked for what there is no room for")
	}
	if got := g.want(zipPath, 200, "").body; got != zip {
		t.Error("what is stored is served with other bytes")
	}
	r.free[0].Store(100) // some, and the upstream says that it is more
	g.want("/example.com/other/@v/v1.0.0.zip", 503, fmt.Sprintf("no space: need %d, have 100", len(g.up.Artifact(other, artifact.Zip))))
	r.free[0].Store(1 << 30)
	g.want("/example.com/other/@v/v1.0.0.zip", 200, "PK")
}

// A node without room takes no copy from another one, and says so before it has read a byte; nor is it the one that fetches.
func TestNoRoomForPeers(t *testing.T) {
	var r rooms
	c := newCluster(t, 1, r.of(0))
	n, man, zip := c.nodes[0], c.manifestOf(helloV), c.up.Artifact(helloV, artifact.Zip)
	for _, free := range []int64{0, int64(len(zip)) - 1} {
		r.free[0].Store(free)
		err := n.Admit(t.Context(), man, artifact.Zip, artifact.RefOf(zip), iotest.ErrReader(errors.New("read")), "node9")
		if !errors.Is(err, artifact.ErrNoSpace) {
			t.Errorf("Admit with %d bytes free = %v", free, err)
		}
	}
	r.free[0].Store(0)
	if _, err := n.Bring(t.Context(), helloV, artifact.Zip); !errors.Is(travel(err), artifact.ErrNoSpace) {
		t.Errorf("Bring = %v", err)
	}
	r.free[0].Store(1 << 30)
	if err := n.Admit(t.Context(), man, artifact.Zip, artifact.RefOf(zip), bytes.NewReader(zip), "node9"); err != nil {
		t.Errorf("Admit with room: %v", err)
	}
}

// What a client asks a node without room for, another one brings in; its bytes are verified, sent, and not kept. What is too
// large for that, or is not what it should be, is not sent.
func TestPassingBytes(t *testing.T) {
	var r rooms
	c := newCluster(t, 2, func(cf *Config) { cf.HotBytes = 1 })
	n := c.nodes[1]
	n.options = append(n.options, r.of(1))
	n.boot()
	large := c.up.Add("example.com/large@v1.0.0\n-- go.mod --\nmodule example.com/large\n-- a.go --\npackage a\n")
	zipSum, modSum := c.up.Sums(large)
	c.sums.set(large, zipSum, modSum)
	zip := string(c.up.Artifact(helloV, artifact.Zip))
	c.set(func() { c.enough = 0 }) // node 0 alone is enough
	for range 2 {
		if got := n.want(zipPath, 200, "PK"); got.body != zip || !strings.Contains(got.header.Get("Cache-Control"), "immutable") {
			t.Errorf("%d bytes, %v; want the %d that are committed", len(got.body), got.header, len(zip))
		}
	}
	ref := n.zipRef()
	if n.store.Has(ref) {
		t.Error("the zip was kept")
	}
	if got := n.want(zipPath, 206, "PK", func(r *http.Request) { r.Header.Set("Range", "bytes=0-1") }); got.body != "PK" {
		t.Errorf("a range is %q", got.body)
	}
	c.set(func() {
		c.tamper = func(_ int, body io.Reader) io.Reader { return io.MultiReader(strings.NewReader("x"), body) }
	})
	if got := n.get(zipPath); got.status == 200 || strings.Contains(got.body, "PK\x03\x04") {
		t.Errorf("wrong bytes of a peer: %d %q", got.status, got.body)
	}
	c.set(func() { c.tamper = nil })
	r.free[1].Store(1 << 30)
	n.want(zipPath, 200, "PK")
	if !n.store.Has(ref) {
		t.Error("with room the zip is not kept")
	}
}

// What others commit cannot arrive at a node whose catalog finds no room even for that: its clients are told at once.
func TestStarved(t *testing.T) {
	var full atomic.Bool
	c := newCluster(t, 2, func(cf *Config) {
		cf.Starved = func() error {
			if full.Load() {
				return fmt.Errorf("append to the log: %w", artifact.ErrNoSpace)
			}
			return nil
		}
	})
	n := c.nodes[1]
	c.set(func() {
		n.paused = true
		c.before = func(int, artifact.Publication) { full.Store(true) }
	})
	begin := time.Now()
	n.want(zipPath, 503, "append to the log: no space")
	if took := time.Since(begin); took > catalogWait/2 {
		t.Errorf("it took %v", took)
	}
	full.Store(false)
	n.resume()
	n.want(zipPath, 200, "PK")
}

// Who waits for something that would have to be written is told when writing ends, whatever hangs.
func TestNobodyWaitsForADeadDisk(t *testing.T) {
	c := newCluster(t, 2)
	n := c.nodes[0]
	gate := make(chan struct{})
	defer close(gate)
	asked := make(chan bool, 9)
	c.set(func() {
		c.before = func(int, artifact.Publication) { asked <- true; <-gate }
	})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { n.want(zipPath, 503, "input/output error") })
	}
	bring := make(chan error, 1)
	all.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := n.Bring(ctx, helloV, artifact.Zip)
		bring <- err
	})
	<-asked // one is at its last step, which does not end
	n.store.Fault("fsync", syscall.EIO)
	all.Wait()
	if err := <-bring; !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Bring = %v", err)
	}
	n.want("/example.com/new/@v/v1.0.0.mod", 503, "input/output error")
	if _, err := n.Bring(t.Context(), module.Version{Path: "example.com/new", Version: "v1.0.0"}, artifact.Mod); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Bring of something else = %v", err)
	}
}

// A mirror whose work hangs in the disk can be closed all the same.
func TestCloseWhileTheDiskHangs(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	gate, hangs := make(chan struct{}), make(chan struct{}, 1)
	t.Cleanup(func() { close(gate) }) // before the mirror of the test is closed again
	c.set(func() { c.before = func(int, artifact.Publication) { hangs <- struct{}{}; <-gate } })
	go func() { _, _ = n.Bring(context.WithoutCancel(t.Context()), helloV, artifact.Zip) }()
	<-hangs
	n.store.Fault("fsync", syscall.EIO)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- n.Close(ctx) }()
	select {
	case err := <-closed:
		if err == nil || !strings.Contains(err.Error(), "the disk hangs") {
			t.Errorf("Close = %v", err)
		}
	case <-time.After(lingering / 2):
		t.Error("Close waits for what hangs")
	}
}
