package main

import (
	"strings"
	"testing"
)

// A zone whose loss would stop commits is a problem, where there are several.
func TestZoneRisks(t *testing.T) {
	for voters, want := range map[string]string{ // a letter is a voter of that zone, behind a space a member without a vote
		"aaa":     "",
		"aaa b":   "zone a has 3 of 3 voters: its loss stops commits",
		"aab c":   "zone a has 2 of 3 voters: its loss stops commits",
		"abc":     "",
		"abc abc": "",
		"aabbc":   "",
		"aaabc":   "zone a has 3 of 5 voters: its loss stops commits",
		"aabc":    "zone a has 2 of 4 voters: its loss stops commits",
		"ab":      "zone a has 1 of 2 voters: its loss stops commits, zone b has 1 of 2 voters: its loss stops commits",
		"a bc":    "zone a has 1 of 1 voter: its loss stops commits",
		"-- a":    "zone (none) has 2 of 2 voters: its loss stops commits",
	} {
		v := clusterView{Wanted: 3}
		votes := true
		for _, zone := range strings.Split(voters, "") {
			if zone == " " {
				votes = false
				continue
			}
			v.Nodes = append(v.Nodes, memberView{Zone: strings.Trim(zone, "-"), Voter: votes, Alive: true, Ready: "ok", Writes: "ok"})
		}
		if got := strings.Join(v.zoneRisks(), ", "); got != want {
			t.Errorf("%q: %q, want %q", voters, got, want)
		}
		v.Leader = "L"
		if got := strings.Join(v.problems(), ", "); got != want {
			t.Errorf("%q: the problems are %q, want %q", voters, got, want)
		}
		v.Wanted = 1
		if got := v.zoneRisks(); len(got) > 0 {
			t.Errorf("%q: %q with --voters 1", voters, got)
		}
	}
}
