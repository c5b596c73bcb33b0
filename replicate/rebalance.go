package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// Voters are given out as nodes come, so all of them may be in the zone that was there first. A leader evens that out, while
// there are as many voters as wanted and each of them answers: when a node of a zone with at least two voters fewer has been able to vote
// for a while, it gets a vote, and then one of the most crowded zone loses its own. Between the two steps there is one more
// than wanted, never one fewer, and each step is held to what holds for an operator's: whoever is promoted holds every
// blob, whoever remains holds every blob when one is demoted, and a majority answers before and after. Nobody is held back
// by it (see holdCommand), and the leader does not demote itself.
//
// The row rebalance of the catalog says for whom a vote is on its way. It is written before the first step and removed after
// the second, so if the leader dies the next one goes on, and knows the voter too many from one that an operator wanted:
//
//	dies after             the next leader
//	the row is written     promotes the node, or, if it cannot vote now, removes the row
//	the promotion          demotes one of the most crowded zone, as soon as it may
//	the demotion           removes the row
//
// The row goes with the demotion: of what an operator promoted in between nobody loses a vote. A voter that does not answer
// between the two steps would keep the cluster at one more than wanted, where it takes one more to be lost: after a while it is
// the one that goes, also if it is the one that has just got its vote.
//
// A zone that comes and goes moves no votes: nothing begins as long as any voter is silent, or the node that is to get a
// vote was within the time before.

// keyRebalance is the row of bucket cfg: the id of a node. Absent: no vote is on its way.
var keyRebalance = []byte("rebalance")

// rebalanceCommand notes for whom a vote is on its way; "": for nobody.
type rebalanceCommand struct{ To string }

func (rebalanceCommand) kind() byte { return kindRebalance }

func (c rebalanceCommand) encode(b []byte) ([]byte, error) { return appendString(b, c.To), nil }

func (s state) rebalancing() string { return string(s.bucket(bucketConfig).Get(keyRebalance)) }

func (s state) applyRebalance(to string) (result, error) {
	b := s.bucket(bucketConfig)
	if s.level() < rebalanceLevel {
		return refused("to move votes between zones needs feature level %d", rebalanceLevel), nil
	}
	if to == "" {
		return result{}, b.Delete(keyRebalance)
	}
	if _, ok, err := s.peer(to); err != nil || !ok {
		return refused("no node %.100q is known that could get a vote", to), err
	}
	return result{}, b.Put(keyRebalance, []byte(to))
}

// rebalance looks once, and makes at most one change. done means that there is something under way, so that nobody should be
// promoted for another reason.
func (g *grower) rebalance(ctx context.Context, n *Node, all []Peer, goal int64) (done bool, err error) {
	to, level := "", 0
	if err := n.view(func(s state) error { to, level = s.rebalancing(), s.level(); return nil }); err != nil {
		return false, err
	}
	if level < rebalanceLevel {
		return false, nil
	}
	if to != "" {
		if !n.caughtUp(all, g.changed) || !g.mayMove(n, all, to) {
			return true, nil // not yet; to look closer costs an entry of the log
		}
		return true, g.moveVote(ctx, n, to, goal)
	}
	p, ok := n.deprived(all, goal)
	if !ok || !g.even.lasts(p.ID, time.Now(), n.config.steady) {
		if !ok {
			g.even = steadiness{}
		}
		return false, nil
	}
	n.log.Info("the voters are to be spread over the zones: a node of a zone with fewer gets a vote, and then one of the most crowded zone loses its own",
		"node", p.ID, "name", p.Name, "zone", p.Zone)
	return true, n.noteRebalance(ctx, p.ID)
}

// steadiness is for how long the same has been so.
type steadiness struct {
	what  string
	since time.Time
}

// lasts notes what is so now, and reports whether it has been for as long as that.
func (s *steadiness) lasts(what string, now time.Time, long time.Duration) bool {
	if s.what != what || s.since.IsZero() {
		s.what, s.since = what, now
	}
	return now.Sub(s.since) >= long
}

func (n *Node) noteRebalance(ctx context.Context, to string) error {
	_, err := n.propose(ctx, rebalanceCommand{to})
	return err
}

// deprived returns the node that is to get a vote from a zone that has too many of them.
func (n *Node) deprived(all []Peer, goal int64) (Peer, bool) {
	zones, voters := votersByZone(all)
	if q := n.quorumWith(all, "", false); voters != n.config.Voters || q.Alive < q.Voters {
		return Peer{}, false
	}
	p, ok := n.nextVoter(all, zones, goal)
	return p, ok && n.unfit(p.ID) == 0 && mostOf(zones)-zones[p.Zone] >= 2
}

