package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// Config says how to open a node. Only Dir is needed.
type Config struct {
	Dir     string                // data directory; created if it does not exist
	Log     *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: no metrics

	// OnFault is called once, on a goroutine of its own, when a write or fsync failed or hangs. The node has stopped
	// writing then, for good, and leaves the cluster's work to others; reads go on. nil: nobody is told.
	OnFault func(error)

	// OnFork is called for each fork of a checksum database whose evidence is committed on this node, on a goroutine of
	// its own, one at a time: when it is committed, and once at Open for what was before. nil: nobody is told.
	OnFork func(artifact.Fork)

	// Transport carries raft's messages; the node closes it. nil: there are no other nodes (yet).
	Transport raft.Transport

	// Join: a new node waits until a leader adds it. false: a new node founds a cluster of its own. It has no meaning
	// for a node that has been part of a cluster before.
	Join bool

	HeartbeatTimeout  time.Duration // until a follower that hears nothing stands for election; 0: 1 s
	CommitTimeout     time.Duration // until followers of an idle leader hear of the last commit; 0: 50 ms
	TrailingLogs      uint64        // entries kept in the log after a snapshot, for followers that catch up; 0: 1,000,000
	SnapshotThreshold uint64        // entries after which the log is cut; 0: 50,000
	SnapshotInterval  time.Duration // how often the threshold is looked at; 0: 5 minutes
	LogBudget         int64         // bytes of log above which fewer entries are kept than TrailingLogs; 0: 8 GiB

	wrapLog func(logBackend) logBackend // set by tests to make the disk fail
	hung    time.Duration               // set by tests; 0: the constant
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.HeartbeatTimeout = orDefault(c.HeartbeatTimeout, time.Second)
	c.CommitTimeout = orDefault(c.CommitTimeout, 50*time.Millisecond)
	c.TrailingLogs = orDefault(c.TrailingLogs, 1_000_000)
	c.SnapshotThreshold = orDefault(c.SnapshotThreshold, 50_000)
	c.SnapshotInterval = orDefault(c.SnapshotInterval, 5*time.Minute)
	c.LogBudget = orDefault(c.LogBudget, 8<<30)
	c.hung = orDefault(c.hung, hung)
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// raftConfig: MaxAppendEntries stays at 64, because an RPC has 10 s whatever its size; a lease of half the heartbeat
// timeout leaves room for heartbeats, which are sent every tenth to fifth of it.
func (c *Config) raftConfig(id string) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(id)
	r.HeartbeatTimeout, r.ElectionTimeout = c.HeartbeatTimeout, c.HeartbeatTimeout
	r.LeaderLeaseTimeout = c.HeartbeatTimeout / 2
	r.CommitTimeout = c.CommitTimeout
	r.MaxAppendEntries = 64
	r.BatchApplyCh = true
	r.TrailingLogs = c.TrailingLogs
	r.SnapshotThreshold, r.SnapshotInterval = c.SnapshotThreshold, c.SnapshotInterval
	r.NoSnapshotRestoreOnStart = true // the catalog is the snapshot, and it is there
	r.NoLegacyTelemetry = true
	r.Logger = newRaftLog(c.Log)
	return r
}

// Node is one member of the cluster. Its methods may be called at the same time.
type Node struct {
	*catalog
	config Config
	log    *slog.Logger
	id     identity

	lock    *os.File // of the directory; nil where there is no such lock
	store   *sealedLog
	raft    *raft.Raft
	latch   *latch
	metrics *metrics
	leading chan bool // raft tells every change

	queue        chan *proposal
	stopping     chan struct{}         // closed by Close
	proposerDone chan struct{}         // closed by runProposer
	forked       chan struct{}         // has room for one; the evidence of a fork may have been committed
	raftDone     chan struct{}         // closed once raft has been told to end
	ready        chan struct{}         // closed once this node has led and was caught up
	office       atomic.Pointer[error] // why the last leadership of this node did not begin
	closeOnce    sync.Once
	closeErr     error
	background   sync.WaitGroup
}

// Open opens the node in c.Dir and takes part in its cluster. The only voter of a cluster returns when it leads and its
// catalog is caught up, or when it cannot because the disk is full; a member of a larger one returns at once, its reads work, its writes follow when there is a
// leader. ctx bounds Open only; its deadline counts from when the files are open, as the scan of a large log
// takes the time that it takes. The error matches [ErrLocked] if another process has c.Dir open.
func Open(ctx context.Context, c Config) (*Node, error) {
	c.setDefaults()
	n := &Node{
		config: c, log: c.Log, catalog: newCatalog(filepath.Join(c.Dir, "catalog.db")), latch: newLatch(c.Dir, c.OnFault),
		leading: make(chan bool, 16), queue: make(chan *proposal, maxQueue), stopping: make(chan struct{}),
		proposerDone: make(chan struct{}), raftDone: make(chan struct{}), ready: make(chan struct{}), forked: make(chan struct{}, 1),
	}
	n.damage.log = c.Log
	rest := restOf(ctx)
	err := n.openFiles()
	if err == nil {
		err = n.start()
	}
	if err == nil {
		ctx, cancel := rest()
		defer cancel()
		err = n.awaitReady(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open node in %s: %w", c.Dir, printable(err)), n.Close())
	}
	return n, nil
}

// restOf notes how much time ctx leaves now, and returns a context that leaves as much later. It ends with ctx, unless ctx
// merely ran out of time.
func restOf(ctx context.Context) func() (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	left := time.Until(deadline)
	return func() (context.Context, context.CancelFunc) {
		if !ok {
			return ctx, func() {}
		}
		later, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
		stop := context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.Canceled) {
				cancel()
			}
		})
		return later, func() { stop(); cancel() }
	}
}

