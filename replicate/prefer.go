package replicate

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// A leader hands its office to a voter of higher priority that answers, holds every blob and can do all that a leader has to, once
// that has been so for a while without interruption, as this leader sees it. What goes wrong then, or does not last, makes
// it wait longer before it tries again: a zone that comes and goes must not take the office with it each time.

// How long a node waits after it has handed its office over, or has tried to, before it does so again. It waits twice as long
// as the last time when it comes to that again soon.
const (
	preferAgain = 5 * time.Minute
	preferMost  = time.Hour
)

// preference is what a node remembers of that, also while it does not lead.
type preference struct {
	mu    sync.Mutex
	goal  int64                // guarded by mu, as all that follows: leaves of the catalog at the last look
	since map[string]time.Time // since when a voter could have taken over, in this term of office
	tried time.Time            // when this node last handed its office over, or tried to; zero: never
	wait  time.Duration        // for how long it does not do so again
}

// begin forgets what was seen in an earlier term of office.
func (p *preference) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.goal = map[string]time.Time{}, -1
}

// steady notes which voters could take over now, and returns those that could have for as long as that.
func (p *preference) steady(now time.Time, able []string, long time.Duration) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := map[string]time.Time{}
	for _, id := range able {
		begin, ok := p.since[id]
		if !ok {
			begin = now
		}
		if since[id] = begin; now.Sub(begin) >= long {
			out = append(out, id)
		}
	}
	p.since = since
	return out
}

// try reports whether the office may be handed over now, and takes it that it is.
func (p *preference) try(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := now.Sub(p.tried)
	switch {
	case p.tried.IsZero(), since >= max(2*p.wait, preferMost):
		p.wait = preferAgain
	case since < p.wait:
		return false
	default:
		p.wait = min(2*p.wait, preferMost)
	}
	p.tried = now
	return true
}

// look takes over the number of leaves now, and returns that of the last look.
func (p *preference) look(seq int64) (before int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.goal = p.goal, seq
	return before
}

// preferred returns the voters of a higher priority than this node that could take over now, the highest first.
func (n *Node) preferred(all []Peer, goal int64) (ids []string) {
	own, _ := n.config.Priority(n.id.Node)
	rank := map[string]int{}
	for _, p := range all {
		priority, ok := n.config.Priority(p.ID)
		if ok && p.Voter && p.ID != n.id.Node && priority > own && n.answers(p.ID) && n.unfit(p.ID) == 0 && (n.config.Complete == nil || n.holds(p.ID, goal)) {
			ids, rank[p.ID] = append(ids, p.ID), priority
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(rank[b]-rank[a], cmp.Compare(a, b)) })
	return ids
}

// prefer hands the leadership to a voter of higher priority, if there is one that has kept up for long enough.
func (n *Node) prefer(ctx context.Context) error {
	if n.config.Priority == nil {
		return nil
	}
	seq, _ := n.Root()
	goal := n.preference.look(seq)
	if goal < 0 {
		return nil // what was committed since the last look may be on its way
	}
	all, err := n.Peers(ctx)
	if err != nil {
		return err
	}
	ids := n.preference.steady(time.Now(), n.preferred(all, goal), n.config.steady)
	if len(ids) == 0 || n.config.KeepLeader != nil && n.config.KeepLeader() {
		return nil
	}
	select {
	case n.turn <- struct{}{}: // no vote changes meanwhile
		defer func() { <-n.turn }()
	default:
		return nil // an operator is at it; there is time
	}
	if !n.preference.try(time.Now()) {
		return nil
	}
	n.log.Info("the leadership goes to a voter of higher priority", "node", ids[0], "kept_up_for", n.config.steady)
	ctx, cancel := context.WithTimeout(ctx, 2*n.heartbeat())
	defer cancel()
	return n.TransferLeadershipTo(ctx, ids[0])
}
