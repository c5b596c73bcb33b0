package mirror

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// wantZip is what a node that lacks the zip of hello asks of another.
func wantZip(n *node) Want {
	return Want{Module: helloV, Kind: artifact.Zip, Ref: n.zipRef()}
}

// A node that is asked to bring a blob here does, once for all who ask, and tells those who do not wait so long to ask again.
func TestRelay(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	c.nodes[0].want(zipPath, 200, "PK")
	n.lose(n.zipRef())
	w := wantZip(n)
	stall := make(chan struct{})
	c.set(func() { c.tamper = func(_ int, body io.Reader) io.Reader { <-stall; return body } })
	if how, err := n.Relay(t.Context(), w, time.Millisecond); how == RelayHere || err != nil {
		t.Fatalf("while it comes: %v, %v", how, err)
	}
	done := make(chan error, 2)
	for range 2 {
		go func() {
			how, err := n.Relay(t.Context(), w, time.Minute)
			if err == nil && how != RelayHere {
				err = errors.New("it is not here")
			}
			done <- err
		}()
	}
	close(stall)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if err := n.store.Durable(w.Ref); err != nil {
		t.Error(err)
	}
	if how, err := n.Relay(t.Context(), w, time.Minute); how != RelayHere || err != nil {
		t.Errorf("what is here: %v, %v", how, err)
	}
	got := 0
	c.set(func() {
		for _, f := range c.fetched {
			if strings.HasPrefix(f, "2<") {
				got++
			}
		}
	})
	if got != 1 {
		t.Errorf("it is taken %d times", got)
	}
}

// A relay that has other pulls to end first says so, until it is its turn.
func TestRelayQueued(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	c.nodes[0].want(zipPath, 200, "PK")
	n.lose(n.zipRef())
	stall := make(chan struct{})
	c.set(func() { c.tamper = func(_ int, body io.Reader) io.Reader { <-stall; return body } })
	for range cap(n.relayed) {
		n.relayed <- struct{}{}
	}
	relay := func(wait time.Duration) Relaying {
		t.Helper()
		how, err := n.Relay(t.Context(), wantZip(n), wait)
		if err != nil {
			t.Error(err)
		}
		return how
	}
	for range 2 {
		if how := relay(time.Millisecond); how != RelayQueued {
			t.Errorf("while others are pulled: %v", how)
		}
	}
	for range cap(n.relayed) {
		<-n.relayed
	}
	for end := time.Now().Add(time.Minute); relay(time.Millisecond) != RelayUnderWay; {
		if time.Now().After(end) {
			t.Fatal("it is never under way")
		}
	}
	close(stall)
	if how := relay(time.Minute); how != RelayHere {
		t.Errorf("at the end: %v", how)
	}
}

// Pulls for clients, which may all wait for other nodes as their relays, keep no other node waiting that waits for this one in turn.
func TestRelaysWaitForNoPulls(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	c.nodes[0].want(zipPath, 200, "PK")
	n.lose(n.zipRef())
	for range cap(n.pulls) {
		n.pulls <- struct{}{}
	}
	if how, err := n.Relay(t.Context(), wantZip(n), 10*time.Second); how != RelayHere || err != nil {
		t.Errorf("Relay = %v, %v", how, err)
	}
	for range cap(n.pulls) {
		<-n.pulls
	}
}

// What a relay cannot do it says as what it is; above all nothing is absent because this node knows nothing of it yet.
func TestRelayFails(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	w := Want{Module: helloV, Kind: artifact.Zip, Ref: artifact.RefOf([]byte("x"))}
	if _, err := n.Relay(t.Context(), w, time.Minute); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a version that is not known here: %v", err)
	}
	c.nodes[0].want(zipPath, 200, "PK")
	if _, err := n.Relay(t.Context(), w, time.Minute); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another blob than that of the catalog: %v", err)
	}
	w = wantZip(n)
	w.Background = NewBackground()
	for _, n := range c.nodes {
		n.lose(w.Ref)
	}
	if _, err := n.Relay(t.Context(), w, time.Minute); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what nobody has: %v", err)
	}
	c.set(func() { c.down[0], c.down[1] = true, true })
	if _, err := n.Relay(t.Context(), w, time.Minute); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("while nobody answers: %v", err)
	}
}

// Once somebody waits for a pull, nothing holds it up; what held it up before ends, and is no error.
func TestHurry(t *testing.T) {
	b := NewBackground()
	held := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- b.unhurried(func(ctx context.Context, _ int) error {
			close(held)
			<-ctx.Done()
			return context.Cause(ctx)
		})(t.Context(), 1)
	}()
	<-held
	b.Hurry()
	b.Hurry()
	if err := <-done; err != nil {
		t.Errorf("what held it up: %v", err)
	}
	never := func(context.Context) error { t.Error("it is held up"); return nil }
	if err := b.Unhurried(t.Context(), never); err != nil {
		t.Error(err)
	}
	var nobody *Background
	nobody.Hurry()
	if err := nobody.Unhurried(t.Context(), never); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewBackground().Unhurried(ctx, func(ctx context.Context) error { return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever wanted it is gone: %v", err)
	}
}

type slowed struct {
	io.Reader
	n int
}

func (s *slowed) Pace(_ context.Context, n int) error { s.n += n; return nil }

// A body is read no faster than the way lets it that it comes, and no faster than background pulls are made.
func TestSlowedBy(t *testing.T) {
	s, own := &slowed{}, 0
	pace := func(_ context.Context, n int) error { own += n; return nil }
	for _, p := range []pacer{slowedBy(nil, s), slowedBy(pace, s), slowedBy(pace, strings.NewReader(""))} {
		if err := p(t.Context(), 10); err != nil {
			t.Error(err)
		}
	}
	if s.n != 20 || own != 20 {
		t.Errorf("the way is told of %d bytes, the pull of %d", s.n, own)
	}
	if slowedBy(nil, strings.NewReader("")) != nil {
		t.Error("what nothing slows down is paced")
	}
}
