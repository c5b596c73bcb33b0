package main

import (
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate"
)

// A node is added, gets a vote, loses it, and is removed, by commands; the arithmetic is printed, and what would end the
// quorum is refused.
func TestMembersChange(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	if _, err := s.download(s.nodes[0].url, app); err != nil {
		t.Fatal(err)
	}
	s.voters(3)
	n4 := s.addNode()
	s.run(n4)
	for _, n := range s.nodes {
		s.sees(n, "a fourth member that holds everything", func(v clusterView) bool {
			m, err := v.find("n4")
			return err == nil && !m.Voter && m.Alive && m.Missing == 0 && m.Blobs == v.Seq && v.Seq > 0
		})
	}
	s.up.Down(true)
	if _, err := s.download(n4.url, app); err != nil {
		t.Errorf("through the new node, without upstream: %v", err)
	}
	first := s.nodes[0]
	out, err := s.command(first, "promote", "n4", "--yes")
	if err != nil || !strings.Contains(out, "4 voters, 4 alive; a majority is 3: 1 more may fail") || !strings.Contains(out, "even number") {
		t.Fatalf("promote: %v\n%s", err, out)
	}
	s.voters(4)
	if out, err := s.command(first, "demote", "n4", "--yes"); err != nil {
		t.Fatalf("demote: %v\n%s", err, out)
	}
	s.voters(3)
	if out, err := s.command(first, "status"); err != nil || !strings.Contains(out, "demoted") {
		t.Errorf("status with a demoted member: %v\n%s", err, out)
	}
	if out, err := s.command(first, "remove", "n4"); err == nil || !strings.Contains(out, `type "remove" to go on`) || !strings.Contains(out, "nothing is changed") {
		t.Errorf("remove without a yes: %v\n%s", err, out)
	}
	if out, err := s.command(first, "remove", "n4", "--yes"); err != nil {
		t.Fatalf("remove: %v\n%s", err, out)
	}
	s.sees(first, "three members", func(v clusterView) bool { return len(v.Nodes) == 3 })
	s.await("n4 to say that it was removed", func() bool { return strings.Contains(n4.output(), "removed from the cluster") }, n4.output)
	s.unready(n4, "removed from the cluster")
	if strings.Contains(n4.output(), "verification failed") {
		t.Errorf("the removed node speaks of artifacts:\n%s", tail(n4.output(), 1000))
	}

	s.nodes[2].kill() // two of three are left: none may go
	if out, err := s.command(first, "promote", "n2"); err == nil || !strings.Contains(out, "has a vote already") {
		t.Errorf("promote of a voter: %v\n%s", err, out)
	}
	v := s.sees(first, "a dead voter, and a leader", func(v clusterView) bool {
		return v.quorum() == quorum{3, 2} && v.Leader != "" && v.nameOf(v.Leader) != "n3"
	})
	follower := "n1"
	if v.nameOf(v.Leader) == follower {
		follower = "n2"
	}
	if out, err := s.command(first, "demote", follower, "--yes"); err == nil || !strings.Contains(out, "would leave no quorum") {
		t.Errorf("demote that ends the quorum: %v\n%s", err, out)
	}
}

// A node whose disk is lost cannot come back under its name before the old one is removed; then it is a new node, which catches
// up and gets a vote.
func TestWipedNodeIsReplaced(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	if _, err := s.download(s.nodes[0].url, app); err != nil {
		t.Fatal(err)
	}
	s.voters(3)
	first, lost := s.nodes[0], s.nodes[2]
	lost.kill()
	if err := os.RemoveAll(lost.dir); err != nil {
		t.Fatal(err)
	}
	s.launch(lost)
	s.await("the wiped node to be refused", func() bool { return strings.Contains(lost.output(), "belongs to another data directory") }, lost.output)
	s.sees(first, "three members of which one is dead", func(v clusterView) bool {
		return len(v.Nodes) == 3 && v.quorum() == quorum{3, 2} && v.Leader != "" && v.nameOf(v.Leader) != lost.name
	})
	if out, err := s.command(first, "remove", "n3", "--yes"); err != nil {
		t.Fatalf("remove: %v\n%s", err, out)
	}
	lost.kill()
	s.run(lost)
	s.voters(3)
	s.up.Down(true)
	first.kill()
	if _, err := s.download(lost.url, app); err != nil {
		t.Errorf("through the node in place of the lost one: %v", err)
	}
}

