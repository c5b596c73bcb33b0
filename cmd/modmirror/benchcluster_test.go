//go:build bench && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// TestBenchCluster is what `make bench-cluster` runs: three nodes on loopback, in processes of their own. It has the needs
// and the settings of [TestBench].
func TestBenchCluster(t *testing.T) {
	b := newBench(t)
	b.columns, b.table = [2]string{"compared with", "three nodes"}, "cluster.md"
	b.before = b.busy(3 * time.Second)
	begin := time.Now()
	t.Cleanup(func() { b.print(time.Since(begin)) })
	corpus := sync.OnceValue(b.openCorpus)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"reads", b.clusterReads}, {"killed", b.clusterKilled}, {"cold", b.clusterCold},
	} {
		t.Run(part.name, func(t *testing.T) {
			if err := corpus(); err != nil {
				t.Fatal(err)
			}
			part.run(t)
		})
	}
	t.Run("loss", b.clusterLoss) // this and what follows needs no corpus
	t.Run("recover", b.clusterRecover)
	t.Run("idle", b.clusterIdle)
}

// newCluster makes three nodes that are not started, with their files in the new directory name of b.work. They fetch from
// upstream, which has the checksum database too, or from a site of their own if it is "".
func (b *bench) newCluster(t *testing.T, name, upstream string) *clusterSite {
	t.Helper()
	s := &clusterSite{site: newSite(t)}
	s.bin, s.dir = b.bin, filepath.Join(b.work, name)
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.token = s.newToken("cluster-token")
	s.source = []string{"--upstream", s.up.URL(), "--sumdb", s.db.Key()}
	if upstream != "" {
		s.source = []string{"--upstream", upstream, "--sumdb", database + " " + upstream + "/sumdb/" + database}
	}
	for range 3 {
		s.addNode().extra = []string{"--log-level", "warn"}
	}
	return s
}

// startCluster is newCluster whose nodes run and all vote.
func (b *bench) startCluster(t *testing.T, name, upstream string) *clusterSite {
	t.Helper()
	s := b.newCluster(t, name, upstream)
	s.run()
	s.voters(3)
	return s
}

// stockedCluster is a cluster whose nodes all hold the corpus.
func (b *bench) stockedCluster(t *testing.T, name string) *clusterSite {
	t.Helper()
	origin, err := startNginx(b.ctx, "static", filepath.Join(b.work, name+"-origin"), b.tree, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, origin.stop()) })
	s := b.startCluster(t, name, origin.url)
	all, err := b.paths("", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := getAll(b.ctx, s.nodes[0].url, all); err != nil {
		t.Fatal(err)
	}
	s.allSame()
	return s
}

// server is a node as the benchmark's other parts see one.
func (n *clusterNode) server() *server {
	return &server{url: n.url, pids: []int{n.cmd.Process.Pid}}
}

// others returns the nodes that run, without one.
func (s *clusterSite) others(than *clusterNode) (out []*clusterNode) {
	for _, n := range s.alive() {
		if n != than {
			out = append(out, n)
		}
	}
	return out
}

// endAll ends all nodes in order.
func (s *clusterSite) endAll() error {
	var errs []error
	for _, n := range s.alive() {
		errs = append(errs, n.stop(30*time.Second))
	}
	return errors.Join(errs...)
}

// clusterLoss measures for how long nothing new can be committed after the leader was killed: what a client waits whose
// request for a new go.mod comes right after, at a node that is left, whichever node's turn it is to fetch it.
func (b *bench) clusterLoss(t *testing.T) {
	s := b.newCluster(t, "loss", "")
	const rounds = 15
	r := newRand(11)
	var paths []string
	for i := range rounds {
		paths = append(paths, artifactPath(s.addRandom(r, fmt.Sprintf("example.com/loss%d", i)), artifact.Mod))
	}
	s.run()
	s.voters(3)
	var took samples
	for i, path := range paths {
		leader := s.leader()
		left := s.others(leader)
		leader.kill()
		begin := time.Now()
		if err := b.committed(left[i%len(left)].url + path); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin).Seconds())
		s.run(leader)
		s.voters(3)
		s.allSame()
	}
	b.add(row{fmt.Sprintf("leader killed to first new artifact committed, s, p50 of %d", rounds), nil, took, below(2)})
	b.add(row{"the same, the longest, s", nil, samples{took.most()}, below(4)})
}

// committed asks for url until it is answered and committed.
func (b *bench) committed(url string) error {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	for {
		status, header, err := b.head(ctx, url)
		if err == nil && status == 200 && header.Get("Modmirror-Committed") == "" {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: status %d, %v, not committed within a minute", url, status, err)
		}
		b.idle(20 * time.Millisecond)
	}
}

// clusterIdle measures what three nodes do while nobody asks them for anything.
func (b *bench) clusterIdle(t *testing.T) {
	s := b.newCluster(t, "idle", "")
	s.load()
	s.run()
	s.voters(3)
	if _, err := s.download(s.nodes[0].url, app); err != nil {
		t.Fatal(err)
	}
	s.allSame()
	b.idle(10 * time.Second)
	var pids []int
	for _, n := range s.nodes {
		pids = append(pids, n.cmd.Process.Pid)
	}
	const span = 20 * time.Second
	before, err := cpuOf(pids)
	if err != nil {
		t.Fatal(err)
	}
	b.idle(span)
	after, err := cpuOf(pids)
	if err != nil {
		t.Fatal(err)
	}
	b.add(row{"three idle nodes, CPU, % of one core", nil, samples{100 * (after - before).Seconds() / span.Seconds()}, below(3)})
}
