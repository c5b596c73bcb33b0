package replicate

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// late is a future that is answered when it is said.
type late chan error

func (l late) Error() error { return <-l }

func TestFuturesSettle(t *testing.T) {
	for _, c := range []struct {
		name     string
		answered time.Duration
		patience time.Duration
		settled  bool
		took     time.Duration
	}{
		{"in time", time.Second, time.Minute, true, time.Second},
		{"late", time.Hour, time.Minute, false, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs, l := &futures{}, late(make(chan error, 1))
				_, first := ask(fs, func() late { return late(closedErrors()) })
				_, answer := ask(fs, func() late { return l })
				if err := <-first; err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(c.answered, func() { l <- errDisk })
				begin := time.Now()
				if got := fs.settle(c.patience); got != c.settled || time.Since(begin) != c.took {
					t.Errorf("settle() = %v after %v, want %v after %v", got, time.Since(begin), c.settled, c.took)
				}
				if _, err := ask(fs, func() late { t.Error("it is asked for more"); return nil }); !errors.Is(<-err, raft.ErrRaftShutdown) {
					t.Error("what is asked then is not refused")
				}
				if err := <-answer; err != errDisk {
					t.Errorf("answer: %v", err)
				}
			})
		})
	}
	if fs := (&futures{}); !fs.settle(time.Minute) {
		t.Error("what was never asked is not answered")
	}
}

func closedErrors() chan error {
	c := make(chan error)
	close(c)
	return c
}

// Nobody waits for ever for an answer that raft forgets as it ends.
func TestCloseAnswersAll(t *testing.T) {
	applying, goOn := make(chan bool), make(chan bool)
	n := openNode(t, Config{Dir: t.TempDir(), OnListing: func(string) { applying <- true; <-goOn }})
	published := make(chan error, 1)
	go func() {
		published <- n.PublishListing(t.Context(), artifact.Listing{Path: "example.com/a", Versions: []string{"v1.0.0"}, Listed: time.Unix(1, 0).UTC()})
	}()
	select {
	case <-applying:
	case err := <-published:
		t.Fatal(err)
	}
	for range 20 {
		go n.barrier(t.Context())
	}
	open := func() int {
		n.futures.mu.Lock()
		defer n.futures.mu.Unlock()
		return n.futures.open
	}
	waitFor(t, "barriers", func() bool { return open() == 21 })
	closed := make(chan error)
	go func() { closed <- n.Close() }()
	waitFor(t, "the end", func() bool {
		n.futures.mu.Lock()
		defer n.futures.mu.Unlock()
		return n.futures.ended || n.raft.State() == raft.Shutdown
	})
	close(goOn)
	if err := <-closed; err != nil || open() != 0 {
		t.Errorf("Close() = %v, %d are not answered", err, open())
	}
}
