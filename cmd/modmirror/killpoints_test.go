//go:build faults

package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// killCase is a point at which a node of a role dies.
type killCase struct {
	point fault.Name
	role  string
	hit   int
}

// Who dies: the node that brings an artifact in, as a follower or as the leader; the leader while another one does; a follower
// that takes a copy.
const (
	owner        = "owner"
	leadingOwner = "leading owner"
	leading      = "leader"
	voter        = "voter"
)

var ingestCases = []killCase{
	{fault.RecordKnown, owner, 1}, {fault.DraftCreated, owner, 1}, {fault.DraftWritten, owner, 1}, {fault.DraftWritten, owner, 3},
	{fault.BlobFsync, owner, 1}, {fault.BlobFsynced, owner, 1}, {fault.BlobRename, owner, 1}, {fault.BlobDirSync, owner, 1},
	{fault.BlobDurable, owner, 1}, {fault.AcksCounted, owner, 1}, {fault.AcksCounted, owner, 3}, {fault.TilesSpread, owner, 1},
	{fault.LeaderSaid, owner, 1}, {fault.LeaderSaid, owner, 3}, {fault.PublishDone, owner, 1}, {fault.PublishDone, owner, 3},
	{fault.TileFsync, owner, 1}, {fault.TileRename, owner, 1}, {fault.TilesDurable, owner, 1}, {fault.HeadCommit, owner, 1}, {fault.HeadCommitted, owner, 1},
}

var replicationCases = []killCase{
	{fault.BlobDurable, leadingOwner, 1}, {fault.AcksCounted, leadingOwner, 3}, {fault.PublishDone, leadingOwner, 3},
	{fault.BlobFsync, voter, 1}, {fault.BlobRename, voter, 1}, {fault.BlobDirSync, voter, 1}, {fault.AckDurable, voter, 1}, {fault.AckGiven, voter, 1}, {fault.TilesHeld, voter, 1},
	{fault.LogStore, voter, 1}, {fault.LogStored, voter, 1}, {fault.ApplyBegin, voter, 1}, {fault.ApplyWritten, voter, 1}, {fault.ApplyDone, voter, 1},
	{fault.ProposeBegin, leading, 1}, {fault.LogStore, leading, 1}, {fault.LogStored, leading, 2}, {fault.ApplyBegin, leading, 2},
	{fault.ApplyWritten, leading, 2}, {fault.ApplyDone, leading, 2}, {fault.ProposeDone, leading, 2},
}

// FAULTS 31 and 32: a process is killed exactly between two steps, at every point that there is, in the midst of what a client
// asked for. After each restart an artifact is complete or absent on every node, never partial; what was answered is there; the
// client's next try succeeds, with the go command and its checksum database; all nodes hold the same, by the root of the catalog,
// and nothing is left over.
func TestKillAtEachPoint(t *testing.T) {
	var met struct {
		sync.Mutex
		points map[fault.Name]bool
	}
	met.points = make(map[fault.Name]bool)
	t.Run("clusters", func(t *testing.T) {
		for name, run := range map[string]func(k *killer){
			"ingest":      func(k *killer) { k.ingestAll(ingestCases) },
			"replication": (*killer).replicationAll,
			"catching up": (*killer).catchUpAll,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				k := &killer{faultSite: newFaultSite(t, 3, 31), met: func(p fault.Name) {
					met.Lock()
					defer met.Unlock()
					met.points[p] = true
				}}
				if name == "catching up" {
					for _, n := range k.nodes {
						n.env = append(n.env, "MODMIRROR_FAULTS_LIMITS=trailing-logs=1,snapshot-threshold=3,snapshot-interval=100000000,bulk-least=2")
					}
				}
				k.begin()
				run(k)
				k.settled()
				k.kept()
				k.sound()
			})
		}
	})
	for _, p := range fault.Points {
		if !met.points[p.Name] && !t.Failed() {
			t.Errorf("no process was killed at %s", p.Name)
		}
	}
}

// killer kills the nodes of one cluster, one at a time.
type killer struct {
	*faultSite
	met       func(fault.Name)
	failovers []time.Duration // from the death of a leader to the next commit
}

