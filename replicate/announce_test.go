package replicate

import (
	"context"
	"fmt"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// Who publishes through a follower hears of the commit from the leader, and does not wait for the message that raft sends
// now and then while nothing else happens.
func TestFollowerHearsOfCommitAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes { // from now on raft itself says nothing for longer than the test waits
		c.close(i)
	}
	c.config = func(_ int, conf *Config) { conf.CommitTimeout = time.Hour }
	for i := range c.nodes {
		c.open(i)
	}
	lead, now := c.leader(), time.Now().UTC().Truncate(time.Second)
	for i, n := range c.nodes {
		if n == lead {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := n.PublishListing(ctx, artifact.Listing{Path: fmt.Sprintf("example.com/at%d", i), Versions: []string{"v1.0.0"}, Listed: now}); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	}
}
