package main

import (
	"context"
	"fmt"
	"time"
)

// How long who ends a process waits for parts that hang in the disk, beyond what they may take on a sound one.
const (
	handOverWait = 10 * time.Second // for the leadership to be handed over
	hungWait     = 5 * time.Second  // for the parts that work
	closeWait    = 10 * time.Second // for the parts to close: what a process that dies leaves behind is whole
)

// onFault is called once, when the disk lets any part down: each part tells the catalog, and the catalog this, which tells all
// others, because the disk is one. The node goes on serving what it has.
func (n *node) onFault(err error) {
	n.log.Error("the disk failed: nothing new is stored until this process is restarted on a sound disk; what is stored is still served", "err", err)
	n.activity.alarm("the disk failed, nothing new is stored: %v", err)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err
	close(n.faulted)
	if n.store != nil {
		n.store.StopWrites(err)
	}
	for _, tiles := range n.tiles {
		tiles.StopWrites(err)
	}
}

// fault returns what ended writing on this node, nil if nothing has.
func (n *node) fault() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// awaitFault returns the fault of the disk, once the leadership is handed over; nil if ctx ends before there is one.
func (n *node) awaitFault(ctx context.Context) error {
	select {
	case <-n.faulted:
	case <-ctx.Done():
		return nil
	}
	select {
	case <-n.replica.Left():
	case <-time.After(handOverWait):
	case <-ctx.Done():
	}
	return fmt.Errorf("the disk failed, and --exit-on-disk-fault is set: %w", n.fault())
}

// unlessHung returns what wait does. After a fault of the disk it waits no longer than limit from the end of over: what hangs in
// the kernel may never come back, and the process is to end all the same.
func (n *node) unlessHung(over context.Context, limit time.Duration, what string, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		return err
	case <-over.Done():
	}
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(limit):
		}
		if err := n.fault(); err != nil {
			return fmt.Errorf("%s does not end: the disk failed while this process ran: %w", what, err)
		}
	}
}

// end closes the parts, but for those that hang in the disk.
func (n *node) end() error {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	return n.unlessHung(over, closeWait, "a part of this mirror", n.close)
}
