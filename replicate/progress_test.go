package replicate

import (
	"context"
	"errors"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// What a node has to wait for to know all that is committed is an entry that it will see applied, also right after entries that
// raft keeps to itself.
func TestCommittedIndexIsApplied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	lead := c.leader()
	for range 3 {
		if err := lead.raft.Barrier(0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	index, err := lead.CommittedIndex(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range c.nodes {
		if err := n.AwaitApplied(ctx, index); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	}
}

// Only a leader that a majority follows can say that a log is settled, and a catalog that has got there has all that was
// published before.
func TestSettledIndex(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.publish("example.com/a", "v1.0.0")
	lead := c.leader()
	index, err := lead.SettledIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range c.nodes {
		if err := n.AwaitApplied(t.Context(), index); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
		if seq, _ := n.Root(); seq == 0 {
			t.Errorf("node %d does not have what was published before", i)
		}
		if _, err := n.SettledIndex(t.Context()); n != lead && !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("node %d, which does not lead: %v", i, err)
		}
	}
	for i, n := range c.nodes {
		if n != lead {
			c.close(i)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if index, err := lead.SettledIndex(ctx); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("without a majority: %d, %v", index, err)
	}
}