// openFiles opens, and creates for a node that is new, node.json, the log and the catalog, in this order. The directory is
// locked before, and so is the log, which whoever only reads (fsck) locks too.
func (n *Node) openFiles() (err error) {
	c := &n.config
	logDir := filepath.Join(c.Dir, "raft")
	if err := errors.Join(makeDir(c.Dir), makeDir(logDir)); err != nil {
		return err
	}
	if n.lock, err = lockDir(c.Dir); err != nil {
		return err
	}
	if n.id, err = loadIdentity(c.Dir, c.Join); err != nil {
		return err
	}
	if c.Transport == nil {
		_, c.Transport = raft.NewInmemTransport(raft.ServerAddress(n.id.Node))
	}
	hadLog, err := exists(logPath(c.Dir))
	if err != nil {
		return err
	}
	if !hadLog {
		if err := n.createLog(); err != nil {
			return err
		}
	}
	if n.store, err = openLog(logPath(c.Dir)); err != nil {
		return advised(err)
	}
	if err := errors.Join(sweep(c.Dir), sweep(logDir)); err != nil {
		return err
	}
	if err := n.openCatalog(); err != nil {
		return err
	}
	if err := n.checkFiles(); err != nil {
		return err
	}
	return n.settle(logDir)
}

// createLog creates the log of a new node: empty, or with the first entry of a new cluster, whose only member it is. A
// node without its log must not start anew: its votes are lost, and it could vote twice in one term.
func (n *Node) createLog() error {
	if n.id.State != stateNew {
		return fmt.Errorf("there is no raft log, although node.json says that there was one; %s", restore)
	}
	if have, err := exists(n.path); err != nil {
		return err
	} else if have {
		return fmt.Errorf("there is a catalog, but there is no raft log; %s", restore)
	}
	var servers []raft.Server
	if n.id.Cluster != "" {
		servers = []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(n.id.Node), Address: n.config.Transport.LocalAddr()}}
	}
	return createLog(logPath(n.config.Dir), n.config.raftConfig(n.id.Node), n.config.Transport, servers)
}

// openCatalog opens the catalog. It is created only for a new node, whose log cannot have led to anything yet.
func (n *Node) openCatalog() error {
	last, err := n.store.LastIndex()
	if err != nil {
		return err
	}
	if n.id.State == stateNew && last <= 1 {
		if err := createCatalog(n.path); err != nil {
			return err
		}
	}
	db, err := openDB(n.path, false)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the raft log ends at index %d, but there is no catalog; %s", last, restore)
	}
	if err != nil {
		return advised(err)
	}
	n.db = db
	return nil
}

// checkFiles reports whether node.json, log and catalog belong together, and whether raft will find what it reads first.
func (n *Node) checkFiles() error {
	var index, term uint64
	var cluster string
	if err := n.view(func(s state) error {
		index, term = s.applied()
		cluster = s.cluster()
		return s.checkConfig()
	}); err != nil {
		return fmt.Errorf("%w; %s", err, restore)
	}
	f, err := factsOf(n.store, index)
	if err != nil {
		return fmt.Errorf("%w; %s", err, restore)
	}
	if err := cmp.Or(n.id.wrote(f), f.agree(index, term)); err != nil {
		return err
	}
	if err := n.store.readable(f, index); err != nil {
		return fmt.Errorf("%w; %s", err, restore)
	}
	return n.id.agree(cluster)
}

// settle notes in node.json that log and catalog are there, durably, and of which cluster, before either is used. From
// now on a start without them is refused.
func (n *Node) settle(logDir string) error {
	// Who created them may have died before this.
	if err := errors.Join(syncDir(logDir), syncDir(n.config.Dir)); err != nil {
		return err
	}
	id := n.id
	id.State = stateFounded
	if id.Cluster == "" {
		if err := n.view(func(s state) error { id.Cluster = s.cluster(); return nil }); err != nil {
			return err
		}
	}
	if id == n.id {
		return nil
	}
	n.id = id
	return replaceFile(filepath.Join(n.config.Dir, "node.json"), id.write)
}

