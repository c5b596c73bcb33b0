package replicate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
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

	// OnListing is called with the path of each listing that changed here, in the order of the log, and with "" when any may
	// have changed, as a leader's snapshot took the place of the catalog. It must not block. nil: nobody is told.
	OnListing func(path string)

	// Stream carries raft's messages; the node closes it. nil: there are no other nodes (yet), and the node does not
	// register.
	Stream Stream

	// Forward carries what [Node.Accept] of the leader takes to it, and the answer back. nil: only the leader can write.
	Forward func(ctx context.Context, leader Member, body []byte) (answer []byte, err error)

	// Self is what the node registers of itself: name, address, zone, role, version. Without a name it is called by the
	// first 8 characters of its id; without a role it is a [RoleVoter].
	Self Peer

	// OnCounted is called by Open with what the node says of itself, once its directory is open and the start is counted, and before
	// anything is said to other nodes: raft dials them while Open runs. It is not called if the disk is full, see Counted. nil: nobody
	// is told.
	OnCounted func(self Peer)

	// Found: a new node founds a cluster with these voters, of which it is one. The others must be new and join. Join: a
	// new node waits until a leader adds it. Neither: a new node founds a cluster of its own. They have no meaning for a
	// node that has been part of a cluster before.
	Found *Founding
	Join  bool

	// Complete says up to which leaf a node, which may be this one, holds every blob; ok is false if that is not known now,
	// as it does not answer. One that is known to lack a blob is not to be taken for one that does not answer. It must not wait for the network. nil: no node becomes a voter by itself, and changes of the members are not held against it.
	Complete func(id string) (seq int64, ok bool)
	Voters   int // how many voters there should be; 0: 3

	// Fit says whether another node is known to be able to do all that a voter and a leader has to: it answers,
	// it takes new artifacts, it is not about to stop. It must not wait for the network. nil: each is.
	Fit func(id string) bool

	// Silent says whether another node is known not to answer: who waits for a leader gives up sooner if no majority of the voters is
	// left that could elect one. It must not wait for the network. nil: none is.
	Silent func(id string) bool

	// OnRefused is called once, on a goroutine of its own, when the cluster does not take this node, for good: it was
	// removed, or its directory is a copy, or its name is taken. It has stopped taking part; reads go on.
	OnRefused func(error)

	// Profile is how patient raft is: [ProfileLAN], [ProfileWAN], or [ProfileAuto], which takes the round trips to the other
	// voters for it: FirstTrip is the longest that was measured before Open, 0 if none was, and Trip returns that to a node as
	// measured now; ok is false if it is not known. "": ProfileLAN.
	Profile   string
	FirstTrip time.Duration
	Trip      func(id string) (trip time.Duration, ok bool)

	// Priority returns how much a node, which may be this one, is to lead, as it says itself; ok is false if it does not say. A
	// leader hands its office to a voter of a higher one, see prefer. KeepLeader reports whether it is to stay where it is all the
	// same, as an operator has put it there. Neither may wait for the network. nil: the priorities are equal; it is not.
	Priority   func(id string) (priority int, ok bool)
	KeepLeader func() bool

	HeartbeatTimeout  time.Duration // until a follower that hears nothing stands for election, with ProfileLAN; 0: 1 s
	CommitTimeout     time.Duration // until followers of an idle leader hear of a commit of which they were not told at once; 0: 250 ms
	TrailingLogs      uint64        // entries kept in the log after a snapshot, for followers that catch up; 0: 1,000,000
	SnapshotThreshold uint64        // entries after which the log is cut; 0: 50,000
	SnapshotInterval  time.Duration // how often the threshold is looked at; 0: 5 minutes
	LogBudget         int64         // bytes of log above which fewer entries are kept than TrailingLogs; 0: 8 GiB

	transport raft.Transport
	reconcile time.Duration // how often a leader looks after the members; 0: a second
	steady    time.Duration // how long something must be so before votes or the leadership move for it; 0: a minute

	wrapLog func(logBackend) logBackend // set by tests to make the disk fail
	hung    time.Duration               // set by tests; 0: the constant
	level   int                         // feature level that is supported; set by tests; 0: newestLevel
	now     func() time.Time            // set by tests; nil: the clock
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.HeartbeatTimeout = orDefault(c.HeartbeatTimeout, time.Second)
	c.CommitTimeout = orDefault(c.CommitTimeout, 250*time.Millisecond)
	c.TrailingLogs = orDefault(c.TrailingLogs, uint64(fault.Limit("trailing-logs", 1_000_000)))
	c.SnapshotThreshold = orDefault(c.SnapshotThreshold, uint64(fault.Limit("snapshot-threshold", 50_000)))
	c.SnapshotInterval = orDefault(c.SnapshotInterval, time.Duration(fault.Limit("snapshot-interval", int64(5*time.Minute))))
	c.LogBudget = orDefault(c.LogBudget, 8<<30)
	c.hung = orDefault(c.hung, artifact.HungLimit())
	c.level = orDefault(c.level, newestLevel)
	if c.now == nil {
		c.now = time.Now
	}
	c.reconcile = orDefault(c.reconcile, time.Second)
	c.steady = orDefault(c.steady, time.Duration(fault.Limit("steady", int64(time.Minute))))
	c.Voters = orDefault(c.Voters, 3)
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Founding is what a cluster of several begins with.
type Founding struct {
	Cluster string   // its id, for ever
	Servers []Member // its voters
}

