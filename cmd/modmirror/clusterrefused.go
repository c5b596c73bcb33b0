package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"modmirror/replicate/peer"
)

// shunned returns why the others do not speak with this node, if more than half of them say that its data directory must not
// take part: it is a copy of one that runs, say. What it holds may have been left behind, so it should get no requests.
// Trouble with certificates is none of this: it may concern all nodes at once, and what is stored must be served then.
func (n *node) shunned() error {
	t := n.table.Load()
	if t == nil {
		return nil
	}
	all := t.All()
	count, why := 0, error(nil)
	for _, s := range all {
		var r *peer.Refusal
		if !errors.As(s.Err, &r) || r.By == "" {
			continue
		}
		switch r.Class {
		case peer.Clone, peer.Twice, peer.Removed, peer.NameTaken, peer.ForeignCluster, peer.TooOld:
			count, why = count+1, r
		}
	}
	if count <= len(all)/2 {
		return nil
	}
	return fmt.Errorf("%d of the %d other nodes do not take this one: %w", count, len(all), why)
}

// watchShunned logs it, once each time that it begins and ends.
func (n *node) watchShunned(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for said := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch err := n.shunned(); {
		case err != nil && !said:
			n.log.Error("the other nodes do not take this one: what it holds is served to who asks, and nothing new is taken", "err", err)
			n.activity.alarm("the other nodes do not take this one: %v", err)
			said = true
		case err == nil && said:
			n.log.Info("the other nodes take this one again")
			said = false
		}
	}
}

// checkSeeds says which nodes in --join are none of this node's cluster. A node that has a cluster does not need --join any
// more, so whoever meant it to move to another one would not notice.
func (n *node) checkSeeds(ctx context.Context) {
	seeds, err := peer.ParseSeeds(n.config.Cluster.Join)
	if err != nil {
		return // it was checked before
	}
	addrs, _ := seeds.Resolve(ctx, net.DefaultResolver)
	for _, addr := range addrs {
		probing, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := n.link.Probe(probing, addr)
		cancel()
		switch peer.ClassOf(err) {
		case "", peer.Busy, peer.Fresh:
			continue
		}
		n.log.Warn("a node in --join does not belong to this node's cluster; a node that has a cluster stays in it: to join another one, move its data directory away", "address", addr, "err", err)
	}
}
