package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/sumdb/sumdbtest"
)

// simChaos is for how long there are faults.
const simChaos = 4 * time.Minute

// A fault is something that happens to a cluster, with how probable it is compared with the others.
type simFault struct {
	weight int
	what   func(s *sim)
}

var simFaults = []simFault{
	{10, (*sim).partition},
	{5, (*sim).oneWay},
	{5, (*sim).isolateLeader},
	{5, (*sim).losses},
	{10, (*sim).healNetwork},
	{8, func(s *sim) { s.crash(s.anyNode(), false) }},
	{10, func(s *sim) { s.crash(s.anyNode(), true) }},
	{4, func(s *sim) {
		if l := s.lead(); l != nil {
			s.crash(l.node, s.rng.IntN(2) == 0)
		}
	}},
	{2, (*sim).blackout},
	{4, (*sim).restart},
	{12, (*sim).startSome},
	{2, (*sim).replace},
	{4, (*sim).diskFull},
	{3, (*sim).diskSlow},
	{4, (*sim).diskFails},
	{5, (*sim).rot},
	{5, (*sim).transfer},
	{4, (*sim).suffrage},
	{10, (*sim).upstreamLies},
	{6, (*sim).databaseLies},
	{2, (*sim).databaseForks},
	{8, (*sim).sourceHeals},
}

// faults has things happen until the time is over.
func (s *sim) faults() {
	s.sleep(5 * time.Second) // most seeds begin with a cluster that has been founded, some do not
	total := 0
	for _, f := range simFaults {
		total += f.weight
	}
	for end := time.Now().Add(simChaos); time.Now().Before(end) && !s.broken(); {
		pick := s.rng.IntN(total)
		for _, f := range simFaults {
			if pick -= f.weight; pick < 0 {
				f.what(s)
				break
			}
		}
		s.sleep(time.Duration(s.rng.Int64N(int64(4 * time.Second))))
	}
}

func (s *sim) anyNode() *simNode { return s.nodes[s.rng.IntN(len(s.nodes))] }

func (s *sim) tell(n *simNode, format string, args ...any) {
	s.trace.add(n.name, "FAULT: "+format, args...)
}

// partition cuts the machines in two, sometimes in one direction only.
func (s *sim) partition() {
	var a, b []string
	for _, n := range s.nodes {
		if s.rng.IntN(2) == 0 {
			a = append(a, n.ip)
		} else {
			b = append(b, n.ip)
		}
	}
	both := s.rng.IntN(3) > 0
	s.trace.add("net", "FAULT: partition %v | %v, both ways: %v", a, b, both)
	for _, x := range a {
		for _, y := range b {
			s.net.setCut(x, y, true)
			if both {
				s.net.setCut(y, x, true)
			}
		}
	}
}

func (s *sim) oneWay() {
	a, b := s.anyNode(), s.anyNode()
	if a != b {
		s.trace.add("net", "FAULT: nothing comes from %s to %s", a.name, b.name)
		s.net.setCut(a.ip, b.ip, true)
	}
}

func (s *sim) isolateLeader() {
	l := s.lead()
	if l == nil {
		return
	}
	in, out := s.rng.IntN(3) > 0, s.rng.IntN(3) > 0
	s.tell(l.node, "the leader is isolated, in: %v, out: %v", in, out)
	for _, o := range s.nodes {
		if o != l.node {
			s.net.setCut(o.ip, l.node.ip, in)
			s.net.setCut(l.node.ip, o.ip, out)
		}
	}
}

func (s *sim) losses() {
	n := s.anyNode()
	s.tell(n, "a third of what it sends is lost")
	for _, o := range s.nodes {
		s.net.setLoss(n.ip, o.ip, 0.3)
	}
}

func (s *sim) healNetwork() {
	s.trace.add("net", "is healed")
	s.net.heal()
}

func (s *sim) crash(n *simNode, power bool) {
	if n.life.Load() == nil {
		return
	}
	s.tell(n, "crash, power lost: %v", power)
	n.fail(power)
}

// blackout takes the power from all machines at once.
func (s *sim) blackout() {
	s.trace.add("sim", "FAULT: the power is lost everywhere")
	for _, n := range s.nodes {
		n.fail(true)
	}
	s.sleep(time.Duration(s.rng.Int64N(int64(5 * time.Second))))
	for _, n := range s.nodes {
		n.start()
	}
}

func (s *sim) restart() {
	n := s.anyNode()
	if n.life.Load() != nil {
		s.tell(n, "is stopped in order")
		n.stop()
	}
}

// startSome starts most of what is down, and what has stopped writing again.
func (s *sim) startSome() {
	for _, n := range s.nodes {
		if l := n.life.Load(); l != nil && l.n.fault() != nil {
			s.trace.add(n.name, "is restarted, as its disk failed: %v", l.n.fault())
			n.stop()
		}
		if s.rng.IntN(4) > 0 {
			n.start()
		}
	}
}

