//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

// clusterReads measures what is committed, at the leader, at a follower, and at a single mirror with the same data.
func (b *bench) clusterReads(t *testing.T) {
	s := b.stockedCluster(t, "reads")
	single, err := b.startMirror(b.stocked, s.up.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, single.stop()) })
	leader := s.leader()
	follower := s.others(leader)[0]
	zip, size, err := b.nearest(50e3)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []struct {
		name, dir, suffix string
		paths             []string
		connections       int
	}{
		{name: ".mod", suffix: ".mod", connections: 32},
		{name: "lookup", dir: "sumdb/" + database + "/lookup", connections: 32},
		{name: "zip of " + number(float64(size)/1e6) + " MB", paths: []string{zip}, connections: 4},
	} {
		if kind.paths == nil {
			if kind.paths, err = b.paths(kind.dir, kind.suffix); err != nil {
				t.Fatal(err)
			}
		}
		file, err := b.listFile(fmt.Sprint("cluster-", kind.connections, kind.suffix), kind.paths)
		if err != nil {
			t.Fatal(err)
		}
		got := b.inTurn(t, file, kind.connections, single, leader.server(), follower.server())
		b.add(row{kind.name + ", requests/s: a follower (compared with the leader)", got[1], got[2], ratioAtLeast(0.95)})
		b.add(row{kind.name + ", requests/s: a follower (compared with a single node)", got[0], got[2], ratioAtLeast(0.95)})
		b.add(row{kind.name + ", requests/s: the leader (compared with a single node)", got[0], got[1], ratioAtLeast(0.95)})
	}
}

// inTurn lets wrk ask servers in turn, after a round that does not count, and returns the requests a second of each.
func (b *bench) inTurn(t *testing.T, file string, connections int, servers ...*server) []samples {
	t.Helper()
	out := make([]samples, len(servers))
	for i := range b.rounds + 1 {
		for j, s := range servers {
			d := b.seconds
			if i == 0 {
				d = time.Second
			}
			l, err := b.wrk(s, file, connections, d)
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				out[j] = append(out[j], l.perSecond)
			}
		}
	}
	return out
}

// clusterKilled counts the reads that fail for clients of two nodes, one of them the leader, while it is killed, comes back,
// and the next leader is killed.
func (b *bench) clusterKilled(t *testing.T) {
	s := b.stockedCluster(t, "killed")
	var paths []string
	for _, kind := range [][2]string{{"", ".mod"}, {"", ".info"}, {"sumdb/" + database + "/lookup", ""}} {
		more, err := b.paths(kind[0], kind[1])
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, more...)
	}
	zip, _, err := b.nearest(50e3)
	if err != nil {
		t.Fatal(err)
	}
	paths = append(paths, zip)
	var all readers
	for range b.rounds {
		leader := s.leader()
		r := b.read(paths, leader.url, s.others(leader)[0].url)
		b.idle(time.Second)
		leader.kill()
		for _, n := range s.others(leader) {
			s.sees(n, "another leader", func(v clusterView) bool { return v.Leader != "" && v.nameOf(v.Leader) != leader.name })
		}
		s.run(leader)
		s.voters(3)
		all.add(r.end())
	}
	if all.err != nil {
		t.Logf("a read that failed: %v", all.err)
	}
	b.add(row{fmt.Sprintf("failed reads of %d while the leader is killed (%d were asked for again)", all.done, all.again), nil, samples{float64(all.failed)}, exactly(0)})
	b.add(row{"the longest of these reads, ms", nil, samples{float64(all.longest.Microseconds()) / 1e3}, aim{}})
}

// readers are clients that read committed artifacts at one node and, if that fails, at another one.
type readers struct {
	bench  *bench
	paths  []string
	nodes  [2]string
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	counts
}

// counts are what readers have seen.
type counts struct {
	done, again, failed int
	longest             time.Duration
	err                 error // of a read that failed
}

// read starts to read, as if it were a few clients of nodes a and b.
func (b *bench) read(paths []string, nodeA, nodeB string) *readers {
	ctx, cancel := context.WithCancel(b.ctx)
	r := &readers{bench: b, paths: paths, nodes: [2]string{nodeA, nodeB}, cancel: cancel}
	for i := range 4 {
		r.wg.Go(func() {
			for at := i; ctx.Err() == nil; at += 4 {
				r.one(paths[at%len(paths)])
			}
		})
	}
	return r
}

func (r *readers) one(path string) {
	begin := time.Now()
	err := r.bench.get(r.nodes[0] + path)
	again := err != nil
	if again {
		err = r.bench.get(r.nodes[1] + path)
	}
	took := time.Since(begin)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	if again {
		r.again++
	}
	if err != nil {
		r.failed++
		r.err = err
	}
	r.longest = max(r.longest, took)
}

// end stops reading and returns what was seen.
func (r *readers) end() counts {
	r.cancel()
	r.wg.Wait()
	return r.counts
}

func (r *readers) add(c counts) {
	r.done += c.done
	r.again += c.again
	r.failed += c.failed
	r.longest = max(r.longest, c.longest)
	if c.err != nil {
		r.err = c.err
	}
}

// get reads url to its end.
func (b *bench) get(url string) error {
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	status, _, err := b.head(ctx, url)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, status)
	}
	return err
}

// head reads url to its end, and returns what stood before it.
func (b *bench) head(ctx context.Context, url string) (status int, header http.Header, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header, err
}
