package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// newMemoryDisk mounts a file system in memory with so many MiB at dir. Only root can.
func newMemoryDisk(t *testing.T, dir string, mib int) *smallDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT RUN: this test mounts small file systems, which only root can; what it is about is also held by TestDiskStates, TestNoRoom, TestPassingBytes and TestFullLog")
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("NOT RUN: this test must be allowed to mount a tmpfs: %v %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }) // the processes have ended by then, or the test has failed
	return &smallDisk{t: t, dir: dir}
}

// fullSite is a cluster whose nodes have small disks of their own.
type fullSite struct {
	*clusterSite
	disks map[*clusterNode]*smallDisk
	r     *rand.Rand
	count int
}

// newModule makes a module version that nobody has asked for yet.
func (s *fullSite) newModule() module.Version {
	s.count++
	return s.addRandom(s.r, fmt.Sprintf("example.com/full%d", s.count))
}

var allKinds = []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip}

// takes asks a node for something new, which must come, and be committed.
func (s *fullSite) takes(n *clusterNode) module.Version {
	s.t.Helper()
	m := s.newModule()
	for _, k := range allKinds {
		if got := s.says(n.process, artifactPath(m, k), 200, ""); k == artifact.Zip && got != string(s.up.Artifact(m, k)) {
			s.t.Errorf("%s %s through %s: %d other bytes", m, k, n.name, len(got))
		}
	}
	return m
}

// serves asks a node for what was stored before.
func (s *fullSite) serves(n *clusterNode, m module.Version) {
	s.t.Helper()
	for _, k := range allKinds {
		s.says(n.process, artifactPath(m, k), 200, "")
	}
	s.says(n.process, lookupPath(m), 200, m.Path)
}

// fill leaves a node less room than it keeps for its log, and waits until the others know.
func (s *fullSite) fill(n *clusterNode, free int64) {
	s.t.Helper()
	s.disks[n].fill(free)
	for _, other := range s.alive() {
		s.sees(other, n.name+" is full", func(v clusterView) bool {
			m, err := v.find(n.name)
			return err == nil && strings.Contains(m.Writes, "no space: need more than ")
		})
	}
}

func (s *fullSite) drain(n *clusterNode) { s.disks[n].drain() }

// FAULTS 33: one node, the leader, and all nodes without room on their disks, and room again; no process is started anew.
func TestFullDisksOfCluster(t *testing.T) {
	t.Parallel()
	s := &fullSite{clusterSite: newClusterSite(t, 3), disks: map[*clusterNode]*smallDisk{}, r: rand.New(rand.NewPCG(33, 0))}
	for _, n := range s.nodes {
		s.disks[n] = newMemoryDisk(t, n.dir, 256)
		n.extra = []string{"--not-found-ttl", "1ms", "--list-ttl", "1ms"}
	}
	s.run()
	s.voters(3)
	stored := s.takes(s.nodes[0])
	s.allSame()
	const some = 2 << 20 // of the 5 MB that are kept for the log and the catalog of 256 MiB

	// One that does not lead. What it is asked for the others bring in; it keeps no zip of it.
	lead := s.leader()
	full := s.nodes[0]
	if full == lead {
		full = s.nodes[1]
	}
	s.fill(full, some)
	s.says(full.process, "/readyz?writes", 503, "no space")
	s.says(full.process, "/readyz", 200, "")
	s.says(full.process, "/metrics", 200, "modmirror_disk_full 1")
	for _, n := range s.nodes {
		m := s.takes(n)
		s.serves(full, m)
		s.serves(full, stored)
		if c, err := os.ReadDir(shardsOf(full)); err != nil || len(c) > 1 {
			t.Errorf("%s keeps blobs in %d directories: %v", full.name, len(c), err)
		}
	}
	if now := s.leader(); now != lead {
		t.Errorf("%s leads, not %s any more, whose disk is not full", now.name, lead.name)
	}
	s.drain(full)
	s.allSame()

	// The leader: another one leads, and goes on to.
	lead = s.leader()
	s.fill(lead, some)
	s.sees(lead, "another leader", func(v clusterView) bool { return v.Leader != "" && v.nameOf(v.Leader) != lead.name })
	waitFor(t, lead.process, "hands the leadership over")
	for _, n := range s.nodes {
		s.serves(lead, s.takes(n))
	}
	if s.leader() == lead {
		t.Errorf("%s leads again, with a full disk", lead.name)
	}
	s.drain(lead)
	s.allSame()

	// All of them, to the last byte.
	for _, n := range s.nodes {
		s.fill(n, 0)
	}
	refused := s.newModule()
	for _, n := range s.nodes {
		s.serves(n, stored)
		for _, k := range allKinds {
			s.says(n.process, artifactPath(refused, k), 503, "no space: need more than ")
		}
		s.says(n.process, "/readyz", 200, "")
	}
	s.drain(s.nodes[0]) // one alone has room, and no majority
	s.becomes(s.nodes[0].process, artifactPath(stored, artifact.Zip), 200)
	for _, n := range s.nodes[1:] {
		s.drain(n)
	}
	for _, n := range s.nodes {
		for _, k := range allKinds {
			s.becomes(n.process, artifactPath(refused, k), 200)
		}
		s.becomes(n.process, "/readyz?writes", 200)
	}
	s.takes(s.nodes[2])
	s.allSame()
	for _, n := range s.nodes {
		if log := n.output(); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") || strings.Contains(log, "the disk failed") {
			t.Errorf("log of %s:\n%s", n.name, tail(log, 4000))
		}
	}
	for _, n := range slices.Clone(s.nodes) {
		s.end(n.process)
	}
}

// blobsOf is the directory with a directory for each first byte of the digests of a node's blobs.
func shardsOf(n *clusterNode) string { return n.dir + "/blobs/sha256" }