// replace takes a machine's disk away: the node is lost, an operator removes it, and a new one is started in its place. That is
// done to a cluster that is whole: one that has lost a disk must not lose another before the first is replaced.
func (s *sim) replace() {
	n := s.anyNode()
	if s.heal(); n.id() == "" || !s.becomesWhole(40*time.Second) {
		return
	}
	s.tell(n, "loses its disk: node %s is gone for ever", n.id())
	s.gone = append(s.gone, n.id())
	synctest.Wait()
	if l := n.life.Load(); l != nil {
		n.bury(l, true)
	}
	n.wipe()
	if s.rotten == n {
		s.rotten = nil
	}
	s.removeGone(20 * time.Second)
	n.start()
}

// removeGone removes the nodes that are lost for ever, as an operator does: again and again.
func (s *sim) removeGone(patience time.Duration) {
	for end := time.Now().Add(patience); len(s.gone) > 0 && time.Now().Before(end) && !s.broken(); s.sleep(time.Second) {
		l := s.lead()
		if l == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
		err := l.n.replica.Remove(ctx, s.gone[0])
		cancel()
		s.trace.add(l.node.name, "is told to remove %s: %v", s.gone[0], err)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			s.gone = s.gone[1:]
		}
	}
}

func (s *sim) diskFull() {
	n := s.anyNode()
	s.tell(n, "its disk is full")
	n.disk.setFull(true)
	if s.rng.IntN(2) == 0 {
		s.sleep(time.Duration(s.rng.Int64N(int64(10 * time.Second))))
		s.tell(n, "its disk has room again")
		n.disk.setFull(false)
	}
}

func (s *sim) diskSlow() {
	n := s.anyNode()
	s.tell(n, "its disk is slow")
	n.disk.setSlow(time.Duration(s.rng.Int64N(int64(8 * time.Second))))
}

func (s *sim) diskFails() {
	n := s.anyNode()
	s.tell(n, "an fsync fails")
	n.disk.failOnce(syscall.EIO)
}

// rot flips bits in blobs of a node that is down, or takes it down for that: a process does not look again at what it has read
// once until it is scrubbed. It is always the same machine, so that of no blob all copies are lost.
func (s *sim) rot() {
	if s.rotten == nil {
		s.rotten = s.anyNode()
	}
	n := s.rotten
	n.fail(false)
	for range 1 + s.rng.IntN(3) {
		digest, ok, err := n.disk.rot(n.data)
		if err != nil {
			panic(err)
		}
		if ok {
			s.tell(n, "a bit of blob %.12s is flipped", digest)
		}
	}
	n.start()
}

func (s *sim) transfer() {
	l := s.lead()
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	err := l.n.replica.TransferLeadership(ctx)
	s.trace.add(l.node.name, "is told to hand the leadership over: %v", err)
}

