package peer

import (
	"context"
	"errors"
	"time"
)

// what says which promises a conversation needs.
type what uint8

const (
	asMember what = iota // both are in the same cluster
	asFresh              // one or both may have no cluster yet
	asProbe              // the same, and nothing is looked up: who is there
)

// admit says what is to be said against h, who wants to speak to the node to ("" is whoever answers).
func (l *Link) admit(ctx context.Context, h Hello, to string, w what) *Refusal {
	self := l.Self()
	if to != "" && to != self.Node {
		return refuseOther(to, self, self.Address)
	}
	if r := l.fits(h, self, w); r != nil {
		return r
	}
	if w != asProbe {
		if r := l.twice(ctx, h); r != nil {
			return r
		}
	}
	if l.config.Check != nil {
		if err := l.config.Check(h); err != nil {
			return asRefusal(err)
		}
	}
	if w != asProbe {
		l.remember(h)
	}
	return nil
}

// fits compares what the two say of themselves.
func (l *Link) fits(h, self Hello, w what) *Refusal {
	switch {
	case h.Node == self.Node && h.Boot != self.Boot:
		return refuseTwice(h, self)
	case h.Cluster == self.Cluster && (h.Cluster != "" || w != asMember):
		return nil
	case h.Cluster != "" && self.Cluster != "":
		if l.config.Was != nil {
			if at, ok := l.config.Was(h.Cluster); ok {
				return refuseLeftBehind(h, self, at)
			}
		}
		return refuseForeign(h, self)
	case w != asMember:
		return nil
	case h.Cluster == "":
		return refuseFresh(h, self)
	}
	return refuseFresh(self, h)
}

// answers says what is to be said against the node h that answers at addr, where the node to was expected.
func (l *Link) answers(h Hello, to, addr string, w what) *Refusal {
	if to != "" && h.Node != to {
		return refuseOther(to, h, addr)
	}
	return l.fits(h, l.Self(), w)
}

// twice refuses h if another process with its id, which was let in before, still runs. A copy of a data directory is
// found out by this as long as the original runs; after that by its count of starts.
func (l *Link) twice(ctx context.Context, h Hello) *Refusal {
	old, ok := l.knows(h.Node)
	if !ok || old.Boot == h.Boot {
		return nil
	}
	if h.Starts == 0 && old.Starts > 0 {
		return RefuseStarting(h)
	}
	if h.Starts < old.Starts {
		return RefuseClone(h, old)
	}
	v, _, _ := l.probes.Do(h.Node+" "+h.Boot, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		there, err := l.Probe(ctx, old.Address)
		return err == nil && there.Node == old.Node && there.Boot == old.Boot, nil
	})
	if v.(bool) {
		return refuseTwice(h, old)
	}
	return nil
}

func (l *Link) knows(node string) (Hello, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.known[node]
	return h, ok
}

func (l *Link) remember(h Hello) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.known[h.Node]; !ok && len(l.known) >= maxKnown {
		clear(l.known) // only who has the token gets here; what is lost is learnt again
	}
	l.known[h.Node] = h
}

// Probe asks who answers at addr.
func (l *Link) Probe(ctx context.Context, addr string) (Hello, error) {
	resp, err := l.Do(ctx, Request{Addr: addr, Path: "/v1/hello"})
	if err != nil {
		return Hello{}, err
	}
	defer resp.Body.Close()
	h, err := l.parse(resp.Header.Get(helloHeader))
	if err == nil && resp.StatusCode != 200 {
		err = errors.New(resp.Status)
	}
	return h, err
}
