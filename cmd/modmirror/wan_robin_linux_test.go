//go:build wan

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest/wannet"
)

// A client without stickiness asks nodes of all zones in turn, for everything, while new versions come in through all of them and
// the tree head advances. One zone lags, as little gets through to it and nothing at times, and every zone is far from another. Of
// a thousand requests none fails, and every record verifies against the newest head that the client has ever seen.
func TestWANRoundRobin(t *testing.T) {
	s := newWANRun(t, 63)
	s.begin()
	far := s.addHost("traveller", "elsewhere")
	for _, zone := range s.zones {
		s.net.Both("elsewhere", zone, wannet.Policy{Delay: 10 * time.Millisecond})
	}
	d := &drive{s: s, client: far.Client()}
	d.robin.Store(newWANRobin(s, d.client))
	for _, n := range s.nodes {
		d.publish(n)
	}
	stop := s.lag("z3")
	var g errgroup.Group
	for i := range 8 {
		g.Go(func() error { return d.work(rand.New(rand.NewPCG(63, uint64(i)))) })
	}
	err := g.Wait()
	stop()
	s.calmWeather()
	t.Logf("%d requests, %d of them to the checksum database, by %d clients; z3 was up to %d leaves behind", d.asked.Load(), d.lookups.Load(), d.clients.Load(), d.behind.Load())
	if err != nil {
		t.Error(err)
	}
	if d.behind.Load() == 0 {
		t.Error("no node lagged")
	}
	s.same(time.Minute)
	s.kept()
	s.sound(t)
}

// lag has little get through to a zone, and nothing for two of ten seconds, until the function that it returns is called. The
// ways to the upstream and to clients stay.
func (s *wanRun) lag(zone string) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	slow := wannet.Policy{Delay: 60 * time.Millisecond, Jitter: 100 * time.Millisecond, Loss: 0.02, Rate: 4e6}
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			p := slow
			if i%5 == 4 {
				p.Block = true
			}
			for _, other := range s.otherZones(zone) {
				s.net.Set(other, zone, p)
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// drive is a thousand requests.
type drive struct {
	sumConfig
	s      *wanRun
	client *http.Client
	robin  atomic.Pointer[wanRobin]

	asked, lookups, clients, behind atomic.Int64

	mu   sync.Mutex
	seen []module.Version // guarded by mu; committed
}

// publish has a node bring in a new version.
func (d *drive) publish(n *clusterNode) {
	m := d.s.new(20 << 10)
	ctx, cancel := context.WithTimeout(d.s.t.Context(), time.Minute)
	defer cancel()
	if _, err := d.s.publish(ctx, n, m); err != nil {
		d.s.t.Errorf("publish %v: %v", m, err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, m)
}

func (d *drive) pick(r *rand.Rand) module.Version {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen[max(r.IntN(len(d.seen)), r.IntN(len(d.seen)))] // rather a new one
}

// work makes requests until there are a thousand.
func (d *drive) work(r *rand.Rand) error {
	nodes := d.s.nodes
	for i := 0; d.asked.Load() < 1000; i++ {
		if i%4 == 0 {
			d.publish(nodes[r.IntN(len(nodes))])
			d.lagging()
		}
		if i%10 == 9 && r.IntN(4) == 0 {
			d.robin.Store(newWANRobin(d.s, d.client)) // with nothing cached
			d.clients.Add(1)
		}
		m := d.pick(r)
		for _, path := range append(artifactPathsOf(m), artifactPath(m, artifact.Info)[:len(artifactPath(m, artifact.Info))-len(m.Version+".info")]+"list") {
			if err := d.get(nodes[r.IntN(len(nodes))], path); err != nil {
				return err
			}
		}
		for _, version := range []string{m.Version, m.Version + "/go.mod"} {
			robin := d.robin.Load()
			lines, err := robin.checks.Lookup(m.Path, version)
			if err != nil || len(lines) != 1 {
				return fmt.Errorf("lookup of %s %s: %q, %w", m.Path, version, lines, err)
			}
			d.asked.Add(1)
			d.lookups.Add(1)
		}
	}
	return nil
}

// get asks a node from afar.
func (d *drive) get(n *clusterNode, path string) error {
	ctx, cancel := context.WithTimeout(d.s.t.Context(), askTime)
	defer cancel()
	d.asked.Add(1)
	a, err := getVia(ctx, d.client, n.url+path)
	if err != nil || a.code != http.StatusOK {
		return fmt.Errorf("%s at %s: %d %.300s, %w", path, n.name, a.code, a.body, err)
	}
	if path[len(path)-4:] != "list" {
		d.s.note(path, n.name, a)
	}
	return nil
}

// lagging notes how far behind the slow zone is.
func (d *drive) lagging() {
	head, err1 := d.s.nodeStatus(d.s.nodes[0])
	slow, err2 := d.s.nodeStatus(d.s.inZone("z3")[2])
	if lag := head.Node.Seq - slow.Node.Seq; err1 == nil && err2 == nil && lag > d.behind.Load() {
		d.behind.Store(lag)
	}
}

// wanRobin is a client of the checksum database, x/mod's, which the go command has, that sends each request to the next node.
type wanRobin struct {
	sumConfig
	s      *wanRun
	client *http.Client
	checks *sumdb.Client

	mu    sync.Mutex
	turn  int               // guarded by mu
	cache map[string][]byte // guarded by mu
}

func newWANRobin(s *wanRun, client *http.Client) *wanRobin {
	r := &wanRobin{sumConfig: newSumConfig(s.db.Key()), s: s, client: client, cache: map[string][]byte{}}
	r.checks = sumdb.NewClient(r)
	return r
}

func (r *wanRobin) ReadRemote(path string) ([]byte, error) {
	r.mu.Lock()
	r.turn++
	n := r.s.nodes[r.turn*4%len(r.s.nodes)] // each time in another zone
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.s.t.Context(), askTime)
	defer cancel()
	a, err := getVia(ctx, r.client, n.url+"/sumdb/"+databaseName+path)
	if err == nil && a.code != http.StatusOK {
		err = fmt.Errorf("%s at %s: %d %.300s", path, n.name, a.code, a.body)
	}
	return a.body, err
}

func (r *wanRobin) ReadCache(file string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.cache[file]; b != nil {
		return b, nil
	}
	return nil, os.ErrNotExist
}

func (r *wanRobin) WriteCache(file string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache[file] = slices.Clone(b)
}

func (r *wanRobin) Log(string)               {}
func (r *wanRobin) SecurityError(msg string) { r.s.t.Error(msg) }
