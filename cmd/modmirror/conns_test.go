package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// fakeConn is a connection from an address.
type fakeConn struct {
	net.Conn
	from string
}

func (f *fakeConn) RemoteAddr() net.Addr { return fakeAddr(f.from) }

type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }

// knock has a connection come in from an address.
func knock(c *conns, from string) (conn *fakeConn, victim net.Conn, ok bool) {
	conn = &fakeConn{from: from}
	victim, ok = c.admit(conn)
	return conn, victim, ok
}

// mustKnock is knock where there must be room.
func mustKnock(t *testing.T, c *conns, from string, states ...http.ConnState) *fakeConn {
	t.Helper()
	conn, victim, ok := knock(c, from)
	if !ok || victim != nil {
		t.Fatalf("connection from %s: victim %v, accepted %v", from, victim, ok)
	}
	for _, s := range states {
		c.state(conn, s)
	}
	return conn
}

func newFakeConns(max, perClient int) *conns {
	return newConns(nil, max, perClient, prometheus.NewRegistry())
}

// A client that has too many gets a new one at the cost of its oldest idle one, never at the cost of somebody else's.
func TestConnsOfOneClient(t *testing.T) {
	c := newFakeConns(100, 3)
	other := mustKnock(t, c, "192.0.2.9:1") // idle for longest of all
	busy := mustKnock(t, c, "192.0.2.1:1", http.StateActive)
	first := mustKnock(t, c, "[::ffff:192.0.2.1]:2") // the same address
	second := mustKnock(t, c, "192.0.2.1:3", http.StateActive, http.StateIdle)
	c.state(first, http.StateActive)
	c.state(first, http.StateIdle) // now the second is the one without a request for longest
	for _, want := range []*fakeConn{second, first} {
		conn, victim, ok := knock(c, "192.0.2.1:4")
		if !ok || victim != net.Conn(want) {
			t.Fatalf("one too many: victim %v, want %v, accepted %v", victim, want, ok)
		}
		c.state(conn, http.StateActive)
	}
	if conn, victim, ok := knock(c, "192.0.2.1:5"); ok || victim != nil {
		t.Errorf("one too many, all busy: %v accepted, victim %v", conn, victim)
	}
	c.state(busy, http.StateClosed)
	mustKnock(t, c, "192.0.2.1:6")
	if c.all[other] == nil {
		t.Error("the idle connection of another client is gone")
	}
	if got := testutil.ToFloat64(c.open); got != 4 {
		t.Errorf("%v connections open, want 4", got)
	}
}

// Where the sum is too large, a client with the most idle connections pays, not who came first.
func TestConnsOfAll(t *testing.T) {
	c := newFakeConns(6, 5)
	modest := mustKnock(t, c, "192.0.2.1:1")
	var greedy []*fakeConn
	for i := range 5 {
		greedy = append(greedy, mustKnock(t, c, fmt.Sprintf("192.0.2.2:%d", i)))
	}
	for i := range 3 {
		_, victim, ok := knock(c, fmt.Sprintf("192.0.2.%d:1", 10+i))
		if !ok || victim != net.Conn(greedy[i]) {
			t.Fatalf("connection %d too many: victim %v, accepted %v", i, victim, ok)
		}
	}
	if c.all[modest] == nil {
		t.Error("the client with one connection lost it")
	}
	for conn := range c.all {
		c.state(conn, http.StateActive)
	}
	if _, victim, ok := knock(c, "192.0.2.20:1"); ok || victim != nil {
		t.Errorf("all are busy: accepted %v, victim %v", ok, victim)
	}
	c.state(greedy[0], http.StateClosed) // the server notices late that it was evicted
	for conn := range c.all {
		c.state(conn, http.StateClosed)
	}
	if len(c.all) != 0 || len(c.clients) != 0 || testutil.ToFloat64(c.open) != 0 {
		t.Errorf("all have gone: %d connections, %d clients are counted", len(c.all), len(c.clients))
	}
}

// One host has 64 bits of addresses.
func TestConnsIPv6(t *testing.T) {
	c := newFakeConns(100, 1)
	first := mustKnock(t, c, "[2001:db8::1]:1")
	if _, victim, _ := knock(c, "[2001:db8::ffff:2]:1"); victim != net.Conn(first) {
		t.Error("another address of the same network counts as another client")
	}
	mustKnock(t, c, "[2001:db8:0:1::1]:1")
}

// The counts stay right whatever happens in whatever order.
func TestConnsRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	c := newFakeConns(20, 8)
	var live []net.Conn
	for range 20_000 {
		if len(live) > 0 && rnd.IntN(3) > 0 {
			conn := live[rnd.IntN(len(live))]
			c.state(conn, []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateClosed}[rnd.IntN(4)])
		} else if conn, _, ok := knock(c, fmt.Sprintf("192.0.2.%d:1", rnd.IntN(5))); ok {
			live = append(live, conn)
		}
		if len(live) > 60 {
			live = live[30:]
		}
		sum, waiting := 0, 0
		for addr, cl := range c.clients {
			if cl.open < 1 || cl.open > 8 || cl.waiting.Len() > cl.open {
				t.Fatalf("%v has %d connections, %d of them waiting", addr, cl.open, cl.waiting.Len())
			}
			sum, waiting = sum+cl.open, waiting+cl.waiting.Len()
		}
		listed := 0
		for _, e := range c.all {
			if e.waiting != nil {
				listed++
			}
		}
		if sum != len(c.all) || sum > 20 || waiting != listed {
			t.Fatalf("%d connections of clients, %d in all; %d waiting, %d listed", sum, len(c.all), waiting, listed)
		}
	}
}

// Thousands of connections that ask nothing, or never end to ask, keep nobody from being answered.
func TestIdleCrowd(t *testing.T) {
	const crowd, bound = 2000, 100
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newConns(ln, bound, bound, prometheus.NewRegistry())
	srv := &http.Server{ConnState: c.state, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(c); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	defer wg.Wait()
	defer srv.Close()

	var held []net.Conn
	defer func() {
		for _, conn := range held {
			conn.Close()
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range crowd {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		switch i % 3 {
		case 1: // a header that never ends
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
		case 2: // asks once, and holds on; it may be among those who lose
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				resp.Body.Close()
			}
		}
		if i%100 == 99 {
			if err := getHello(t.Context(), client, ln.Addr().String()); err != nil {
				t.Errorf("after %d idle connections: %v", i+1, err)
			}
		}
	}
	if n := testutil.ToFloat64(c.open); n > bound {
		t.Errorf("%v connections are open", n)
	}
	if n := testutil.ToFloat64(c.evicted); n < crowd-bound {
		t.Errorf("%v connections were evicted, want at least %d", n, crowd-bound)
	}
	if n := testutil.ToFloat64(c.refused); n != 0 {
		t.Errorf("%v connections were refused", n)
	}
}

func getHello(ctx context.Context, client *http.Client, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
		return fmt.Errorf("%d %q %v", resp.StatusCode, b, err)
	}
	return nil
}
