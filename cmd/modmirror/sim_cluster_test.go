package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/synctest"
	"time"

	"github.com/spf13/pflag"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// sim is one simulation: a cluster of whole nodes, as `modmirror serve` builds them, on a simulated network, with simulated
// disks for their blobs, in front of a simulated upstream. It runs in a bubble of synctest.
type sim struct {
	seed   uint64
	rng    *rand.Rand // of the faults: one goroutine uses it
	dir    string
	trace  *simTrace
	net    *simNet
	source *simSource
	check  *simChecker
	token  string // file
	loss   string // what nodes do without a quorum
	short  bool   // they keep little of the log

	voters int
	nodes  []*simNode
	gone   []string // ids of nodes that are lost and not removed yet
	rotten *simNode // whose bits flip

	clients sync.WaitGroup
	lives   sync.WaitGroup
}

// simNode is a machine. Its disk is replaced by a wipe.
type simNode struct {
	sim    *sim
	name   string // of the machine
	number int
	ip     string
	zone   string
	role   string
	extra  []string // further flags

	wipes int
	crash int // lives so far
	disk  *simDisk
	data  string   // the directory of the present life, or of the next one
	host  *simHost // of the present life, or of the last
	back  func()   // what the network does when the machine is back; nil: nothing

	life   atomic.Pointer[simLife] // nil: it is down
	lastID atomic.Pointer[string]  // of the node on the present disk; nil: not known
}

// simLife is a process on a machine.
type simLife struct {
	node   *simNode
	name   string
	n      *node
	host   *simHost
	mount  atomic.Pointer[simMount]
	ctx    context.Context
	cancel context.CancelFunc
	dead   atomic.Bool   // nothing that it does counts any more
	opened chan struct{} // closed when it serves, or has failed to
	done   chan struct{} // closed when all of it has ended
}

func newSim(seed uint64, dir string, trace *simTrace) (*sim, error) {
	s := &sim{seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), dir: dir, trace: trace, net: newSimNet(seed), token: filepath.Join(dir, "token")}
	s.check = newSimChecker(s)
	s.source = newSimSource(s.net, seed)
	if err := s.source.serve(); err != nil {
		return nil, err
	}
	s.voters = []int{3, 3, 5}[s.rng.IntN(3)]
	s.short = s.rng.IntN(2) == 0
	s.loss = []string{lossPassThrough, lossFail}[s.rng.IntN(2)]
	replicas := 2
	for i := range s.voters + replicas {
		n := &simNode{sim: s, name: fmt.Sprintf("n%d", i+1), number: i, zone: []string{"eu1", "eu2", "us1"}[i%3], role: roleVoter}
		n.ip = fmt.Sprintf("10.0.%d.%d", i%3, i+1)
		if i >= s.voters {
			n.role = roleReplica
		}
		n.wipe()
		s.nodes = append(s.nodes, n)
	}
	return s, os.WriteFile(s.token, []byte(peer.NewToken().String()+"\n"), 0o600)
}

// shortLog has nodes keep little of the log, so that who was away gets a snapshot of the catalog; in half of the seeds.
func (s *sim) shortLog(c *replicate.Config) {
	if s.short {
		c.TrailingLogs, c.SnapshotThreshold, c.SnapshotInterval = 16, 24, 10*time.Second
	}
}

// wipe puts a new disk in. The machine must be down.
func (n *simNode) wipe() {
	if id := n.id(); id != "" {
		n.sim.check.lost(id, n.disk)
	}
	n.lastID.Store(nil)
	n.wipes++
	n.disk = newSimDisk(n.sim.seed+uint64(n.number*1000+n.wipes)<<20, func(d artifact.Digest) { n.sim.check.removed(n, d) })
	n.data = filepath.Join(n.sim.dir, fmt.Sprintf("%s.%d", n.name, n.wipes))
}

// label is what the node calls itself: another disk is another node.
func (n *simNode) label() string { return fmt.Sprintf("%s.%d", n.name, n.wipes) }

func (n *simNode) args() []string {
	var join []string
	for _, o := range n.sim.nodes {
		join = append(join, o.ip+":3001")
	}
	args := []string{"--data-dir", n.data, "--node-id", n.label(), "--listen", n.ip + ":3000", "--peer-listen", n.ip + ":3001", "--advertise", n.ip + ":3001",
		"--join", strings.Join(join, ","), "--cluster-token-file", n.sim.token, "--upstream", "http://" + simUpstream, "--sumdb", n.sim.source.main.Key(),
		"--zone", n.zone, "--role", n.role, "--voters", fmt.Sprint(n.sim.voters), "--on-quorum-loss", n.sim.loss,
		"--client-wait", "40s", "--fetch-timeout", "40s", "--zip-timeout", "40s", "--lookup-timeout", "20s"}
	if n.role == roleVoter {
		args = append(args, "--bootstrap-expect", fmt.Sprint(n.sim.voters))
	}
	return append(args, n.extra...)
}

