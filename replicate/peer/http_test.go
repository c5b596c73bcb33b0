package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// One port carries a stream, h2 and http/1.1 at the same time.
func TestAllAtOnce(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	b.Handle("POST /v1/echo", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s ", From(r).Node, From(r).Name, r.Proto)
		io.Copy(w, r.Body)
	}))
	b.Handle("PUT /v1/blob", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d %d %v", r.Proto, n, r.ContentLength, err)
	}))
	b.Handle("GET /v1/blob", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "blob", time.Time{}, bytes.NewReader(blob))
	}))
	out, in := openStream(t, a, b)
	defer out.Close()
	defer in.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				got, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Method: "POST", Path: "/v1/echo"}, []byte("hi"), 100)
				if want := "a name-a HTTP/2.0 hi"; err != nil || string(got) != want {
					t.Errorf("control: %q, %v, want %q", got, err, want)
				}
			}
		})
		wg.Go(func() {
			h := http.Header{"Range": {"bytes=16-31"}}
			got, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/blob", Bulk: true, Header: h}, nil, 100)
			if err != nil || string(got) != "0123456789abcdef" {
				t.Errorf("range: %q, %v", got, err)
			}
			got, err = a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/blob", Bulk: true}, nil, 1<<21)
			if err != nil || !bytes.Equal(got, blob) {
				t.Errorf("bulk: %d bytes, %v", len(got), err)
			}
			resp, err := a.Do(t.Context(), Request{Node: "b", Addr: b.addr(), Method: "PUT", Path: "/v1/blob", Bulk: true, Body: io.MultiReader(bytes.NewReader(blob)), Size: int64(len(blob))})
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, _ := io.ReadAll(resp.Body); string(got) != "HTTP/1.1 1048576 1048576 <nil>" {
				t.Errorf("upload: %q", got)
			}
		})
	}
	for range 100 {
		echo(t, out, in)
		echo(t, in, out)
	}
	wg.Wait()
}

// A cold start of many requests opens few connections, and none is refused.
func TestManyRequests(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	b.Handle("GET /v1/x", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			if _, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/x", Bulk: i%3 == 0}, nil, 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A handler that gives up while it reads from a sender that is too slow answers at once.
func TestAnswerToASlowSender(t *testing.T) {
	for _, bulk := range []bool{true, false} {
		a, b := start(t, "a", nil), start(t, "b", nil)
		b.Handle("POST /v1/x", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			first := make(chan error)
			go func() {
				_, err := io.ReadFull(r.Body, make([]byte, 5))
				first <- err
				_, err = io.ReadFull(r.Body, make([]byte, 5))
				first <- err
			}()
			if err := <-first; err != nil {
				t.Error(err)
			}
			body := r.Body.(*movingBody)
			for { // until the second Read has begun, or has ended
				body.mu.Lock()
				reading := body.reading != nil
				body.mu.Unlock()
				if reading {
					break
				}
				runtime.Gosched()
			}
			go func() {
				if err := <-first; err == nil {
					t.Error("there was more")
				}
			}()
			w.WriteHeader(http.StatusTeapot)
		}))
		slow, send := io.Pipe()
		go send.Write([]byte("first"))
		ctx, cancel := context.WithTimeout(t.Context(), stallTime/2)
		defer cancel()
		context.AfterFunc(ctx, func() { send.Close() })
		resp, err := a.Do(ctx, Request{Node: "b", Addr: b.addr(), Method: http.MethodPost, Path: "/v1/x", Body: slow, Bulk: bulk})
		if err != nil {
			t.Fatalf("bulk %v: %v", bulk, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTeapot {
			t.Errorf("bulk %v: %s", bulk, resp.Status)
		}
	}
}

func TestCallErrors(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	b.Handle("GET /v1/no", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "not today", http.StatusServiceUnavailable)
	}))
	b.Handle("GET /v1/long", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "12345") }))
	hang := make(chan struct{})
	b.Handle("GET /v1/hang", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-hang }))
	defer close(hang)
	_, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/no"}, nil, 100)
	if e, ok := errors.AsType[*StatusError](err); !ok || e.Code != 503 || !strings.Contains(err.Error(), "not today") {
		t.Errorf("503: %v", err)
	}
	if _, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/none"}, nil, 100); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("404: %v", err)
	}
	if _, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/long"}, nil, 4); err == nil || !strings.Contains(err.Error(), "more than 4 bytes") {
		t.Errorf("too long: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, Request{Node: "b", Addr: b.addr(), Path: "/v1/hang"}, nil, 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a handler that hangs: %v", err)
	}
}

// Somebody who opens connections and does not speak, more than there is room for, does not keep others out.
func TestSlowHandshakes(t *testing.T) {
	for name, begin := range map[string]string{"nothing": "", "half a hello": "\x16\x03\x01\x02\x00\x01\x00"} {
		t.Run(name, func(t *testing.T) {
			b := start(t, "b", func(c *Config, _ *Hello) { c.handshake = time.Hour })
			a := start(t, "a", nil)
			for range 2 * maxHandshakes {
				c, err := net.Dial("tcp", b.addr())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				io.WriteString(c, begin)
			}
			stream(t, a, b)
			if _, err := a.Probe(t.Context(), b.addr()); err != nil {
				t.Error(err)
			}
			b.logs.wait(t, "class=busy", "oldest")
			until(t, "the oldest are gone", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return len(b.pending) <= maxHandshakes
			})
		})
	}
}

