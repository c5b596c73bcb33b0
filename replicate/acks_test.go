package replicate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
)

// The leader takes a blob only when a majority of the present voters have said that their disks, as they are now, hold it.
func TestAcks(t *testing.T) {
	c := newCluster(t, 3)
	c.join(c.add(), false)
	p := c.prepared(1)[0]
	lead := c.leader()
	voters := map[string]artifact.Ack{} // of the followers
	var one, two artifact.Ack
	for _, n := range c.nodes[:3] {
		if n != lead {
			voters[n.ID()] = n.ownAcks(artifact.Publication{Manifest: p.Manifest})[0]
			one, two = two, voters[n.ID()]
		}
	}
	replica := c.nodes[3].ownAcks(artifact.Publication{Manifest: p.Manifest})[0]
	changed := func(f func(a *artifact.Ack)) artifact.Ack {
		a := one
		f(&a)
		return a
	}
	for _, tt := range []struct {
		name string
		acks []artifact.Ack
		want string
	}{
		{"none", nil, "1 of 3 voters hold it, 2 must"},
		{"of a nonvoter", []artifact.Ack{replica}, "is not a voter"},
		{"of nobody", []artifact.Ack{changed(func(a *artifact.Ack) { a.Node = "x" })}, "is not a voter"},
		{"its own twice", lead.ownAcks(artifact.Publication{Manifest: p.Manifest}), "1 of 3"},
		{"of an earlier start", []artifact.Ack{changed(func(a *artifact.Ack) { a.Starts-- })}, "in its start 0, and it is known by its start 1"},
		{"of a later start", []artifact.Ack{changed(func(a *artifact.Ack) { a.Starts++ })}, "in its start 2"},
		{"too old", []artifact.Ack{changed(func(a *artifact.Ack) { a.At = a.At.Add(-maxAckAge - time.Minute) })}, "said so at"},
		{"of the future", []artifact.Ack{changed(func(a *artifact.Ack) { a.At = a.At.Add(maxAckLead + time.Minute) })}, "said so at"},
		{"of other bytes", []artifact.Ack{changed(func(a *artifact.Ack) { a.Ref = artifact.RefOf([]byte("x")) })}, "1 of 3"},
		{"of another size", []artifact.Ack{changed(func(a *artifact.Ack) { a.Ref.Size++ })}, "1 of 3"},
	} {
		p.Acks = tt.acks
		for _, n := range []*Node{lead, c.nodes[3]} { // the replica that brings it has no vote at all
			_, err := n.Publish(t.Context(), p)
			if !errors.Is(err, ErrTooFewAcks) || !errors.Is(err, artifact.ErrUnavailable) || n == lead && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("acks %s: %v, want ErrTooFewAcks and %q", tt.name, err, tt.want)
			}
		}
	}
	if seq, _ := lead.Root(); seq != 0 {
		t.Errorf("%d leaves of what was refused", seq)
	}
	p.Acks = []artifact.Ack{one, replica}
	if _, err := c.nodes[3].Publish(t.Context(), p); !errors.Is(err, ErrTooFewAcks) {
		t.Errorf("one voter and a nonvoter: %v", err)
	}
	p.Acks = []artifact.Ack{one, two}
	if _, err := c.nodes[3].Publish(t.Context(), p); err != nil {
		t.Errorf("two voters: %v", err)
	}
	p.Acks = nil // what is committed needs no acks
	if _, err := lead.propose(t.Context(), publishCommand{p}); err != nil {
		t.Errorf("again, without acks: %v", err)
	}
	other := c.prepared(2)[1]
	other.Acks = nil
	other.Manifest.Zip = artifact.Ref{}
	if _, err := c.nodes[3].Publish(t.Context(), other); err != nil {
		t.Errorf("a publication without a blob: %v", err)
	}
}

