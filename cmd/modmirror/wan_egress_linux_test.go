//go:build wan

package main

import (
	"context"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest/wannet"
)

// A zone of replicas without a way out, started with --no-upstream, answers for what is new all the same: other zones ask for it,
// the upstream once. Its nodes hold --wan-limit in the background, while what a client waits for does not.
func TestWANNoUpstream(t *testing.T) {
	s := newWANRun(t, 66)
	const limit = 512 << 10
	fed := s.inZone("z3")
	for _, n := range fed {
		n.extra = append(n.extra, "--role", roleReplica, "--no-upstream", "--wan-limit", "512KiB")
	}
	s.seeds = []string{s.inZone("z1")[0].peer, s.inZone("z1")[1].peer, s.inZone("z2")[0].peer}
	s.net.Both("z3", beyond, wannet.Policy{Block: true})
	s.begin()

	asked := s.new(500 << 10)
	if err := s.clientIn("z3", fed[1].url, asked); err != nil {
		t.Errorf("a go command in a zone without a way out: %v", err)
	}
	for _, path := range artifactPathsOf(asked) {
		if n := s.up.Count(path); n != 1 {
			t.Errorf("the upstream was asked for %s %d times", path, n)
		}
	}
	if b := s.net.Between("z3", beyond).Sent.Bytes; b != 0 {
		t.Errorf("%d bytes to the upstream from nodes that must ask none", b)
	}

	const many, size = 20, 2 << 20
	before, begin := s.crossed(), time.Now()
	var ms []module.Version
	var g errgroup.Group
	g.SetLimit(4)
	others := s.others("z3")
	for i := range many {
		m := s.new(size)
		ms = append(ms, m)
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := s.publish(ctx, others[i%len(others)], m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	zip := artifactPath(ms[many-1], artifact.Zip)
	read := time.Now()
	if err := s.read(fed[0], zip); err != nil {
		t.Error(err)
	}
	quick := time.Since(read)
	early := arrivedIn("z3", before, s.crossed())
	s.same(2 * time.Minute)
	took := time.Since(begin)
	arrived := arrivedIn("z3", before, s.crossed())
	rate := float64(arrived-size) / took.Seconds()
	t.Logf("%d MB came into z3 in %v, %.2f MB/s for three nodes with a limit of %.2f each; a client waited %v for %d MB, when %d MB were there", arrived/1e6,
		took.Round(time.Millisecond), rate/1e6, limit/1e6, quick.Round(time.Millisecond), size/1_000_000, early/1e6)
	if most := 3 * limit * 1.2; rate > most {
		t.Errorf("%.2f MB/s came into z3, more than %.2f", rate/1e6, most/1e6)
	}
	if early > arrived*3/4 {
		t.Errorf("of %d bytes %d were there when the client asked: the limit was not in the way of anything", arrived, early)
	}
	if quick > 3*time.Second {
		t.Errorf("a client waited %v", quick)
	}
	s.kept()
	s.sound(t)
}
