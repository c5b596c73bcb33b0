package replicate

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// futures counts what raft was asked for and has not answered.
//
// When raft 1.7.3 ends it forgets what its catalog has yet to apply: whoever waits for such an answer waits for ever. It is
// therefore not told to end before all is answered, which a leader that cannot commit does when its lease ends, or before a while
// has passed.
type futures struct {
	mu    sync.Mutex
	open  int           // guarded by mu
	ended bool          // guarded by mu; nothing more is asked
	idle  chan struct{} // guarded by mu; closed when open is 0, once somebody waits for that
}

// ask calls f, which asks raft for something, and returns it with a channel that has its error, once. With ended nothing is asked.
func ask[F raft.Future](fs *futures, f func() F) (future F, answer <-chan error) {
	answered := make(chan error, 1)
	if !fs.begin() {
		answered <- raft.ErrRaftShutdown
		return future, answered
	}
	future = f()
	go func() {
		defer fs.end()
		answered <- future.Error()
	}()
	return future, answered
}

func (fs *futures) begin() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.ended {
		return false
	}
	fs.open++
	return true
}

func (fs *futures) end() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.open--
	if fs.open == 0 && fs.idle != nil {
		close(fs.idle)
		fs.idle = nil
	}
}

// settle has nothing more asked, and waits until all is answered, at most for so long. It reports whether it is. It is called once.
func (fs *futures) settle(patience time.Duration) bool {
	fs.mu.Lock()
	fs.ended = true
	idle := make(chan struct{})
	if fs.open == 0 {
		close(idle)
	} else {
		fs.idle = idle
	}
	fs.mu.Unlock()
	select {
	case <-idle:
		return true
	case <-time.After(patience):
		return false
	}
}

// wait asks raft for something and waits for the answer, until ctx is done or raft ends.
func (n *Node) wait(ctx context.Context, f func() raft.Future) error {
	_, answer := ask(&n.futures, f)
	select {
	case err := <-answer:
		return err
	case <-n.raftDone:
		return raft.ErrRaftShutdown
	case <-ctx.Done():
		return ctx.Err()
	}
}

// barrier waits until all that was committed before is applied here.
func (n *Node) barrier(ctx context.Context) error {
	return n.wait(ctx, func() raft.Future { return n.raft.Barrier(0) })
}
