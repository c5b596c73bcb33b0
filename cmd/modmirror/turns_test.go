package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"modmirror/replicate/peer"
)

// fetching nodes are named after their zones, as in near; those that end with an x have no upstream, with an s a silent one.
func candidates(list ...string) (out []candidate) {
	for _, id := range list {
		silent := strings.HasSuffix(id, "s")
		out = append(out, candidate{peer.Member{ID: id, Zone: id[:1]}, !silent && !strings.HasSuffix(id, "x"), true, silent})
	}
	return out
}

// turnsOf returns the turn of each of the nodes for a key.
func turnsOf(key string, all []candidate) map[string]turn {
	turns := map[string]turn{}
	for i, self := range all {
		turns[self.ID] = turnAmong(key, self, slices.Delete(slices.Clone(all), i, i+1))
	}
	return turns
}

// All questions for a key end at one node, in two hops at most: a zone has one node that asks another zone, and none is asked
// but by nodes of its zone, or as the owner of the cluster.
func TestOneOwner(t *testing.T) {
	owners := map[string]bool{}
	for i := range 200 {
		all := candidates("a1", "a2", "a3", "b1", "b2", "b3x", "c1x", "c2x")
		turns := turnsOf(fmt.Sprint("key ", i), all)
		var owner string
		across := map[string]string{} // by zone, who asks the owner
		for id, turn := range turns {
			to := id
			switch {
			case len(turn.zone) > 0:
				to = turn.zone[0].ID
				if to[0] != id[0] || len(turns[to].zone) > 0 {
					t.Fatalf("key %d: %s asks %s, which asks %s", i, id, to, ids(turns[to].zone))
				}
				continue
			case len(turn.cluster) > 0:
				to = turn.cluster[0].ID
			case !turn.mine:
				t.Fatalf("key %d: nobody fetches it for %s", i, id)
			}
			if owner == "" {
				owner = to
			}
			if to != owner {
				t.Fatalf("key %d: %s asks %s, others %s", i, id, to, owner)
			}
			if zone := id[:1]; zone != owner[:1] {
				if across[zone] != "" {
					t.Fatalf("key %d: %s and %s ask another zone", i, id, across[zone])
				}
				across[zone] = id
			}
		}
		owners[owner] = true
	}
	if len(owners) != 5 {
		t.Errorf("the owners are %v, want the five that fetch", owners)
	}
}

// Who gets no answer from the upstream is no owner while somebody does, and asks those first; if nobody does, all are owners.
func TestSilentIsNoOwner(t *testing.T) {
	for i := range 50 {
		key := fmt.Sprint("key ", i)
		for id, turn := range turnsOf(key, candidates("a1s", "a2", "b1", "b2s", "c1x")) {
			if s := ids(turn.cluster) + ids(turn.zone); strings.Contains(ids(turn.cluster), "s") || strings.Contains(s, id) {
				t.Fatalf("%s: %+v", id, turn)
			}
			if fetches := id == "a2" || id == "b1"; turn.mine != fetches || !fetches && len(turn.cluster) != 2 {
				t.Fatalf("%s: %+v", id, turn)
			}
		}
		all, healthy := turnsOf(key, candidates("a1s", "b1s", "c1x")), turnsOf(key, candidates("a1", "b1", "c1x"))
		for _, id := range []string{"a1", "b1"} {
			if got, want := all[id+"s"], healthy[id]; len(got.cluster) > 1 || got.mine != want.mine || !got.mine {
				t.Fatalf("all are silent: %s: %+v", id, got)
			}
		}
		if n := len(all["c1x"].cluster); n != 2 {
			t.Fatalf("all are silent: %+v", all["c1x"])
		}
	}
}

// With one zone everybody asks the owner, and after it the next, as if there were no zones.
func TestOneZoneHasOneHop(t *testing.T) {
	for i := range 50 {
		key := fmt.Sprint("key ", i)
		all := candidates("a1", "a2", "a3")
		order := peer.Owner(key, []peer.Member{all[0].Member, all[1].Member, all[2].Member})
		for id, turn := range turnsOf(key, all) {
			want, _ := before(id, order)
			if len(turn.zone) > 0 || ids(turn.cluster) != ids(want) || !turn.mine {
				t.Fatalf("%s: %+v, want %s", id, turn, ids(want))
			}
		}
	}
}

// A node of an earlier version does not pass questions on, so it is nobody's owner of the zone; but it fetches.
func TestEarlierVersionIsNoZoneOwner(t *testing.T) {
	asked := false
	for i := range 50 {
		old := candidates("a2")[0]
		old.passes = false
		turn := turnAmong(fmt.Sprint("key ", i), candidates("a1")[0], append(candidates("b1", "c1"), old))
		if strings.Contains(ids(turn.zone), "a2") {
			t.Fatalf("%+v", turn)
		}
		asked = asked || strings.HasPrefix(ids(turn.cluster), "a2")
	}
	if !asked {
		t.Error("an earlier version is never the owner of the cluster")
	}
}

// A node whose zone is cut off from the others asks the upstream itself; one without an upstream never does.
func TestTurnOfAZoneAlone(t *testing.T) {
	if turn := turnAmong("key", candidates("a1")[0], nil); len(turn.zone) > 0 || len(turn.cluster) > 0 || !turn.mine {
		t.Errorf("alone: %+v", turn)
	}
	if turn := turnAmong("key", candidates("a1x")[0], candidates("a2x")); len(turn.zone) > 0 || len(turn.cluster) > 0 || turn.mine {
		t.Errorf("alone and without an upstream: %+v", turn)
	}
	if turn := turnAmong("key", candidates("a1x")[0], candidates("b1")); len(turn.zone) > 0 || ids(turn.cluster) != "b1" || turn.mine {
		t.Errorf("without an upstream: %+v", turn)
	}
}
