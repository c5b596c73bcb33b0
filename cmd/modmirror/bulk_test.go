package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// In bulk a blob is asked of the nodes of the own zone, each for its part, the leader last, and of far ones only by who is to bring it
// into the zone.
func TestBulkOrder(t *testing.T) {
	member := func(id string) peer.Member { return peer.Member{ID: id} }
	a, b, lead, far := member("a"), member("b"), member("lead"), member("far")
	first := map[string]int{}
	for i := range 300 {
		d := artifact.RefOf(fmt.Append(nil, i)).Digest
		order := bulkOrder(d, route{siblings: []peer.Member{a, lead, b}}, "lead")
		if len(order) != 3 || order[2].ID != "lead" {
			t.Fatalf("order = %v", order)
		}
		first[order[0].ID]++
		if got := bulkOrder(d, route{siblings: []peer.Member{a}, relays: []peer.Member{b, a}, far: []peer.Member{far}}, "lead"); len(got) != 2 {
			t.Errorf("a node that is no relay asks %v", got)
		}
		if got := bulkOrder(d, route{siblings: []peer.Member{a}, far: []peer.Member{far, lead}}, "lead"); len(got) != 3 || got[0].ID != "a" || got[1].ID != "far" {
			t.Errorf("a relay asks %v", got)
		}
	}
	if first["a"] < 100 || first["b"] < 100 {
		t.Errorf("asked first: %v", first)
	}
}

// A new node has what the others hold in bulk, serves it, and proves all of it soon.
func TestNewNodePullsInBulk(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.run()
	s.voters(3)
	var urls []string
	for _, n := range s.nodes {
		urls = append(urls, n.url)
	}
	ms := s.stock(rand.New(rand.NewPCG(31, 32)), 24, urls...)
	s.allSame()
	n := s.addNode()
	s.run(n)
	s.allSame()
	if _, err := os.Stat(filepath.Join(n.dir, "unproven")); err != nil {
		t.Errorf("nothing came in bulk: %v", err)
	}
	s.served(n.process, ms)
	s.await("all that came to be proven", func() bool {
		left, err := os.ReadDir(filepath.Join(n.dir, "unproven"))
		return err == nil && len(left) == 0
	}, n.output)
}

// A node that does not know the question is told from one that has not got the answer, and is not asked again for a while.
func TestBulkOfNodesThatDoNotKnow(t *testing.T) {
	var k bulkNodes
	if !k.knows("n") {
		t.Error("a node that was never asked")
	}
	k.doesNotKnow("n")
	if k.knows("n") || !k.knows("m") {
		t.Error("one that has said that it does not know")
	}
	b := &bulkFetch{refs: make([]artifact.Ref, 2), sources: make([][]peer.Member, 2)}
	if left := b.round(context.Background(), []int{0, 1}, 0); len(left) != 0 || b.asked {
		t.Errorf("without anybody to ask: %v, %v", left, b.asked)
	}
}
