package main

import (
	"fmt"
	"io"
)

// change is a change of who votes, with what an operator must know before it is made.
type change struct {
	verb   string // remove, demote, promote
	member memberView
	before quorum
	after  quorum
}

// changeOf computes what the change does to the majority.
func changeOf(v clusterView, verb string, m memberView) change {
	c := change{verb: verb, member: m, before: v.quorum()}
	c.after = c.before
	lose := func() {
		if m.Voter {
			c.after.voters--
			if m.Alive {
				c.after.alive--
			}
		}
	}
	switch verb {
	case "remove", "demote":
		lose()
	case "promote":
		if !m.Voter {
			c.after.voters++
			if m.Alive {
				c.after.alive++
			}
		}
	}
	return c
}

// refusal says why the change must not be made, or nil.
func (c change) refusal() error {
	switch {
	case c.verb == "promote" && c.member.Voter:
		return usageError("%s has a vote already", c.member.Name)
	case c.after.voters == 0:
		return usageError("%s is the only voter: the cluster would end. Let another node become a voter first", c.member.Name)
	case c.verb != "promote" && c.member.Leader && c.member.Alive:
		return usageError("%s leads: hand the leadership over first, with modmirror cluster transfer", c.member.Name)
	case c.before.spare() < 0:
		return fmt.Errorf("there is no quorum (%s): nothing can be changed until enough voters are back", c.before)
	case c.after.spare() < 0:
		return usageError("to %s %s would leave no quorum: %s", c.verb, c.member.Name, c.after)
	}
	return nil
}

// print shows the arithmetic.
func (c change) print(w io.Writer) {
	fmt.Fprintf(w, "%s %s (%s, %s)\n", c.verb, c.member.Name, c.member.suffrage(), c.member.Address)
	fmt.Fprintf(w, "  now    %s\n", c.before)
	fmt.Fprintf(w, "  after  %s\n", c.after)
	if c.after.voters%2 == 0 && c.after.voters > 0 {
		fmt.Fprintf(w, "  note   an even number of voters survives no more failures than one fewer: %d or %d are better\n", c.after.voters-1, c.after.voters+1)
	}
	if c.verb == "remove" && c.member.Alive {
		fmt.Fprintf(w, "  note   %s is running: it will notice, stop taking part, and its data directory cannot join this cluster again\n", c.member.Name)
	}
}