// start starts raft and the node's own goroutines.
func (n *Node) start() (err error) {
	n.metrics = newMetrics(n)
	var backend logBackend = n.store
	if n.config.wrapLog != nil {
		backend = n.config.wrapLog(backend)
	}
	log := &logStore{logBackend: backend, latch: n.latch, limit: n.config.hung, ended: n.raftDone}
	cached, err := raft.NewLogCache(logCache, log)
	if err != nil {
		return err
	}
	snaps := newSnapshots(n.catalog, n.latch)
	machine := &fsm{catalog: n.catalog, snapshots: snaps, stable: log, latch: n.latch, log: n.log, metrics: n.metrics, limit: n.config.hung, ended: n.raftDone, forked: n.mayHaveForked}
	conf := n.config.raftConfig(n.id.Node)
	conf.NotifyCh = n.leading
	conf.HeartbeatTimeout += time.Millisecond // see hurry
	conf.ElectionTimeout += time.Millisecond
	if err := safely(true, func() (err error) { // raft panics if an entry is missing, or cannot be read
		n.raft, err = raft.NewRaft(conf, machine, cached, log, snaps, n.config.Transport)
		return err
	}); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	log.running.Store(true)
	n.background.Add(1)
	go n.watch()
	scrub, stop := context.WithCancel(context.Background())
	n.background.Go(func() { <-n.stopping; stop() })
	n.background.Go(func() { n.scrub(scrub) })
	n.background.Go(n.tellForks)
	go n.runProposer()
	if err := n.metrics.register(); err != nil {
		return err
	}
	if n.alone() {
		return n.hurry()
	}
	return nil
}

// awaitReady waits until the only voter of a cluster leads and is caught up. On a full disk it cannot lead: then what is
// stored is served at once, and writes follow when there is room.
func (n *Node) awaitReady(ctx context.Context) error {
	if !n.alone() {
		return nil
	}
	full, _ := n.latch.short()
	select {
	case <-n.ready:
		return nil
	case <-full:
		n.log.Warn("the disk is full: what is stored is served, nothing new is taken until there is room", "err", n.isShort())
		return nil
	case <-n.latch.done:
		return n.latch.fault()
	case <-ctx.Done():
		return fmt.Errorf("wait to lead: %w: %s", ctx.Err(), n.whyNot())
	}
}

// whyNot says what a node that does not lead is doing instead.
func (n *Node) whyNot() string {
	if err := n.office.Load(); err != nil {
		return (*err).Error()
	}
	return fmt.Sprintf("raft is a %s of term %d, its log ends at index %d", roles[n.raft.State()], n.raft.CurrentTerm(), n.raft.LastIndex())
}

// ID returns the node's id, which it has for ever.
func (n *Node) ID() string { return n.id.Node }

// Status returns what the node knows of itself. It asks nobody.
func (n *Node) Status(ctx context.Context) (Status, error) {
	st := Status{ID: n.id.Node, Role: "shutdown"}
	select {
	case <-n.raftDone: // raft itself may call itself a follower then
	default:
		addr, leader := n.raft.LeaderWithID()
		st.Role, st.Leader, st.LeaderAddress = roles[n.raft.State()], string(leader), string(addr)
	}
	if info, err := os.Stat(logPath(n.config.Dir)); err == nil {
		st.LogBytes = info.Size()
	}
	if err := n.latch.fault(); err != nil {
		st.Fault = err.Error()
	} else if _, err := n.latch.short(); err != nil {
		st.Fault, st.Full = err.Error(), true
	}
	err := n.fill(ctx, &st)
	st.Term = n.raft.CurrentTerm()
	return st, err
}

var roles = map[raft.RaftState]string{raft.Follower: "follower", raft.Candidate: "candidate", raft.Leader: "leader", raft.Shutdown: "shutdown"}

// StopWrites ends this node's writes as a fault of its own disk does: for whoever keeps other files on that disk, such as
// blobs, and saw a write of them fail. Only the first reason counts.
func (n *Node) StopWrites(reason error) { n.latch.trip(reason) }

// closeWait bounds how long Close waits for a disk that hangs.
const closeWait = 30 * time.Second

// Close stops taking part in the cluster and closes the files. What was committed is durable already. It waits for what is
// under way, but not for ever: after a disk hung for half a minute it gives up and says so.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		close(n.stopping)
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.background.Wait()
			if n.raft != nil {
				<-n.proposerDone
			}
			n.closeErr = n.closeFiles()
		}()
		select {
		case <-done:
			n.metrics.close()
		case <-time.After(closeWait):
			n.closeErr = errors.New("close node: the disk hangs")
		}
	})
	return n.closeErr
}

func (n *Node) closeFiles() error {
	err := n.close()
	if n.store != nil {
		err = errors.Join(err, n.store.Close())
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.Close())
	}
	if t, ok := n.config.Transport.(raft.WithClose); ok && n.raft == nil {
		err = errors.Join(err, t.Close()) // otherwise raft has closed it
	}
	return err
}
