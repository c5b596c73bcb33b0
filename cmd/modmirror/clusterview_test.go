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
	v := clusterView{Cluster: "C", From: "A", Leader: "A", Term: 7, Seq: 10, Nodes: []memberView{
		{ID: "D", Name: "d", Role: roleReplica, Alive: true, Ready: "ok", Writes: "ok", Seq: 10, Address: "d:1", Version: "v2"},
		{ID: "E", Name: "e", Role: roleVoter, Held: true, Alive: true, Ready: "ok", Writes: "ok", Seq: 12, Address: "e:1", Version: "v2"},
		{ID: "F", Name: "f", Role: roleVoter, Alive: true, Ready: "full", Address: "f:1", Missing: 3},
		{ID: "B", Name: "b", Role: roleVoter, Voter: true, Zone: "z2", Address: "b:1", Error: "refused", Seen: time.Unix(1e9, 0)},
		{ID: "A", Name: "a", Role: roleVoter, Voter: true, Zone: "z1", Leader: true, Alive: true, Ready: "ok", Writes: "no room", Seq: 10, Applied: 99, Address: "a:1",
			Free: 1 << 30, Version: "v2", Heads: []headView{{Database: "x", Size: 5}, {Database: "y", Size: 6}}},
		{ID: "C", Name: "c", Role: roleVoter, Voter: true, Zone: "z1", Address: "c:1"},
	}}
	v.Level = replicate.Level{Now: 1, Newest: 2, Waits: []string{"b (v1) supports level 1"}}
	v.sort()
	v.Problems = v.problems()
	var out strings.Builder
	if err := v.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `cluster C, term 7, as a sees it
3 voters, 1 alive; a majority is 2: NO QUORUM, nothing new is committed
feature level 1; 2 waits for: b (v1) supports level 1
! a takes no new artifacts: no room
! c does not answer: 
! b does not answer: refused
! f: full
NAME  ROLE         ZONE  ADDRESS  APPLIED  LAG  BLOBS MISSING  FREE    TREE  VERSION  STATE
a     leader       z1    a:1      99       0    0              1.1 GB  5,6   v2       serves; no new artifacts: no room
c     voter        z1    c:1      0        10   0              0 B     -     -        does not answer
b     voter        z2    b:1      0        10   0              0 B     -     -        does not answer since 2001-09-09T01:46:40Z
d     replica      -     d:1      0        0    0              0 B     -     v2       ok
e     demoted      -     e:1      0        0    0              0 B     -     v2       ok
f     catching up  -     f:1      0        10   3              0 B     -     -        full
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
