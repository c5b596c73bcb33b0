package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// Through when a node is complete follows from what it holds and what the leader said: never more than is true, and nothing where
// nothing is known.
func TestMeasure(t *testing.T) {
	at := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	dated := func(seq int64) time.Time { // of ten changes, one an hour
		if seq < 0 || seq >= 10 {
			return time.Time{}
		}
		return at.Add(time.Duration(seq-10) * time.Hour)
	}
	undated := func(int64) time.Time { return time.Time{} }
	before := func(seq int64) time.Time { return dated(seq).Add(-time.Microsecond) }
	for name, test := range map[string]struct {
		mark   mark
		timeAt func(int64) time.Time
		member memberView
		lag    int64 // -1: not known
		want   time.Time
	}{
		"all is here":                       {mark{10, at}, dated, memberView{Seq: 10, Blobs: 10}, 0, at},
		"more than the leader had":          {mark{8, at}, dated, memberView{Seq: 10, Blobs: 10}, 0, at},
		"it is behind":                      {mark{10, at}, dated, memberView{Seq: 7, Blobs: 7}, 3, before(7)},
		"it is one change behind":           {mark{10, at}, dated, memberView{Seq: 9, Blobs: 9}, 1, before(9)},
		"a blob is missing":                 {mark{10, at}, dated, memberView{Seq: 10, Blobs: 4, Missing: 1}, 0, before(4)},
		"nothing is here":                   {mark{10, at}, dated, memberView{}, 10, before(0)},
		"no leader was ever known":          {mark{}, dated, memberView{Seq: 10, Blobs: 10}, 0, dated(9)},
		"the same, and it is behind":        {mark{}, dated, memberView{Seq: 7, Blobs: 7}, 3, before(7)},
		"who looks is behind the leader":    {mark{20, at}, dated, memberView{Seq: 10, Blobs: 10}, 10, dated(9)},
		"who looks knows less than it":      {mark{20, at}, dated, memberView{Seq: 15, Blobs: 15}, 5, dated(9)},
		"changes have no times":             {mark{10, at}, undated, memberView{Seq: 7, Blobs: 7}, 3, time.Time{}},
		"the same, and all is here":         {mark{10, at}, undated, memberView{Seq: 10, Blobs: 10}, 0, at},
		"it holds something else":           {mark{10, at}, dated, memberView{Seq: 10, Blobs: 10, Roots: rootsDiffer}, 0, time.Time{}},
		"its tiles are of no account":       {mark{10, at}, dated, memberView{Seq: 10, Blobs: 12}, 0, at},
		"it does not answer, and was whole": {mark{10, at}, dated, memberView{Seq: 10, Blobs: 10, Error: "gone"}, 0, at},
	} {
		m := test.member
		m.Seen, m.Alive = at.Add(-time.Second), m.Error == ""
		v := clusterView{Seq: 10, Nodes: []memberView{m, {Name: "silent"}}}
		v.measure(test.mark, test.timeAt)
		got := v.Nodes[0]
		if got.Lag == nil || *got.Lag != test.lag || !got.Complete.Equal(test.want) {
			t.Errorf("%s: lag %v, complete through %v, want %d, %v", name, showLag(got), got.Complete, test.lag, test.want)
		}
		if silent := v.Nodes[1]; silent.Lag != nil || !silent.Complete.IsZero() {
			t.Errorf("%s: a node that said nothing has the lag %s, and is complete through %v", name, showLag(silent), silent.Complete)
		}
	}
}

func showLag(m memberView) string {
	if m.Lag == nil {
		return "nil"
	}
	return fmt.Sprint(*m.Lag)
}

// A leader's mark is of a lease before it was asked, of one that does not say which, the longest; who is not in office sets none.
func TestMarkOfALeader(t *testing.T) {
	asked := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		says string
		want mark
	}{
		{`{"seq": 7, "inOffice": true, "lease": 500000000}`, mark{7, asked.Add(-500 * time.Millisecond)}},
		{`{"seq": 7, "inOffice": true}`, mark{7, asked.Add(-2500 * time.Millisecond)}},
		{`{"seq": 7, "inOffice": true, "lease": -500000000}`, mark{7, asked.Add(-2500 * time.Millisecond)}},
		{`{"seq": 7, "lease": 500000000}`, mark{}},
	} {
		var s selfStatus
		if err := json.Unmarshal([]byte(test.says), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.mark(asked); got != test.want {
			t.Errorf("%s: %v, want %v", test.says, got, test.want)
		}
	}
}

// As long as no leader has said how far the cluster is, others that are ahead of this node are the measure.
func TestMeasureWithoutLeader(t *testing.T) {
	seen := time.Now()
	v := clusterView{Seq: 3, Nodes: []memberView{{Seq: 3, Seen: seen, Alive: true}, {Seq: 9, Seen: seen, Alive: true}, {Seq: 99, Seen: seen}}}
	v.measure(mark{}, func(int64) time.Time { return time.Time{} })
	if v.Far != 9 || *v.Nodes[0].Lag != 6 {
		t.Errorf("%d leaves are committed, and this node is %s behind", v.Far, showLag(v.Nodes[0]))
	}
	v.measure(mark{3, seen}, func(int64) time.Time { return time.Time{} })
	if v.Far != 3 || *v.Nodes[0].Lag != 0 {
		t.Errorf("the leader has 3 leaves; committed are %d, and this node is %s behind", v.Far, showLag(v.Nodes[0]))
	}
}

