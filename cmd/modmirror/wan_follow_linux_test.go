//go:build wan

package main

import (
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"modmirror/replicate/replicatetest/wannet"
)

// A mirror at another site, which reaches nothing but one node of the cluster and that badly, follows it. It is killed at twenty
// random moments while the cluster brings in more. In the end it has everything, and the same.
func TestWANFollowerIsKilled(t *testing.T) {
	s := newWANRun(t, 65)
	s.begin()
	h := s.addHost("copy", "site")
	for _, zone := range append(s.zones, beyond) {
		s.net.Both("site", zone, wannet.Policy{Block: true})
	}
	source := s.inZone("z1")[1]
	s.net.Both("copy", source.name, wannet.Policy{Delay: 40 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.01, Rate: 50e6, Queue: 1 << 20})
	r := rand.New(rand.NewPCG(65, 0))
	addr := h.Addr().String() + ":3000"
	args := []string{"--data-dir", filepath.Join(s.dir, "copy"), "--drain-delay", "0s", "--sumdb", s.db.Key(), "--follow", source.url}
	start := func() *process {
		p, err := launchAt(h, s.bin, s.dir, filepath.Join(s.dir, "copy.log"), addr, s.env(), args)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		return p
	}
	for i := range 20 {
		p := start()
		if i%2 == 0 {
			s.mustPublish(time.Minute, s.nodes[i%len(s.nodes)], s.new(300<<10))
		}
		select {
		case <-time.After(200*time.Millisecond + time.Duration(r.Int64N(int64(1500*time.Millisecond)))):
		case <-p.exited:
			t.Fatalf("it ends: %v\n%s", p.err, tail(p.output(), 3000))
		}
		p.kill()
	}
	copied := &clusterNode{name: "copy", process: start()}
	if err := copied.waitReady(time.Minute); err != nil {
		t.Fatal(err)
	}
	paths := s.paths()
	var lacks []string
	s.within(2*time.Minute, "whole copy", func() bool {
		lacks = slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
			a, err := getVia(t.Context(), copied.http(), copied.url+"/cached-only"+path)
			return err == nil && a.code == http.StatusOK
		})
		return len(lacks) == 0
	}, func() string { return lacks[0] + "\n" + tail(copied.output(), 3000) })
	s.net.Both("copy", source.name, wannet.Policy{Block: true})
	s.reads([]*clusterNode{copied}, paths)
	t.Logf("killed 20 times, and has all %d artifacts", len(paths))
	if err := copied.stop(time.Minute); err != nil {
		t.Error(err)
	}
	s.kept()
	s.sound(t)
}
