package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"modmirror/cmd/modmirror/statuspage"
	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
	"modmirror/mirror/upstream"
	"modmirror/replicate"
	"modmirror/replicate/peer"
	"modmirror/sumdb"
)

// node is one running mirror: every part, joined. The parts do not know each other; what one needs of another it gets
// here, through an interface of its own.
type node struct {
	config    config
	outside   outside
	log       *slog.Logger
	metrics   *prometheus.Registry
	started   time.Time
	upstream  *upstream.List // nil: this node asks none
	replica   *replicate.Node
	store     *artifact.Store
	databases []*sumdb.DB
	tiles     []*sumdb.TileStore
	set       *sumdb.Set
	mirror    *mirror.Mirror
	follower  *feed.Follower // nil: no other mirror is followed
	pages     *statuspage.Page
	closers   []func() error // in the order of opening

	front    front
	activity activity // what happened here lately

	identity   atomic.Pointer[replicate.Identity] // set before link
	counted    atomic.Pointer[replicate.Peer]     // what this node says of itself, once its start is counted
	opened     atomic.Pointer[replicate.Node]     // replica, for those who ask while it is being opened
	boot       string                             // random text of this run
	link       *peer.Link                         // nil: no other node can reach this one
	table      atomic.Pointer[peer.Table]         // what the others said last; the catalog asks while it is being opened
	caughtUp   caughtUp                           // whether it knows what was committed before it started
	proven     proven                             // what enough voters can prove
	badAnswers atomic.Int64                       // of other nodes
	keepUntil  atomic.Pointer[time.Time]          // see placed; nil: never
	arrivals   arrivals                           // blobs on their way here
	wan        *wanLimit                          // of what comes from other zones
	bulkNodes  bulkNodes                          // that do not hand over blobs in bulk
	fromAfar   zoneCounts                         // blobs that came from other zones
	passing    singleflight.Group                 // questions to the cluster's owners
	ask        []peer.Member                      // who can take this node into its cluster; nil: it is in it, or founded it

	disk    *disk
	faulted chan struct{} // closed when failed is set

	mu      sync.Mutex
	failed  error // guarded by mu; what ended writing on this node
	refused error // guarded by mu; why the cluster does not take this node

	newest   mark                // guarded by mu; how far the cluster is
	evidence map[string][]string // guarded by mu; files with evidence of forks, by database
}

// outside is what a node has around it. What is nil is the real thing; a simulation puts its own in its place.
type outside struct {
	network  peer.Network                      // between nodes
	upstream http.RoundTripper                 // to upstreams and checksum databases
	disk     func(root *os.Root) artifact.Disk // on which the blobs are
	catalog  func(*replicate.Config)           // changes how the catalog is opened
}

func newNode(c config, log *slog.Logger) *node {
	return &node{config: c, log: log, metrics: prometheus.NewRegistry(), started: time.Now(), disk: newDisk(c.DataDir, c.LowDisk, log), wan: newWANLimit(c.Cluster), faulted: make(chan struct{})}
}