// failover takes the time until something new is committed through a node.
func (k *killer) failover(n *clusterNode) {
	k.t.Helper()
	begin := time.Now()
	path := artifactPath(k.fresh(nil, 1<<10), artifact.Zip)
	k.await("a commit without the leader", func() bool {
		a, err := k.ask(n, path)
		return err == nil && a.code == 200 && a.committed
	}, n.output)
	took := time.Since(begin)
	k.failovers = append(k.failovers, took)
	if took > 10*time.Second {
		k.t.Errorf("after the death of the leader, the next commit took %v", took)
	}
}

// each runs one case, and ends the test at the first that fails.
func (k *killer) each(name string, f func()) {
	k.t.Helper()
	f()
	if len(k.wrong) > 0 || k.t.Failed() {
		k.t.Fatalf("%s: %v", name, k.wrong)
	}
}

func (k *killer) ingestAll(cases []killCase) {
	for _, c := range cases {
		k.each(fmt.Sprintf("%s dies at %s, hit %d", c.role, c.point, c.hit), func() { k.ingest(c) })
	}
	if len(k.failovers) > 0 {
		slices.Sort(k.failovers)
		k.t.Logf("from the death of a leader to the next commit: %v", k.failovers)
	}
}

// replicationAll has nodes die that replicate, and leaders hang.
func (k *killer) replicationAll() {
	k.ingestAll(replicationCases)
	for _, p := range []fault.Name{fault.ProposeBegin, fault.LogStored, fault.ApplyBegin, fault.ProposeDone} {
		k.each("the leader hangs at "+string(p), func() { k.hangs(p) })
	}
}

// hangs has the leader stop for so long that another one is elected. When it goes on, in the midst of what it did, it is no leader
// any more, and what others were answered meanwhile stays.
func (k *killer) hangs(p fault.Name) {
	t := k.t
	t.Helper()
	lead, followers := k.leads()
	m := k.fresh(followers[0], 100<<10)
	logged := len(lead.output())
	k.arm(lead, string(p)+" 1 stop")
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for _, path := range artifactPaths(m) {
			_, _ = k.ask(followers[1], path)
		}
	}()
	k.await("the leader to stop", func() bool { return strings.Contains(lead.output()[logged:], fmt.Sprintf("fault: %s hit", p)) }, lead.output)
	k.failover(followers[1])
	<-asked
	k.arm(lead)
	if err := lead.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	k.await("the old leader to follow", func() bool {
		st, err := k.status(lead)
		return err == nil && st.Node.Role == "follower" && st.Node.Leader != "" && st.Node.Leader != st.Node.ID
	}, lead.output)
	k.everywhere(m)
	k.settled()
}

// ingest has a node die while a client asks another one for something new.
func (k *killer) ingest(c killCase) {
	t := k.t
	t.Helper()
	lead, followers := k.leads()
	a, b := followers[0], followers[1]
	var victim, owns, entry *clusterNode
	switch c.role {
	case owner:
		victim, owns, entry = a, a, b
	case leadingOwner:
		victim, owns, entry = lead, lead, a
	case leading:
		victim, owns, entry = lead, a, b
	case voter:
		victim, owns, entry = b, a, lead
	}
	m := k.fresh(owns, 100<<10)
	logged := len(victim.output())
	k.arm(victim, fmt.Sprintf("%s %d kill", c.point, c.hit))
	if c.point == fault.TilesHeld { // all voters are asked, and who is late is not waited for
		k.arm(lead, "tiles.held 1+ delay 1s")
		defer k.arm(lead)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for _, path := range artifactPaths(m) {
			_, _ = k.ask(entry, path) // what it says is noted; it may have to say that it cannot
		}
	}()
	k.dies(victim, c.point, logged)
	k.met(c.point)
	if c.role == leading {
		k.failover(entry)
	}
	<-asked
	for _, n := range k.alive() {
		k.wholeOrAbsent(n, m)
	}
	k.back(m, victim)
}

// back starts nodes again, which must have nothing half-done, and has a client try again.
func (k *killer) back(m module.Version, victims ...*clusterNode) {
	k.t.Helper()
	for _, n := range victims {
		k.arm(n)
	}
	k.run(victims...)
	for _, n := range victims {
		k.wholeOrAbsent(n, m)
	}
	if _, err := k.download(victims[0].url, "module app\n\ngo 1.21\n\nrequire "+m.Path+" "+m.Version+"\n"); err != nil {
		k.t.Errorf("through %s, which died: %v", victims[0].name, err)
	}
	k.everywhere(m)
	k.settled()
}

