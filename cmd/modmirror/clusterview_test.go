package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"modmirror/replicate"
)

func TestFindMember(t *testing.T) {
	v := clusterView{Nodes: []memberView{{ID: "ABCDEFGH", Name: "one"}, {ID: "ABCDXXXX", Name: "two"}, {ID: "XXXXXXXX", Name: "ABCD"}, {ID: "YYYYYYYY", Name: "ABCDX"}}}
	for who, want := range map[string]string{
		"one":      "ABCDEFGH",
		"ABCDEFGH": "ABCDEFGH",
		"ABCDE":    "ABCDEFGH",
		"ABCD":     "XXXXXXXX", // a name comes before the beginning of an id
		"ABCDX":    "YYYYYYYY",
		"ABCDXX":   "ABCDXXXX",
		"XXX":      "", // too short
		"XXXX":     "XXXXXXXX",
		"none":     "",
		"":         "",
	} {
		m, err := v.find(who)
		if m.ID != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, errUsage) {
			t.Errorf("%q: %q, %v; want %q", who, m.ID, err, want)
		}
	}
	v.Nodes = v.Nodes[:2]
	if _, err := v.find("ABCD"); err == nil || !strings.Contains(err.Error(), "the beginning of 2 ids") {
		t.Errorf("an ambiguous beginning: %v", err)
	}
}

func TestPrintCluster(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	seen, none, some, age := now.Add(-time.Second), int64(0), int64(5_000_000), 7*time.Minute
	v := clusterView{Cluster: "C", From: "A", At: now, Leader: "A", Term: 7, Seq: 10, Nodes: []memberView{
		{ID: "D", Name: "d", Role: roleReplica, Alive: true, Seen: seen, Ready: "ok", Writes: "ok", Seq: 10, Blobs: 10, Address: "d:1", Version: "v2", Roots: rootsAgree},
		{ID: "E", Name: "e", Role: roleVoter, Held: true, Alive: true, Seen: seen, Ready: "ok", Writes: "ok", Seq: 12, Blobs: 12, Address: "e:1", Version: "v2"},
		{ID: "F", Name: "f", Role: roleVoter, Alive: true, Seen: seen, Ready: "full", Address: "f:1", Missing: 3, MissingBytes: &some, MissingFor: &age, Total: 1 << 40, Disk: "full"},
		{ID: "B", Name: "b", Role: roleVoter, Voter: true, Zone: "z2", Address: "b:1", Error: "refused", Seen: time.Unix(1e9, 0)},
		{ID: "A", Name: "a", Role: roleVoter, Voter: true, Zone: "z1", Leader: true, Alive: true, Seen: now, Ready: "ok", Writes: "no room", Seq: 10, Applied: 99, Address: "a:1",
			Blobs: 10, Looked: &some, Missing: 0, MissingBytes: &none, Free: 1 << 30, Total: 1 << 40, Version: "v2", Scrubbed: now.Add(-3 * 24 * time.Hour), Roots: rootsAgree,
			Heads: []headView{{"x", 5, now.Add(-12 * time.Minute)}, {Database: "y", Size: 6}}, WAN: []wanView{{From: "z2", To: "z1", Raft: 1000, Control: 2000, Blobs: 3000}}},
		{ID: "C", Name: "c", Role: roleVoter, Voter: true, Zone: "z1", Address: "c:1"},
	}}
	v.Level = replicate.Level{Now: 1, Newest: 2, Waits: []string{"b (v1) supports level 1"}}
	v.sort()
	v.measure(mark{10, now}, func(seq int64) time.Time { return now.Add(time.Duration(seq-10) * time.Hour) })
	v.join()
	v.Problems = v.problems()
	var out strings.Builder
	if err := v.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `cluster C, term 7, as a sees it
3 voters, 1 alive; a majority is 2: NO QUORUM, nothing new is committed
feature level 1; 2 waits for: b (v1) supports level 1
! f: full
! a takes no new artifacts: no room
! c does not answer: 
! b does not answer: refused
zone -: 3 nodes, 3 alive, 0 voters; complete: now, f: through 2026-07-01T01:59:59Z; lacks 0 blobs
zone z1: 2 nodes, 1 alive, 2 voters, leads; complete: now, c: not known; lacks 0 blobs
  from zone z2: 3.0 KB of blobs, 2.0 KB of control, 1.0 KB of raft
zone z2: 1 node, 0 alive, 1 voter; complete: not known; lacks at most 20 blobs
not on every node: at least 3 blobs; not in every zone: at most 20 blobs
ZONE  NAME  ROLE         ADDRESS  APPLIED  LAG  MISSING        COMPLETE              ROOTS  FREE    SCRUBBED  TREE        VERSION  STATE
-     d     replica      d:1      0        0    0              now                   yes    -       -         -           v2       ok
-     e     demoted      e:1      0        0    0              now                   -      -       -         -           v2       ok
-     f     catching up  f:1      0        10   3, 5.0 MB, 7m  2026-07-01T01:59:59Z  -      0 B     -         -           -        full
z1    a     leader       a:1      99       0    0              now                   yes    1.1 GB  3d        5 (12m), 6  v2       serves; no new artifacts: no room
z1    c     voter        c:1      -        -    -              -                     -      -       -         -           -        does not answer
z2    b     voter        b:1      0        10   0              2026-07-01T01:59:59Z  -      -       -         -           -        does not answer since 2001-09-09T01:46:40Z
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	out.Reset()
	if err := v.printMembers(&out); err != nil || !strings.Contains(out.String(), "b     B   voter        z2    b:1\n") {
		t.Errorf("members: %v\n%s", err, out.String())
	}
}

// A time that the clock has not come to is a problem, unless it is a matter of moments.
func TestClockProblem(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ahead, want := range map[time.Duration]string{
		-time.Hour:      "",
		clockSlack:      "",
		2*time.Hour + 1: "the newest time of the catalog, 2026-01-02T05:04:05Z, is 2h0m0s ahead of this node's clock: set the clocks of all nodes",
	} {
		if got := clockProblem(now.Add(ahead), now); got != want {
			t.Errorf("%v ahead: %q, want %q", ahead, got, want)
		}
	}
}

// What another node says of itself cannot move the cursor of an operator's terminal, or add lines.
func TestPlain(t *testing.T) {
	if got, want := plain("ok\x1b[2J\n! fine é"), "ok?[2J?! fine é"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := len(plain(strings.Repeat("x", 1<<20))); n > maxPlain+len("…") {
		t.Errorf("%d bytes", n)
	}
}
