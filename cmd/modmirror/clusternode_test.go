package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// loneStream is the end of a node's raft streams that leads to nobody.
type loneStream struct{ net.Listener }

func (loneStream) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("there is nobody else")
}

// While the catalog is being opened raft speaks with others already: the node has to say which start this is by then. And one that
// cannot say so yet is no clone: it is refused until it can.
func TestHelloWhileOpening(t *testing.T) {
	dir := t.TempDir()
	open := func(starts uint64) (*node, *replicate.Node) {
		t.Helper()
		n := newNode(config{DataDir: dir}, slog.New(slog.DiscardHandler))
		n.boot = "before"
		id, err := replicate.Identify(dir)
		if err != nil {
			t.Fatal(err)
		}
		n.identity.Store(&id)
		if h := n.hello(); h.Starts != 0 || h.Boot != "before" {
			t.Fatalf("before its directory is open the node says it is start %d, boot %s", h.Starts, h.Boot)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c := replicate.Config{Dir: dir, Self: replicate.Peer{Name: "n"}, Stream: loneStream{ln}}
		n.clusterOptions(&c)
		r, err := replicate.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if h := n.hello(); h.Starts != starts || h.Boot != r.Self().Boot {
			t.Errorf("the node says it is start %d, boot %s; want %d, %s", h.Starts, h.Boot, starts, r.Self().Boot)
		}
		return n, r
	}
	_, r := open(1)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	n, r := open(2)
	n.opened.Store(r)
	deadline := time.After(30 * time.Second)
	for {
		wake := r.Wake()
		if n.knownAs(func(p replicate.Peer) bool { return p.Starts == 2 }).Node != "" {
			break
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatal("the node does not register")
		}
	}
	h := n.hello()
	if h.Starts != 2 || startOf(2, false) != 0 {
		t.Errorf("the node says it is start %d, and %d on a full disk; want 2 and none", h.Starts, startOf(2, false))
	}
	h.Role, h.Name, h.Boot = roleVoter, "n", "another"
	for starts, want := range map[uint64]peer.Class{0: peer.Starting, 1: peer.Clone, 2: peer.Clone, 3: ""} {
		h.Starts = starts
		if got := peer.ClassOf(n.checkPeer(h)); got != want {
			t.Errorf("one of start %d is refused as %q, want %q", starts, got, want)
		}
	}
}
