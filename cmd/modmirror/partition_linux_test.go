//go:build faults

package main

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest/faultproxy"
)

// FAULTS 36: five voters are split into three and two, the leader among the two, while builds go on at both sides. The three
// elect a leader and bring in what is new. The two serve what is committed, and verify what is new without committing it. The
// upstream sends each side other bytes of one zip: after the split is healed all nodes have those of the majority, and what only
// the two had was committed. Nobody has gone through a storm of elections.
func TestSplitThreeTwo(t *testing.T) {
	s := newNetSite(t, 5, 36)
	s.begin()
	var old []module.Version
	for range 6 {
		m := s.fresh(nil, 50<<10)
		old = append(old, m)
		s.everywhere(m)
	}
	s.settled()
	lead, others := s.leads()
	before := s.terms()
	minority, majority := []*clusterNode{lead, others[0]}, others[1:]
	s.net.Split(namesOf(minority), namesOf(majority))
	begin := time.Now()

	few := s.build(proxies(minority[1]), func(i int) module.Version { return old[i%len(old)] })
	many := s.build(proxies(majority[0]), func(int) module.Version { return s.fresh(nil, 50<<10) })
	only, both := s.fresh(nil, 50<<10), s.fresh(nil, 50<<10)
	for _, m := range []module.Version{only, both} {
		s.uncommitted(minority[1], m)
	}
	s.repack(both)
	s.await("a leader of the three", func() bool {
		st, err := s.status(majority[0])
		return err == nil && st.Node.Leader != "" && st.Node.Term > highest(before)
	}, func() string { return "" })
	s.committed(majority[0], both)
	s.makes(few, 5, "builds of what is committed at the two")
	s.makes(many, 5, "builds of what is new at the three")
	for _, n := range minority {
		if st, err := s.status(n); err != nil || st.Node.Term > before[n.name] {
			t.Errorf("%s, without a majority, went from term %d to %d: %v", n.name, before[n.name], st.Node.Term, err)
		}
	}
	apart := s.terms()
	s.net.Heal()
	t.Logf("split for %v", time.Since(begin))
	s.makes(few, 2, "builds at the two after it")
	s.makes(many, 2, "builds at the three after it")
	s.end(few)
	s.end(many)
	s.everywhere(only)
	s.everywhere(both)
	s.settled()
	s.calm(apart, 5)
	s.kept()
	s.sound()
}

// uncommitted asks a node without a quorum for something new, which is sent and marked.
func (s *netSite) uncommitted(n *clusterNode, m module.Version) {
	s.t.Helper()
	for _, path := range artifactPaths(m) {
		if a, err := s.ask(n, path); err != nil || a.code != http.StatusOK || a.committed {
			s.t.Errorf("%s of %s without a quorum: %d, committed %t, %.300q, %v", path, n.name, a.code, a.committed, a.body[:min(len(a.body), 300)], err)
		}
	}
}

// committed asks a node with a quorum, until that is settled.
func (s *netSite) committed(n *clusterNode, m module.Version) {
	s.t.Helper()
	for _, path := range artifactPaths(m) {
		var a said
		s.await(path+" committed at "+n.name, func() (ok bool) {
			var err error
			a, err = s.ask(n, path)
			return err == nil && a.code == http.StatusOK && a.committed
		}, func() string { return fmt.Sprintf("%d, committed %t", a.code, a.committed) })
	}
}