// raftConfig is how raft starts, but for its pace. MaxAppendEntries stays at 64, because an RPC has 10 s
// whatever its size.
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
	pace    pace

	preference preference

	queue        chan *proposal
	stopping     chan struct{} // closed by Close
	proposerDone chan struct{} // closed by runProposer
	forked       chan struct{} // has room for one; the evidence of a fork may have been committed
	raftDone     chan struct{} // closed once raft has been told to end
	futures      futures
	ready        chan struct{}         // closed once this node has led and was caught up
	office       atomic.Pointer[error] // why the last leadership of this node did not begin
	inOffice     atomic.Bool           // it leads, and has begun to

	starts    atomic.Uint64               // of this life; equal to the one before as long as the disk is full, see settle
	uncounted atomic.Bool                 // this start is not in node.json yet
	boot      string                      // random text of this life
	raftRef   atomic.Pointer[raft.Raft]   // raft, for goroutines that it starts itself
	book      atomic.Pointer[addressBook] // where nodes are
	conns     openConns                   // raft's, to the other nodes
	applied   broadcast                   // something was applied
	moved     broadcast                   // the leadership moved
	peered    atomic.Bool                 // the node table changed, and nobody looked
	tables    atomic.Uint64               // how often it changed
	rows      atomic.Pointer[nodeTable]   // as it was read last
	pulse     pulse                       // who answers
	roots     roots                       // of the newest leaves
	rivals    rivals                      // what other nodes say about them
	refusal   atomic.Pointer[error]       // why the cluster does not take this node
	refused   chan struct{}               // closed then
	leaving   sync.Once                   // it was removed
	announcer announcer                   // of what this node commits as leader
	turn      chan struct{}               // has room for the one operator's change of the members that is under way

	closeOnce  sync.Once
	closeErr   error
	background sync.WaitGroup
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
		boot: rand.Text(), refused: make(chan struct{}), turn: make(chan struct{}, 1), announcer: announcer{telling: make(map[raft.ServerID]bool)},
	}
	n.damage.log = c.Log
	rest := restOf(ctx)
	err := n.openFiles()
	if err == nil {
		if c.OnCounted != nil && n.Counted() {
			c.OnCounted(n.Self())
		}
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
	if n.id, err = loadIdentity(c.Dir); err != nil {
		return err
	}
	n.starts.Store(n.id.Starts)
	if c.transport == nil {
		c.transport = n.newTransport()
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
	if n.id, err = completeRecovery(c.Dir, n.catalog, n.store, n.id, func(string) error { return nil }); err != nil {
		return err
	}
	if err := checkFiles(n.catalog, n.store, n.id); err != nil {
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
	if err := n.choose(); err != nil {
		return err
	}
	servers, err := n.founders()
	if err != nil {
		return err
	}
	return createLog(logPath(n.config.Dir), n.config.raftConfig(n.id.Node), n.config.transport, servers)
}

// founders returns the members that a new cluster begins with; none if the node joins one.
func (n *Node) founders() (servers []raft.Server, err error) {
	if n.config.Found == nil {
		if n.id.Cluster != "" {
			servers = []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(n.id.Node), Address: n.config.transport.LocalAddr()}}
		}
		return servers, nil
	}
	self := false
	for _, m := range n.config.Found.Servers {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Address)})
		self = self || m.ID == n.id.Node
	}
	if !self || n.id.Cluster == "" {
		return nil, fmt.Errorf("node %s is asked to found cluster %q without itself", n.id.Node, n.id.Cluster)
	}
	return servers, nil
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
func checkFiles(c *catalog, store *sealedLog, id identity) error {
	var index, term uint64
	var cluster string
	if err := c.view(func(s state) error {
		index, term = s.applied()
		cluster = s.cluster()
		return s.checkConfig()
	}); err != nil {
		if errors.Is(err, errNewer) {
			return err // nothing is wrong with the files
		}
		return fmt.Errorf("%w; %s", err, restore)
	}
	f, err := factsOf(store, index)
	if err != nil {
		return fmt.Errorf("%w; %s", err, restore)
	}
	if err := cmp.Or(id.wrote(f), f.agree(index, term)); err != nil {
		return err
	}
	if err := store.readable(f, index); err != nil {
		return fmt.Errorf("%w; %s", err, restore)
	}
	return id.agree(cluster)
}

