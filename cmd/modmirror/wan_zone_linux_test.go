//go:build wan

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
)

// The zone with the leader is lost. The other two go on committing. The lost one, cut off from all, serves all that it has, and go
// commands there verify it with the default GOSUMDB. Once it is back it catches up, with one transfer of each blob over the WAN,
// nothing diverges, and the terms stay calm.
func TestWANZoneLost(t *testing.T) {
	s := newWANRun(t, 61)
	s.begin()
	var old []module.Version
	for _, n := range s.nodes {
		m := s.new(200 << 10)
		s.mustPublish(time.Minute, n, m)
		old = append(old, m)
	}
	s.same(time.Minute)
	had := s.paths()
	lead, term := s.leading(s.nodes)
	lost, elected := s.zoneOf[lead], s.elected()
	away, rest := s.inZone(lost), s.others(lost)
	s.cutOff(lost)
	begin := time.Now()
	asked := s.askNew(away)

	t.Logf("%s is lost, which leads: the first new version is committed after %v", lost, s.mustPublish(time.Minute, rest[0], s.new(50<<10)))
	const many, size = 12, 8 << 20
	var g errgroup.Group
	g.SetLimit(4)
	for i := range many {
		n, m := rest[i%len(rest)], s.new(size)
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := s.publish(ctx, n, m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d versions of %d MB are committed %v after the loss", many, size>>20, time.Since(begin).Round(time.Millisecond))

	s.reads(away, had)
	if err := s.clientIn(lost, proxies(away...), old...); err != nil {
		t.Errorf("a go command in the lost zone: %v", err)
	}
	without := time.Since(begin)
	before, counted := s.crossed(), s.blobsInto(lost)
	s.calmWeather()
	took := s.same(2 * time.Minute)
	arrived := arrivedIn(lost, before, s.crossed())
	ratio := float64(arrived) / (many * size)
	asked(t)
	blobs := float64(s.blobsInto(lost)-counted) / (many * size)
	t.Logf("lost for %v; back and complete after %v: for %d MB of blobs %.1f MB came over the WAN with all headers, %.3f times; the nodes counted %.3f times",
		without.Round(time.Second), took.Round(time.Millisecond), many*size/1_000_000, float64(arrived)/1e6, ratio, blobs)
	if ratio > 1.05 || blobs > 1.01 || blobs < 0.99 {
		t.Errorf("%.3f times the bytes of the blobs came over the WAN, of which the nodes counted %.3f", ratio, blobs)
	}
	s.calm(term, elected, 2)
	s.kept()
	s.sound(t)
}

// askNew asks nodes that are cut off from everything for something new. No answer is right, until the network is back; that there
// is no such thing is wrong, and the ledger has that.
func (s *wanRun) askNew(nodes []*clusterNode) (end func(*testing.T)) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	said := make([]string, len(nodes))
	for i, n := range nodes {
		path := artifactPathsOf(s.new(1000))[2]
		wg.Go(func() {
			begin := time.Now()
			a, err := s.ask(ctx, n, path)
			said[i] = fmt.Sprintf("%s after %v: %d, committed %t, %.100q, %v", n.name, time.Since(begin).Round(time.Millisecond), a.code, a.committed, a.body, err)
			if err == nil && a.code < http.StatusInternalServerError && a.code != http.StatusOK {
				s.t.Errorf("what is new at a node that is cut off: %s", said[i])
			}
		})
	}
	return func(t *testing.T) {
		cancel()
		wg.Wait()
		t.Logf("what is new at the nodes that were cut off: %q", said)
	}
}

// blobsInto returns how many bytes of bulk transfers the nodes of a zone were sent from other zones, by their metrics.
func (s *wanRun) blobsInto(zone string) (sum int64) {
	s.t.Helper()
	for _, n := range s.inZone(zone) {
		text, err := s.body(s.t.Context(), n, "/metrics")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, from := range s.otherZones(zone) {
			sum += int64(metricIn(string(text), fmt.Sprintf(`modmirror_peer_wan_bytes_total{from=%q,kind="blobs",to=%q} `, from, zone)))
		}
	}
	return sum
}
