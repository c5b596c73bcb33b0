package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

func someRequests(tb testing.TB) (all []request) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	for i, c := range someCommands(tb) {
		cmd, err := appendCommand(nil, c)
		if err != nil {
			tb.Fatal(err)
		}
		r := request{cmd: cmd}
		for j := range i {
			r.acks = append(r.acks, artifact.Ack{Node: fmt.Sprintf("N%d", j), Starts: uint64(j), Ref: artifact.RefOf([]byte{byte(j)}), At: at})
		}
		all = append(all, r)
	}
	return all
}

func someAnswers(tb testing.TB) []answer {
	man := someCommands(tb)[0].(publishCommand).Manifest
	return []answer{
		{result: result{index: 7}},
		{result: result{index: 300, manifest: man}},
		{result: result{index: 8, manifest: man, err: &remoteError{"conflict", []error{artifact.ErrRefused, artifact.ErrConflict}}}},
		{result: result{index: 9, forked: true, err: &remoteError{"fork", []error{artifact.ErrRefused}}}},
		{result: result{err: &remoteError{"", nil}}},
		{moved: true},
		{moved: true, leader: Member{ID: "N1", Address: "host:1", Voter: true}},
	}
}

func TestForwardRoundTrip(t *testing.T) {
	for _, r := range someRequests(t) {
		got, c, err := parseRequest(appendRequest(nil, r))
		if err != nil || !reflect.DeepEqual(got, r) || c == nil {
			t.Errorf("parseRequest() = %+v, %v, want %+v", got, err, r)
		}
	}
	for _, a := range someAnswers(t) {
		b, err := appendAnswer(nil, a)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseAnswer(b); err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("parseAnswer() = %+v, %v, want %+v", got, err, a)
		}
	}
}

// An error keeps its classes and its words on the way, whatever they are.
func TestForwardedErrors(t *testing.T) {
	for i, s := range sentinels {
		want := fmt.Errorf("what it is: %w", s)
		d := decoder{b: appendOutcome(nil, want)}
		got := decodeOutcome(&d)
		if err := d.end(); err != nil || got == nil || got.Error() != want.Error() {
			t.Fatalf("%v becomes %v (%v)", want, got, err)
		}
		for _, other := range sentinels {
			if errors.Is(got, other) != errors.Is(want, other) {
				t.Errorf("sentinel %d: after the way it matches %v: %v", i, other, errors.Is(got, other))
			}
		}
	}
	d := decoder{b: appendOutcome(nil, errors.New("plain"))}
	if got := decodeOutcome(&d); got == nil || got.Error() != "plain" || errors.Is(got, artifact.ErrUnavailable) || errors.Is(got, fs.ErrNotExist) {
		t.Errorf("a plain error becomes %v", got)
	}
}