// settle notes in node.json that log and catalog are there, durably, of which cluster, and that this is one more start,
// before any of them is used. From now on a start without them is refused. A full disk keeps nobody from serving what is
// on it: such a start is counted when there is room, and the node does not register before (see register).
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
	old := n.id
	n.id = id
	err := n.raise(id)
	if old.State == id.State && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		n.log.Warn("the disk is full: this start is not counted yet", "err", err)
		n.uncounted.Store(true)
		return nil
	}
	return err
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
	machine := &fsm{catalog: n.catalog, snapshots: snaps, stable: log, latch: n.latch, log: n.log, metrics: n.metrics, limit: n.config.hung, ended: n.raftDone, forked: n.mayHaveForked, listed: n.config.OnListing, changed: n.hasChanged}
	conf := n.config.raftConfig(n.id.Node)
	conf.NotifyCh = n.leading
	n.pace.begin(&n.config)
	conf.HeartbeatTimeout, conf.ElectionTimeout = n.heartbeat()+slack, n.heartbeat()+slack
	conf.LeaderLeaseTimeout = n.pace.lease
	if err := safely(true, func() (err error) { // raft panics if an entry is missing, or cannot be read
		n.raft, err = raft.NewRaft(conf, machine, cached, log, snaps, n.config.transport)
		return err
	}); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	log.running.Store(true)
	n.raftRef.Store(n.raft)
	n.listen()
	n.background.Add(1)
	go n.watch()
	n.background.Go(n.attend)
	if n.config.Stream != nil {
		n.background.Go(n.register)
	}
	open, stop := context.WithCancel(context.Background())
	n.background.Go(func() { <-n.stopping; stop() })
	n.background.Go(func() { n.scrub(open) })
	if n.config.Profile == ProfileAuto && n.config.Trip != nil {
		n.background.Go(func() { n.adapt(open) })
	}
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
	case <-n.refused:
		return nil
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

// Cluster returns the id of the cluster, "" as long as it is not known here.
func (n *Node) Cluster() (id string) {
	_ = n.view(func(s state) error { id = s.cluster(); return nil })
	return id
}

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
	if err := n.whyRefused(); err != nil {
		st.Refused = err.Error()
	}
	if err := n.catalog.diverged.Load(); err != nil {
		st.Diverged = (*err).Error()
	}
	self := n.Self()
	st.Profile = n.Profile()
	st.Name, st.Zone, st.NodeRole, st.Version, st.Boot, st.Starts = self.Name, self.Zone, self.Role, self.Version, self.Boot, self.Starts
	st.LastIndex, st.CommitIndex = n.raft.LastIndex(), n.raft.CommitIndex()
	err := n.fill(ctx, &st)
	st.Term = n.raft.CurrentTerm()
	return st, err
}

var roles = map[raft.RaftState]string{raft.Follower: "follower", raft.Candidate: "candidate", raft.Leader: "leader", raft.Shutdown: "shutdown"}

// Left returns a channel that is closed when this node has stopped taking part in the cluster, as after a fault of its disk: it
// has handed the leadership over then, if it could.
func (n *Node) Left() <-chan struct{} { return n.raftDone }

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
				n.announcer.wg.Wait()
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
	if t, ok := n.config.transport.(raft.WithClose); ok && n.raft == nil {
		err = errors.Join(err, t.Close()) // otherwise raft has closed it
	}
	return err
}
