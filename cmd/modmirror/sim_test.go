package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
)

// Simulation of whole clusters: sim_*_test.go.
//
// A seed chooses a cluster of 3 or 5 voters and 2 replicas, what happens to it for four simulated minutes, and what clients ask
// meanwhile. The nodes are those of `modmirror serve`: parsed flags, package mirror, sumdb, replicate and peer, joined as in
// production, TLS and all. All of it runs in one process, in a bubble of testing/synctest, in which time passes when everybody
// waits: minutes take seconds.
//
//   - sim_net_test.go: the network between the nodes and to the upstream. Cut in one or both directions, slow, lossy.
//   - sim_disk_test.go: the disk that blobs are on. Without power it loses what was not fsynced; it fills up, fails, slows
//     down, and bits on it flip.
//   - sim_source_test.go: the upstream and its checksum database. Both lie; the database shows two histories.
//   - sim_cluster_test.go: machines and the lives of the nodes on them: crash, stop, start, another disk.
//   - sim_fault_test.go: what happens, and how a cluster is brought back in the end.
//   - sim_client_test.go: what is asked.
//   - sim_check_test.go: what was promised. Each violation is called by the invariant that is broken:
//
// I1 what was answered as committed is served by every node in the end. I2 nodes with equally many leaves have the same root,
// and all committed answers for an artifact are the same bytes. I3 no part of a manifest ever changes. I4 the newest tree head
// of a node never shrinks, and all committed heads are of one history. I5 each 200 has bytes that the checksum database vouches
// for. I6 when a blob is committed, a majority of the voters has it durably. I7 no blob with the right bytes is taken away that
// any catalog names. I8 once all is healed, the cluster is whole in three minutes. I9 there is one cluster. I11 what is not
// committed has no ETag. The answers for each artifact are the history of a register that is written once, for porcupine.
//
// What is not simulated: bbolt, whose files are on the real disk, where a crash leaves them as they are between two
// transactions; the files of tiles, of what waits for a quorum, and node.json, likewise; the kernel; the port of the clients,
// who call the handler behind it; hanging disks and processes. Crashes come when everybody waits, for the network, a disk or a
// timer, and never in the middle of a computation. The seed fixes the faults and what is asked; goroutines run as they like, so
// the same seed may pass and fail in turn. The trace of a run that failed is therefore kept.
var (
	simSeeds = flag.Int("sim.seeds", 1, "how many seeds TestSimulation runs")
	simFirst = flag.Uint64("sim.first", 1, "the first of these seeds")
	simKeep  = flag.Bool("sim.keep", false, "keep the trace of each seed, also of those that pass")
)

// TestSimulation runs whole clusters through faults, and checks the promises throughout and at the end.
func TestSimulation(t *testing.T) {
	for i := range *simSeeds {
		seed := *simFirst + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed)
		})
	}
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64) {
	dir := simDir(t)
	begin := time.Now()
	synctest.Test(t, func(t *testing.T) {
		trace := newSimTrace()
		s, err := newSim(seed, dir, trace)
		if err != nil {
			t.Fatal(err)
		}
		s.run()
		c := s.check
		c.mu.Lock()
		broken, counts := c.broken, c.counts
		c.mu.Unlock()
		if len(broken) == 0 && !*simKeep {
			t.Logf("%v simulated: %v", time.Since(trace.begin).Round(time.Second), counts)
			return
		}
		file, err := trace.save(seed)
		if err != nil {
			t.Error(err)
		}
		if len(broken) == 0 {
			t.Logf("%v simulated, %v; trace: %s", time.Since(trace.begin).Round(time.Second), counts, file)
			return
		}
		t.Errorf("seed %d: %s\n\nlast of the trace:\n%s\n\nall of it: %s\nagain: make sim SEED=%d",
			seed, strings.Join(broken, "\n"), trace.tail(60), file, seed)
	})
	t.Logf("took %v", time.Since(begin).Round(time.Millisecond))
}

// simDir makes a directory for the data of one simulation: in memory, if there is such a thing.
func simDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "modmirror-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// run is the simulation.
func (s *sim) run() {
	v, err := note.NewVerifier(s.source.main.Key())
	if err != nil {
		panic(err)
	}
	s.check.verifier = v
	s.trace.add("sim", "seed %d: %d voters and %d replicas, without a quorum: %s, short log: %v", s.seed, s.voters, len(s.nodes)-s.voters, s.loss, s.short)
	s.addModules()
	for _, n := range s.nodes {
		n.start()
	}
	stop := make(chan struct{})
	for i := range 4 {
		s.clients.Go(func() { s.client(i+1, stop) })
	}
	s.clients.Go(func() { s.ticker(stop) })
	s.faults()
	if !s.broken() {
		s.settle()
	}
	close(stop)
	s.clients.Wait()
	if !s.broken() {
		s.awaitWhole(simSettle) // also with what was asked last
	}
	if !s.broken() {
		s.check.tick()
		s.check.everywhere()
		s.check.linear()
	}
	s.end()
}

// end stops everything, so that nothing is left in the bubble.
func (s *sim) end() {
	for _, n := range s.nodes {
		n.stop()
	}
	s.lives.Wait()
	s.source.http.Close()
	s.source.host.die(true)
	for _, n := range s.nodes {
		if n.back != nil {
			n.back()
		}
	}
	time.Sleep(time.Minute) // a closed server does not wait for its handlers, which may wait for a slow disk
}

func (s *sim) broken() bool {
	select {
	case <-s.check.stop:
		return true
	default:
		return false
	}
}

// addModules publishes what there is from the beginning.
func (s *sim) addModules() {
	for i := range 8 + s.rng.IntN(6) {
		s.publish(s.rng, fmt.Sprintf("example.com/m%d", i), "v1.0.0")
	}
}

// publish makes a new version of a module.
func (s *sim) publish(rng *rand.Rand, path, version string) {
	var requires []module.Version
	all := s.source.versions()
	for range rng.IntN(3) {
		if len(all) > 0 {
			requires = append(requires, all[rng.IntN(len(all))])
		}
	}
	s.source.publish(module.Version{Path: path, Version: version}, requires, 1<<(6+rng.IntN(12)), rng.IntN(8) == 0)
}

// sleep waits, but not longer than until a promise is broken.
func (s *sim) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.check.stop:
	}
}

// ticker looks at all catalogs now and then, and publishes new versions.
func (s *sim) ticker(stop chan struct{}) {
	rng := rand.New(rand.NewPCG(s.seed, 99))
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.check.tick()
			if rng.IntN(2) == 0 {
				s.publish(rng, fmt.Sprintf("example.com/m%d", rng.IntN(12)), fmt.Sprintf("v1.%d.0", len(s.source.versions())))
			}
		case <-stop:
			return
		}
	}
}
