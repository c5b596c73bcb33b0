package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A node whose upstream leaves it without an answer again and again ([upstream.List.Silent]) costs whoever asks it half a minute
// for each thing, to be told that it cannot say. So it tells the others, and is nobody's owner for the cluster while one of them
// gets answers (see [turnAmong]). Once a minute it asks the upstream for nothing in particular, and is an owner again when there
// is an answer; and also when one comes to what it asked because nobody else did.

const (
	wayOutLook  = time.Second // how often to look whether the upstream is silent
	wayOutRetry = time.Minute // between two probes
)

// silent returns why this node's upstream counts as silent; nil: it does not, or there is none.
func (n *node) silent() error {
	if n.upstream == nil {
		return nil
	}
	return n.upstream.Silent()
}

// watchWayOut says when the upstream falls silent and when it answers again, and asks it meanwhile, until ctx ends.
func (n *node) watchWayOut(ctx context.Context) {
	tick := time.NewTicker(wayOutLook)
	defer tick.Stop()
	var was error
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := n.silent()
		switch {
		case err == nil && was != nil:
			n.log.Info("the upstream answers again")
		case err != nil && was == nil:
			n.log.Warn("the upstream does not answer; other nodes fetch in this one's place, if it answers them", "err", err)
			next = time.Now().Add(wayOutRetry)
		case err != nil && !time.Now().Before(next):
			n.upstream.Probe(ctx)
			next = time.Now().Add(wayOutRetry)
		}
		was = err
	}
}

// silentMetric is 1 while the upstream counts as silent.
func (n *node) silentMetric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "modmirror_upstream_silent",
		Help: "1 while this node gets no answer from its upstream, so that other nodes fetch in its place if they can."}, func() float64 {
		if n.silent() != nil {
			return 1
		}
		return 0
	})
}
