package main

import (
	"context"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A mirror at rest has 3 MB in use. The collector of the runtime lets as much garbage come up as there is in use, 4 MB at
// least: under load that is a collection every 20 ms, each of which stops all requests for a moment and lets them help. So
// some garbage is always let come up, and no more than the runtime would when much is in use.
const (
	garbage    = 16 << 20 // bytes
	mostGC     = 400      // percent of what is in use
	gcInterval = time.Second
)

// gcPercent returns how much garbage may come up while live bytes are in use, in percent of these: see debug.SetGCPercent.
func gcPercent(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), 100), mostGC))
}

// tuneGC keeps the collector's setting right until ctx ends. Whoever starts the process with GOGC has decided.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(gcInterval)
	defer tick.Stop()
	for now := 0; ; {
		if p := gcPercent(liveBytes()); math.Abs(float64(p-now)) > float64(now)/10 { // each change stops the world
			debug.SetGCPercent(p)
			now = p
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// liveBytes returns what the last collection found in use.
func liveBytes() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return math.MaxUint64
	}
	return s[0].Value.Uint64()
}
