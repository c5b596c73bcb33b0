package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Whole nodes, of which the first three are of one zone: the votes are spread when nodes of other zones have come, the leadership
// goes to where it should be, and stays where an operator puts it.
func TestVotersAndLeaderOfZones(t *testing.T) {
	dir := simDir(t)
	synctest.Test(t, func(t *testing.T) {
		trace := newSimTrace()
		s, err := newSim(7, dir, trace)
		if err != nil {
			t.Fatal(err)
		}
		if s.check.verifier, err = note.NewVerifier(s.source.main.Key()); err != nil {
			t.Fatal(err)
		}
		s.voters, s.nodes = 3, s.nodes[:5]
		for i, zone := range []string{"eu1", "eu1", "eu1", "eu2", "us1"} {
			s.nodes[i].zone, s.nodes[i].role = zone, roleVoter
		}
		s.nodes[4].extra = []string{"--leader-priority", "5"}
		s.addModules()
		defer func() {
			if t.Failed() {
				t.Logf("the last of the trace:\n%s", trace.tail(60))
			}
		}()
		defer s.end()
		await := func(what string, limit time.Duration, so func(v clusterView) bool) bool {
			t.Helper()
			var v clusterView
			for begin := time.Now(); time.Since(begin) < limit; time.Sleep(time.Second) { // of the bubble
				if lead := s.lead(); lead != nil {
					if v = lead.n.view(t.Context()); so(v) {
						return true
					}
				}
			}
			t.Errorf("there is not %s within %v: %+v", what, limit, v)
			return false
		}
		for _, n := range s.nodes[:3] {
			n.start()
		}
		if !await("a cluster", time.Minute, func(v clusterView) bool { return zonesOf(v) == "eu1 eu1 eu1" }) {
			return
		}
		for _, n := range s.nodes[3:] {
			n.start()
		}
		most := 0
		spread := await("a voter in each zone", 10*time.Minute, func(v clusterView) bool {
			most = max(most, v.quorum().voters)
			return zonesOf(v) == "eu1 eu2 us1" && len(v.Problems) == 0
		})
		if !spread || most != 4 {
			t.Errorf("there were %d voters, want 4 at most, for a moment", most)
		}
		if !await("a leader in us1", 5*time.Minute, func(v clusterView) bool { return zoneOfLeader(v) == "us1" }) {
			return
		}
		body := strings.NewReader(`{"verb":"transfer"}`)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/members", body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.nodes[4].serving().n.handleMembers(r); err != nil {
			t.Fatal(err)
		}
		await("a leader elsewhere", time.Minute, func(v clusterView) bool { return zoneOfLeader(v) != "us1" })
		for begin := time.Now(); time.Since(begin) < 15*time.Minute; time.Sleep(time.Second) { // the leader of before waits 5 minutes in any case
			if lead := s.lead(); lead != nil && lead.node == s.nodes[4] {
				t.Errorf("%v after an operator took it away from there the leadership is in us1", time.Since(begin))
				break
			}
		}
		var said selfStatus
		b, err := json.Marshal(s.nodes[4].serving().n.self(t.Context()))
		if err == nil {
			err = json.Unmarshal(b, &said)
		}
		if err != nil || said.KeepLeader < 10*time.Minute || said.Priority != 5 || said.Profile == "" {
			t.Errorf("the node in us1 says %+v, %v", said, err)
		}
	})
}

// zonesOf returns the zones of the voters.
func zonesOf(v clusterView) string {
	var zones []string
	for _, m := range v.Nodes {
		if m.Voter {
			zones = append(zones, m.Zone)
		}
	}
	slices.Sort(zones)
	return strings.Join(zones, " ")
}

func zoneOfLeader(v clusterView) string {
	for _, m := range v.Nodes {
		if m.ID == v.Leader {
			return m.Zone
		}
	}
	return ""
}