// Whoever does not belong to the cluster is refused, and both sides say why.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	stranger := s.addNode()
	stranger.token = s.newToken("other-token")
	s.launch(stranger)
	s.await("another token to be refused", func() bool { return strings.Contains(stranger.output(), "cluster token") }, stranger.output)
	stranger.kill()
	if out, err := s.command(s.nodes[0], "members"); err != nil || strings.Contains(out, stranger.name) {
		t.Errorf("members: %v\n%s", err, out)
	}
	s.token, stranger.token = stranger.token, ""
	if out, err := s.command(s.nodes[0], "members"); err == nil || !strings.Contains(out, "cluster token") {
		t.Errorf("a command with another token: %v\n%s", err, out)
	}
}

// Two copies of one data directory do not run at the same time, nor does an old image after a later start.
func TestCloneIsRefused(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	original := s.nodes[1]
	if err := original.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	clone := s.addNode()
	if err := os.CopyFS(clone.dir, os.DirFS(original.dir)); err != nil {
		t.Fatal(err)
	}
	s.run(original)
	s.voters(3)
	clone.name = original.name // it does not know that it is another one
	s.launch(clone)
	s.await("the clone to be refused", func() bool {
		out := clone.output()
		return strings.Contains(out, "copy") || strings.Contains(out, "runs right now") || strings.Contains(out, "already")
	}, clone.output)
	clone.kill()
	s.voters(3)
	if _, err := s.download(original.url, app); err != nil {
		t.Errorf("through the original: %v", err)
	}
}

// A node that is stopped while it waits to be taken in, as the cluster has no quorum, goes on when it is started again.
func TestJoinIsResumed(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	s.nodes[0].kill()
	s.nodes[1].kill()
	n4 := s.addNode()
	s.launch(n4)
	s.await("n4 to ask in vain", func() bool { return strings.Contains(n4.output(), "cannot join the cluster yet") }, n4.output)
	n4.kill()
	s.run(s.nodes[0], s.nodes[1])
	s.run(n4)
	s.sees(n4, "a fourth member", func(v clusterView) bool { return len(v.Nodes) == 4 })
}

// So does one that founded the cluster with others, and was stopped before it had heard of the first leader.
func TestFoundingIsResumed(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	first := s.leader()
	for _, n := range s.nodes {
		n.kill()
	}
	for _, n := range s.nodes {
		if n != first {
			forgetAll(t, n.dir)
		}
	}
	s.run()
	s.voters(3)
}

// forgetAll leaves a data directory as it is before the first message of a leader: the log is there, and empty.
func forgetAll(t *testing.T, dir string) {
	t.Helper()
	id, err := replicate.Identify(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"raft", "catalog.db"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"node":"`+id.Node+`","state":"new"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := replicate.Open(t.Context(), replicate.Config{Dir: dir, Join: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// A voter that is still pulling a blob is alive and lacks it: no other one is removed before it has caught up, and the reason
// is told.
func TestRemovalWaitsForBlobs(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	data := make([]byte, 3<<20) // more than a limit lets through at once
	_, _ = mathrand.NewChaCha8([32]byte{7}).Read(data)
	m := module.Version{Path: "example.com/large", Version: "v1.0.0"}
	mod := "module example.com/large\n"
	s.up.AddZip(m, mirrortest.Zip(m, map[string]string{"go.mod": mod, "data.bin": string(data)}), []byte(mod), nil)
	zipSum, modSum := s.up.Sums(m)
	s.db.Add(m, zipSum, modSum)
	s.run()
	s.voters(3)
	lead := s.leader()
	var slow, victim *clusterNode
	for _, n := range s.nodes {
		if n != lead {
			slow, victim = n, slow
		}
	}
	slow.kill()
	if _, err := bodyOf(http.DefaultClient, lead.url+artifactPath(m, artifact.Zip)); err != nil {
		t.Fatal(err)
	}
	slow.extra = []string{"--pull-limit", "1"}
	s.run(slow)
	s.sees(lead, "a blob missing at "+slow.name, func(v clusterView) bool {
		m, err := v.find(slow.name)
		return err == nil && m.Alive && m.Missing == 1 && v.Leader != ""
	})
	out, err := s.command(lead, "remove", victim.name, "--yes")
	if err == nil || !strings.Contains(out, "wait until it has caught up") {
		t.Errorf("remove while a voter that remains lacks a blob: %v\n%s", err, out)
	}
	if q := s.view(lead).quorum(); q != (quorum{3, 3}) {
		t.Errorf("after that: %v", q)
	}
}
