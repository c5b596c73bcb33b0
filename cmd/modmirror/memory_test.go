package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
)

// Little in use: room for some garbage, but not many times what is in use. Much in use: what the runtime does by itself.
func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{
		0: 400, 1 << 20: 400, 4 << 20: 400, 8 << 20: 200, 12 << 20: 133, 16 << 20: 100, 17 << 20: 100, 1 << 30: 100, 1<<64 - 1: 100,
	} {
		if got := gcPercent(live); got != want {
			t.Errorf("gcPercent(%d) = %d, want %d", live, got, want)
		}
	}
}

// What is in use decides, unless the operator has.
func TestTuneGC(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // one look
	set := func() int {
		tuneGC(ctx)
		p := debug.SetGCPercent(77)
		return p
	}
	t.Setenv("GOGC", "50")
	if p := set(); p != 77 {
		t.Errorf("GOGC is set, and the percentage became %d", p)
	}
	t.Setenv("GOGC", "")
	big := make([]byte, 4*garbage)
	runtime.GC()
	if p := set(); p != 100 {
		t.Errorf("much in use: %d, want 100", p)
	}
	runtime.KeepAlive(big)
	if live := liveBytes(); live < 4*garbage || live > 1<<40 {
		t.Errorf("%d bytes in use", live)
	}
}
