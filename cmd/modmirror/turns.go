package main

import (
	"modmirror/replicate/peer"
)

// turn says whose turn it is to ask the upstream for something, or the checksum database, so that the cluster asks once. Two
// nodes have one, by rendezvous of what is asked for:
//
//   - the cluster's owner, the first of all nodes that fetch: they answer, have an upstream, have room and are not about to stop;
//     those whose upstream is silent (see wayout.go) only if that of all is
//   - the zone's owner, the first of the nodes of a zone that answer
//
// A node asks the owner of its zone (hopZone), which joins equal questions and asks the cluster's owner (hopCluster), which asks
// nobody but the upstream. What coincides is left out: an owner does not ask itself, and a cluster's owner in the own zone is
// asked at once; so with a single zone there is only the one question. In the place of one that is silent, or that cannot say,
// comes the next; a node that has an upstream asks it itself when it is its turn, at the latest when nobody else answers, so also
// in a zone that is cut off.
//
// A zone's owner never asks one, and a cluster's owner asks no node: a question takes two hops at most, and never goes round. Two
// nodes that disagree about who answers may both ask the upstream, and never wait for each other.
//
// What it costs: where the cluster's owner is in another zone, one round trip over the long way for each thing that nobody has,
// as question and answer, whatever the number of nodes that ask. The hop within the zone is short. What is committed then comes
// with the log, which brings infos and go.mods, and not with the answer; a zip comes over the long way in one transfer (see
// [route]), which the zone would need in any case but that its own owner had fetched it. Without owners for the cluster each zone
// would fetch everything from the upstream for itself, and the nodes would say different things of lists for a while.
type turn struct {
	zone    []peer.Member // the zone's owner, and the next; none: it is this node, or it is left out
	cluster []peer.Member // who fetches for the cluster, in order, before this node
	mine    bool          // after them it is this node's turn
}

// What a question is, for whoever gets it.
const (
	hopZone    = "zone"    // to the zone's owner: it may ask the cluster's
	hopCluster = "cluster" // to the cluster's owner; also what says nothing of it
)

// maxZoneOwners is how many nodes of the zone are asked for what they are told, before this node asks the cluster's owner itself.
const maxZoneOwners = 2

// candidate is a node whose turn it may be.
type candidate struct {
	peer.Member
	fetches bool // it has an upstream that is not silent, and takes new artifacts
	passes  bool // it passes questions on as the owner of its zone
	silent  bool // it would fetch but for a silent upstream
}

// turnFor returns whose turn it is for key.
func (n *node) turnFor(key string) turn {
	fetches, silent := n.fetches(), n.silent() != nil
	self := candidate{peer.Member{ID: n.replica.ID(), Zone: n.config.Cluster.Zone}, fetches && !silent, true, fetches && silent}
	var others []candidate
	for _, m := range n.others() {
		if s, entry, ok := n.heard(m.ID); ok && entry.Healthy && !s.Draining {
			others = append(others, candidate{m, s.Fetches, s.Passes, s.Silent != ""})
		}
	}
	return turnAmong(key, self, others)
}

// fetches reports whether this node asks the upstream, be it silent.
func (n *node) fetches() bool { return n.upstream != nil && n.keeps() == nil }

// turnAmong is turnFor for a node among others that answer.
func turnAmong(key string, self candidate, others []candidate) (t turn) {
	var fetchers, silent, zone []peer.Member
	for _, c := range append([]candidate{self}, others...) {
		switch {
		case c.fetches:
			fetchers = append(fetchers, c.Member)
		case c.silent:
			silent = append(silent, c.Member)
		}
		if c.Zone == self.Zone && c.passes {
			zone = append(zone, c.Member)
		}
	}
	if len(fetchers) == 0 { // what is the matter with all of them is not for want of a better one
		fetchers = silent
	}
	t.cluster, t.mine = before(self.ID, peer.Owner(key, fetchers))
	if len(t.cluster) > 0 && t.cluster[0].Zone != self.Zone {
		t.zone, _ = before(self.ID, peer.Owner(key, zone))
		t.zone = t.zone[:min(len(t.zone), maxZoneOwners)]
	}
	return t
}

// before returns the part of order that comes before a node, and whether that is in it.
func before(id string, order []peer.Member) ([]peer.Member, bool) {
	for i, m := range order {
		if m.ID == id {
			return order[:i], true
		}
	}
	return order, false
}
