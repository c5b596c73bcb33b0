//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	attackIdle  = 10_000 // connections that ask nothing, or never end to ask
	attackRate  = 1_000  // requests a second for what nothing is at
	attackHosts = 10     // addresses from which all that comes
)

// attack measures what good clients feel of hostile ones: the peer is the mirror itself in peace.
func (b *bench) attack(t *testing.T) {
	p := b.startPair(t)
	mods, err := b.paths("", ".mod")
	if err != nil {
		t.Fatal(err)
	}
	file, err := b.listFile("attack", mods)
	if err != nil {
		t.Fatal(err)
	}
	rounds := func() (out []round) {
		for range b.rounds {
			l, err := b.wrk(p.mirror, file, 4, b.seconds)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, l)
		}
		return out
	}
	rounds() // fills what is kept in memory
	peace := rounds()
	before := samples{b.memory(t, p.mirror, "VmRSS")}
	stop, err := b.beHostile(strings.TrimPrefix(p.mirror.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	war := rounds()
	during := samples{b.memory(t, p.mirror, "VmRSS")}
	stop()
	p99 := func(l round) float64 { return l.p99 }
	name := fmt.Sprintf("%d idle connections, %d requests/s for nothing", attackIdle, attackRate)
	b.add(row{".mod under " + name + ", p99 ms (peer: without)", pick(peace, p99), pick(war, p99), ratioAtMost(2)})
	b.add(row{"RSS under the same, MB (peer: without)", before, during, below(150)})
}

// beHostile does what the names of the constants say until it is stopped.
func (b *bench) beHostile(addr string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(b.ctx)
	var held []net.Conn
	var wg sync.WaitGroup
	stop = func() {
		cancel()
		wg.Wait()
		for _, c := range held {
			_ = c.Close() // the mirror may have closed it
		}
	}
	from := func(i int) *net.Dialer {
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%attackHosts))}}
	}
	for i := range attackIdle {
		c, err := from(i).DialContext(ctx, "tcp", addr)
		if err != nil {
			stop()
			return nil, err
		}
		held = append(held, c)
		if i%2 == 1 {
			_, _ = io.WriteString(c, "GET /example.com/hello/@v/list HTTP/1.1\r\nHost: a\r\nX: ") // it may be closed already
		}
	}
	for i := range attackHosts {
		client := &http.Client{Transport: &http.Transport{DialContext: from(i).DialContext}}
		wg.Go(func() {
			defer client.CloseIdleConnections()
			tick := time.NewTicker(attackHosts * time.Second / attackRate)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/example.com/x%x/@v/list", addr, rand.Uint64()), nil)
				if err != nil {
					return
				}
				if resp, err := client.Do(req); err == nil { // what becomes of it is nobody's business
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	return stop, nil
}
