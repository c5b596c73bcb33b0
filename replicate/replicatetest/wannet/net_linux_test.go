//go:build wan

package wannet

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair is two zones of two hosts each.
func pair(t *testing.T) (n *Net, hosts map[string]*Host) {
	t.Helper()
	n, err := New(Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	hosts = map[string]*Host{}
	for name, zone := range map[string]string{"a1": "a", "a2": "a", "b1": "b", "b2": "b"} {
		if hosts[name], err = n.Host(name, zone); err != nil {
			t.Fatal(err)
		}
	}
	return n, hosts
}

// connect returns both ends of a connection.
func connect(t *testing.T, from, to *Host) (near, far net.Conn) {
	t.Helper()
	ln, err := to.Listen("tcp", to.Addr().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if near, err = from.Dial(ctx, "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	far = <-accepted
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// transfer sends so many bytes and returns how long they take.
func transfer(t *testing.T, near, far net.Conn, size int64) time.Duration {
	t.Helper()
	begin := time.Now()
	go func() {
		if _, err := io.CopyN(near, zeros{}, size); err != nil {
			t.Error(err)
		}
	}()
	if _, err := io.CopyN(io.Discard, far, size); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// pings returns how long a small message and its answer take, sorted.
func pings(t *testing.T, near, far net.Conn, times int) (took []time.Duration) {
	t.Helper()
	go func() { _, _ = io.Copy(far, far) }() // ends with the connection
	b := make([]byte, 8)
	for i := range times {
		binary.BigEndian.PutUint64(b, uint64(i))
		begin := time.Now()
		if _, err := near.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(near, b); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took
}

// The network itself is no bottleneck: more than 300 Mbit/s within a zone, and 80 ms are 80 ms.
func TestOwnSpeed(t *testing.T) {
	n, h := pair(t)
	n.Both("a", "b", Policy{Delay: 40 * time.Millisecond, Rate: 100e6, Queue: 1 << 20})
	near, far := connect(t, h["a1"], h["a2"])
	const size = 256 << 20
	if rate := size * 8 / transfer(t, near, far, size).Seconds() / 1e6; rate < 300 {
		t.Errorf("within a zone: %.0f Mbit/s", rate)
	} else {
		t.Logf("within a zone: %.0f Mbit/s", rate)
	}
	if carried := n.Between("a1", "a2").Delivered.Bytes; carried < size {
		t.Errorf("of %d bytes within a zone, %d are counted", size, carried)
	}
	near, far = connect(t, h["a1"], h["a2"])
	inside := pings(t, near, far, 200)
	near, far = connect(t, h["a1"], h["b1"])
	across := pings(t, near, far, 25)
	t.Logf("round trips within a zone: median %v, longest %v; across: median %v, shortest %v, longest %v", inside[100], inside[199], across[12], across[0], across[24])
	if inside[100] > 2*time.Millisecond || across[0] < 80*time.Millisecond || across[2] > 85*time.Millisecond { // the rest waits for a processor
		t.Errorf("80 ms are %v to %v, 0 are %v", across[0], across[24], inside[100])
	}
	near, far = connect(t, h["a1"], h["b1"])
	rate := 48 << 20 * 8 / transfer(t, near, far, 48<<20).Seconds() / 1e6
	t.Logf("across: %.1f of 100 Mbit/s, %+v", rate, n.Between("a1", "b1"))
	if rate < 70 || rate > 100 {
		t.Errorf("across: %.1f of 100 Mbit/s", rate)
	}
}

// What crosses is counted to the byte, in one direction and the other.
func TestCounts(t *testing.T) {
	n, h := pair(t)
	const size = 1 << 20
	near, far := connect(t, h["a1"], h["b1"])
	transfer(t, near, far, size)
	there, back := n.Between("a", "b"), n.Between("b", "a")
	packets := float64(size) / (wanMTU - 20 - 32) // IP; TCP with timestamps
	if want := int64(size + packets*52); math.Abs(float64(there.Delivered.Bytes-want)) > 4*wanMTU+1000 || there.Delivered != there.Sent {
		t.Errorf("%+v for %d bytes, want about %d", there, size, want)
	}
	if p := there.Delivered.Payload; p < size || p > size+4*wanMTU || back.Delivered.Payload != 0 { // what seemed lost is sent again
		t.Errorf("%d bytes of payload and %d back, of %d", there.Delivered.Payload, back.Delivered.Payload, size)
	}
	if back.Delivered.Bytes == 0 || back.Delivered.Bytes > there.Delivered.Bytes/10 {
		t.Errorf("acknowledgements: %+v", back)
	}
	if n.Between("a1", "b1") != there || n.Between("a2", "b1") != (Traffic{}) || n.Between("a1", "a2") != (Traffic{}) {
		t.Errorf("other hosts are counted: %+v", n.Between("a2", "b1"))
	}
	all := there
	all.Add(back)
	if n.Across() != all {
		t.Errorf("across: %+v, want %+v", n.Across(), all)
	}
}

// A host can be cut off by one way alone, from one other host alone, and back again; what was sent meanwhile arrives after.
func TestBlock(t *testing.T) {
	n, h := pair(t)
	near, far := connect(t, h["a1"], h["b1"])
	open, openFar := connect(t, h["a2"], h["b1"])
	pings(t, near, far, 1)
	pings(t, open, openFar, 1)
	blocked := func(c net.Conn) bool {
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		return err != nil
	}
	n.Set("a1", "b1", Policy{Block: true})
	if !blocked(near) || blocked(open) {
		t.Error("the path from a1 to b1 is blocked, and no other")
	}
	n.Unset("a1", "b1")
	n.Set("b", "a", Policy{Block: true})
	if !blocked(near) || !blocked(open) || n.Policy("b1", "a1") != (Policy{Block: true}) || n.Policy("a1", "b1") != (Policy{}) {
		t.Error("the path from b to a is blocked")
	}
	if n.Between("a1", "b1").Blocked.Packets == 0 || n.Between("b", "a").Blocked.Packets == 0 {
		t.Errorf("counted as %+v and %+v", n.Between("a1", "b1"), n.Between("b", "a"))
	}
	n.Set("b", "a", Policy{})
	if err := near.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(near, make([]byte, 2)); err != nil {
		t.Errorf("what was sent while the path was blocked does not arrive: %v", err)
	}
}

// A process on a host sees that host alone, and is gone after Close, as is the namespace.
func TestCommand(t *testing.T) {
	n, h := pair(t)
	out, err := h["b2"].Command(t.Context(), "ip", "-brief", "-4", "addr", "show").CombinedOutput()
	if err != nil || !strings.Contains(string(out), h["b2"].Addr().String()+"/32") || strings.Count(string(out), "\n") != 2 {
		t.Errorf("%v: %s", err, out)
	}
	cmd := h["b2"].Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := <-exited; err == nil {
		t.Error("the process was not killed")
	}
	if _, err := os.Stat(netnsDir + "/" + h["b2"].namespace()); err == nil {
		t.Error("the namespace is there still")
	}
	n.hosts = nil // closed already
}

// What a killed run leaves is removed, what a living one has is not.
func TestLeftovers(t *testing.T) {
	dead := exec.CommandContext(t.Context(), "true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	old := fmt.Sprintf("%s%d-old", prefix, dead.Process.Pid)
	others := fmt.Sprintf("%s%d-others", prefix, os.Getppid())
	for _, name := range []string{old, others} {
		if err := ip("netns", "add", name); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := removeNamespace(others); err != nil {
			t.Error(err)
		}
	})
	left := exec.CommandContext(t.Context(), "ip", "netns", "exec", old, "sleep", "1000")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- left.Wait() }()
	for pids := []int(nil); !slices.Contains(pids, left.Process.Pid); { // until ip has entered it
		var err error
		if pids, err = processesIn(old); err != nil {
			t.Fatal(err)
		}
	}
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	<-exited
	if _, err := os.Stat(netnsDir + "/" + old); err == nil {
		t.Error("a killed run's namespace is there still")
	}
	if _, err := os.Stat(netnsDir + "/" + others); err != nil {
		t.Errorf("a running process's namespace: %v", err)
	}
}