func TestForwardRefused(t *testing.T) {
	r := someRequests(t)[3]
	good := appendRequest(nil, r)
	for name, b := range map[string][]byte{
		"empty": {}, "other format": append([]byte{2}, good[1:]...), "cut short": good[:len(good)-1],
		"a byte too many": append(append([]byte{}, good...), 0), "no command": {1, 0}, "many acks": {1, 0xff, 0x7f},
		"two commands": append(append([]byte{}, good...), r.cmd...), "unknown kind": {1, 0, 99, 0},
	} {
		if _, _, err := parseRequest(b); err == nil {
			t.Errorf("request, %s: accepted", name)
		}
	}
	for name, b := range map[string][]byte{
		"empty": {}, "other format": {2}, "strange flag": {1, 2}, "classes without an error": {1, 0, 0, 1, 1, 1, 'x', 0},
		"text without an error": {1, 0, 0, 1, 0, 1, 'x', 0}, "malformed manifest": {1, 0, 0, 1, 0, 0, 1, 1, 1}, "a byte too many": {1, 0, 0, 1, 0, 0, 0, 0},
	} {
		if a, err := parseAnswer(b); err == nil {
			t.Errorf("answer, %s: accepted as %+v", name, a)
		}
	}
	if _, err := newCluster(t, 1).nodes[0].Accept(t.Context(), []byte("x")); !errors.Is(err, artifact.ErrMalformed) {
		t.Errorf("Accept of no request: %v", err)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, r := range someRequests(f) {
		f.Add(appendRequest(nil, r))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, err := parseRequest(data)
		if err == nil && string(appendRequest(nil, r)) != string(data) {
			t.Errorf("%x is accepted, and is written as %x", data, appendRequest(nil, r))
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	for _, a := range someAnswers(f) {
		b, err := appendAnswer(nil, a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parseAnswer(data)
		if err != nil {
			return
		}
		if again, err := appendAnswer(nil, a); err != nil || string(again) != string(data) {
			t.Errorf("%x is accepted, and is written as %x, %v", data, again, err)
		}
	})
}

// follower returns a node that does not lead.
func (c *cluster) follower() int {
	lead := c.leader()
	for i, n := range c.nodes {
		if n != nil && n != lead {
			return i
		}
	}
	c.t.Fatal("there is no follower")
	return 0
}

func (c *cluster) indexOf(n *Node) int {
	for i := range c.nodes {
		if c.nodes[i] == n {
			return i
		}
	}
	return -1
}

// Every write works at a follower, and what it returns is there when it returns.
func TestWriteAtFollower(t *testing.T) {
	c := newCluster(t, 3)
	i := c.follower()
	n := c.nodes[i]
	m := c.publishAt(i, "example.com/a", "v1.0.0")
	if got, err := n.Manifest(t.Context(), m.Module); err != nil || !sameParts(got, m) {
		t.Errorf("right after Publish: Manifest() = %+v, %v", got, err)
	}
	other := c.db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	p, err := c.advanced(n, other)
	if err != nil {
		t.Fatal(err)
	}
	p.Acks = c.acks(p)
	p.Manifest.Record.Proof[0][0] ^= 1
	if _, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("a bad proof at a follower: %v", err)
	}
	l := artifact.Listing{Path: "example.com/a", Versions: []string{"v1.0.0"}, Listed: time.Unix(1_700_000_000, 0).UTC()}
	if err := n.PublishListing(t.Context(), l); err != nil {
		t.Error(err)
	}
	if got, err := n.Listing(t.Context(), l.Path); err != nil || !reflect.DeepEqual(got, l) {
		t.Errorf("right after PublishListing: %+v, %v", got, err)
	}
	if err := n.AckFork(t.Context(), c.db.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("AckFork without a fork: %v", err)
	}
	fork := c.db.Fork()
	fork.Add("x v1.0.0 y\n")
	c.db.Add("z v1.0.0 y\n")
	advance(t, n, c.db)
	if err := n.CommitTreeHead(t.Context(), c.db.Name, fork.Head(fork.Size()), 0, nil); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("a forked head at a follower: %v", err)
	}
	if _, err := n.Fork(t.Context(), c.db.Name); err != nil {
		t.Errorf("after a forked head: %v", err)
	}
	if err := n.AckFork(t.Context(), c.db.Name); err != nil {
		t.Error(err)
	}
	c.same()
}

// Of two manifests with other sums the first stays, and the second one's owner is told so wherever it asks.
func TestConflictAtFollower(t *testing.T) {
	c := newCluster(t, 3)
	i := c.follower()
	first := c.publishAt(i, "example.com/a", "v1.0.0")
	n := c.nodes[i]
	again := c.db.AddModule("example.com/a", "v1.0.0", "module example.com/a // other\n")
	p, err := c.advanced(n, again)
	if err != nil {
		t.Fatal(err)
	}
	p.Acks = c.acks(p)
	if m, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrConflict) || !sameParts(m, first) {
		t.Errorf("Publish of another go.mod = %+v, %v, want the first one and a conflict", m, err)
	}
}

// prepared makes modules up, and returns their publications with acks of all open nodes.
func (c *cluster) prepared(count int) (all []artifact.Publication) {
	c.t.Helper()
	var ms []replicatetest.Module
	for i := range count {
		ms = append(ms, c.db.AddModule(fmt.Sprintf("example.com/m%d", i), "v1.0.0", fmt.Sprintf("module example.com/m%d\n", i)))
	}
	c.lead("head", func(lead *Node) error { _, err := c.advanced(lead, ms[0]); return err })
	for _, m := range ms {
		p := c.db.Publication(m, c.db.Size())
		p.Acks = c.acks(p)
		all = append(all, p)
	}
	return all
}

// A leader that dies takes nothing with it that was acknowledged, and who asked a follower notices no more than a delay.
func TestLeaderDiesDuringForward(t *testing.T) {
	c := newCluster(t, 3)
	all := c.prepared(120)
	lead := c.leader()
	at := c.nodes[c.follower()]
	waitFor(t, "head", func() bool { _, err := at.TreeHead(t.Context(), c.db.Name, 1<<62); return err == nil })
	var publishers sync.WaitGroup
	for w := range 4 {
		publishers.Go(func() {
			for j := w; j < len(all); j += 4 {
				if j == len(all)/3 {
					c.host(c.indexOf(lead)).partition(true)
				}
				waitFor(t, "publication through a follower", func() bool {
					_, err := at.Publish(t.Context(), all[j])
					if err != nil && !errors.Is(err, artifact.ErrUnavailable) {
						t.Errorf("%d: %v", j, err)
					}
					return err == nil
				})
			}
		})
	}
	publishers.Wait()
	dead := c.indexOf(lead)
	c.close(dead)
	seq, _ := c.leader().Root()
	if seq != int64(len(all)) {
		t.Errorf("%d leaves of %d publications", seq, len(all))
	}
	for _, n := range c.nodes {
		for j, p := range all {
			if n == nil {
				break
			}
			waitFor(t, "publication at the others", func() bool { _, err := n.Manifest(t.Context(), p.Manifest.Module); return err == nil })
			if _, err := n.propose(t.Context(), publishCommand{p}, n.ownAcks(p)...); err != nil && j < 5 {
				t.Errorf("%d again: %v", j, err)
			}
			if j >= 5 {
				break
			}
		}
	}
	if again, _ := c.leader().Root(); again != seq {
		t.Errorf("repeated publications make leaves: %d, before %d", again, seq)
	}
	c.open(dead)
	c.same()
}

