package main

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/module"
)

// What was downloaded through one node is served by each other one, with the upstream gone and the first node killed, to a
// go command that has nothing and verifies everything.
func TestClusterServesWithoutUpstreamAndFirstNode(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	first := s.nodes[0]
	sum, err := s.download(first.url, app)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(sum, "example.com/hello v1.0.0 h1:") {
		t.Fatalf("go.sum:\n%s", sum)
	}
	s.up.Down(true)
	first.kill()
	for _, n := range s.nodes[1:] {
		again, err := s.download(n.url, app)
		if err != nil {
			t.Errorf("through %s: %v", n.name, err)
		} else if again != sum {
			t.Errorf("through %s: go.sum is\n%s\nwas\n%s", n.name, again, sum)
		}
	}
}

// The leader is killed every few seconds while builds, each with lookups of its own, run against all three nodes behind a
// balancer: no build fails, and whatever was downloaded is the same everywhere.
func TestBuildsGoOnWhileLeadersDie(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(1, 2))
	var mods []module.Version
	for i := range 40 {
		mods = append(mods, s.addRandom(r, fmt.Sprintf("example.com/kill%d", i)))
	}
	s.run()
	s.voters(3)
	front := httptest.NewServer(s.balance())
	defer front.Close()
	ended := make(chan error, 1)
	var stop atomic.Bool
	var builds atomic.Int64
	go func() {
		for i := 0; !stop.Load(); i++ {
			m := mods[i%len(mods)]
			if _, err := s.download(front.URL, "module app\n\ngo 1.21\n\nrequire "+m.Path+" "+m.Version+"\n"); err != nil {
				ended <- fmt.Errorf("build %d: %w", i, err)
				return
			}
			builds.Add(1)
		}
		ended <- nil
	}()
	for range 3 {
		before := builds.Load()
		lead := s.leader()
		lead.kill()
		s.await("a build without "+lead.name, func() bool { return builds.Load() > before || len(ended) > 0 }, lead.output)
		s.run(lead)
		s.voters(3)
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	s.allSame()
}
