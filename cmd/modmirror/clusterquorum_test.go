package main

import (
	"errors"
	"strings"
	"testing"
)

// someMembers makes a view: V is a voter that answers, L one that leads, v one that does not, n a member without a vote.
func someMembers(what string) (v clusterView) {
	for i, c := range what {
		v.Nodes = append(v.Nodes, memberView{ID: string(rune('A'+i)) + "AAAAAAA", Name: "n" + string(rune('1'+i)), Voter: c != 'n', Leader: c == 'L', Alive: c != 'v', Role: roleVoter})
	}
	return v
}

func TestQuorum(t *testing.T) {
	for what, want := range map[string]string{
		"":      "no voters",
		"n":     "no voters",
		"V":     "1 voter, 1 alive; a majority is 1: no further one may fail",
		"VV":    "2 voters, 2 alive; a majority is 2: no further one may fail",
		"VVVn":  "3 voters, 3 alive; a majority is 2: 1 more may fail",
		"VVv":   "3 voters, 2 alive; a majority is 2: no further one may fail",
		"Vvvn":  "3 voters, 1 alive; a majority is 2: NO QUORUM, nothing new is committed",
		"VVVV":  "4 voters, 4 alive; a majority is 3: 1 more may fail",
		"VVVVV": "5 voters, 5 alive; a majority is 3: 2 more may fail",
	} {
		if got := someMembers(what).quorum().String(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
}

func TestChangesOfMembers(t *testing.T) {
	for _, test := range []struct {
		members, verb string
		at            int
		after         quorum
		refusal       string // "": it may be made
		usage         bool
	}{
		{"VVV", "remove", 0, quorum{2, 2}, "", false},
		{"VVv", "remove", 2, quorum{2, 2}, "", false}, // the dead one
		{"VVv", "remove", 0, quorum{2, 1}, "would leave no quorum", true},
		{"VVv", "demote", 2, quorum{2, 2}, "", false},
		{"VVv", "demote", 1, quorum{2, 1}, "would leave no quorum", true},
		{"V", "remove", 0, quorum{0, 0}, "the only voter", true},
		{"Vn", "demote", 0, quorum{0, 0}, "the only voter", true},
		{"Vvvn", "remove", 3, quorum{3, 1}, "there is no quorum", false},
		{"Vvvn", "promote", 3, quorum{4, 2}, "there is no quorum", false},
		{"VVVn", "remove", 3, quorum{3, 3}, "", false},
		{"VVVn", "promote", 3, quorum{4, 4}, "", false},
		{"VVVn", "demote", 3, quorum{3, 3}, "", false}, // so that it gets no vote
		{"LVV", "remove", 0, quorum{2, 2}, "hand the leadership over first", true},
		{"LVV", "demote", 0, quorum{2, 2}, "hand the leadership over first", true},
		{"LVV", "remove", 1, quorum{2, 2}, "", false},
		{"L", "remove", 0, quorum{0, 0}, "the only voter", true},
		{"VVV", "promote", 1, quorum{3, 3}, "has a vote already", true},
	} {
		v := someMembers(test.members)
		c := changeOf(v, test.verb, v.Nodes[test.at])
		err := c.refusal()
		if c.after != test.after || (err == nil) != (test.refusal == "") || err != nil && !strings.Contains(err.Error(), test.refusal) || errors.Is(err, errUsage) != test.usage {
			t.Errorf("%s, %s n%d: after %+v, %v; want %+v, %q", test.members, test.verb, test.at+1, c.after, err, test.after, test.refusal)
		}
	}
}

func TestChangeIsExplained(t *testing.T) {
	v := someMembers("VVV")
	v.Nodes[2].Address = "c:3001"
	var out strings.Builder
	changeOf(v, "remove", v.Nodes[2]).print(&out)
	want := `remove n3 (voter, c:3001)
  now    3 voters, 3 alive; a majority is 2: 1 more may fail
  after  2 voters, 2 alive; a majority is 2: no further one may fail
  note   an even number of voters survives no more failures than one fewer: 1 or 3 are better
  note   n3 is running: it will notice, stop taking part, and its data directory cannot join this cluster again
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestConfirm(t *testing.T) {
	for said, yes := range map[string]bool{"remove\n": true, " remove \n": true, "remove": true, "y\n": false, "": false, "\nremove\n": false, "demote\n": false} {
		var out strings.Builder
		if err := confirm(strings.NewReader(said), &out, "remove"); (err == nil) != yes || !strings.Contains(out.String(), `type "remove" to go on`) {
			t.Errorf("%q: %v, %q", said, err, out.String())
		}
	}
}
