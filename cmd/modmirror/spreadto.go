package main

import (
	"cmp"
	"context"
	"slices"

	"modmirror/replicate/peer"
)

// spreadTo returns the other voters, and on how many of them a blob must be, so that with this node, if it votes, it is on the
// disks of a majority. See spreadOrder for their order.
func (n *node) spreadTo() (targets []peer.Member, need int) {
	all, err := n.replica.Peers(context.Background())
	if err != nil {
		return nil, 1 // which nobody can meet: no answer of the catalog is no reason to need none
	}
	voters, self := make(map[string]bool), false
	for _, p := range all {
		if p.Voter && p.ID == n.replica.ID() {
			self = true
		}
		if p.Voter {
			voters[p.ID] = true
		}
	}
	need = len(voters)/2 + 1
	if self {
		need--
	}
	others := slices.DeleteFunc(n.neighbours(), func(m neighbour) bool { return !voters[m.ID] })
	return spreadOrder(n.config.Cluster.Zone, others), need
}

// spreadOrder returns to whom a blob is spread by a node of zone, in order: the nearest first, but of each other zone one before
// the second of any, so that no zone gets two copies over a long way while another one does as well. Then come those that do not
// answer, and last those that said that they take no blobs: they may have room again, and say no at once if they have not.
func spreadOrder(zone string, nearest []neighbour) []peer.Member {
	rank := make(map[string]int, len(nearest))
	copies := map[string]int{}
	for _, m := range nearest {
		switch {
		case !m.takes:
			rank[m.ID] = 2 * len(nearest)
		case !m.answers:
			rank[m.ID] = len(nearest)
		case m.Zone != zone:
			rank[m.ID] = copies[m.Zone]
			copies[m.Zone]++
		}
	}
	slices.SortStableFunc(nearest, func(a, b neighbour) int { return cmp.Compare(rank[a.ID], rank[b.ID]) })
	out := make([]peer.Member, len(nearest))
	for i, m := range nearest {
		out[i] = m.Member
	}
	return out
}

// roomier returns the nearest voter that answers and takes new artifacts.
func (n *node) roomier() (peer.Member, bool) {
	targets, _ := n.spreadTo()
	for _, m := range targets {
		if s, entry, ok := n.heard(m.ID); ok && entry.Healthy && s.NoBlobs == "" && !s.Draining {
			return m, true
		}
	}
	return peer.Member{}, false
}
