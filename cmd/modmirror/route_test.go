package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

func ids(list []peer.Member) string {
	var out []string
	for _, m := range list {
		out = append(out, m.ID)
	}
	return strings.Join(out, " ")
}

// near is a node that answers and takes blobs; its zone is the first letter of its name.
func near(id string) neighbour {
	return neighbour{peer.Member{ID: id, Zone: strings.TrimRight(id, "0123456789")}, true, true}
}

func nears(list ...string) (out []neighbour) {
	for _, id := range list {
		out = append(out, near(id))
	}
	return out
}

// relayOf returns the first relay of all nodes of a list, as each of them sees it.
func relayOf(t *testing.T, d artifact.Digest, zone []string, far ...neighbour) string {
	t.Helper()
	var relay string
	for _, self := range zone {
		others := slices.DeleteFunc(slices.Clone(zone), func(o string) bool { return o == self })
		r := routeAmong(d, near(self), append(nears(others...), far...))
		first := self
		if len(r.relays) > 0 {
			first = r.relays[0].ID
		}
		if relay == "" {
			relay = first
		}
		if first != relay {
			t.Fatalf("%s takes %s for the relay, others %s", self, first, relay)
		}
		if len(r.siblings)+min(1, len(r.relays)) != len(others) || len(r.far) != len(far) {
			t.Fatalf("%s asks siblings %s, relays %s, far %s", self, ids(r.siblings), ids(r.relays), ids(r.far))
		}
	}
	return relay
}

// All nodes of a zone agree about the relay of a blob, each is that of some blobs, and when it goes, the rest keeps its relays.
func TestRelayOfAZone(t *testing.T) {
	zone, counts := []string{"a1", "a2", "a3"}, map[string]int{}
	for i := range 300 {
		d := artifact.RefOf(fmt.Appendf(nil, "blob %d", i)).Digest
		relay := relayOf(t, d, zone, nears("b1", "c1")...)
		counts[relay]++
		if without := relayOf(t, d, zone[1:], nears("b1", "c1")...); relay != "a1" && without != relay {
			t.Errorf("the relay of a blob moves from %s to %s when another one goes", relay, without)
		}
	}
	for _, id := range zone {
		if counts[id] < 50 {
			t.Errorf("%s is the relay of %d of 300 blobs", id, counts[id])
		}
	}
}

// Where there is no second zone, or none that answers, nobody is a relay, and nodes are asked in the order that was given.
func TestRouteWithoutRelays(t *testing.T) {
	d := artifact.RefOf([]byte("blob")).Digest
	silent := near("b1")
	silent.answers = false
	gone := near("a3")
	gone.answers = false
	for _, test := range []struct {
		name     string
		others   []neighbour
		siblings string
		far      string
	}{
		{"one zone", nears("a2", "a3", "a4"), "a2 a3 a4", ""},
		{"one zone, a node is gone", append(nears("a2"), gone), "a2", "a3"},
		{"the other zone is gone", append(nears("a2", "a3"), silent), "a2 a3", "b1"},
		{"alone in its zone", nears("b1", "c1"), "", "b1 c1"},
		{"alone", nil, "", ""},
	} {
		r := routeAmong(d, near("a1"), test.others)
		if ids(r.siblings) != test.siblings || len(r.relays) != 0 || ids(r.far) != test.far {
			t.Errorf("%s: siblings %s, relays %s, far %s", test.name, ids(r.siblings), ids(r.relays), ids(r.far))
		}
	}
}

// A node that takes no blobs is no relay, and one that takes none itself has others be that.
func TestRelaysTakeBlobs(t *testing.T) {
	for i := range 50 {
		d := artifact.RefOf(fmt.Appendf(nil, "blob %d", i)).Digest
		full := near("a2")
		full.takes = false
		r := routeAmong(d, near("a1"), append([]neighbour{full}, nears("a3", "b1")...))
		if strings.Contains(ids(r.relays), "a2") || !strings.Contains(ids(r.siblings), "a2") {
			t.Fatalf("a node without room: siblings %s, relays %s", ids(r.siblings), ids(r.relays))
		}
		self := near("a1")
		self.takes = false
		if r := routeAmong(d, self, nears("a2", "a3", "b1")); len(r.relays) != 2 {
			t.Fatalf("for a node without room: relays %s", ids(r.relays))
		}
	}
}

// A blob is spread within the zone first, and to each other zone once before to any twice.
func TestSpreadOrder(t *testing.T) {
	full, silent := near("a3"), near("b1")
	full.takes, silent.answers = false, false
	for _, test := range []struct {
		name   string
		others []neighbour
		want   string
	}{
		{"one zone", nears("a2", "a3"), "a2 a3"},
		{"five over three", nears("a2", "b1", "b2", "c1"), "a2 b1 c1 b2"},
		{"a zone of which one does not answer", []neighbour{near("a2"), near("b2"), near("c1"), silent}, "a2 b2 c1 b1"},
		{"a node without room", []neighbour{full, near("a2"), near("b1"), near("b2")}, "a2 b1 b2 a3"},
	} {
		if got := ids(spreadOrder("a", test.others)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}
