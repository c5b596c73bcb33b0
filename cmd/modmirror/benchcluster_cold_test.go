//go:build bench && linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// clusterCold measures the go command with empty caches against three nodes that have to fetch everything, through one of
// them and through a balancer in front of all, and against a single node.
func (b *bench) clusterCold(t *testing.T) {
	origin, err := startNginx(b.ctx, "static", filepath.Join(b.work, "cluster-origin"), b.tree, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, origin.stop()) })
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		upstream := origin.url
		if delay > 0 {
			upstream = delayed(t, origin.url, delay)
		}
		var single, one, list, balanced samples
		for round := range b.coldRounds() {
			name := fmt.Sprintf("cold-%v-%d", delay, round)
			took, err := b.coldOnce(b.startFresh, upstream, name)
			if err != nil {
				t.Fatal(err)
			}
			single = append(single, took.Seconds())
			one = append(one, b.coldCluster(t, upstream, name+"-one", func(s *clusterSite) string { return s.nodes[0].url }))
			list = append(list, b.coldCluster(t, upstream, name+"-list", func(s *clusterSite) string { return proxies(s.nodes...) }))
			balanced = append(balanced, b.coldCluster(t, upstream, name+"-balanced", func(s *clusterSite) string { return b.balance(t, s) }))
		}
		what := fmt.Sprintf("go mod download all, cold, upstream + %v, s, ", delay)
		b.add(row{what + "GOPROXY=a (compared with a single node)", single, one, ratioAtMost(1.5)})
		b.add(row{what + "GOPROXY=a|b|c (the same)", single, list, ratioAtMost(1.5)})
		b.add(row{what + "round robin by nginx (the same)", single, balanced, ratioAtMost(1.5)})
	}
}

// coldCluster returns how many seconds the go command needs with a new cluster, at the GOPROXY that proxy makes of it.
func (b *bench) coldCluster(t *testing.T, upstream, name string, proxy func(*clusterSite) string) float64 {
	t.Helper()
	s := b.startCluster(t, name, upstream)
	defer os.RemoveAll(s.dir) // the rest goes with b.work
	url := proxy(s)
	syscall.Sync() // what earlier rounds wrote is not this one's business
	took, err := b.goDownload(url)
	if err := errors.Join(err, s.endAll()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v", name, took)
	return took.Seconds()
}

// balance starts nginx in front of the nodes of s.
func (b *bench) balance(t *testing.T, s *clusterSite) string {
	t.Helper()
	var servers []string
	for _, n := range s.nodes {
		servers = append(servers, "server "+n.listen+";")
	}
	balancer, err := startNginx(b.ctx, "balance", filepath.Join(b.work, filepath.Base(s.dir)+"-nginx"), "", strings.Join(servers, " "))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, balancer.stop()) })
	return balancer.url
}