// openNode opens every part in order. On error it closes what it has opened.
func openNode(ctx context.Context, c config, log *slog.Logger) (*node, error) {
	n := newNode(c, log)
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// open opens every part in order. The caller closes the node, also after an error.
func (n *node) open(ctx context.Context) (err error) {
	c := n.config
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	specs, err := parseSpecs(c.SumDB)
	if err != nil {
		return err
	}
	if err := n.openUpstream(ctx); err != nil {
		return err
	}
	if err := makeDataDir(c.DataDir); err != nil {
		return err
	}
	founding, err := n.openLink(ctx)
	if err != nil {
		return err
	}
	if err := n.openCatalog(ctx, founding); err != nil {
		return err
	}
	if err := n.meet(ctx); err != nil {
		return err
	}
	disk := n.outside.disk
	if disk == nil {
		disk = artifact.NewDisk
	}
	store, err := artifact.OpenStoreOn(c.DataDir, disk)
	if err != nil {
		return fmt.Errorf("--data-dir %s: %w", c.DataDir, err)
	}
	n.mu.Lock()
	n.store = store
	n.mu.Unlock()
	n.closers = append(n.closers, n.store.Close)
	n.disk.met = n.store.Full
	n.metrics.MustRegister(n.disk)
	n.store.OnFault(n.replica.StopWrites) // one disk: what failed here will fail there
	if err := n.fault(); err != nil {     // and the other way round
		n.store.StopWrites(err)
	}
	for _, spec := range specs {
		if err := n.openDatabase(ctx, spec); err != nil {
			return err
		}
	}
	if err := n.openMirror(); err != nil {
		return err
	}
	if err := n.openFollower(); err != nil {
		return err
	}
	n.caughtUp.done.Store(n.link == nil || len(n.others()) == 0) // there is nobody to be behind
	if n.link != nil {
		n.handlePeers()
		n.metrics.MustRegister(clusterMetrics{n}, &n.fromAfar)
	}
	return nil
}

func parseSpecs(list []string) ([]sumdb.Spec, error) {
	var specs []sumdb.Spec
	names := make(map[string]bool)
	for _, s := range list {
		spec, err := sumdb.ParseSpec(s)
		if err != nil {
			return nil, usageError("--sumdb: %v", err)
		}
		if names[spec.Name] {
			return nil, usageError("--sumdb: %s is named twice", spec.Name)
		}
		names[spec.Name] = true
		specs = append(specs, spec)
	}
	return specs, nil
}

// makeDataDir makes sure that dir exists and can be written, before any part says so in its own words. A disk that is full
// is no reason not to serve what is on it.
func makeDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	f, err := os.CreateTemp(dir, ".write-test-")
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--data-dir %s cannot be written: %w", dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (n *node) openUpstream(ctx context.Context) error {
	if n.config.Offline || n.config.Cluster.NoUpstream {
		return nil
	}
	list, saidBy, err := upstreamOf(ctx, cmp.Or(n.config.Upstream, n.config.Follow.URL))
	if err != nil {
		return err
	}
	if n.config.Upstream == "" && n.config.Follow.URL != "" {
		saidBy = "--follow"
	}
	n.upstream, err = upstream.Parse(list, n.upstreamConfig())
	if err != nil {
		return usageError("upstream (from %s): %v", saidBy, err)
	}
	n.metrics.MustRegister(n.silentMetric())
	n.onClose(n.upstream.Close)
	return nil
}

func (n *node) upstreamConfig() upstream.Config {
	return upstream.Config{
		UserAgent: "modmirror/" + buildVersion(),
		Log:       n.log,
		Metrics:   n.metrics,
		Self:      []string{n.config.Listen},
		Transport: n.outside.upstream,

		MaxPerHost: n.config.Limits.PerHost,
	}
}

func (n *node) openCatalog(ctx context.Context, c replicate.Config) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c.Dir, c.Log, c.Metrics, c.OnFault, c.OnFork, c.OnListing = n.config.DataDir, n.log, n.metrics, n.onFault, n.keepEvidence, n.relisted
	n.clusterOptions(&c)
	if n.outside.catalog != nil {
		n.outside.catalog(&c)
	}
	replica, err := replicate.Open(ctx, c)
	if errors.Is(err, replicate.ErrLocked) {
		return fmt.Errorf("--data-dir %s: another modmirror runs on this directory; stop it or choose another directory", n.config.DataDir)
	}
	if err != nil {
		return fmt.Errorf("--data-dir %s: %w", n.config.DataDir, err)
	}
	n.replica = replica
	n.opened.Store(replica)
	n.closers = append(n.closers, replica.Close)
	return nil
}

func (n *node) openDatabase(ctx context.Context, spec sumdb.Spec) error {
	if err := n.trust(ctx, spec.Key); err != nil {
		return err
	}
	tiles, err := sumdb.OpenTiles(tilesDir(n.config.DataDir, spec.Name))
	if err != nil {
		return err
	}
	n.closers = append(n.closers, tiles.Close)
	tiles.OnFault(n.replica.StopWrites) // one disk
	n.mu.Lock()
	n.tiles = append(n.tiles, tiles)
	n.mu.Unlock()
	if err := n.fault(); err != nil {
		tiles.StopWrites(err)
	}
	c := sumdb.Config{
		Key:     spec.Key,
		Catalog: n.replica,
		Tiles:   tiles,
		Private: n.private,
		Offline: n.config.Offline,
		Log:     n.log,
		Metrics: n.metrics,

		LookupBudget: n.config.Limits.Lookup,
	}
	if n.link != nil {
		c.Peers = func() []sumdb.Source { return n.sumPeers(spec.Name) }
		c.Changes, c.Sync = sumChanges{n.replica}, n.sync
		c.Owner = n.sumOwners(spec.Name)
	}
	if !n.config.Offline {
		if err := n.addSources(&c, spec); err != nil {
			return err
		}
	}
	db, err := sumdb.Open(c)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, db.Close)
	n.databases = append(n.databases, db)
	return nil
}

