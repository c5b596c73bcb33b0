package main

import (
	"encoding/json"
	"testing"
	"time"

	"modmirror/replicate/peer"
)

// What an operator did counts for half an hour, at the node that did it and at those that heard of it; what a node of an
// earlier version says counts for nothing.
func TestKeepLeader(t *testing.T) {
	n := &node{}
	now := time.Now()
	if got := n.keepFor(now); got != 0 || n.keepLeader() {
		t.Errorf("the leadership stays for %v where nobody has put it", got)
	}
	n.placed()
	if got := n.keepFor(time.Now()); got < keepTransferred-time.Minute || got > keepTransferred || !n.keepLeader() {
		t.Errorf("the leadership stays for %v", got)
	}
	if got := n.keepFor(now.Add(keepTransferred + time.Minute)); got != 0 {
		t.Errorf("after half an hour it stays for %v", got)
	}
	at := now.Add(-time.Minute)
	for said, want := range map[string]bool{
		`{}`:                          false,
		`{"keepLeader":90000000000}`:  true,
		`{"keepLeader":30000000000}`:  false, // it was said a minute ago
		`{"keepLeader":-90000000000}`: false,
	} {
		var s selfStatus
		if err := json.Unmarshal([]byte(said), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.keeps(peer.Seen{At: at}, now); got != want {
			t.Errorf("after %s the leadership stays: %v", said, got)
		}
	}
	var s selfStatus
	s.KeepLeader = 1000 * time.Hour // of a node that is wrong
	if s.keeps(peer.Seen{At: now.Add(-keepTransferred)}, now) {
		t.Error("the leadership stays for longer than half an hour")
	}
}

// A node can lead if it serves, takes new artifacts, and goes on.
func TestFit(t *testing.T) {
	for said, want := range map[string]bool{
		`{"ready":"ok","writes":"ok"}`:                              true,
		`{"ready":"ok","writes":"ok","draining":true}`:              false,
		`{"ready":"ok","writes":"ok","noBlobs":"the disk is full"}`: false,
		`{"ready":"ok","writes":"the disk failed"}`:                 false,
		`{"ready":"it has just started","writes":"ok"}`:             false,
		`{}`: false,
	} {
		var s selfStatus
		if err := json.Unmarshal([]byte(said), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.fit(); got != want {
			t.Errorf("a node that says %s is fit: %v", said, got)
		}
	}
}
