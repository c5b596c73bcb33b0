package replicate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// A leader looks after the members, one change at a time: who was removed is taken out of the configuration, and as long
// as there are fewer voters than wanted, the next nonvoter that holds every blob becomes one.

// lookAfter does so until ctx ends.
func (n *Node) lookAfter(ctx context.Context) {
	tick := time.NewTicker(n.config.reconcile)
	defer tick.Stop()
	var g grower
	n.preference.begin()
	for {
		if err := g.step(ctx, n); err != nil && ctx.Err() == nil {
			n.log.Warn("look after the members of the cluster", "err", err)
		}
		if err := n.prefer(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("hand the leadership to a voter of higher priority", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// grower is what a leader remembers from one look to the next.
type grower struct {
	looked   bool
	goal     int64 // leaves of the catalog at the last look
	changed  int64 // leaves of the catalog when all was in it that the voters before the last change had acked
	settling bool  // a change was made, and changed is still to be found out

	servers []raft.Server // the configuration at the last look
	even    steadiness    // who is to get a vote from a crowded zone, or to lose one as it is silent, see rebalance
	lost    string        // a voter that has been silent for so long that it loses its vote; "": none
}

func (g *grower) step(ctx context.Context, n *Node) error {
	if err := n.raiseLevel(ctx); err != nil {
		return err
	}
	if err := g.settle(ctx, n); err != nil {
		return err
	}
	goal, looked := g.goal, g.looked
	g.goal, _ = n.Root()
	g.looked = true
	all, err := n.Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range all {
		if gone, err := n.isGone(p.ID); err != nil {
			return err
		} else if gone && p.Member && p.ID != n.id.Node {
			return n.drop(ctx, p.ID, 0) // a removal that was begun, whatever came before
		}
	}
	if n.config.Complete == nil || !looked {
		return nil
	}
	if done, err := g.rebalance(ctx, n, all, goal); done || err != nil {
		return err
	}
	// What was committed since the last look was acked by a majority without the candidate, so it may still lack that.
	next := func() (Peer, bool) {
		p, ok := n.candidate(all, goal)
		return p, ok && n.caughtUp(all, g.changed) && n.quorumWith(all, p.ID, true).check("") == nil
	}
	if _, ok := next(); !ok {
		return nil
	}
	at, err := n.configured(ctx) // costs an entry of the log
	if err != nil {
		return err
	}
	if all, err = n.Peers(ctx); err != nil { // of this configuration, or a later one
		return err
	}
	p, ok := next()
	if !ok {
		return nil
	}
	n.log.Info("a node becomes a voter: it holds everything", "node", p.ID, "name", p.Name, "zone", p.Zone)
	return n.suffrage(ctx, p.ID, true, at)
}

// settle finds out how many leaves there are once everything is applied that was in the log, or about to be, when the last
// change was made: the voters of before had acked it, and of the new ones perhaps none.
func (g *grower) settle(ctx context.Context, n *Node) error {
	now := n.servers()
	g.settling = g.settling || g.servers != nil && !slices.Equal(g.servers, now) // whoever made it
	g.servers = now
	if !g.settling {
		return nil
	}
	if err := n.settled(ctx); err != nil {
		return err
	}
	g.changed, _ = n.Root()
	g.settling = false
	return nil
}

// caughtUp reports whether all voters that answer hold the blobs of the first seq leaves: the change before is over then.
func (n *Node) caughtUp(all []Peer, seq int64) bool {
	for _, p := range all {
		if have, ok := n.config.Complete(p.ID); p.Voter && ok && have < seq {
			return false
		}
	}
	return true
}

// candidate returns the nonvoter that is to become a voter next, if there are too few.
func (n *Node) candidate(all []Peer, goal int64) (Peer, bool) {
	zones, voters := votersByZone(all)
	if voters >= n.config.Voters {
		return Peer{}, false
	}
	return n.nextVoter(all, zones, goal)
}

// votersByZone returns how many voters each zone has, and how many there are.
func votersByZone(all []Peer) (zones map[string]int, voters int) {
	zones = map[string]int{}
	for _, p := range all {
		if p.Voter {
			zones[p.Zone]++
			voters++
		}
	}
	return zones, voters
}

// nextVoter returns the nonvoter that is to get the next vote: of the zone that has the fewest, then one that can do all that a
// voter has to, then by id.
func (n *Node) nextVoter(all []Peer, zones map[string]int, goal int64) (Peer, bool) {
	var able []Peer
	for _, p := range all {
		if p.Member && !p.Voter && p.Role == RoleVoter && !p.Held && n.pulse.answers(p.ID) && n.holds(p.ID, goal) {
			able = append(able, p)
		}
	}
	if len(able) == 0 {
		return Peer{}, false
	}
	return slices.MinFunc(able, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(zones[a.Zone], zones[b.Zone]), n.unfit(a.ID)-n.unfit(b.ID), cmp.Compare(a.ID, b.ID))
	}), true
}

// unfit is 1 if a node is not known to be able to do all that a voter and a leader has to.
func (n *Node) unfit(id string) int {
	if n.config.Fit != nil && !n.config.Fit(id) {
		return 1
	}
	return 0
}

// holds reports whether a node is known to hold all blobs of the first seq leaves.
func (n *Node) holds(id string, seq int64) bool {
	have, ok := n.config.Complete(id)
	return ok && have >= seq
}

func (n *Node) isGone(id string) (gone bool, err error) {
	err = n.view(func(s state) error { gone = s.gone(id); return nil })
	return gone, err
}

// Quorum is how many voters there are, how many of them must answer for anything to be committed, and how many do.
type Quorum struct{ Voters, Needed, Alive int }

// QuorumError is an [artifact.ErrUnavailable]: a change of the members would leave too few voters that answer.
type QuorumError struct {
	What  string // the change
	After Quorum // as it would be then
}

func (e *QuorumError) Error() string {
	if e.After.Voters == 0 {
		return fmt.Sprintf("%s: it is the last voter, there would be no cluster without it", e.What)
	}
	return fmt.Sprintf("%s: of %d voters %d must answer then, and only %d do: bring one back, or add one, first", e.What, e.After.Voters, e.After.Needed, e.After.Alive)
}

func (e *QuorumError) Unwrap() error { return artifact.ErrUnavailable }

func (q Quorum) check(what string) error {
	if q.Voters == 0 || q.Alive < q.Needed {
		return &QuorumError{what, q}
	}
	return nil
}

// Quorum returns how the votes stand now, as the leader sees it.
func (n *Node) Quorum(ctx context.Context) (Quorum, error) {
	all, err := n.Peers(ctx)
	return n.quorumWith(all, "", false), err
}

// QuorumAfter returns how the votes would stand if the node id became a voter, or was none any more.
func (n *Node) QuorumAfter(ctx context.Context, id string, voter bool) (Quorum, error) {
	all, err := n.Peers(ctx)
	return n.quorumWith(all, id, voter), err
}

// answers reports whether another node does, as raft and the blob followers see it: right after an election raft knows
// only what the first heartbeats have shown.
func (n *Node) answers(id string) bool {
	if n.config.Complete != nil {
		if _, ok := n.config.Complete(id); !ok {
			return false
		}
	}
	return n.pulse.answers(id)
}

func (n *Node) quorumWith(all []Peer, id string, voter bool) (q Quorum) {
	for _, p := range all {
		votes := p.Voter
		if p.ID == id {
			votes = voter && p.Member
		}
		if !votes {
			continue
		}
		q.Voters++
		if p.ID == n.id.Node || n.answers(p.ID) {
			q.Alive++
		}
	}
	q.Needed = q.Voters/2 + 1
	return q
}

// IncompleteError is an [artifact.ErrUnavailable]: a change of the members has to wait until a node holds every blob, as
// otherwise the last copies of one could be on the nodes that go.
type IncompleteError struct {
	What  string // the change
	Node  string // who lacks something
	Known bool   // how much it holds
	Holds int64  // leaves whose blobs it holds
	Wants int64  // leaves that there are
}

func (e *IncompleteError) Error() string {
	if !e.Known {
		return fmt.Sprintf("%s: it is not known whether voter %s holds every blob, as it does not say: bring it back first", e.What, e.Node)
	}
	return fmt.Sprintf("%s: node %s holds the blobs of %d changes, and there are %d: wait until it has caught up", e.What, e.Node, e.Holds, e.Wants)
}

func (e *IncompleteError) Unwrap() error { return artifact.ErrUnavailable }

// awaitComplete waits a moment until the nodes hold every blob that is committed now. They are always a little late.
func (n *Node) awaitComplete(ctx context.Context, what string, ids []string) error {
	if n.config.Complete == nil {
		return nil
	}
	wants, _ := n.Root()
	for try := 0; ; try++ {
		missing := -1
		for i, id := range ids {
			if !n.holds(id, wants) {
				missing = i
			}
		}
		if missing < 0 {
			return nil
		}
		have, known := n.config.Complete(ids[missing])
		if try >= 5 || !known {
			return &IncompleteError{what, ids[missing], known, have, wants}
		}
		select {
		case <-time.After(n.config.reconcile):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
