package replicate

import (
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// FAULTS 34: a leader that cannot write any more, whatever the reason, gives the leadership to another voter at once, and does
// not get it back; the cluster takes new entries, and the node that stopped goes on answering for what it holds.
func TestLeaderThatCannotWrite(t *testing.T) {
	const heartbeat = 2 * time.Second // an election without a hand-over takes longer
	for name, fail := range map[string]func(t *testing.T, n *Node, f *faulty){
		"another part's disk": func(_ *testing.T, n *Node, _ *faulty) { n.StopWrites(errDisk) },
		"the log's fsync": func(_ *testing.T, n *Node, f *faulty) {
			f.fail.Store(true)
			go n.raft.Barrier(0) // the next write
		},
		"the log hangs": func(t *testing.T, n *Node, f *faulty) {
			gate := make(chan struct{})
			t.Cleanup(func() { close(gate) })
			f.mu.Lock()
			f.gate = gate
			f.mu.Unlock()
			go n.raft.Apply([]byte{entryFormat}, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var logs [3]faulty
			c := &cluster{t: t, net: newNetwork()}
			c.config = func(i int, conf *Config) {
				conf.wrapLog, conf.hung, conf.HeartbeatTimeout = withFaults(&logs[i]), 500*time.Millisecond, heartbeat
			}
			c.grow(3)
			want := c.publish("example.com/a", "v1.0.0")
			c.same()
			lead := c.leader()
			at := 0
			for i, n := range c.nodes {
				if n == lead {
					at = i
				}
			}
			fail(t, lead, &logs[at])
			waitFor(t, "fault", func() bool { return lead.latch.fault() != nil })
			noticed := time.Now()
			next := lead
			waitFor(t, "another leader", func() bool {
				for _, n := range c.nodes {
					if n != lead && n.raft.State() == raft.Leader {
						next = n
					}
				}
				return next != lead
			})
			if took := time.Since(noticed); took > heartbeat && name == "another part's disk" {
				t.Errorf("another leader after %v: the leadership was not handed over", took)
			}
			c.nodes[at] = nil
			c.publish("example.com/b", "v1.0.0")
			if got, err := lead.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
				t.Errorf("Manifest() of the node that stopped = %+v, %v", got, err)
			}
			if st, err := lead.Status(t.Context()); err != nil || st.Fault == "" || st.Role != "shutdown" {
				t.Errorf("Status() of the node that stopped = %+v, %v", st, err)
			}
			if st, _ := next.Status(t.Context()); st.Role != "leader" && c.leader() == lead {
				t.Errorf("the node that stopped leads again: %+v", st)
			}
			if err := lead.TrustDatabase(t.Context(), replicatetest.NewDatabase(t, "other.example.org").Key); !errors.Is(err, artifact.ErrUnavailable) {
				t.Errorf("a write at the node that stopped: %v, want ErrUnavailable", err)
			}
		})
	}
}

// Reads do not wait for a write that hangs in the disk, also not while somebody waits to replace or to close the catalog.
func TestReadsPassAHangingWrite(t *testing.T) {
	for name, wait := range map[string]func(c *catalog){
		"replace": func(c *catalog) {
			if old, err := c.swap(c.db); old == nil || err != nil {
				t.Errorf("swap = %v, %v", old, err)
			}
		},
		"close": func(c *catalog) { _ = c.close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t).catalog
			hangs, gate, over := make(chan bool), make(chan bool), make(chan bool, 2)
			release := sync.OnceFunc(func() { close(gate) })
			defer release()
			c.beforeCommit = func() error { close(hangs); <-gate; return errDisk }
			go func() { _ = c.update(func(state) error { return nil }); over <- true }()
			<-hangs
			go func() { wait(c); over <- true }()
			for range 100 {
				read := make(chan error, 1)
				go func() { read <- c.view(func(s state) error { _ = s.cluster(); return nil }) }()
				select {
				case err := <-read:
					if err != nil {
						t.Fatal(err)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("a read waits for the write")
				}
				runtime.Gosched() // for who waits
			}
			release()
			<-over
			<-over
		})
	}
}
