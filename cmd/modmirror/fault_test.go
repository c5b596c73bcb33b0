package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modmirror/sumdb/sumdbtest"
)

// FAULTS 34: when the disk lets one part down, the whole node stops writing and says so; what is stored is served, nobody
// is asked for what could not be kept, and the process ends with an error when it is told to end.
func TestDiskFault(t *testing.T) {
	s := newSite(t)
	s.add("example.com/kept@v1.0.0\n-- go.mod --\nmodule example.com/kept\n-- a.go --\npackage a\n")
	s.add("example.com/lost@v1.0.0\n-- go.mod --\nmodule example.com/lost\n-- a.go --\npackage a\n")
	s.add("example.com/new@v1.0.0\n-- go.mod --\nmodule example.com/new\n")
	p := s.start()
	kept := s.want(p, "/example.com/kept/@v/v1.0.0.zip", 200)
	s.want(p, "/readyz?writes", 200)

	blobs := filepath.Join(s.data, "blobs", "sha256")
	if err := os.Rename(blobs, blobs+".away"); err != nil { // the next rename into it fails, which no sound disk does
		t.Fatal(err)
	}
	if body := s.want(p, "/example.com/lost/@v/v1.0.0.zip", 503); !strings.Contains(body, "stopped writing") {
		t.Errorf("the fault itself: %q", body)
	}
	if err := os.Rename(blobs+".away", blobs); err != nil {
		t.Fatal(err)
	}
	// The part that failed was the store of blobs. A go.mod goes into the catalog, and is refused too; nobody is asked for it.
	waitFor(t, p, "the disk failed")
	asked := s.asked("/@v/")
	for _, file := range []string{"new/@v/v1.0.0.mod", "new/@v/v1.0.0.info", "lost/@v/v1.0.0.zip"} {
		if body := s.want(p, "/example.com/"+file, 503); !strings.Contains(body, "stopped writing") {
			t.Errorf("%s: %q", file, body)
		}
	}
	if n := s.asked("/@v/"); n != asked {
		t.Errorf("the upstream was asked %d more times for what cannot be kept", n-asked)
	}
	if body := s.want(p, "/readyz?writes", 503); !strings.Contains(body, "stopped writing") {
		t.Errorf("/readyz?writes: %q", body)
	}
	s.want(p, "/readyz", 200)
	if body := s.want(p, "/example.com/kept/@v/v1.0.0.zip", 200); body != kept {
		t.Error("what was stored is served with other bytes")
	}
	if err := p.stop(time.Minute); err == nil || p.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(p.output(), "modmirror: the disk failed while this process ran") {
		t.Errorf("SIGTERM after the fault: %v\n%s", err, p.output())
	}
	again := s.start() // on a disk that is sound again
	s.want(again, "/example.com/lost/@v/v1.0.0.zip", 200)
	if err := again.stop(time.Minute); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

// waitFor waits until p's log has a text.
func waitFor(t *testing.T, p *process, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(p.output(), text) {
		select {
		case <-ctx.Done():
			t.Fatalf("the log never has %q:\n%s", text, p.output())
		case <-tick.C:
		}
	}
}

// A fault of the catalog stops the store of blobs as well, and with it the node.
func TestCatalogFaultStopsTheStore(t *testing.T) {
	c := config{DataDir: t.TempDir(), Offline: true, SumDB: []string{sumdbtest.New(databaseName).Key()}, ListTTL: time.Minute, NotFoundTTL: time.Second}
	n, err := openNode(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if err := n.ready(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.replica.StopWrites(errors.New("input/output error"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n.store.Err() == nil {
		select {
		case <-ctx.Done():
			t.Fatal("the store goes on writing")
		case <-tick.C:
		}
	}
	if err := n.ready(t.Context(), true); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("ready to write: %v", err)
	}
	if err := n.ready(t.Context(), false); err != nil {
		t.Errorf("ready to read: %v", err)
	}
	if n.fault() == nil {
		t.Error("the node does not know of the fault")
	}
}