// catchUpAll has nodes die while they give a vote, catch up after they were away, or have no quorum.
func (k *killer) catchUpAll() {
	k.each("a candidate dies before its vote is on the disk", func() { k.vote(fault.VoteStore, true) })
	k.each("a voter dies before its vote is given", func() { k.vote(fault.VoteStored, false) })
	for _, p := range []fault.Name{fault.SnapshotReceive, fault.SnapshotFsync, fault.SnapshotReceived, fault.SnapshotMarked, fault.SnapshotRenamed, fault.SnapshotRestored,
		fault.PullRead, fault.UnprovenRename, fault.UnprovenDirSync, fault.UnprovenKept, fault.ProvenRename, fault.CursorSave, fault.CursorSaved} {
		k.each("a follower that was away dies at "+string(p), func() { k.returns(p, false) })
	}
	k.each("a leader dies while it sends a snapshot", func() { k.returns(fault.SnapshotSend, true) })
	for _, p := range []fault.Name{fault.IntentWrite, fault.IntentWritten, fault.IntentCommitted} {
		k.each("without a quorum, a node dies at "+string(p), func() { k.alone(p) })
	}
}

// vote has a node die at its own candidacy, or when it votes for another one.
func (k *killer) vote(p fault.Name, candidate bool) {
	k.t.Helper()
	lead, followers := k.leads()
	next, victim := followers[0], followers[1]
	if candidate {
		victim = next
	}
	m := k.fresh(nil, 100<<10)
	logged := len(victim.output())
	k.arm(victim, string(p)+" 1 kill")
	_, _ = k.command(lead, "transfer", next.name) // it fails if the one dies that is to lead
	k.dies(victim, p, logged)
	k.met(p)
	k.leads()
	k.back(m, victim)
}

// returns has a follower that was away so long that the log was cut come back, and die on the way, or the leader that helps it.
func (k *killer) returns(p fault.Name, leader bool) {
	k.t.Helper()
	lead, followers := k.leads()
	away, victim := followers[0], followers[0]
	if leader {
		victim = lead
	}
	hit := 1
	if p == fault.PullRead {
		hit = 3 // in the midst of a blob
	}
	var m module.Version
	for range 5 {
		away.kill()
		for range 3 {
			m = k.fresh(followers[1], 200<<10)
			for _, path := range artifactPaths(m) {
				if a, err := k.ask(lead, path); err != nil || a.code != 200 {
					k.t.Fatalf("%s of %s with two of three nodes: %d, %v", path, lead.name, a.code, err)
				}
			}
		}
		logged := len(victim.output())
		k.arm(victim, fmt.Sprintf("%s %d kill", p, hit))
		k.launch(away)
		if victim == lead {
			k.dies(victim, p, logged)
			break
		}
		if away.waitReady(30*time.Second) == nil { // the log reached back far enough
			continue
		}
		k.dies(victim, p, logged)
		break
	}
	k.met(p)
	back := []*clusterNode{victim}
	k.back(m, back...)
}

// alone has a node die that has no quorum, with what it brought in for a client.
func (k *killer) alone(p fault.Name) {
	k.t.Helper()
	lead, followers := k.leads()
	left := followers[0]
	gone := []*clusterNode{lead, followers[1]}
	m := k.fresh(nil, 100<<10)
	for _, n := range gone {
		n.kill()
	}
	logged := len(left.output())
	k.arm(left, string(p)+" 1 kill")
	for _, path := range artifactPaths(m) {
		a, err := k.ask(left, path)
		if err == nil && a.code == 200 && a.committed {
			k.t.Errorf("%s is called committed without a quorum", path)
		}
		if err != nil {
			break
		}
	}
	if p == fault.IntentCommitted {
		for _, n := range gone {
			k.arm(n)
			k.launch(n)
		}
		k.dies(left, p, logged)
		k.met(p)
		k.back(m, left)
		return
	}
	k.dies(left, p, logged)
	k.met(p)
	k.back(m, slices.Concat([]*clusterNode{left}, gone)...)
}