func TestHandshakeDeadline(t *testing.T) {
	b := start(t, "b", func(c *Config, _ *Hello) { c.handshake = 50 * time.Millisecond })
	c, err := net.Dial("tcp", b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that says nothing gets an answer")
	}
	// Through TLS, and then no frame.
	a := start(t, "a", nil)
	tc, err := tls.Dial("tcp", b.addr(), a.clientTLS(protoRaft))
	if err == nil {
		defer tc.Close()
		_, err = tc.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("a stream without a frame gets an answer")
	}
	until(t, "all are gone", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.conns) == 0 && len(b.pending) == 0 && len(b.perPeer) == 0
	})
}

func TestTooManyConnections(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	go func() {
		for {
			if _, err := b.Raft().Accept(); err != nil {
				return
			}
		}
	}()
	var conns []net.Conn
	for range maxPerPeer {
		c, err := a.DialRaft(t.Context(), "b", b.addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	everyWay(t, a, "b", b, Busy, "more than 64 connections")
	other := start(t, "other", nil)
	if c, err := other.DialRaft(t.Context(), "b", b.addr()); err != nil {
		t.Errorf("another node is kept out as well: %v", err)
	} else {
		c.Close()
	}
	for _, c := range conns {
		c.Close()
	}
	b.Drop("a") // the ends that the test has accepted
	until(t, "there is room again", func() bool {
		_, err := a.DialRaft(t.Context(), "b", b.addr())
		return err == nil
	})
}

func TestDrop(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	out, in := openStream(t, a, b)
	defer in.Close()
	other, otherIn := openStream(t, start(t, "o", nil), b)
	b.Drop("a")
	if _, err := out.Read(make([]byte, 1)); err == nil {
		t.Error("the stream of a node that was dropped is alive")
	}
	echo(t, other, otherIn)
}

func TestCloseEndsAll(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	out, in := openStream(t, a, b)
	started := make(chan struct{})
	b.Handle("GET /v1/hang", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}))
	failed := make(chan error, 1)
	go func() {
		_, err := a.Call(context.Background(), Request{Node: "b", Addr: b.addr(), Path: "/v1/hang"}, nil, 10)
		failed <- err
	}()
	<-started
	b.Close()
	b.Close()
	if err := <-failed; err == nil {
		t.Error("a request to a closed link has an answer")
	}
	for _, c := range []net.Conn{out, in} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stream of a closed link is alive")
		}
	}
	if _, err := b.Raft().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := b.DialRaft(t.Context(), "a", a.addr()); err == nil {
		t.Error("a closed link dials")
	}
}

func TestShutdownAnswersFirst(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	started, goOn := make(chan struct{}), make(chan struct{})
	b.Handle("GET /v1/slow", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-goOn
		io.WriteString(w, "done")
	}))
	got := make(chan string, 1)
	go func() {
		s, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/slow"}, nil, 10)
		got <- fmt.Sprint(string(s), err)
	}()
	<-started
	down := make(chan error, 1)
	go func() { down <- b.Shutdown(t.Context()) }()
	until(t, "the port is closed", func() bool {
		c, err := net.Dial("tcp", b.addr())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(goOn)
	if s := <-got; s != "done<nil>" {
		t.Errorf("the request in flight: %s", s)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestListenRefuses(t *testing.T) {
	self := func() Hello { return Hello{Node: "n", Boot: "b"} }
	creds := FromToken(testToken, "n")
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{Listen: ":0", Credentials: creds, Self: self}, "--advertise"},
		{Config{Listen: "127.0.0.1:0", Advertise: "nonsense", Credentials: creds, Self: self}, "host:port"},
		{Config{Listen: "127.0.0.1:0", Self: self}, "credentials"},
		{Config{Listen: "127.0.0.1:0", Credentials: creds, Self: func() Hello { return Hello{} }}, "introduce itself"},
		{Config{Listen: "127.0.0.1:x", Credentials: creds, Self: self}, "listen for other nodes"},
	} {
		if l, err := Listen(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Listen: %v, %v, want %q", l, err, c.want)
		}
	}
}

// joiner takes nodes into a cluster.
type joiner func(Hello) error

func (j joiner) Join(_ context.Context, h Hello) error { return j(h) }

func TestJoin(t *testing.T) {
	var joined Hello
	fast := func(c *Config, _ *Hello) { c.pause = time.Millisecond }
	leader, follower := start(t, "leader", nil), start(t, "follower", nil)
	tries := 0
	leader.HandleJoin(joiner(func(h Hello) error {
		if tries++; tries < 3 {
			return errors.New("one change at a time")
		}
		if h.Node == "bad" {
			return RefuseName(h, Hello{Node: "x", Address: "y:1"})
		}
		joined = h
		return nil
	}))
	follower.HandleJoin(joiner(func(h Hello) error { return &NotLeader{leader.Self().Member()} }))
	n := start(t, "new", func(c *Config, h *Hello) { fast(c, h); h.Cluster = "" })
	if err := n.Join(t.Context(), "c1", []Member{{ID: "gone", Address: "127.0.0.1:1"}, follower.Self().Member()}); err != nil {
		t.Fatal(err)
	}
	if joined != n.Self() {
		t.Errorf("joined %+v, want %+v", joined, n.Self())
	}
	bad := start(t, "bad", func(c *Config, h *Hello) { fast(c, h); h.Cluster = "" })
	wantRefusal(t, bad.Join(t.Context(), "c1", []Member{follower.Self().Member()}), NameTaken, "modmirror cluster remove")
	wantRefusal(t, bad.Join(t.Context(), "c9", []Member{leader.Self().Member()}), ForeignCluster, "c1", "c9")
	fresh := start(t, "fresh", func(c *Config, h *Hello) { h.Cluster = "" })
	fresh.HandleJoin(joiner(func(Hello) error { t.Error("asked"); return nil }))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.Join(ctx, "c1", []Member{fresh.Self().Member()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("join through a node without a cluster: %v", err)
	}
}