// start starts a process on a machine that is down.
func (n *simNode) start() {
	if l := n.life.Load(); l != nil {
		select {
		case <-l.done: // it has ended by itself
			n.life.Store(nil)
			n.back = l.host.die(true)
		default:
			return
		}
	}
	if n.back != nil {
		n.back()
		n.back = nil
	}
	n.crash++
	l := &simLife{node: n, name: fmt.Sprintf("%s.%d", n.label(), n.crash), opened: make(chan struct{}), done: make(chan struct{})}
	n.sim.trace.add(n.name, "starts as %s", l.name)
	var c config
	fs := pflag.NewFlagSet(n.name, pflag.ContinueOnError)
	c.flags(fs)
	if err := errors.Join(fs.Parse(n.args()), c.validate()); err != nil {
		panic(err)
	}
	l.host = n.sim.net.host(n.ip, n.zone)
	n.host = l.host
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.n = newNode(c, n.sim.trace.logger(l.name))
	disk := n.disk
	l.n.outside = outside{network: l.host, upstream: l.host.transport(), catalog: n.sim.shortLog, disk: func(root *os.Root) artifact.Disk {
		m := disk.mount(root)
		l.mount.Store(m)
		return m
	}}
	n.life.Store(l)
	n.sim.lives.Go(l.run)
}

// run is what serve does, but for the port of the clients.
func (l *simLife) run() {
	defer close(l.done)
	defer l.cancel()
	err := l.n.open(l.ctx)
	close(l.opened)
	if err == nil {
		l.node.sim.trace.add(l.node.name, "%s serves as node %s", l.name, l.n.replica.ID())
		var watch sync.WaitGroup
		watch.Go(func() { l.node.sim.check.watch(l) })
		err = l.n.run(l.ctx)
		watch.Wait()
	}
	if err != nil && l.ctx.Err() == nil {
		l.node.sim.trace.add(l.node.name, "%s ends by itself: %v", l.name, err)
		if !errors.Is(err, syscall.EIO) { // which was injected
			l.node.sim.check.violated("%s ends by itself: %v", l.name, err)
		}
	}
	if err := l.n.close(); err != nil {
		l.node.sim.trace.add(l.node.name, "%s closes: %v", l.name, err)
	}
	l.n.outside.upstream.(*http.Transport).CloseIdleConnections()
}

// serving returns the present life if it has come so far that it serves.
func (n *simNode) serving() *simLife {
	l := n.life.Load()
	if l == nil || l.dead.Load() || l.n.front.mirror.Load() == nil {
		return nil
	}
	return l
}

// fail ends the process as a crash does, at a moment at which all others wait. With power lost, so is what was not fsynced.
func (n *simNode) fail(power bool) {
	l := n.life.Load()
	if l == nil {
		return
	}
	synctest.Wait() // from here to the end nobody else runs
	next := filepath.Join(n.sim.dir, fmt.Sprintf("%s.%d", n.label(), n.crash+1))
	if err := n.disk.image(n.data, next, power); err != nil {
		panic(err)
	}
	n.bury(l, !power)
	n.data = next
}

// bury makes a life have no effect any more, and cleans up behind it.
func (n *simNode) bury(l *simLife, reset bool) {
	l.dead.Store(true)
	n.life.Store(nil)
	if m := l.mount.Load(); m != nil {
		m.die()
	}
	n.back = l.host.die(reset)
	l.cancel()
	old := n.data
	n.sim.lives.Go(func() {
		<-l.done
		os.RemoveAll(old)
	})
}

// stop ends the process in order, as SIGTERM does.
func (n *simNode) stop() {
	l := n.life.Load()
	if l == nil {
		return
	}
	select {
	case <-l.opened:
	default:
		n.fail(false)
		return
	}
	if l.n.mirror != nil {
		if err := drain(l.ctx, l.n.config, l.n, &http.Server{}, l.n.log); err != nil {
			n.sim.trace.add(n.name, "drains: %v", err)
		}
	}
	l.dead.Store(true)
	l.cancel()
	<-l.done
	n.life.Store(nil)
	n.back = l.host.die(true)
}

// lead returns the life that leads, as it says itself.
func (s *sim) lead() *simLife {
	for _, n := range s.nodes {
		if l := n.serving(); l != nil && l.n.isLeader() == nil {
			return l
		}
	}
	return nil
}

// answer is what a client was told.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	aborted bool
}

// ask asks a node for a path, as a client does. ok is false if the process died before the answer was whole.
func (l *simLife) ask(path string, header ...string) (a answer, ok bool) {
	ctx, cancel := context.WithTimeout(l.ctx, 2*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.node.ip+path, nil)
	if err != nil {
		panic(err)
	}
	r.RemoteAddr = "198.51.100.7:4000"
	r.RequestURI = path
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := &answerWriter{header: http.Header{}}
	func() {
		defer func() {
			if v := recover(); v != nil {
				if v != http.ErrAbortHandler {
					panic(v)
				}
				w.aborted = true
			}
		}()
		l.n.front.ServeHTTP(w, r)
	}()
	return answer{w.status, w.sent, w.body.Bytes(), w.aborted}, !l.dead.Load()
}

// answerWriter keeps an answer.
type answerWriter struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
	aborted      bool
}

func (w *answerWriter) Header() http.Header { return w.header }

func (w *answerWriter) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status, w.sent = status, http.Header{}
	for k, values := range w.header { // a client does not see how a name was spelled
		for _, v := range values {
			w.sent.Add(k, v)
		}
	}
}

func (w *answerWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}
