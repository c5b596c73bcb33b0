//go:build wan && bench

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest/wannet"
)

// TestBenchWAN is what `make bench-wan` runs: nine nodes in three zones that are 80 ms and 100 Mbit/s from each other, in network
// namespaces of this machine, for which it has to be root. Measured is how long a large blob takes to all of them and what it
// costs on the way, and what they cost at rest.
func TestBenchWAN(t *testing.T) {
	s := newWANSite(t, 64)
	b := &wanBench{wanSite: s}
	b.between(benchWAN)
	for _, n := range s.nodes {
		n.extra = append(n.extra, "--log-level", "warn")
	}
	before := b.others(t)
	s.begin()
	t.Run("blob", func(t *testing.T) {
		for range 3 {
			b.blob(t)
		}
	})
	t.Run("rest", b.rest)
	fmt.Printf("\n%s, %s. Others kept %.0f %% of the processors busy before.\n\n", time.Now().UTC().Format(time.DateOnly), machine(), before)
	writeTable(os.Stdout, "a copy", "nine nodes", b.rows())
}

var benchWAN = wannet.Policy{Delay: 40 * time.Millisecond, Rate: 100e6, Queue: 1 << 20}

const (
	benchBlob = 64 << 20 // bytes of a zip
	benchRest = 30 * time.Second
)

type wanBench struct {
	*wanSite
	copied, all, committed samples // seconds
	wan, packets           samples // bytes by those of a blob and zone
	idle                   samples // percent of a processor
	traffic                samples // KB/s
}

// others returns which part of the processors is busy before anything begins, in percent.
func (b *wanBench) others(t *testing.T) float64 {
	total, idle := ticks()
	b.wait(t, 3*time.Second)
	total2, idle2 := ticks()
	return 100 * (1 - (idle2-idle)/(total2-total))
}

func (b *wanBench) wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// blob has one zone bring in a large zip, and waits until every node has it.
func (b *wanBench) blob(t *testing.T) {
	t.Helper()
	b.copied = append(b.copied, b.copyAcross(t).Seconds())
	m, truth := b.fresh(benchBlob)
	zip := truth[artifactPath(m, artifact.Zip)]
	file := fileOf(sha256.Sum256(zip))
	before := b.crossed()
	begin := time.Now()
	var done time.Duration
	asked := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		n := b.inZone("z1")[1]
		_, err := b.body(ctx, n, artifactPath(m, artifact.Zip))
		done = time.Since(begin)
		asked <- err
	}()
	b.within(2*time.Minute, "blob on all nodes", func() bool { return b.holding(file) == len(b.nodes) }, func() string { return fmt.Sprint(b.holding(file)) })
	all := time.Since(begin)
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	var crossed wannet.Traffic
	after := b.crossed()
	for pair := range after {
		crossed.Add(after[pair].Minus(before[pair]))
	}
	ideal := float64(len(zip) * (len(b.zones) - 1))
	b.committed, b.all = append(b.committed, done.Seconds()), append(b.all, max(all-done, 0).Seconds())
	b.wan, b.packets = append(b.wan, float64(crossed.Delivered.Payload)/ideal), append(b.packets, float64(crossed.Delivered.Bytes)/ideal)
	fmt.Printf("a blob of %d MB: committed after %v, on all nodes after %v, a copy takes %.2f s; %.1f MB over the WAN, %.3f times\n", len(zip)/1_000_000, done, all,
		b.copied[len(b.copied)-1], float64(crossed.Delivered.Payload)/1e6, b.wan[len(b.wan)-1])
}

// fileOf is where a node keeps a blob, in its data directory.
func fileOf(d [sha256.Size]byte) string {
	name := hex.EncodeToString(d[:])
	return filepath.Join("blobs", "sha256", name[:2], name)
}

// holding returns how many nodes hold a blob.
func (b *wanBench) holding(file string) (n int) {
	for _, node := range b.nodes {
		if _, err := os.Stat(filepath.Join(node.dir, file)); err == nil {
			n++
		}
	}
	return n
}

// copyAcross sends as many bytes over one connection between two zones.
func (b *wanBench) copyAcross(t *testing.T) time.Duration {
	t.Helper()
	from, to := b.hosts["z1-client"], b.hosts["z2-client"]
	ln, err := to.Listen("tcp", to.Addr().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		c, err := from.Dial(ctx, "tcp", ln.Addr().String())
		if err == nil {
			_, err = c.Write(make([]byte, benchBlob))
			c.Close()
		}
		sent <- err
	}()
	var c net.Conn
	if c, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := io.Copy(io.Discard, c); err != nil || n != benchBlob {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

// rest measures what the nodes do when there is nothing to do.
func (b *wanBench) rest(t *testing.T) {
	t.Helper()
	b.same(2 * time.Minute)
	var pids []int
	for _, n := range b.nodes {
		pids = append(pids, int(n.pid.Load()))
	}
	b.wait(t, 10*time.Second)
	before, crossed := b.used(t, pids), b.net.Across()
	b.wait(t, benchRest)
	used := b.used(t, pids)
	b.traffic = append(b.traffic, float64(b.net.Across().Minus(crossed).Delivered.Bytes)/1000/benchRest.Seconds())
	var sum time.Duration
	for i, d := range used {
		sum += d - before[i]
		fmt.Printf("%s at rest: %.2f %% of a processor\n", b.nodes[i].name, 100*(d-before[i]).Seconds()/benchRest.Seconds())
	}
	b.idle = append(b.idle, 100*sum.Seconds()/benchRest.Seconds())
}

func (b *wanBench) used(t *testing.T, pids []int) (out []time.Duration) {
	t.Helper()
	for _, pid := range pids {
		d, err := cpuOf([]int{pid})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func (b *wanBench) rows() []row {
	limit := 2*float64(benchBlob*8)/float64(benchWAN.Rate) + 1
	mb := benchBlob / 1_000_000
	return []row{
		{fmt.Sprintf("a zip of %d MB that is committed in one zone is on every node of the others, s", mb), b.copied, b.all, below(limit)},
		{"the same, from the request to the upstream's bytes, committed, at the client, s", b.copied, b.committed, aim{}},
		{"the same, bytes over the WAN by those of the blob and zone", nil, b.wan, atMost(1.05)},
		{"the same with the headers of TCP and IP, and acknowledgements", nil, b.packets, aim{}},
		{"nine idle nodes, % of one processor", nil, b.idle, below(10)},
		{"nine idle nodes, KB/s over the WAN in all directions", nil, b.traffic, aim{}},
	}
}

func atMost(x float64) aim {
	return aim{"≤ " + number(x), func(value, _ float64) bool { return value <= x }}
}
