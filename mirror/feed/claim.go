package feed

import (
	"slices"
	"time"

	"modmirror/mirror/artifact"
)

// Claim is what a node that follows says to the other nodes of its cluster: all that the feed had before Since is committed in
// the cluster, or owed. That is true for ever, so whoever hears it may go on from there, and keep it for when it leads.
type Claim struct {
	Feed    string    `json:"feed"`
	Cluster string    `json:"cluster"`
	Since   time.Time `json:"since"`
	Owed    []Owed    `json:"owed,omitempty"`
}

const (
	maxClaimed    = 32 // versions that are owed, in a claim
	claimedReason = 100
	keepClaim     = 10 * time.Second // between two that are written to the disk
)

// Claim returns what this node has to say, if it follows; nil: nothing. Of a long list of what is owed it says the first, and
// nothing of what comes after them.
func (f *Follower) Claim() *Claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	if !f.leading || s.Feed == "" || s.Since.IsZero() {
		return nil
	}
	c := Claim{Feed: s.Feed, Cluster: s.Cluster, Since: s.Since}
	owed := slices.Clone(s.Owed)
	slices.SortFunc(owed, func(a, b Owed) int { return a.At.Compare(b.At) })
	if len(owed) > maxClaimed {
		if first := owed[maxClaimed].At; first.Before(c.Since) { // what is owed may be beyond an entry that is not done
			c.Since = first
		}
		owed = owed[:maxClaimed]
	}
	for i := range owed {
		owed[i].Reason = artifact.Truncate(owed[i].Reason, claimedReason)
	}
	c.Owed = owed
	return &c
}

// adopt goes on from what other nodes have claimed, if that is further than s, and reports whether it was.
func (s *state) adopt(claims []Claim) (further bool) {
	for _, c := range claims {
		if c.Feed == "" || c.Cluster != s.Cluster || s.Feed != "" && c.Feed != s.Feed || !c.Since.After(s.Since) {
			continue
		}
		s.Feed, s.Since, further = c.Feed, c.Since, true
		for _, o := range c.Owed {
			o.next, o.trying, o.run = time.Time{}, false, 0
			i := slices.IndexFunc(s.Owed, func(have Owed) bool { return have.module() == o.module() })
			if i < 0 {
				s.Owed = append(s.Owed, o)
			} else if s.Owed[i].At.Before(o.At) {
				s.Owed[i] = o
			}
		}
	}
	return further
}

// listen keeps what the node that follows claims, now and then, as long as another node does.
func (f *Follower) listen() {
	if f.config.Heard == nil || time.Since(f.saved) < keepClaim {
		return
	}
	f.saved = time.Now()
	s, err := load(f.root, f.config.Source.String(), f.config.Cluster())
	if err == nil && s.adopt(f.config.Heard()) {
		err = s.save(f.root)
	}
	if err != nil {
		f.log.Debug("cannot keep how far the other node has followed the feed", "file", StateName, "err", err)
	}
}
