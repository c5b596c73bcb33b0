package main

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// What happens besides what a mirror tells of artifacts.
const (
	happenedLeader = "leader" // another node leads, or none
	happenedAlarm  = "alarm"  // something that an operator must look at
)

// happening is one thing that happened on this node, for people who watch. What cannot be said is empty.
type happening struct {
	Seq     uint64        `json:"seq"` // counts from 1 since the start of the process, without a gap
	At      time.Time     `json:"at"`
	What    string        `json:"what"` // a mirror.What, "leader" or "alarm"
	Module  string        `json:"module,omitempty"`
	Version string        `json:"version,omitempty"`
	Kind    string        `json:"kind,omitempty"`
	Bytes   int64         `json:"bytes,omitempty"`
	Took    time.Duration `json:"took,omitempty"`   // in ns
	Source  string        `json:"source,omitempty"` // who sent it
	Text    string        `json:"text,omitempty"`   // the reason, or who leads
}

// What is kept of what happened: enough for a page, and no more than a hundred kilobytes.
const (
	maxHappenings = 100
	maxHappening  = 500 // bytes of a text
)

// activity is what happened on this node lately. Who adds to it never waits for who watches. The zero value is ready.
type activity struct {
	mu   sync.Mutex
	ring [maxHappenings]happening // guarded by mu, as the rest
	seq  uint64                   // of the newest
	more chan struct{}            // closed by the next; nil: nobody watches
}

// add keeps h, in place of the oldest.
func (a *activity) add(h happening) {
	for _, text := range []*string{&h.Module, &h.Version, &h.Source, &h.Text} {
		*text = artifact.Truncate(plain(*text), maxHappening)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seq++
	h.Seq, h.At = a.seq, time.Now()
	a.ring[a.seq%maxHappenings] = h
	if a.more != nil {
		close(a.more)
		a.more = nil
	}
}

// recent returns what happened lately, the newest first, and a channel that is closed when something else does.
func (a *activity) recent() ([]happening, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]happening, 0, min(a.seq, maxHappenings))
	for seq := a.seq; seq > 0 && len(out) < maxHappenings; seq-- {
		out = append(out, a.ring[seq%maxHappenings])
	}
	if a.more == nil {
		a.more = make(chan struct{})
	}
	return out, a.more
}

// alarm keeps what an operator must look at.
func (a *activity) alarm(format string, args ...any) {
	a.add(happening{What: happenedAlarm, Text: fmt.Sprintf(format, args...)})
}

// onEvent keeps what the mirror tells, in which no private module has a name.
func (n *node) onEvent(e mirror.Event) {
	h := happening{What: string(e.What), Module: e.Module.Path, Version: e.Module.Version, Bytes: e.Bytes, Took: e.Took, Source: e.Source, Text: e.Reason}
	if e.Kind != 0 {
		h.Kind = e.Kind.String()
	}
	n.activity.add(h)
}

// watchLeader keeps who leads, until ctx ends.
func (n *node) watchLeader(ctx context.Context) error {
	for last := ""; ; {
		id, _, moved := n.replica.Leader()
		if id != last {
			text := "no leader is known: nothing new can be committed"
			if id != "" {
				text = cmp.Or(n.knownAs(func(p replicate.Peer) bool { return p.ID == id }).Name, shortID(id)) + " leads"
			}
			n.activity.add(happening{What: happenedLeader, Text: text})
		}
		last = id
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		}
	}
}
