package replicate

import (
	"fmt"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

// latch stops a node's writes for good at the first disk fault. After a failed fsync nobody knows what is on the disk,
// and trying again may report success for pages that are lost; so nothing is tried again in this process.
type latch struct {
	onFault func(error) // may be nil

	mu   sync.Mutex
	err  error         // guarded by mu; the first fault
	done chan struct{} // closed once err is set
}

func newLatch(onFault func(error)) *latch {
	return &latch{onFault: onFault, done: make(chan struct{})}
}

// trip records the first fault and reports it, on a goroutine of its own, so that whoever is told may close the node.
func (l *latch) trip(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("this node stopped writing after a disk fault: %w: %w", err, artifact.ErrUnavailable)
	close(l.done)
	if l.onFault != nil {
		go l.onFault(l.err)
	}
}

func (l *latch) fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// hung is how long a write may take. Heartbeats do not depend on the disk, so a leader whose disk hangs would go on
// leading for ever while nothing is written; a disk that is merely slow comes back long before.
const hung = 30 * time.Second

// guard runs one write. It refuses if the latch is set, and sets it if the write fails or takes longer than limit.
func (l *latch) guard(what string, limit time.Duration, write func() error) error {
	if err := l.fault(); err != nil {
		return err
	}
	watch := time.AfterFunc(limit, func() {
		l.trip(fmt.Errorf("%s has been hanging for %v", what, limit))
	})
	defer watch.Stop()
	if err := write(); err != nil {
		l.trip(fmt.Errorf("%s: %w", what, err))
	}
	return l.fault() // also of a write that hung and came back: too late
}