// suffrage takes the vote from a node, or gives it one.
func (s *sim) suffrage() {
	l, n := s.lead(), s.anyNode()
	if l == nil || n.id() == "" {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	what, do := "promote", l.n.replica.Promote
	if s.rng.IntN(2) == 0 {
		what, do = "demote", l.n.replica.Demote
	}
	err := do(ctx, n.id())
	s.trace.add(l.node.name, "is told to %s %s: %v", what, n.name, err)
}

func (s *sim) upstreamLies() {
	lying, stalls, down := []float64{0, 0.1, 0.5, 1}[s.rng.IntN(4)], []float64{0, 0, 0.1, 0.5}[s.rng.IntN(4)], s.rng.IntN(6) == 0
	s.trace.add("upstream", "FAULT: lies: %v, stalls: %v, down: %v", lying, stalls, down)
	s.source.set(func() { s.source.lying, s.source.stalls, s.source.down = lying, stalls, down })
}

func (s *sim) databaseLies() {
	all := s.source.versions()
	m := all[s.rng.IntN(len(all))]
	forged := sumdbtest.Text(m, sumdbtest.Sum("forged"), sumdbtest.Sum("forged mod"))
	lies := []sumdbtest.Lies{
		{Down: true}, {Missing: true}, {FrozenAt: 100}, {RollBack: 150}, {WrongKey: true}, {TilesDown: true}, {TilesMissing: true},
		{Junk: "junk\n"}, {NoHead: true}, {Between: "example.com/x v1.0.0 h1:x\n"}, {Records: map[module.Version]string{m: forged}}, {Silent: "lookup"}, {Silent: "tile"},
	}
	l := lies[s.rng.IntN(len(lies))]
	s.trace.add("database", "FAULT: lies: %+v", l)
	s.source.main.Lie(l)
}

func (s *sim) databaseForks() {
	var some []string
	for _, n := range s.nodes {
		if s.rng.IntN(3) == 0 {
			some = append(some, n.ip)
		}
	}
	s.trace.add("database", "FAULT: shows another history to %v", some)
	s.source.split(some)
}

func (s *sim) sourceHeals() {
	s.trace.add("upstream", "it and the database are honest")
	s.source.heal()
}

// whole reports whether all nodes run and hold all that is committed, with as many voters as wanted.
func (s *sim) whole() bool { return s.lacks() == "" }

// lacks says what is wrong with the cluster; "" if nothing is.
func (s *sim) lacks() string {
	lead := s.lead()
	if lead == nil {
		return "there is no leader"
	}
	seq, root := lead.n.replica.Root()
	voters := 0
	for _, m := range lead.n.replica.Members() {
		if m.Voter {
			voters++
		}
	}
	if voters < s.voters {
		return fmt.Sprintf("%d voters of %d", voters, s.voters)
	}
	var wrong []string
	for _, n := range s.nodes {
		if why := n.lacks(seq, root); why != "" {
			wrong = append(wrong, n.name+" "+why)
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "; ")
}

// lacks says what a node lacks to be as good as the leader, whose catalog has seq leaves.
func (n *simNode) lacks(seq int64, root tlog.Hash) string {
	l := n.serving()
	if l == nil {
		return "does not serve"
	}
	st := l.n.self(l.ctx)
	pending, _ := os.ReadDir(filepath.Join(n.data, "pending"))
	switch {
	case st.Ready != "ok":
		return "is not ready: " + st.Ready
	case st.Seq != seq || st.Root != root.String():
		return fmt.Sprintf("has %d leaves of %d", st.Seq, seq)
	case st.Missing > 0 || st.Blobs < seq:
		return fmt.Sprintf("holds the blobs of %d leaves of %d, %d are missing", st.Blobs, seq, st.Missing)
	case st.Unproven > 0: // nobody may have asked for them, and still they are proven
		return fmt.Sprintf("has %d blobs to prove", st.Unproven)
	case st.Proves < seq:
		return fmt.Sprintf("proves %d leaves of %d", st.Proves, seq)
	case len(pending) > 0 && !n.sim.source.hasForked(): // what was verified in the history that lost is never committed
		return fmt.Sprintf("has %d publications that wait for a quorum", len(pending))
	}
	return ""
}

// settle ends all faults, does what an operator would do, and waits until the cluster is well again: I8.
func (s *sim) settle() {
	s.heal()
	s.awaitWhole(simSettle)
}

// heal ends all faults, and starts what is down.
func (s *sim) heal() {
	s.trace.add("sim", "everything is healed")
	s.net.heal()
	s.source.heal()
	for _, n := range s.nodes {
		n.disk.setFull(false)
		n.disk.setSlow(0)
		n.disk.failOnce(nil)
		if l := n.life.Load(); l != nil && l.n.fault() != nil {
			s.trace.add(n.name, "is restarted, as its disk failed: %v", l.n.fault())
			n.stop()
		}
		n.start()
	}
}

// becomesWhole waits until the cluster is whole by itself, and reports whether it is in time.
func (s *sim) becomesWhole(patience time.Duration) bool {
	for end := time.Now().Add(patience); time.Now().Before(end) && !s.broken(); s.sleep(time.Second) {
		if s.whole() {
			return true
		}
	}
	return false
}

// awaitWhole does what an operator would do until the cluster is whole, at most for so long.
func (s *sim) awaitWhole(patience time.Duration) {
	begin, why := time.Now(), ""
	for ; time.Since(begin) < patience && !s.broken(); s.sleep(time.Second) {
		s.removeGone(time.Second)
		s.operate()
		if why = s.lacks(); why == "" {
			s.trace.add("sim", "is whole after %v", time.Since(begin))
			return
		}
	}
	if !s.broken() {
		s.check.violated("I8: %v after everything was healed: %s", patience, why)
	}
}

// simSettle is how long a cluster may take to be whole once everything is healed.
const simSettle = 3 * time.Minute

// operate is what an operator does in the end: stay with the history of the database that the cluster has, acknowledge a fork,
// and give back the votes that were taken away.
func (s *sim) operate() {
	if !s.check.follows("main") { // it saw the other history first: for this cluster, that is the true one
		for _, n := range s.nodes {
			s.source.split([]string{n.ip})
		}
	}
	l := s.lead()
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	if _, err := l.n.replica.Fork(ctx, simDatabase); err == nil {
		s.trace.add(l.node.name, "is told to acknowledge the fork: %v", l.n.replica.AckFork(ctx, simDatabase))
	}
	all, err := l.n.replica.Peers(ctx)
	if err != nil {
		return
	}
	for _, p := range all {
		if p.Member && !p.Voter && p.Held {
			s.trace.add(l.node.name, "is told to promote %s: %v", p.Name, l.n.replica.Promote(ctx, p.ID))
		}
	}
}