// addSources says where a database is asked: through the upstream proxies and then directly, as the go command does, or
// at its URL only if it has one; or by other nodes.
func (n *node) addSources(c *sumdb.Config, spec sumdb.Spec) error {
	if n.config.Cluster.NoUpstream {
		c.Direct = sumOwner{n: n, database: spec.Name}
		return nil
	}
	url := spec.URL
	if url == "" {
		for _, e := range n.upstream.Entries() {
			c.Proxies = append(c.Proxies, e.Below("/sumdb/"+spec.Name))
		}
		url = spec.Direct()
	}
	site, err := upstream.NewSite(url, n.upstreamConfig())
	if err != nil {
		return usageError("--sumdb %s: %v", spec.Name, err)
	}
	n.onClose(site.Close)
	c.Direct = site
	return nil
}

func (n *node) openMirror() error {
	var err error
	n.set, err = sumdb.NewSet(n.databases...)
	if err != nil {
		return err
	}
	pages := statuspage.Config{Source: pageSource{n}, Private: n.private, Version: buildVersion()}
	if n.config.Limits.perAddress() {
		pages.Client = func(r *http.Request) netip.Addr { return addrOf(r.RemoteAddr) }
	}
	n.pages, err = statuspage.New(pages)
	if err != nil {
		return err
	}
	n.onClose(n.pages.Close)
	c := mirror.Config{
		Index:          index{n.replica, n},
		Store:          n.store,
		Room:           n.disk.err,
		Starved:        n.replica.Starved,
		Checksums:      n.set,
		SumDB:          n.set,
		Private:        strings.Join(n.config.Private, ","),
		ListTTL:        n.config.ListTTL,
		NegativeTTL:    n.config.NotFoundTTL,
		NoLookAhead:    n.config.NoLookAhead,
		MaxFetches:     n.config.Limits.Fetches,
		MaxZipFetches:  n.config.Limits.Fetches,
		MaxQueue:       n.config.Limits.Waiting,
		HotBytes:       n.config.Limits.hotBytes(),
		ListBytes:      n.config.Limits.listBytes(),
		ClientWait:     n.config.Limits.ClientWait,
		FetchBudget:    n.config.Limits.Fetch,
		ZipBudget:      n.config.Limits.Zip,
		Log:            n.log,
		Metrics:        n.metrics,
		MetricsHandler: promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}),
		Ready:          n.ready,
		Status:         func(ctx context.Context) any { return n.status(ctx) },
		Prove:          func(ctx context.Context, m module.Version) (any, error) { return proofFrom(ctx, n.replica, m) },
		Pages:          n.pages,
	}
	if n.upstream != nil {
		c.Upstream = n.upstream
	} else if n.config.Cluster.NoUpstream {
		c.Upstream = noUpstream{}
	}
	c.Feed, c.AcquireLimit = n.replica, int64(n.config.Follow.Limit)
	c.Changes, c.Node, c.Dir = n.replica, n.replica.ID(), n.config.DataDir
	c.Names, c.GCEvery, c.TrashKeep, c.DiskLow = names{n.replica, n}, n.config.Garbage.Every, n.config.Garbage.TrashKeep, n.diskIsLow
	n.scrubOptions(&c)
	if n.link != nil {
		c.Peers, c.Proofs, c.PullLimit, c.OnQuorumLoss = peers{n}, n.replica, int64(n.config.Cluster.PullLimit), n.config.Cluster.OnLoss
	}
	c.OnEvent = n.onEvent
	n.mirror, err = mirror.New(c)
	if err != nil {
		return err
	}
	n.front.mirror.Store(n.mirror)
	n.stopIfDiverged() // while it was being opened
	n.onClose(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // whoever wanted to wait for fetches has done so: see drain
		_ = n.mirror.Close(ctx)
	})
	return nil
}