// Without a quorum a write says so, soon, and reads go on.
func TestNoQuorum(t *testing.T) {
	c := newCluster(t, 3)
	i := c.follower()
	m := c.publishAt(i, "example.com/a", "v1.0.0")
	p := c.prepared(1)[0]
	n := c.nodes[i]
	waitFor(t, "head", func() bool { _, ok, _ := headOf(n, c.db.Name, c.db.Size()); return ok })
	for j := range c.nodes {
		if j != i {
			c.host(j).partition(true)
		}
	}
	_, err := n.Publish(t.Context(), p)
	if !errors.Is(err, ErrNoQuorum) || !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Publish without a quorum: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.propose(ctx, publishCommand{p}); !errors.Is(err, ErrNoQuorum) || !errors.Is(err, context.Canceled) {
		t.Errorf("propose with a context that ended: %v", err)
	}
	if got, err := n.Manifest(t.Context(), m.Module); err != nil || !sameParts(got, m) {
		t.Errorf("Manifest() without a quorum = %+v, %v", got, err)
	}
	for j := range c.nodes {
		c.host(j).partition(false)
	}
	waitFor(t, "publication once the quorum is back", func() bool { _, err := n.Publish(t.Context(), p); return err == nil })
}

// Who waits for a leader gives up after two heartbeats if most voters are known to be silent, and waits as long as ever if one of them
// may stand for election.
func TestMinorityGivesUpSooner(t *testing.T) {
	c := newCluster(t, 3)
	i := c.follower()
	c.publishAt(i, "example.com/a", "v1.0.0")
	n := c.nodes[i]
	p := c.prepared(1)[0]
	var silent atomic.Pointer[map[string]bool]
	silent.Store(&map[string]bool{})
	n.config.Silent = func(id string) bool { return (*silent.Load())[id] }
	var others []string
	for j := range c.nodes {
		if j != i {
			others = append(others, c.nodes[j].id.Node)
		}
	}
	all := map[string]bool{others[0]: true, others[1]: true}
	silent.Store(&all)
	if n.minority() {
		t.Error("there is a leader")
	}
	for j := range c.nodes {
		if j != i {
			c.host(j).partition(true)
		}
	}
	waitFor(t, "loss of the leader", func() bool { return !n.hasLeader() })
	for _, some := range []map[string]bool{nil, {others[0]: true}, {others[1]: true, n.id.Node: true}} {
		if silent.Store(&some); n.minority() {
			t.Errorf("with %v silent there may be a leader", some)
		}
	}
	if silent.Store(&all); !n.minority() {
		t.Error("with all others silent there can be none")
	}
	begin := time.Now()
	if _, err := n.Publish(t.Context(), p); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("Publish: %v", err)
	}
	if left := n.patience(begin); left <= 0 {
		t.Errorf("it has waited as long as ever, and %v longer", -left)
	}
}

func headOf(n *Node, db string, size int64) (h headRow, ok bool, err error) {
	err = n.view(func(s state) (err error) { h, ok, err = s.head(db, size); return err })
	return h, ok, err
}

// A follower believes its own catalog, and not what a leader says of it.
func TestLyingLeader(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[c.follower()]
	p := c.prepared(1)[0]
	waitFor(t, "head", func() bool { _, ok, _ := headOf(n, c.db.Name, c.db.Size()); return ok })
	for name, tt := range map[string]struct {
		a    answer
		want error
	}{
		"committed, and is not": {answer{result: result{index: 1, manifest: p.Manifest}}, artifact.ErrUnavailable},
		"passed on in a circle": {answer{moved: true, leader: Member{ID: c.leader().ID()}}, ErrNoQuorum},
	} {
		n.config.Forward = func(context.Context, Member, []byte) ([]byte, error) { return appendAnswer(nil, tt.a) }
		if m, err := n.Publish(t.Context(), p); !errors.Is(err, tt.want) {
			t.Errorf("%s: Publish() = %+v, %v", name, m, err)
		}
	}
	n.config.Forward = func(context.Context, Member, []byte) ([]byte, error) { return []byte("x"), nil }
	if _, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrMalformed) {
		t.Errorf("an answer that is none: %v", err)
	}
}
