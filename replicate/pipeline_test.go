package replicate

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// stuck returns a pipeline of raft's own, over TCP, whose answers nobody takes any more, and a message that waits for room in it.
func stuck(t *testing.T, stall time.Duration) (from *pipelined, waits chan error) {
	transport := func() *raft.NetworkTransport {
		tr, err := raft.NewTCPTransport("localhost:0", nil, 1, 10*time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		return tr
	}
	to := transport()
	go func() {
		for rpc := range to.Consumer() {
			rpc.Respond(&raft.AppendEntriesResponse{Success: false}, nil)
		}
	}()
	from = newPipelined(transport())
	from.stall = stall
	p, err := from.AppendEntriesPipeline("other", to.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	waits = make(chan error, 1)
	go func() {
		for {
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{}, new(raft.AppendEntriesResponse)); err != nil {
				waits <- err
				return
			}
		}
	}()
	return from, waits
}

// ended returns what a message that waits ends with.
func ended(t *testing.T, waits chan error) error {
	t.Helper()
	select {
	case err := <-waits:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for ever")
		return nil
	}
}

// Who sends over a pipeline whose answers nobody takes does not wait for ever.
func TestPipelineStalls(t *testing.T) {
	_, waits := stuck(t, 50*time.Millisecond)
	if err := ended(t, waits); !errors.Is(err, raft.ErrPipelineShutdown) {
		t.Error(err)
	}
}

// The end of a node is the end of its pipelines, and of those that are opened meanwhile.
func TestPipelinesEnd(t *testing.T) {
	from, waits := stuck(t, time.Hour)
	select {
	case err := <-waits:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(50 * time.Millisecond): // a moment for it to be stuck in; it ends wherever it is
	}
	from.end()
	_ = ended(t, waits)
	if _, err := from.AppendEntriesPipeline("other", from.LocalAddr()); !errors.Is(err, raft.ErrTransportShutdown) {
		t.Error(err)
	}
	if n := len(from.open); n != 0 {
		t.Errorf("%d are open", n)
	}
}
