package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// zoneRisks says which zones the cluster could not lose and go on, if it has several. A cluster that is to have one voter
// only was never meant to.
func (v clusterView) zoneRisks() (out []string) {
	members, voters := map[string]bool{}, map[string]int{}
	for _, m := range v.Nodes {
		members[m.Zone] = true
		if m.Voter {
			voters[m.Zone]++
		}
	}
	if len(members) < 2 || v.Wanted < 2 {
		return nil
	}
	q := v.quorum()
	for _, zone := range slices.Sorted(maps.Keys(voters)) {
		if q.voters-voters[zone] < q.needed() {
			out = append(out, fmt.Sprintf("zone %s has %d of %s: its loss stops commits", cmp.Or(zone, "(none)"), voters[zone], count(q.voters, "voter")))
		}
	}
	return out
}