// Whatever acks come, in any number: they are enough if and only if a majority of the voters has said of these bytes, in its
// present start, not too long ago, that it holds them.
func TestAckRule(t *testing.T) {
	ref, other := artifact.RefOf([]byte("a")), artifact.RefOf([]byte("b"))
	rapid.Check(t, func(rt *rapid.T) {
		starts := map[string]uint64{}
		for i := range rapid.SampledFrom([]int{1, 2, 3, 4, 5}).Draw(rt, "voters") {
			starts[string(rune('A'+i))] = uint64(rapid.IntRange(1, 3).Draw(rt, "start"))
		}
		holders := map[string]bool{}
		var acks []artifact.Ack
		for range rapid.IntRange(0, 12).Draw(rt, "acks") {
			a := artifact.Ack{
				Node:   rapid.SampledFrom([]string{"A", "B", "C", "D", "E", "nobody"}).Draw(rt, "node"),
				Starts: uint64(rapid.IntRange(1, 3).Draw(rt, "in its start")),
				Ref:    rapid.SampledFrom([]artifact.Ref{ref, ref, ref, other, {}}).Draw(rt, "bytes"),
			}
			minutes := rapid.SampledFrom([]int{0, 1, 59, 61, -9, -11, 1 << 20}).Draw(rt, "minutes ago")
			a.At = time.Now().Add(-time.Duration(minutes) * time.Minute)
			acks = append(acks, a)
			if n, voter := starts[a.Node]; voter && n == a.Starts && a.Ref == ref && minutes < 60 && minutes > -10 {
				holders[a.Node] = true
			}
		}
		err := checkBlob(ref, acks, starts)
		if enough := 2*len(holders) > len(starts); enough != (err == nil) || !enough && !errors.Is(err, ErrTooFewAcks) {
			rt.Fatalf("of voters %v acks %+v: %v, and %v hold it", starts, acks, err, holders)
		}
	})
}

// A voter that started again is asked again, as its disk may be another image.
func TestAckOfTheLifeBefore(t *testing.T) {
	c := newCluster(t, 3)
	p := c.prepared(1)[0]
	i := c.follower()
	old := c.nodes[i].ownAcks(artifact.Publication{Manifest: p.Manifest})
	c.close(i)
	c.open(i)
	c.registered(i)
	lead := c.leader()
	p.Acks = old
	if _, err := lead.Publish(t.Context(), p); !errors.Is(err, ErrTooFewAcks) {
		t.Errorf("ack of the life before: %v", err)
	}
	p.Acks = c.nodes[i].ownAcks(artifact.Publication{Manifest: p.Manifest})
	if _, err := lead.Publish(t.Context(), p); err != nil {
		t.Errorf("ack of this life: %v", err)
	}
}

// What waits in the queue while the members change is counted again by those that there are then.
func TestAcksAreRecounted(t *testing.T) {
	c := newCluster(t, 1)
	lead := c.leader()
	p := c.prepared(1)[0]
	cmd, err := appendCommand(nil, publishCommand{p})
	if err != nil {
		t.Fatal(err)
	}
	counted := 0
	waiting := &proposal{ctx: t.Context(), cmd: cmd, result: make(chan result, 1), members: lead.servers(), recount: func() error {
		counted++
		return lead.checkAcks(t.Context(), p, lead.ownAcks(artifact.Publication{Manifest: p.Manifest}))
	}}
	if batch, _ := lead.gather(waiting); len(batch) != 1 || counted != 0 {
		t.Errorf("gather() = %v, counted %d times, and nothing has changed", batch, counted)
	}
	c.join(c.add(), true)
	if batch, _ := lead.gather(waiting); len(batch) != 0 || counted != 1 {
		t.Errorf("gather() = %v, counted %d times: one of two voters is no majority", batch, counted)
	}
	if r := <-waiting.result; !errors.Is(r.err, ErrTooFewAcks) {
		t.Errorf("its result is %v", r.err)
	}
}

// What is published right after a start waits until the acks of that start count.
func TestPublishBeforeRegistered(t *testing.T) {
	c := newCluster(t, 3)
	p := c.prepared(1)[0]
	i := c.follower()
	c.close(i)
	c.host(i).partition(true)
	n := c.open(i)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.AwaitRegistered(ctx); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("AwaitRegistered() of a node that nobody hears = %v", err)
	}
	p.Acks = c.leader().ownAcks(artifact.Publication{Manifest: p.Manifest})
	done := make(chan error, 1)
	go func() { _, err := n.Publish(t.Context(), p); done <- err }()
	c.host(i).partition(false)
	if err := <-done; err != nil {
		t.Errorf("Publish() = %v", err)
	}
	if err := n.AwaitRegistered(t.Context()); err != nil {
		t.Errorf("AwaitRegistered() = %v", err)
	}
}
