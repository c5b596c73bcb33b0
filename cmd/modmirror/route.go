package main

import (
	"slices"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// route says from where this node takes a blob that it lacks. Its parts are tried in order:
//
//  1. the siblings, which are the nodes of its own zone that answer, each asked for what it holds
//  2. the relays, each asked to bring the blob into the zone (POST /v1/relay), from where it is taken then
//  3. the far nodes, asked for what they hold
//
// The relay of a zone for a blob is the first, by rendezvous of its digest, of the zone's nodes that answer and take blobs. relays
// are those before this node: none if it is the relay itself, if it has no siblings, if there is no other zone, or if no node of
// another zone answers. So of all nodes of a zone one takes the blob out of another zone; the next in the ring does if it does
// not answer, is about to stop or has no room; and a node that can ask nobody does it itself. Two nodes that disagree about who
// answers may both pull: that costs a second transfer, and none is ever left without.
//
// Far nodes are in the order of [node.nearest]: those that answer first, by zone and then by round trip; among them are nodes of
// the own zone that do not answer. With a single zone there are only siblings, and far nodes that do not answer: the order is that
// of nearest.
type route struct {
	siblings []peer.Member // without the first of relays, which is asked for the blob anyway
	relays   []peer.Member
	far      []peer.Member
}

// neighbour is another node, as this one sees it.
type neighbour struct {
	peer.Member
	answers bool // it is worth asking: it answered lately, or nobody has asked it since this node started
	takes   bool // it takes blobs, as far as it said
}

// routeOf returns from where this node takes a blob, be it one or one of many: whatever has no relays it may take from a far node
// by itself.
func (n *node) routeOf(d artifact.Digest) route {
	self := neighbour{Member: peer.Member{ID: n.replica.ID(), Zone: n.config.Cluster.Zone}, takes: n.keeps() == nil}
	return routeAmong(d, self, n.neighbours())
}

// neighbours returns the other nodes, the nearest first.
func (n *node) neighbours() []neighbour {
	var out []neighbour
	for _, m := range n.nearest() {
		seen, known := n.seen(m.ID)
		said, _, heard := n.heard(m.ID)
		out = append(out, neighbour{m, !known || seen.Healthy || !seen.Asked, !heard || said.NoBlobs == "" && !said.Draining})
	}
	return out
}

// routeAmong is routeOf for a node among others, of which the nearest come first.
func routeAmong(d artifact.Digest, self neighbour, others []neighbour) (r route) {
	ring, reachable := []peer.Member{}, false
	if self.takes {
		ring = append(ring, self.Member)
	}
	for _, m := range others {
		sibling := m.Zone == self.Zone && m.answers
		switch {
		case !sibling:
			r.far = append(r.far, m.Member)
			reachable = reachable || m.answers
			continue
		case m.takes:
			ring = append(ring, m.Member)
		}
		r.siblings = append(r.siblings, m.Member)
	}
	if !reachable {
		return r
	}
	for _, m := range peer.Owner(d.String(), ring) {
		if m.ID == self.ID {
			break
		}
		r.relays = append(r.relays, m)
	}
	if len(r.relays) > 0 {
		r.siblings = slices.DeleteFunc(r.siblings, func(m peer.Member) bool { return m.ID == r.relays[0].ID })
	}
	return r
}
