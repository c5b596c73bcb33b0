package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
)

// What happened is kept, the newest first, up to a bound, and its numbers have no gap.
func TestActivityIsBounded(t *testing.T) {
	var a activity
	if all, _ := a.recent(); len(all) != 0 {
		t.Errorf("before anything happened: %+v", all)
	}
	for i := range 3*maxHappenings + 7 {
		a.add(happening{What: "stored", Module: fmt.Sprint("m", i), Text: strings.Repeat("x", 10*maxHappening) + "\x1b[2J"})
		all, _ := a.recent()
		if len(all) != min(i+1, maxHappenings) || all[0].Module != fmt.Sprint("m", i) || all[0].At.IsZero() {
			t.Fatalf("after %d: %d, the newest is %+v", i+1, len(all), all[0])
		}
		for k, h := range all {
			if h.Seq != uint64(i+1-k) || h.Module != fmt.Sprint("m", i-k) || len(h.Text) > maxHappening {
				t.Fatalf("after %d, number %d: %+v", i+1, k, h)
			}
		}
	}
}

// Who watches is woken by the next thing that happens, and who does not come back holds up nobody.
func TestActivityNeverBlocks(t *testing.T) {
	var a activity
	var watching []<-chan struct{}
	for range 100 {
		_, more := a.recent()
		watching = append(watching, more) // none of which is read while it goes on
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				a.add(happening{What: "stored"})
			}
		})
	}
	wg.Wait()
	for _, more := range watching {
		select {
		case <-more:
		default:
			t.Fatal("who watches was not woken")
		}
	}
	all, more := a.recent()
	if all[0].Seq != 8000 {
		t.Errorf("%d things happened, want 8000", all[0].Seq)
	}
	select {
	case <-more:
		t.Error("woken by nothing")
	default:
	}
}

// What the mirror tells comes through whole, and control characters of others do not.
func TestActivityOfMirror(t *testing.T) {
	var n node
	n.onEvent(mirror.Event{What: mirror.Refused, Module: module.Version{Path: "example.com/a", Version: "v1.0.0"}, Kind: artifact.Zip, Bytes: 7, Took: 8,
		Source: "node b\x1b[1m", Reason: "checksum mismatch"})
	all, _ := n.activity.recent()
	want := happening{Seq: 1, At: all[0].At, What: "refused", Module: "example.com/a", Version: "v1.0.0", Kind: "zip", Bytes: 7, Took: 8, Source: "node b?[1m", Text: "checksum mismatch"}
	if len(all) != 1 || all[0] != want {
		t.Errorf("got %+v, want %+v", all, want)
	}
}
