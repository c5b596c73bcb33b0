package replicate

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pipelined is raft's transport, whose pipelines end.
//
// A pipeline of raft 1.7.3 has no room for a message that is neither sent nor answered. If a follower refuses one, or has a newer
// term, nobody takes answers out of it any more, while the goroutine that sends may be waiting for room: it waits for ever, and
// with it all that this leader has to say to that follower, also its own end. Here whoever waits longer than any answer may
// take has the pipeline closed, which raft takes for a broken connection, and all of them are closed when the node ends.
type pipelined struct {
	*raft.NetworkTransport
	stall time.Duration

	mu    sync.Mutex
	open  map[*pipeline]bool // guarded by mu
	ended bool               // guarded by mu
}

// pipelineStall is longer than the answer to the message before can take.
const pipelineStall = 2 * wireTimeout

func newPipelined(t *raft.NetworkTransport) *pipelined {
	return &pipelined{NetworkTransport: t, stall: pipelineStall, open: map[*pipeline]bool{}}
}

// AppendEntriesPipeline implements raft.Transport.
func (t *pipelined) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{inner, t}
	t.mu.Lock()
	ended := t.ended
	t.open[p] = true
	t.mu.Unlock()
	if ended {
		_ = p.Close()
		return nil, raft.ErrTransportShutdown
	}
	return p, nil
}

// end closes all pipelines, and those that are opened later.
func (t *pipelined) end() {
	t.mu.Lock()
	t.ended = true
	var open []*pipeline
	for p := range t.open {
		open = append(open, p)
	}
	t.mu.Unlock()
	for _, p := range open {
		_ = p.Close()
	}
}

type pipeline struct {
	raft.AppendPipeline
	t *pipelined
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stalled := time.AfterFunc(p.t.stall, func() { _ = p.Close() })
	defer stalled.Stop()
	return p.AppendPipeline.AppendEntries(req, resp)
}

// Close implements raft.AppendPipeline. It may be called more than once, and while others use it.
func (p *pipeline) Close() error {
	p.t.mu.Lock()
	delete(p.t.open, p)
	p.t.mu.Unlock()
	return p.AppendPipeline.Close()
}
