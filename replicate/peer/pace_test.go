package peer

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// A transfer may stand still for a while, and be slow, but not both for long; what the handler does meanwhile does not count.
func TestPace(t *testing.T) {
	var p pace
	if got := p.patience(); got != stallTime {
		t.Errorf("at the beginning: %v", got)
	}
	p.moved(100, 20*time.Second)
	if got := p.patience(); got != 10*time.Second {
		t.Errorf("after 100 bytes in 20 s: %v", got)
	}
	p.moved(60*slowest, time.Second)
	if got := p.patience(); got != stallTime {
		t.Errorf("when it has caught up: %v", got)
	}
	for range 100 {
		p.moved(1, stallTime-time.Second)
	}
	if got := p.patience(); got > 0 {
		t.Errorf("after a trickle: %v", got)
	}
}

// A node that is asked for too much at once says so, and takes the next request when one has ended.
func TestTooManyRequests(t *testing.T) {
	a, b := start(t, "a", nil), start(t, "b", nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	b.Handle("GET /v1/wait", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	}))
	b.inFlight.Store(maxRequests - 1)
	var wg sync.WaitGroup
	call := func() error {
		_, err := a.Call(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/wait"}, nil, 10)
		return err
	}
	wg.Go(func() {
		if err := call(); err != nil {
			t.Error(err)
		}
	})
	<-entered
	if err := call(); ClassOf(err) != Busy {
		t.Errorf("one too many: %v", err)
	}
	close(leave)
	wg.Wait()
	if n := b.inFlight.Load(); n != maxRequests-1 {
		t.Errorf("%d requests are counted after all have ended", n-maxRequests+1)
	}
	go func() { <-entered }()
	if err := call(); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// Who looks for a cluster is told each refusal.
func TestRefusalsAreTold(t *testing.T) {
	told := make(chan *Refusal, 100)
	b := start(t, "b", nil)
	a := start(t, "a", func(c *Config, h *Hello) {
		h.Cluster, c.Credentials = "", FromToken(NewToken(), "a")
		c.Refused = func(r *Refusal) {
			select {
			case told <- r:
			default:
			}
		}
	})
	if a.tell(io.EOF) || a.tell(nil) || !a.tell(errors.Join(io.EOF, Refuse(Busy, "x"))) {
		t.Error("what is no refusal is told as one, or the other way round")
	}
	<-told
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Form(ctx, FormConfig{Join: []string{b.addr()}, File: formFile(t), Link: a.Link, Log: a.logs.logger()})
		done <- err
	}()
	if r := <-told; r.Class != WrongToken {
		t.Errorf("told %v", r)
	}
	a.logs.wait(t, "do not speak to each other", "token")
	cancel()
	<-done
}
