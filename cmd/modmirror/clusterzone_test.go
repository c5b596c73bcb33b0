package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// newZonedSite makes a cluster of three, two of which are in the zone "eu" and one in "us".
func newZonedSite(t *testing.T) *clusterSite {
	s := newClusterSite(t, 3)
	for i, zone := range []string{"eu", "eu", "us"} {
		s.nodes[i].extra = []string{"--zone", zone}
	}
	return s
}

// zone returns what a view says of a zone.
func (v clusterView) zone(name string) (z zoneView) {
	if i := slices.IndexFunc(v.Zones, func(z zoneView) bool { return z.Zone == name }); i >= 0 {
		return v.Zones[i]
	}
	return z
}

// whole reports whether a view says that all zones have all that was committed until a moment ago, and more than was at begin.
func (v clusterView) whole(begin time.Time) bool {
	for _, z := range v.Zones {
		if !z.Complete.After(begin) || !v.isNow(z.Complete) || !z.Least.After(begin) || z.Lag == nil || *z.Lag != 0 {
			return false
		}
	}
	return len(v.Zones) == 2 && v.Under.Members.String() == "0 blobs" && v.Under.Zones.String() == "0 blobs"
}

// oneZoneMatters is what is wrong with the zones of such a site from the beginning.
var oneZoneMatters = []string{"zone eu has 2 of 3 voters: its loss stops commits"}

// Every node sees how far each zone is, what came into it from the other one, and that all hold the same: before, during and after
// the loss of a zone.
func TestZonesInView(t *testing.T) {
	t.Parallel()
	s := newZonedSite(t)
	s.load()
	s.run()
	s.voters(3)
	begin := time.Now()
	if _, err := s.download(s.nodes[0].url, app); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.nodes {
		v := s.sees(n, "all zones complete", func(v clusterView) bool {
			agree := func(m memberView) bool {
				return m.Roots == rootsAgree && m.LeaderChanges != nil && m.Total > 0 && m.Disk == "ok" && m.Looked != nil
			}
			return v.whole(begin) && !slices.ContainsFunc(v.Nodes, func(m memberView) bool { return !agree(m) }) && slices.Equal(v.Problems, oneZoneMatters) && len(v.WAN) == 2
		})
		for _, w := range v.WAN {
			if w.From == w.To || w.Raft+w.Control == 0 || w.Raft < 0 || w.Blobs < 0 {
				t.Errorf("%s sees %+v", n.name, w)
			}
		}
		if v.zone("eu").Nodes != 2 || v.zone("us").Nodes != 1 || v.zone("eu").Leads == v.zone("us").Leads {
			t.Errorf("%s sees %+v", n.name, v.Zones)
		}
	}
	s.zoneIsLost()
}

// zoneIsLost has the zone "us" away while something is committed, and come back.
func (s *clusterSite) zoneIsLost() {
	t := s.t
	lost := s.nodes[2]
	lost.kill()
	away := time.Now()
	s.sees(s.nodes[0], "loss of the zone", func(v clusterView) bool { return v.zone("us").Alive == 0 && v.Leader != "" })
	s.await("download without the zone", func() bool { // its blobs are to be acked by two of three
		_, err := s.download(s.nodes[0].url, "module app\n\ngo 1.21\n\nrequire example.com/hello v1.1.0\n")
		return err == nil
	}, lost.output)
	v := s.sees(s.nodes[0], "a zone that is behind", func(v clusterView) bool {
		us, err := v.find(lost.name)
		return err == nil && us.Lag != nil && *us.Lag > 0 && us.Complete.Before(v.zone("eu").Complete) && v.zone("eu").Complete.After(away) && v.isNow(v.zone("eu").Complete)
	})
	us, _ := v.find(lost.name)
	if us.Complete.IsZero() || !v.zone("us").Complete.IsZero() || !v.zone("us").Least.Equal(us.Complete) {
		t.Errorf("the lost node is complete through %v, its zone through %v, the other through %v", us.Complete, v.zone("us").Complete, v.zone("eu").Complete)
	}
	if most := v.Under.Members.Most; most == nil || *most == 0 || v.Under.Zones.Most == nil || *v.Under.Zones.Most == 0 {
		t.Errorf("blobs in too few places: %v, in too few zones: %v", v.Under.Members, v.Under.Zones)
	}
	out, err := s.command(s.nodes[0], "status")
	if err == nil || !strings.Contains(out, "zone us: 1 node, 0 alive, 1 voter; complete: not known; lacks at most ") || !strings.Contains(out, "\neu    n1    ") {
		t.Errorf("cluster status, %v:\n%s", err, out)
	}
	back := time.Now()
	s.run(lost)
	for _, n := range s.nodes {
		s.sees(n, "all zones complete again", func(v clusterView) bool { return v.whole(back) && slices.Equal(v.Problems, oneZoneMatters) })
	}
	s.zonesInStatus(lost, back)
}

// zonesInStatus looks for the same in what anybody can ask a node for.
func (s *clusterSite) zonesInStatus(n *clusterNode, begin time.Time) {
	var st status
	if err := json.Unmarshal([]byte(s.want(n.process, "/status", 200)), &st); err != nil {
		s.t.Fatal(err)
	}
	if st.Member == nil || !st.Member.Complete.After(begin) || st.Member.lag() != "0" || len(st.Zones) != 2 {
		s.t.Errorf("status: member %+v, zones %+v", st.Member, st.Zones)
	}
	metrics := s.want(n.process, "/metrics", 200)
	for _, series := range []string{`modmirror_cluster_zone_members{alive="true",zone="eu"} 2`, `modmirror_cluster_zone_lag_leaves{zone="eu"} 0`,
		`modmirror_cluster_under_replicated_blobs{bound="most",missing_in="zone"} 0`, "modmirror_cluster_roots_differ 0", "modmirror_blobs_missing_seconds 0",
		`modmirror_peer_wan_bytes_total{from="eu",kind="blobs",to="us"} `, "modmirror_cluster_leader_changes_total "} {
		if !strings.Contains(metrics, "\n"+series) {
			s.t.Errorf("no %s", series)
		}
	}
	for _, name := range []string{"modmirror_cluster_complete_timestamp_seconds ", `modmirror_cluster_zone_complete_timestamp_seconds{zone="us"} `} {
		i := strings.Index(metrics, "\n"+name)
		var at float64
		if _, err := fmt.Sscan(metrics[max(i, 0)+1+len(name):], &at); i < 0 || err != nil || at < float64(begin.Unix()) || at > float64(time.Now().Unix()+1) {
			s.t.Errorf("%s%v (%v), and it began at %d", name, at, err, begin.Unix())
		}
	}
}