// How many blobs are in too few places is a number where it can be one, a bound where it cannot, and unknown where a member has
// said nothing.
func TestUnderReplicated(t *testing.T) {
	seen, looked := time.Now(), int64(10)
	member := func(zone string, missing int, looked *int64) memberView {
		return memberView{Zone: zone, Seen: seen, Seq: 10, Blobs: 8, Missing: missing, Looked: looked}
	}
	for name, test := range map[string]struct {
		nodes          []memberView
		members, zones string
	}{
		"none":                     {[]memberView{member("a", 0, &looked), member("b", 0, &looked)}, "0 blobs", "0 blobs"},
		"one node lacks some":      {[]memberView{member("a", 0, &looked), member("b", 3, &looked)}, "3 blobs", "3 blobs"},
		"another has them there":   {[]memberView{member("a", 0, &looked), member("b", 3, &looked), member("b", 0, &looked)}, "3 blobs", "0 blobs"},
		"two lack some":            {[]memberView{member("a", 2, &looked), member("b", 3, &looked)}, "3 to 5 blobs", "3 to 5 blobs"},
		"both of a zone":           {[]memberView{member("a", 0, &looked), member("b", 3, &looked), member("b", 2, &looked)}, "3 to 5 blobs", "at most 2 blobs"},
		"one has not looked":       {[]memberView{member("a", 0, &looked), member("b", 0, nil)}, "at most 4 blobs", "at most 4 blobs"},
		"one has not said":         {[]memberView{member("a", 0, &looked), member("b", 1, &looked), {Zone: "b"}}, "at least 1 blob", "at most 1 blob"},
		"nobody of a zone has":     {[]memberView{member("a", 0, &looked), {Zone: "b"}}, "an unknown number of blobs", "an unknown number of blobs"},
		"an older version has all": {[]memberView{{Zone: "a", Seen: seen, Seq: 10, Blobs: 10}}, "0 blobs", "0 blobs"},
	} {
		v := clusterView{Seq: 10, Far: 10, Nodes: test.nodes}
		v.join()
		if got := v.Under.Members.String(); got != test.members {
			t.Errorf("%s: not on every node: %s, want %s", name, got, test.members)
		}
		if got := v.Under.Zones.String(); got != test.zones {
			t.Errorf("%s: not in every zone: %s, want %s", name, got, test.zones)
		}
	}
}

// A zone is as complete as the most complete of its members that answer, and names the least complete of all.
func TestZoneIsItsBest(t *testing.T) {
	at := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	lag := func(n int64) *int64 { return &n }
	v := clusterView{Nodes: []memberView{
		{Name: "a", Zone: "z", Alive: true, Voter: true, Leader: true, Complete: at.Add(-time.Minute), Lag: lag(5), Seen: at, WAN: []wanView{{"y", "z", 1, 2, 3}}},
		{Name: "b", Zone: "z", Alive: true, Voter: true, Complete: at.Add(-time.Second), Lag: lag(1), Seen: at, WAN: []wanView{{"y", "z", 10, 20, 30}, {"x", "z", 1, 1, 1}}},
		{Name: "c", Zone: "z", Complete: at.Add(-time.Hour), Lag: lag(9), Seen: at},
		{Name: "d", Zone: "z", Complete: at, Lag: lag(0), Seen: at, Error: "gone"},
		{Name: "e", Zone: "y", Alive: true, Complete: at, Lag: lag(0), Seen: at},
	}}
	v.join()
	if len(v.Zones) != 2 || v.Zones[0].Zone != "y" {
		t.Fatalf("zones %+v", v.Zones)
	}
	z := v.Zones[1]
	if z.Nodes != 4 || z.Alive != 2 || z.Voters != 2 || !z.Leads || v.Zones[0].Leads {
		t.Errorf("the zone is %+v", z)
	}
	if !z.Complete.Equal(at.Add(-time.Second)) || z.CompleteNode != "b" || *z.Lag != 1 || !z.Least.Equal(at.Add(-time.Hour)) || z.LeastNode != "c" {
		t.Errorf("complete through %v (%s), lag %d, least %v (%s)", z.Complete, z.CompleteNode, *z.Lag, z.Least, z.LeastNode)
	}
	if got, want := fmt.Sprint(v.WAN), "[{x z 1 1 1} {y z 11 22 33}]"; got != want {
		t.Errorf("WAN %s, want %s", got, want)
	}
}

// A status of a version that does not say all this leaves it unknown, and never says 0.
func TestOlderStatus(t *testing.T) {
	const said = `{"id":"B","name":"b","seq":10,"blobs":10,"missing":0,"freeBytes":7,"heads":[{"database":"x","treeSize":5}],"ready":"ok","writes":"ok","root":"","proves":10}`
	var s selfStatus
	if err := json.Unmarshal([]byte(said), &s); err != nil {
		t.Fatal(err)
	}
	m := s.memberView
	if m.MissingBytes != nil || m.MissingFor != nil || m.Looked != nil || m.LeaderChanges != nil || m.Unhealed != nil || m.Total != 0 || m.Disk != "" || !m.Scrubbed.IsZero() || m.WAN != nil || s.InOffice {
		t.Errorf("read as %+v", m)
	}
	m.Seen = time.Now()
	v := clusterView{At: time.Now()}
	if got := v.age(m.Scrubbed) + " " + m.missing() + " " + v.trees(m) + " " + v.through(m.Complete); got != "- 0 5 -" {
		t.Errorf("shown as %q", got)
	}
}