func mostOf(zones map[string]int) int {
	return slices.Max(append(slices.Collect(maps.Values(zones)), 0))
}

// mayMove reports whether the next step can be made: all voters that stay answer. Of the most crowded zone, when the vote has come
// to where it was to go, one may be silent: it is the one that goes. So is any other one that has been silent for long.
func (g *grower) mayMove(n *Node, all []Peer, to string) bool {
	g.lost = ""
	zones, voters := votersByZone(all)
	if voters <= n.config.Voters || !slices.ContainsFunc(all, func(p Peer) bool { return p.ID == to && p.Voter }) {
		g.even = steadiness{}
		return true // a promotion asks for a majority only, and the end for nobody
	}
	from, _ := n.surplus(all, zones, to, "")
	var silent []string
	for _, p := range all {
		if p.Voter && p.ID != n.id.Node && p.ID != from.ID && !n.answers(p.ID) {
			silent = append(silent, p.ID)
		}
	}
	if len(silent) != 1 || !n.answers(from.ID) {
		g.even = steadiness{}
		return len(silent) == 0
	}
	if !g.even.lasts(silent[0], time.Now(), n.config.steady) {
		return false
	}
	g.lost = silent[0]
	return true
}

// moveVote goes on with a vote that is on its way to a node.
func (g *grower) moveVote(ctx context.Context, n *Node, to string, goal int64) error {
	if err := n.take(ctx); err != nil { // an operator's change may be under way
		return err
	}
	defer func() { <-n.turn }()
	at, p, all, err := n.member(ctx, to)
	if errors.Is(err, fs.ErrNotExist) { // removed, or of the cluster that this catalog is a backup of
		return n.noteRebalance(ctx, "")
	}
	if err != nil {
		return err
	}
	zones, voters := votersByZone(all)
	if !p.Voter {
		next, ok := n.nextVoter(slices.DeleteFunc(slices.Clone(all), func(o Peer) bool { return !o.Voter && o.ID != to }), zones, goal)
		if !ok || voters != n.config.Voters || mostOf(zones)-zones[next.Zone] < 2 || n.quorumWith(all, to, true).check("") != nil {
			n.log.Info("no vote is moved: the node for which it was cannot have it now", "node", to, "name", p.Name)
			return n.noteRebalance(ctx, "")
		}
		n.log.Info("a node becomes a voter, for the spreading over zones", "node", to, "name", p.Name, "zone", p.Zone)
		return n.suffrage(ctx, to, true, at)
	}
	from, ok := n.surplus(all, zones, to, g.lost)
	if voters <= n.config.Voters || !ok {
		return n.noteRebalance(ctx, "")
	}
	what := fmt.Sprintf("take the vote of node %s, of zone %q, for the spreading over zones", from.Name, from.Zone)
	if err := n.canLeave(ctx, what, from.ID, all); err != nil {
		return err
	}
	n.log.Info("a node loses its vote, for the spreading over zones", "node", from.ID, "name", from.Name, "zone", from.Zone, "answers", n.answers(from.ID))
	if err := n.suffrage(ctx, from.ID, false, at); err != nil {
		return err
	}
	g.even = steadiness{} // if it comes back it has to stay before it gets a vote again
	return n.noteRebalance(ctx, "")
}

// surplus returns the voter that is to lose its vote: lost, which has been silent for long, if it still is, or one of the most
// crowded zone. That is not the leader, nor the one that has just got its own vote; and of the others one that does not answer, or
// cannot do everything, before one that does.
func (n *Node) surplus(all []Peer, zones map[string]int, to, lost string) (Peer, bool) {
	var able []Peer
	for _, p := range all {
		if p.ID == lost && p.Voter && !n.answers(lost) {
			return p, true
		}
		if p.Voter && p.ID != n.id.Node && p.ID != to && zones[p.Zone] > 1 {
			able = append(able, p)
		}
	}
	if len(able) == 0 {
		return Peer{}, false
	}
	silent := func(p Peer) int { return map[bool]int{false: 1}[n.answers(p.ID)] }
	return slices.MinFunc(able, func(a, b Peer) int {
		return cmp.Or(zones[b.Zone]-zones[a.Zone], cmp.Compare(a.Zone, b.Zone), silent(b)-silent(a), n.unfit(b.ID)-n.unfit(a.ID), cmp.Compare(b.ID, a.ID))
	}), true
}