// A follower alone refuses what is new, if it is told to, and serves what is committed; the others do not notice. After that the
// same for the leader.
func TestMinorityAlone(t *testing.T) {
	s := newNetSite(t, 3, 37)
	for _, n := range s.nodes {
		n.extra = append(n.extra, "--on-quorum-loss", "fail")
	}
	s.begin()
	old := s.fresh(nil, 50<<10)
	s.everywhere(old)
	s.settled()
	for _, leads := range []bool{false, true} {
		lead, others := s.leads()
		alone, rest := others[0], []*clusterNode{lead, others[1]}
		if leads {
			alone, rest = lead, others
		}
		before := s.terms()
		s.net.Split([]string{alone.name}, namesOf(rest))
		few := s.build(proxies(alone), func(int) module.Version { return old })
		s.await("a leader of the others", func() bool { // without one for long, what is new is refused there, too
			st, err := s.status(rest[1])
			return err == nil && (st.Node.Leader != "" && !leads || st.Node.Term > highest(before))
		}, rest[1].output)
		many := s.build(proxies(rest[1]), func(int) module.Version { return s.fresh(nil, 50<<10) })
		new := s.fresh(nil, 50<<10)
		s.await("a refusal of "+alone.name, func() bool { // it notices at the latest when its lease is over
			a, err := s.ask(alone, artifactPath(new, artifact.Zip))
			return err == nil && a.code == http.StatusServiceUnavailable
		}, alone.output)
		s.makes(few, 3, "builds at the one alone")
		s.makes(many, 3, "builds at the others")
		apart := s.terms()
		if apart[alone.name] > before[alone.name] {
			t.Errorf("%s, alone, went from term %d to %d", alone.name, before[alone.name], apart[alone.name])
		}
		s.net.Heal()
		s.end(few)
		s.end(many)
		s.everywhere(new)
		s.settled()
		s.calm(apart, 5)
	}
	s.kept()
	s.sound()
}

// Packets are lost in one direction only: from the leader to the others, from the others to the leader, between two followers. A
// majority that hears each other goes on each time, and what is asked of any node is answered.
func TestOneWayPartition(t *testing.T) {
	s := newNetSite(t, 3, 38)
	s.begin()
	s.everywhere(s.fresh(nil, 50<<10))
	s.settled()
	stalled := faultproxy.Link{Stall: true}
	for _, c := range []struct {
		what string
		cut  func(lead *clusterNode, others []*clusterNode)
	}{
		{"from the leader", func(lead *clusterNode, others []*clusterNode) {
			for _, n := range others {
				s.net.Set(lead.name, n.name, stalled)
			}
		}},
		{"to the leader", func(lead *clusterNode, others []*clusterNode) {
			for _, n := range others {
				s.net.Set(n.name, lead.name, stalled)
			}
		}},
		{"between two followers", func(_ *clusterNode, others []*clusterNode) { s.net.Set(others[0].name, others[1].name, stalled) }},
	} {
		lead, others := s.leads()
		var through []*buildRun
		for _, n := range s.nodes {
			through = append(through, s.build(proxies(n), func(int) module.Version { return s.fresh(nil, 50<<10) }))
		}
		c.cut(lead, others)
		for i, b := range through {
			s.makes(b, 3, "builds through "+s.nodes[i].name+" while packets are lost "+c.what)
		}
		apart := s.terms()
		s.net.Heal()
		for _, b := range through {
			s.end(b)
		}
		s.settled()
		s.calm(apart, 5)
	}
	s.kept()
	s.sound()
}

// A network that loses a third of all packets, and takes its time, makes builds slow and nothing worse.
func TestLossyNetwork(t *testing.T) {
	s := newNetSite(t, 3, 39)
	s.begin()
	s.settled()
	before := s.terms()
	for _, from := range s.nodes {
		for _, to := range s.nodes {
			s.net.Set(from.name, to.name, faultproxy.Link{Latency: 5 * time.Millisecond, Loss: 0.3, Rate: 4 << 20})
		}
	}
	var through []*buildRun
	for _, n := range s.nodes {
		through = append(through, s.build(proxies(n), func(int) module.Version { return s.fresh(nil, 50<<10) }))
	}
	for _, b := range slices.Backward(through) {
		s.makes(b, 4, "builds over a bad network")
	}
	for _, b := range through {
		s.end(b)
	}
	s.net.Heal()
	s.settled()
	s.calm(before, 20)
	s.kept()
	s.sound()
}
