package replicate

import (
	"slices"
	"testing"
)

// Who speaks for a node knows which start this is before raft, which dials other nodes at once, begins.
func TestOnCounted(t *testing.T) {
	dir := t.TempDir()
	for start := uint64(1); start <= 2; start++ {
		var order []string
		var self Peer
		n := openNode(t, Config{Dir: dir,
			OnCounted: func(p Peer) { self = p; order = append(order, "counted") },
			wrapLog:   func(b logBackend) logBackend { order = append(order, "raft"); return b },
		})
		if self.Starts != start || self.Boot != n.Self().Boot || self.ID != n.ID() || !slices.Equal(order, []string{"counted", "raft"}) {
			t.Errorf("start %d: %v, in the order %v", start, self, order)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
