package replicate

import (
	"context"
	"testing"
	"time"
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