// run does the background work of every part until ctx ends.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { n.disk.run(ctx); return nil })
	for _, db := range n.databases {
		g.Go(func() error { return db.Run(ctx) })
	}
	if n.upstream != nil {
		g.Go(func() error { n.watchWayOut(ctx); return nil })
	}
	g.Go(func() error { return n.mirror.CollectGarbage(ctx) })
	g.Go(func() error { return n.mirror.Follow(ctx) })
	g.Go(func() error { return n.mirror.Scrub(ctx) })
	if n.follower != nil {
		g.Go(func() error { return n.follow(ctx) })
	}
	if n.link != nil {
		g.Go(func() error { return n.table.Load().Run(ctx) })
		g.Go(func() error { return n.compareRoots(ctx) })
		g.Go(func() error { return n.keepUp(ctx) })
		g.Go(func() error { return n.watchShunned(ctx) })
		g.Go(func() error { return n.watchLeader(ctx) })
		g.Go(func() error { n.checkSeeds(ctx); return nil })
		g.Go(func() error { n.giveWay(ctx); return nil })
		g.Go(func() error { return n.mirror.CommitPending(ctx) })
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// onClose has f called when the node is closed, before everything that was opened earlier.
func (n *node) onClose(f func()) {
	n.closers = append(n.closers, func() error { f(); return nil })
}

// close closes every part in reverse.
func (n *node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// private tells whether a module's name must not leave this process.
func (n *node) private(path string) bool {
	return len(n.config.Private) > 0 && module.MatchPrefixPatterns(strings.Join(n.config.Private, ","), path)
}

// ready says why this node should get no requests, or, with writes, why it takes no new artifacts. It serves what it
// holds as long as it runs, unless it cannot tell what that is.
func (n *node) ready(ctx context.Context, writes bool) error {
	st, err := n.replica.Status(ctx)
	if err != nil {
		return err
	}
	if st.Damage != "" {
		return fmt.Errorf("the catalog is damaged, see modmirror fsck: %s", st.Damage)
	}
	switch {
	case st.Diverged != "":
		return fmt.Errorf("this node holds something else than the majority of its cluster: %s", st.Diverged)
	case st.Refused != "":
		return errors.New(st.Refused)
	}
	if err := n.shunned(); err != nil {
		return err
	}
	if err := n.caughtUp.err(); err != nil {
		return err
	}
	if !writes {
		return nil
	}
	if err := n.store.Err(); err != nil {
		return err
	}
	for _, tiles := range n.tiles {
		if err := tiles.Err(); err != nil {
			return fmt.Errorf("tiles: %w", err)
		}
	}
	for _, db := range n.databases {
		if err := db.Frozen(ctx); err != nil { // also by what the catalog does not know yet
			return err
		}
	}
	if err := n.disk.err(0); err != nil {
		return fmt.Errorf("%w; what is stored is served", err)
	}
	return writable(st)
}

// writable says why the catalog of a node takes nothing new.
func writable(st replicate.Status) error {
	switch {
	case st.Fault != "":
		return errors.New(st.Fault)
	case st.Leader == "":
		return errors.New("the cluster has no leader: nothing new can be committed")
	case len(st.Frozen) > 0:
		return fmt.Errorf("%s signed two histories: nothing new that it vouches for is taken", strings.Join(st.Frozen, ", "))
	}
	return nil
}

// status collects what every part says of itself.
func (n *node) status(ctx context.Context) status {
	s := status{Version: buildVersion(), Started: n.started.UTC().Truncate(time.Second), Ready: verdict(n.ready(ctx, false)),
		Writes: verdict(n.ready(ctx, true)), Offline: n.config.Offline, Upstream: []string{}, Databases: []databaseStatus{}}
	if n.mirror.Draining() {
		s.Ready = "draining: this mirror is about to stop"
	}
	if n.upstream != nil {
		for _, e := range n.upstream.Entries() {
			s.Upstream = append(s.Upstream, e.String())
		}
	}
	var err error
	if s.Node, err = n.replica.Status(ctx); err != nil {
		s.Ready = verdict(err)
	}
	s.Disk, s.Garbage, s.Scrub = n.disk.status(), n.garbageStatus(), n.mirror.ScrubStatus()
	v := n.view(ctx)
	s.Zones = v.Zones
	if self, err := v.find(n.replica.ID()); err == nil {
		s.Member = &self
	}
	if n.follower != nil {
		st := n.follower.Status()
		s.Follow = &st
	}
	for _, db := range n.databases {
		st, err := db.Status(ctx)
		if err != nil {
			s.Ready = verdict(err)
			continue
		}
		out := newDatabaseStatus(st)
		if f, err := n.replica.Fork(ctx, st.Name); err == nil {
			out.Fork = f.String()
		}
		out.Evidence = n.evidenceOf(st.Name)
		s.Databases = append(s.Databases, out)
	}
	return s
}

func verdict(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}
