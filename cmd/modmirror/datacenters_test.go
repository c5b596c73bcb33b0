package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// The runbook for a zone that is lost, with the commands as they stand in the page: of three zones with two nodes and a voter each
// one dies. What is new is committed; with the vote lent to another zone a further voter may die; the zone comes back, and has its
// vote again. It dies for good, is removed, and one of its old disks becomes a new node, to which no blob is copied.
func TestZoneIsLostByTheRunbook(t *testing.T) {
	t.Parallel()
	steps := runbook(t, "datacenters.md")
	if len(steps) != 4 {
		t.Fatalf("docs/datacenters.md has %d blocks of commands", len(steps))
	}
	promote, demote, remove, reset := steps[0], steps[1], steps[2], steps[3]
	s := newClusterSite(t, 3)
	s.load()
	zones := func() {
		for i, n := range s.nodes {
			n.extra = []string{"--zone", fmt.Sprintf("dc%d", i%3+1)}
		}
	}
	r := rand.New(rand.NewPCG(61, 62))
	var all []module.Version
	commits := func(n *clusterNode) {
		t.Helper()
		all = append(all, s.addRandom(r, fmt.Sprintf("example.com/zones%d", len(all))))
		s.commits(n, all[len(all)-1])
	}
	votes := func(want string) {
		t.Helper()
		s.sees(s.nodes[0], "votes of "+want, func(v clusterView) bool {
			var have []string
			for _, m := range v.Nodes {
				if m.Voter {
					have = append(have, m.Name)
				}
			}
			slices.Sort(have)
			return v.Leader != "" && strings.Join(have, " ") == want
		})
	}
	complete := func(nodes int) { // whatever the status says of zones that have too many votes
		t.Helper()
		s.sees(s.nodes[0], "nodes without a gap", func(v clusterView) bool {
			for _, m := range v.Nodes {
				if !m.Alive || m.Seq != v.Nodes[0].Seq || m.Blobs != m.Seq || m.Missing != 0 {
					return false
				}
			}
			return len(v.Nodes) == nodes
		})
	}
	zones()
	s.run() // one of each zone first
	votes("n1 n2 n3")
	lives, second, lost := s.nodes[0], s.nodes[1], s.nodes[2] // each votes
	spare, other, lostToo := s.addNode(), s.addNode(), s.addNode()
	zones()
	s.run(spare, other, lostToo)
	dc3 := []*clusterNode{lost, lostToo}
	commits(lostToo)
	complete(6)

	for _, n := range dc3 {
		n.kill()
	}
	commits(lives)
	s.sees(lives, "loss of the zone", func(v clusterView) bool { return v.quorum().alive == 2 })
	with := "SPARE=n4 LOST=n3 GONE='n3 n6'\n"
	s.do(with+promote, lives, "promote\n", "done: 4 voters, 3 alive")
	s.do(with+demote, lives, "demote\n", "done: 3 voters, 3 alive; a majority is 2: 1 more may fail")
	votes("n1 n2 n4")
	second.kill()
	commits(lives)
	s.run(second)

	s.run(dc3...)
	complete(6)
	if s.leader() == spare { // as the text says
		if out, err := s.command(lives, "transfer", "n1"); err != nil {
			t.Fatalf("transfer: %v\n%s", err, out)
		}
	}
	with = "SPARE=n3 LOST=n4\n"
	s.do(with+promote, lives, "promote\n", "done: 4 voters, 4 alive")
	s.do(with+demote, lives, "demote\n", "done: 3 voters, 3 alive")
	votes("n1 n2 n3")
	complete(6)

	for _, n := range dc3 {
		n.kill()
	}
	commits(other)
	s.do("GONE='n3 n6'\n"+remove, lives, "")
	votes("n1 n2 n5") // n4 was demoted
	commits(spare)
	s.launch(lost)
	s.await("refusal of a node that was removed", func() bool {
		code, body, err := fetch("http://" + lost.listen + "/readyz")
		return err == nil && code == 503 && bytes.Contains(body, []byte("was removed from cluster"))
	}, lost.output)
	if err := lost.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	s.do(reset, lost, "reset\n", "done: the old node is in ")
	s.run(lost)
	complete(5)
	s.up.Down(true)
	for _, m := range all {
		s.says(lost.process, artifactPath(m, artifact.Zip), 200, string(s.up.Artifact(m, artifact.Zip)))
	}
}
