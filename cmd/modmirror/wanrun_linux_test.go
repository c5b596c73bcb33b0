//go:build wan

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
)

// wanRun is a cluster in zones, and a ledger of what its clients were told.
type wanRun struct {
	*wanSite
	ledger
}

// askTime is how long a client of these tests waits for an answer. The go command waits for ever.
const askTime = 2 * time.Minute

func newWANRun(t *testing.T, seed uint64) *wanRun {
	t.Helper()
	s := &wanRun{wanSite: newWANSite(t, seed), ledger: ledger{truth: map[string]map[digest]bool{}, said: map[string]digest{}}}
	for _, n := range s.nodes {
		n.extra = append(n.extra, "--log-level", "debug") // says who becomes the leader
	}
	return s
}

// new gives the upstream a module version of about so many bytes.
func (s *wanRun) new(size int) module.Version {
	s.t.Helper()
	m, truth := s.fresh(size)
	for path, b := range truth {
		s.ledger.add(path, b)
	}
	return m
}

// ask asks a node, from its own host, and notes what it says.
func (s *wanRun) ask(ctx context.Context, n *clusterNode, path string) (said, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	a, err := getVia(ctx, n.http(), n.url+path)
	if err == nil {
		s.note(path, n.name, a)
	}
	return a, err
}

// publish asks a node for all of a version, each artifact until it is sent as committed, and returns how often that had to be
// asked again.
func (s *wanRun) publish(ctx context.Context, n *clusterNode, m module.Version) (again int, err error) {
	for _, path := range artifactPathsOf(m) {
		for {
			a, err := s.ask(ctx, n, path)
			if err == nil && a.code == http.StatusOK && a.committed {
				break
			}
			if ctx.Err() != nil {
				return again, fmt.Errorf("%s at %s: not committed: %d %.200q, committed %t, %w", path, n.name, a.code, a.body[:min(len(a.body), 200)], a.committed, err)
			}
			again++
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return again, nil
}

// mustPublish is publish within a limit.
func (s *wanRun) mustPublish(limit time.Duration, n *clusterNode, m module.Version) time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	begin := time.Now()
	if _, err := s.publish(ctx, n, m); err != nil {
		s.t.Fatal(err)
	}
	return time.Since(begin)
}

// paths returns what was answered as committed so far.
func (s *wanRun) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// reads has nodes answer with everything in paths, as it was answered before.
func (s *wanRun) reads(nodes []*clusterNode, paths []string) {
	s.t.Helper()
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error {
			for _, path := range paths {
				if err := s.read(n, path); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		s.t.Error(err)
	}
}

// read asks a node for what was answered as committed before.
func (s *wanRun) read(n *clusterNode, path string) error {
	begin := time.Now()
	a, err := s.ask(context.WithoutCancel(s.t.Context()), n, path)
	s.mu.Lock()
	want := s.said[path]
	s.mu.Unlock()
	if err != nil || a.code != http.StatusOK || !a.committed || sha256.Sum256(a.body) != want {
		return fmt.Errorf("read of %s, which is committed, at %s: after %v %d, committed %t, %d bytes, %.200q, %w", path, n.name, time.Since(begin), a.code, a.committed,
			len(a.body), a.body[:min(len(a.body), 200)], err)
	}
	return nil
}

// life is clients that go on while the network is bad.
type life struct {
	s    *wanRun
	stop context.CancelFunc
	wg   sync.WaitGroup

	read  atomic.Int64 // of what is committed
	brief atomic.Int64 // commits that had to be asked for again
	slow  atomic.Int64 // the longest read, in ns

	mu     sync.Mutex
	failed []error        // guarded by mu; reads
	made   map[string]int // guarded by mu; committed versions, by the zone that they were asked for in
}

// live begins clients: one at each node that reads what is in paths, and one in each of zones that asks for new versions.
func (s *wanRun) live(paths []string, zones ...string) *life {
	ctx, cancel := context.WithCancel(s.t.Context())
	l := &life{s: s, stop: cancel, made: map[string]int{}}
	for i, n := range s.nodes {
		l.wg.Go(func() { l.readAt(ctx, n, paths, rand.New(rand.NewPCG(uint64(i), 1))) })
	}
	for _, zone := range zones {
		l.wg.Go(func() { l.publishIn(ctx, zone) })
	}
	return l
}

func (l *life) readAt(ctx context.Context, n *clusterNode, paths []string, r *rand.Rand) {
	for ctx.Err() == nil {
		begin := time.Now()
		err := l.s.read(n, paths[r.IntN(len(paths))])
		l.read.Add(1)
		if took := int64(time.Since(begin)); took > l.slow.Load() {
			l.slow.Store(took)
		}
		if err != nil {
			l.mu.Lock()
			l.failed = append(l.failed, err)
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *life) publishIn(ctx context.Context, zone string) {
	nodes := l.s.inZone(zone)
	for i := 0; ctx.Err() == nil; i++ {
		again, err := l.s.publish(ctx, nodes[i%len(nodes)], l.s.new(50<<10))
		l.brief.Add(int64(again))
		if err != nil {
			return // the end was in its way; what it was told is in the ledger
		}
		l.mu.Lock()
		l.made[zone]++
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// end ends the clients, and reports failed reads.
func (l *life) end(t *testing.T) (made map[string]int) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d reads failed: %v", len(l.failed), errors.Join(l.failed[:min(3, len(l.failed))]...))
	}
	t.Logf("%d reads at nine nodes, the longest %v; new versions committed by zone: %v, asked for again %d times", l.read.Load(),
		time.Duration(l.slow.Load()).Round(time.Millisecond), l.made, l.brief.Load())
	return l.made
}

// kept checks that all nodes have everything that was ever answered as committed, without the upstream, that nothing happened
// that must not, and that no manifest was refused as one that contradicts another.
func (s *wanRun) kept() {
	s.t.Helper()
	s.up.Down(true)
	defer s.up.Down(false)
	s.reads(s.nodes, s.paths())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.wrong {
		s.t.Error(text)
	}
	s.wrong = nil
	for _, n := range s.nodes {
		st, err := s.nodeStatus(n)
		if err != nil || st.Node.Conflicts != 0 || st.Node.Diverged != "" {
			s.t.Errorf("%s: %d conflicts, %s, %v", n.name, st.Node.Conflicts, st.Node.Diverged, err)
		}
	}
}

// calm reports what happened to the leadership since, and checks that it was not more than a few times.
func (s *wanRun) calm(term uint64, elected, few int) {
	s.t.Helper()
	now, changes := s.term(), s.elected()-elected
	s.t.Logf("the leader changed %d times, terms %d to %d", changes, term, now)
	if changes > few || now > term+uint64(2*few) {
		s.t.Errorf("the leader changed %d times, terms %d to %d: more than %d times", changes, term, now, few)
	}
}

// in has the site report to a subtest until the function that it returns is called.
func (s *wanRun) in(t *testing.T) func() {
	outer := s.t
	s.clusterSite.site.t = t
	return func() { s.clusterSite.site.t = outer }
}

// pass lets time pass in steps of ten seconds, at the beginning of which turn is called.
func (s *wanRun) pass(d time.Duration, turn func(i int)) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	end := time.NewTimer(d)
	defer end.Stop()
	for i := 0; ; i++ {
		turn(i)
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}
