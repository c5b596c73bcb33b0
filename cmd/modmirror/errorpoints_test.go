//go:build faults

package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"modmirror/mirror/artifact/fault"
)

// FAULTS 34: each operation of a disk fails once, with EIO, on one node of three, in the midst of what a client asked for. That
// node writes nothing any more, also what would succeed, and says so; it goes on serving, and ends with an error when it is told
// to end. The others go on, and after a restart on a sound disk it is as good as they are.
func TestErrorAtEachPoint(t *testing.T) {
	k := &killer{faultSite: newFaultSite(t, 3, 34), met: func(fault.Name) {}}
	for _, n := range k.nodes {
		n.env = append(n.env, "MODMIRROR_FAULTS_LIMITS=trailing-logs=1,snapshot-threshold=3,snapshot-interval=100000000,bulk-least=2")
	}
	k.begin()
	failed := make(map[fault.Name]bool)
	for _, c := range []killCase{
		{fault.BlobFsync, owner, 1}, {fault.BlobRename, owner, 1}, {fault.BlobDirSync, owner, 1}, {fault.BlobFsync, voter, 1}, {fault.TileFsync, owner, 1},
		{fault.LogStore, voter, 1}, {fault.LogStore, leading, 1}, {fault.VoteStore, voter, 1},
		{fault.SnapshotReceive, away, 1}, {fault.SnapshotFsync, away, 1},
		{fault.UnprovenRename, away, 1}, {fault.UnprovenDirSync, away, 1}, {fault.ProvenRename, away, 1},
	} {
		k.each(fmt.Sprintf("EIO of a %s at %s", c.role, c.point), func() { k.fails(c) })
		failed[c.point] = true
	}
	for _, p := range fault.Points {
		if p.Errors && !failed[p.Name] {
			t.Errorf("nothing failed at %s", p.Name)
		}
	}
	k.settled()
	k.kept()
	k.sound()
}

// away is a follower that was not there for a while.
const away = "follower that was away"

// fails has an operation of one node's disk fail.
func (k *killer) fails(c killCase) {
	t := k.t
	t.Helper()
	lead, followers := k.leads()
	a, b := followers[0], followers[1]
	victim, owns, entry := b, a, a
	switch c.role {
	case owner:
		victim, owns, entry = a, a, b
	case leading:
		victim = lead
	case voter:
		entry = lead
	}
	old := k.fresh(nil, 50<<10)
	k.everywhere(old)
	logged := len(victim.output())
	if c.role == away {
		logged = k.failsOnReturn(c, victim, entry)
	} else {
		k.arm(victim, fmt.Sprintf("%s %d error EIO", c.point, c.hit))
	}
	m := k.fresh(owns, 100<<10)
	if c.point == fault.VoteStore {
		_, _ = k.command(lead, "transfer", a.name)
	}
	for _, path := range artifactPaths(m) {
		k.await(path+" committed through another node", func() bool {
			got, err := k.ask(entry, path)
			return err == nil && got.code == http.StatusOK && got.committed
		}, entry.output)
	}
	k.await("the error at "+string(c.point), func() bool { return hasLine(victim.output()[logged:], fmt.Sprintf("fault: %s hit", c.point)) }, victim.output)
	k.await("the node to say that it stopped writing", func() bool {
		got, err := k.get200(victim, "/readyz?writes", 10*time.Second)
		return err == nil && got.code == http.StatusServiceUnavailable
	}, victim.output)
	k.arm(victim)
	if c.role != away { // which says nothing before it knows what its cluster committed meanwhile
		for _, path := range artifactPaths(old) {
			if got, err := k.ask(victim, path); err != nil || got.code != http.StatusOK || !got.committed {
				t.Errorf("%s of the node whose disk failed: %d %.300s, %v", path, got.code, got.body, err)
			}
		}
	}
	if err := victim.stop(time.Minute); err == nil || victim.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("SIGTERM after the error at %s: %v", c.point, err)
	}
	k.back(m, victim)
}

// failsOnReturn has the victim be away for so long that it is sent a snapshot, in which an operation of its disk fails. It
// returns how long its log was before it came back.
func (k *killer) failsOnReturn(c killCase, victim, entry *clusterNode) (logged int) {
	for range 5 {
		victim.kill()
		for range 3 {
			for _, path := range artifactPaths(k.fresh(nil, 50<<10)) {
				_, _ = k.ask(entry, path)
			}
		}
		logged = len(victim.output())
		k.arm(victim, fmt.Sprintf("%s %d error EIO", c.point, c.hit))
		k.launch(victim)
		met := false
		k.await("the node to come back, or to fail", func() bool {
			met = hasLine(victim.output()[logged:], fmt.Sprintf("fault: %s hit", c.point))
			code, _ := httpStatus(k.t.Context(), victim.url+"/readyz")
			return met || code == http.StatusOK
		}, victim.output)
		if met { // or else the log of the others reached back far enough
			break
		}
	}
	return logged
}
