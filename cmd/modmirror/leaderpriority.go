package main

import (
	"time"

	"modmirror/replicate/peer"
)

// keepTransferred is for how long the leadership stays where an operator has put it, whatever the priorities say.
const keepTransferred = 30 * time.Minute

// priority returns how much a node is to lead, as it said last.
func (n *node) priority(id string) (priority int, ok bool) {
	if id == n.identity.Load().Node {
		return n.config.Cluster.Priority, true
	}
	s, entry, ok := n.heard(id)
	return s.Priority, ok && entry.Healthy
}

// placed notes that an operator had this node hand the leadership over. It is in the memory of this node only: the others hear of
// it with its status.
func (n *node) placed() {
	until := time.Now().Add(keepTransferred)
	n.keepUntil.Store(&until)
}

// keepFor returns for how much longer the leadership is to stay where it is, as far as this node was told by an operator.
func (n *node) keepFor(now time.Time) time.Duration {
	if until := n.keepUntil.Load(); until != nil {
		return max(until.Sub(now), 0)
	}
	return 0
}

// keepLeader reports whether this node, or any other one, was told lately by an operator to hand the leadership over. What a
// node said counts from when it said it, also when it does not answer any more.
func (n *node) keepLeader() bool {
	now := time.Now()
	if n.keepFor(now) > 0 {
		return true
	}
	t := n.table.Load()
	if t == nil {
		return false
	}
	for _, seen := range t.All() {
		if s, entry, ok := n.heard(seen.ID); ok && s.keeps(entry, now) {
			return true
		}
	}
	return false
}

// keeps reports whether the leadership is to stay, by what a node said.
func (s selfStatus) keeps(entry peer.Seen, now time.Time) bool {
	return now.Before(entry.At.Add(min(s.KeepLeader, keepTransferred)))
}
