package main

import (
	"context"
	"time"
)

// How far behind a node is. What the leader's catalog holds is all that was committed a lease ago, if it is in office: one that is cut
// off does not notice any sooner that there is another. So what it said last, and a lease before it was asked for that, is a mark: a
// node that holds as much is complete through that time, whatever its own clock says and whether it is heard of now. A node that holds
// less is complete through the moment before the first change that it lacks was committed, which this node's own catalog knows, if it
// goes that far.

// mark says that all that was committed until a time is in so many leaves. The zero mark says nothing.
type mark struct {
	seq int64
	at  time.Time
}

// lookOut returns the newest mark that this node has had.
func (n *node) lookOut(ctx context.Context) mark {
	now := n.markNow(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.at.After(n.newest.at) {
		n.newest = now
	}
	return n.newest
}

// markNow returns the mark that the leader sets, the zero one if none is known or it has only begun.
func (n *node) markNow(ctx context.Context) mark {
	at := time.Now()
	switch id, _, _ := n.replica.Leader(); id {
	case "":
		return mark{}
	case n.replica.ID():
		st, err := n.replica.Status(ctx)
		if err != nil || !n.replica.InOffice() {
			return mark{}
		}
		return mark{st.Seq, at.Add(-n.replica.Lease())}
	default:
		s, seen, ok := n.heard(id)
		if !ok {
			return mark{}
		}
		return s.mark(seen.Sent)
	}
}

// longestLease is that of leaders that do not say what theirs is: of earlier versions.
const longestLease = 2500 * time.Millisecond

// mark returns the mark that a node sets which was asked at a time; the zero one if it is not in office.
func (s selfStatus) mark(asked time.Time) mark {
	if !s.InOffice {
		return mark{}
	}
	lease := s.Lease
	if lease <= 0 {
		lease = longestLease
	}
	return mark{s.Seq, asked.Add(-lease)}
}

// measure works out how far each member is, of what it said last.
func (v *clusterView) measure(m mark, timeAt func(seq int64) time.Time) {
	far := max(v.Seq, m.seq)
	for _, o := range v.Nodes {
		if m.at.IsZero() && o.Alive { // there was no leader yet that could have said it
			far = max(far, o.Seq)
		}
	}
	v.Far = far
	for i := range v.Nodes {
		o := &v.Nodes[i]
		if o.Seen.IsZero() {
			continue
		}
		lag := max(far-o.Seq, 0)
		o.Lag = &lag
		if o.Roots != rootsDiffer {
			o.Complete = m.completeAt(o.done(), v.Seq, timeAt)
		}
	}
}

// done returns up to which leaf a member has the manifests, and the blobs that they name.
func (m memberView) done() int64 { return min(m.Seq, m.Blobs) }

// completeAt returns through when a node is complete that holds all of the leaves below done, where this node's own catalog has the
// leaves below own; zero if nobody knows.
func (m mark) completeAt(done, own int64, timeAt func(seq int64) time.Time) time.Time {
	if !m.at.IsZero() && done >= m.seq {
		return m.at
	}
	if done >= own { // what comes next is not known here
		return timeAt(own - 1)
	}
	if next := timeAt(done); !next.IsZero() {
		return next.Add(-time.Microsecond) // no two changes have the same time
	}
	return time.Time{}
}

// firstDated is earlier than every change that has a time: those from before the catalog knew of times have one near 1970.
var firstDated = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// timeAt returns when the change at a place was committed, as the leader's clock showed; zero if this node does not know.
func (n *node) timeAt(ctx context.Context, seq int64) time.Time {
	t, err := n.replica.TimeAt(ctx, seq)
	if err != nil || t.Before(firstDated) {
		return time.Time{}
	}
	return t
}
