package main

import (
	"context"
	"sync"
	"time"

	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// raftProfiles are the values of --raft-profile.
var raftProfiles = []string{replicate.ProfileAuto, replicate.ProfileLAN, replicate.ProfileWAN}

// Before raft starts the nodes that are known then are asked a few times, the first of which also pays for the connection.
const (
	firstTrips = 4
	firstWait  = 5 * time.Second // for all answers
)

// longestTrip measures the round trips to other nodes, and returns the longest; 0 if none answers. It is for the profile that
// raft starts with.
func (n *node) longestTrip(ctx context.Context, members []peer.Member) (longest time.Duration) {
	if n.config.Cluster.Profile != replicate.ProfileAuto {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	var mu sync.Mutex // guards longest
	var wg sync.WaitGroup
	for _, m := range members {
		if m.ID == n.identity.Load().Node {
			continue
		}
		wg.Go(func() {
			trip := n.firstTrip(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, trip)
		})
	}
	wg.Wait()
	return longest
}

// firstTrip returns the shortest time in which a node answered over a connection that stood; 0 if it did not.
func (n *node) firstTrip(ctx context.Context, m peer.Member) (trip time.Duration) {
	connected := false
	for range firstTrips {
		begin := time.Now()
		_, err := n.link.Call(ctx, peer.Request{Node: m.ID, Addr: m.Address, Path: "/v1/form"}, nil, 256<<10)
		if took := time.Since(begin); err == nil && connected && (trip == 0 || took < trip) {
			trip = took
		}
		connected = err == nil
	}
	return trip
}

// trip returns the round trip to another node, as measured lately.
func (n *node) trip(id string) (time.Duration, bool) {
	s, ok := n.seen(id)
	return s.Trip, ok && s.Trip > 0 && s.Healthy
}
