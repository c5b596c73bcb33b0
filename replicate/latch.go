package replicate

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"modmirror/mirror/artifact"
)

// latch stops a node's writes for good at the first disk fault. After a failed fsync nobody knows what is on the disk,
// and trying again may report success for pages that are lost; so nothing is tried again in this process.
//
// A disk that is full is no such fault. What could not be written is tried again until there is room; meanwhile the latch
// says so to whoever wants to write.
type latch struct {
	dir     string      // whose disk it is
	onFault func(error) // may be nil

	mu       sync.Mutex
	err      error            // guarded by mu; the first fault
	done     chan struct{}    // closed once err is set
	starving map[string]error // guarded by mu; what waits for room on the disk
	full     chan struct{}    // guarded by mu; closed as long as something does
}

func newLatch(dir string, onFault func(error)) *latch {
	return &latch{dir: dir, onFault: onFault, done: make(chan struct{}), starving: map[string]error{}, full: make(chan struct{})}
}

// errFull means that there is no room on the disk for a write, which left nothing behind.
var errFull = artifact.ErrNoSpace

// isFull reports whether a write failed only because there is no room. It must have been refused when it was made: a disk
// that runs full at fsync, as it may over a network, loses what it had taken, and says so once.
func isFull(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && (path.Op == "write" || path.Op == "truncate") &&
		(errors.Is(path.Err, syscall.ENOSPC) || errors.Is(path.Err, syscall.EDQUOT))
}

// starve notes that what waits for room on the disk; fed, that it does not any more.
func (l *latch) starve(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.starving) == 0 {
		close(l.full)
	}
	l.starving[what] = err
}

func (l *latch) fed(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.starving[what] == nil {
		return
	}
	if delete(l.starving, what); len(l.starving) == 0 {
		l.full = make(chan struct{})
	}
}

// short returns why nothing can be written as long as the disk is full, and a channel that is closed then.
func (l *latch) short() (<-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, err := range l.starving {
		return l.full, err
	}
	return l.full, nil
}

// retryFull is how often a write is tried again that must not be given up.
const retryFull = time.Second

// insist repeats write until there is room for it, or the node's writes end: by a fault, or with ended.
func (l *latch) insist(what string, ended <-chan struct{}, write func() error) error {
	for {
		err := write()
		if !errors.Is(err, errFull) {
			l.fed(what)
			return err
		}
		l.starve(what, err)
		select {
		case <-time.After(retryFull):
		case <-ended:
			return err
		case <-l.done:
			return l.fault()
		}
	}
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
const hung = artifact.Hung

// guard runs one write. It refuses if the latch is set, and sets it if the write fails or takes longer than limit. If the
// disk is full the error matches errFull.
func (l *latch) guard(what string, limit time.Duration, write func() error) error {
	if err := l.fault(); err != nil {
		return err
	}
	late := func() { l.trip(fmt.Errorf("%s has been hanging for %v", what, limit)) }
	if err := artifact.Watch(limit, late, write); isFull(err) && l.fault() == nil {
		return fmt.Errorf("%s: %w on the disk of %s: %w", what, errFull, l.dir, err)
	} else if err != nil {
		l.trip(fmt.Errorf("%s: %w", what, err))
	}
	return l.fault() // also of a write that hung and came back: too late
}
