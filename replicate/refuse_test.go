package replicate

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// A copy of a data directory, and an old image of it, are refused, and the original goes on.
func TestCloneRefused(t *testing.T) {
	refused := map[string]chan error{"original": make(chan error, 9), "copy": make(chan error, 9)}
	which := "original"
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		ch := refused[which]
		conf.OnRefused = func(err error) { ch <- err }
	}
	c.grow(3)
	i := c.follower()
	dir := c.dirs[i]
	image := copyDir(t, dir)
	c.close(i)
	c.open(i)
	c.registered(i)
	original := c.nodes[i]

	// The image starts beside it, with as many starts and another boot.
	c.dirs[i], which = image, "copy"
	id, err := Identify(image)
	if err != nil || id.Node != original.ID() {
		t.Fatalf("Identify() of an image = %+v, %v", id, err)
	}
	h := c.net.stream(id.Node, "elsewhere")
	clone := openNode(t, Config{Dir: image, Stream: h, Forward: h.forward, Join: true, Self: Peer{Name: original.Self().Name},
		HeartbeatTimeout: 500 * time.Millisecond, OnRefused: func(err error) { refused["copy"] <- err }})
	if clone.Self().Starts != original.Self().Starts {
		t.Fatalf("the image has %d starts, the original %d", clone.Self().Starts, original.Self().Starts)
	}
	for _, n := range c.nodes {
		if err := n.Check(clone.Self()); !errors.Is(err, ErrClone) || !strings.Contains(err.Error(), c.addr(i)) {
			t.Errorf("Check of a copy: %v", err)
		}
		if err := n.Check(original.Self()); err != nil {
			t.Errorf("Check of the original: %v", err)
		}
	}
	// Its peers do not even let it in, but if they did:
	if _, err := c.leader().propose(t.Context(), registerCommand{clone.Self()}); !errors.Is(err, ErrClone) {
		t.Errorf("a copy registers: %v", err)
	}
	clone.Refuse(c.leader().Check(clone.Self()))
	if err := <-refused["copy"]; !errors.Is(err, ErrClone) {
		t.Errorf("OnRefused(%v)", err)
	}
	clone.Refuse(errors.New("again"))
	if _, err := clone.propose(t.Context(), ackForkCommand{"x"}); !errors.Is(err, ErrClone) {
		t.Errorf("a copy that was refused writes: %v", err)
	}
	if err := clone.Close(); err != nil {
		t.Error(err)
	}
	c.publishAt(c.follower(), "example.com/a", "v1.0.0")
	select {
	case err := <-refused["original"]:
		t.Errorf("the original is refused: %v", err)
	case err := <-refused["copy"]:
		t.Errorf("OnRefused twice: %v", err)
	default:
	}
}

// The one that started first is told when a copy of it has started later and was taken.
func TestOriginalLearnsOfCopy(t *testing.T) {
	refused := make(chan error, 1)
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		if i == 1 {
			conf.OnRefused = func(err error) { refused <- err }
		}
	}
	c.grow(2)
	later := c.nodes[1].Self()
	later.Starts, later.Boot = later.Starts+1, "other"
	c.lead("register", func(lead *Node) error { _, err := lead.propose(t.Context(), registerCommand{later}); return err })
	if err := <-refused; !errors.Is(err, ErrClone) {
		t.Errorf("OnRefused(%v)", err)
	}
}

// A node that has another address than before is found again, although its leader does not know where it is.
func TestMovedNode(t *testing.T) {
	c := newCluster(t, 3)
	i := c.follower()
	c.close(i)
	id, err := Identify(c.dirs[i])
	if err != nil {
		t.Fatal(err)
	}
	c.net.mu.Lock()
	delete(c.net.hosts, c.addr(i))
	c.net.mu.Unlock()
	h := c.net.stream(id.Node, "elsewhere")
	n := openNode(t, Config{Dir: c.dirs[i], Stream: h, Forward: h.forward, Join: true, HeartbeatTimeout: 500 * time.Millisecond})
	c.nodes[i] = n
	c.registered(i)
	if got := c.leader().addressOf(id.Node); got != "elsewhere" {
		t.Errorf("the leader looks for it at %s", got)
	}
	c.publish("example.com/a", "v1.0.0")
	c.same()
}

