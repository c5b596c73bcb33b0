package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// world is a network with one node, b, and a test that is the node a.
type world struct {
	t    *testing.T
	net  *Net
	addr string
	in   chan net.Conn // what b accepts
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, net: New(func(net.Conn) string { return "a" }), in: make(chan net.Conn, 10)}
	t.Cleanup(func() { w.net.Close(); ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.in <- c
		}
	}()
	if w.addr, err = w.net.Listen("b", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) accept() net.Conn {
	w.t.Helper()
	select {
	case c := <-w.in:
		w.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(10 * time.Second):
		w.t.Fatal("nothing arrives")
		return nil
	}
}

func (w *world) send(c net.Conn, s string) {
	w.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) receives(c net.Conn, want string) {
	w.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		w.t.Fatalf("%.100q, %v, want %.100q", b, err, want)
	}
}

// receivesNothing looks for a while that is long on loopback.
func (w *world) receivesNothing(c net.Conn) {
	w.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("%d bytes, %v, want none and a connection that stands", n, err)
	}
}

func TestPerfect(t *testing.T) {
	w := newWorld(t)
	a := w.dial()
	b := w.accept()
	large := bytes.Repeat([]byte("0123456789"), 1<<17)
	go func() {
		_, _ = a.Write(large)
		_ = a.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, large) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	w.send(b, "answer")
	b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
}

// One way may be stalled and the other not; what was sent arrives later, and the end of a connection no sooner than its bytes.
func TestStall(t *testing.T) {
	w := newWorld(t)
	a := w.dial()
	b := w.accept()
	w.net.Set("a", "b", Link{Stall: true})
	w.send(a, "late")
	w.send(b, "in time")
	w.receives(a, "in time")
	w.receivesNothing(b)
	a.Close()
	w.receivesNothing(b)
	w.net.Heal()
	w.receives(b, "late")
	if n, err := b.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Errorf("after its end: %d, %v", n, err)
	}
}

// A connection that is opened meanwhile is half open: the one end believes in it, the other has not heard of it.
func TestHalfOpen(t *testing.T) {
	w := newWorld(t)
	w.net.Split([]string{"a", "c"}, []string{"b"})
	a := w.dial()
	w.send(a, "hello")
	w.receivesNothing(a)
	if len(w.in) > 0 {
		t.Error("the other end has heard of it")
	}
	w.net.Heal()
	w.receives(w.accept(), "hello")
}

func TestSplitLeavesGroupsAlone(t *testing.T) {
	w := newWorld(t)
	w.net.Split([]string{"a", "b"}, []string{"c"}, nil)
	a := w.dial()
	w.send(a, "hello")
	w.receives(w.accept(), "hello")
	if l, _ := w.net.link("c", "a"); !l.Stall {
		t.Errorf("from c to a: %+v", l)
	}
}

func TestCut(t *testing.T) {
	w := newWorld(t)
	a := w.dial()
	w.send(a, "hello")
	b := w.accept()
	w.receives(b, "hello")
	w.net.Set("b", "a", Link{Cut: true})
	for _, c := range []net.Conn{a, b, w.dial()} {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want a reset", err)
		}
	}
	w.net.Heal()
	a = w.dial()
	w.send(a, "again")
	w.receives(w.accept(), "again")
}

func TestSlow(t *testing.T) {
	for name, test := range map[string]struct {
		link  Link
		bytes int
		least time.Duration
	}{
		"latency": {Link{Latency: 100 * time.Millisecond}, 4 * chunk, 100 * time.Millisecond},
		"loss":    {Link{Loss: 0.3}, 40 * chunk, resend}, // that none of the forty is lost does not happen
		"rate":    {Link{Rate: 10 * chunk}, 3 * chunk, 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.dial()
			b := w.accept()
			w.net.Set("a", "b", test.link)
			begin := time.Now()
			w.send(a, string(make([]byte, test.bytes)))
			w.receives(b, string(make([]byte, test.bytes)))
			if took := time.Since(begin); took < test.least || took > 20*test.least {
				t.Errorf("%d bytes took %v, want %v", test.bytes, took, test.least)
			}
		})
	}
}

// Close ends what is under way, also what waits for a link.
func TestClose(t *testing.T) {
	w := newWorld(t)
	a := w.dial()
	b := w.accept()
	w.net.Split([]string{"a"}, []string{"b"})
	w.send(a, "lost")
	half := w.dial()
	w.net.Close()
	for _, c := range []net.Conn{a, b, half} {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want the end", err)
		}
	}
}