// A name is one node's, whoever comes later.
func TestNameTaken(t *testing.T) {
	refused := make(chan error, 1)
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		if i == 1 {
			conf.Self.Name = "node0"
			conf.OnRefused = func(err error) { refused <- err }
		}
	}
	c.grow(1)
	c.registered(0)
	n := c.open(c.add())
	c.lead("join", func(lead *Node) error { return lead.Join(t.Context(), Member{ID: n.ID(), Address: c.addr(1)}) })
	if err := <-refused; !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), c.nodes[0].ID()) || !strings.Contains(err.Error(), "host0") {
		t.Errorf("OnRefused(%v), want whose name it is", err)
	}
}

// A node that finds another root than the majority serves nothing any more, and says so; it never says that a module
// version does not exist.
func TestDiverged(t *testing.T) {
	c := newCluster(t, 3)
	c.join(c.add(), false)
	m := c.publish("example.com/a", "v1.0.0")
	c.same()
	n := c.nodes[c.follower()]
	var others []string
	for _, o := range c.nodes[:3] {
		if o != n {
			others = append(others, o.ID())
		}
	}
	seq, root := n.Root()
	wrong, wronger := root, root
	wrong[0] ^= 1
	wronger[0] ^= 2
	n.Compare(others[0], seq, wrong)
	n.Compare(others[0], seq, wronger) // it contradicts itself, and has one vote all the same
	n.Compare(others[0], seq, wrong)
	n.Compare(c.nodes[3].ID(), seq, wrong) // has no vote
	n.Compare(others[1], seq+1, wrong)
	n.Compare("stranger", seq, wrong)
	n.Compare(n.ID(), seq, wrong)
	n.Compare(others[1], seq, root)
	if st, err := n.Status(t.Context()); err != nil || st.Diverged != "" {
		t.Errorf("Status() = %+v, %v: no majority has another root", st, err)
	}
	if _, err := n.Manifest(t.Context(), m.Module); err != nil {
		t.Error(err)
	}
	n.Compare(others[1], seq, wrong)
	if st, err := n.Status(t.Context()); err != nil || !strings.Contains(st.Diverged, "2 of 3 voters") || st.Seq != seq {
		t.Errorf("Status() = %+v, %v", st, err)
	}
	for _, mv := range []module.Version{m.Module, {Path: "example.com/none", Version: "v1.0.0"}} {
		if _, err := n.Manifest(t.Context(), mv); !errors.Is(err, artifact.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Manifest(%v) of a diverged node: %v", mv, err)
		}
	}
	if _, err := n.propose(t.Context(), ackForkCommand{"x"}); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a diverged node writes: %v", err)
	}
	for i, o := range c.nodes {
		if o == n {
			c.close(i)
		}
	}
	c.publish("example.com/b", "v1.0.0")
}

// Whether two nodes hold the same is known at the newest place of which both know the root, and else not at all.
func TestAgrees(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	db := trusting(t, n)
	publish(t, n, db, "example.com/a", "v1.0.0")
	n.followRoots()
	at, root := n.Root()
	publish(t, n, db, "example.com/b", "v1.0.0")
	newer, newest := n.Root()
	wrong := tlog.RecordHash([]byte("other"))
	for _, step := range []struct {
		seq         int64
		root        tlog.Hash
		same, known bool
	}{
		{newer + 1, wrong, false, false}, // ahead of this node
		{at, wrong, false, true},
		{at, root, true, true},
		{newer, wrong, false, true},
		{newer, newest, true, true},
		{newer + 2, wrong, true, true}, // what is known is older
	} {
		n.Compare("other", step.seq, step.root)
		if same, known := n.Agrees("other"); same != step.same || known != step.known {
			t.Errorf("after (%d, %v): %v, %v, want %v, %v", step.seq, step.root, same, known, step.same, step.known)
		}
	}
	if _, known := n.Agrees("stranger"); known {
		t.Error("a node that said nothing agrees or does not")
	}
}

// What is said ahead of this node is remembered until it gets there.
func TestDivergedLater(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[c.follower()]
	for _, o := range c.nodes {
		if o != n {
			n.Compare(o.ID(), 1, tlog.RecordHash([]byte("other")))
		}
	}
	if st, _ := n.Status(t.Context()); st.Diverged != "" {
		t.Errorf("diverged at a number of leaves that it does not have: %s", st.Diverged)
	}
	c.publish("example.com/a", "v1.0.0")
	waitFor(t, "divergence", func() bool { st, _ := n.Status(t.Context()); return st.Diverged != "" })
}
