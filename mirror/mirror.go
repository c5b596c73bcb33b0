// Package mirror is the GOPROXY protocol (go.dev/ref/mod#goproxy-protocol), and the one gate through which every
// artifact enters the store, from an upstream (ingest.go) or from another node (admit.go).
//
//	GET /github.com/!burnt!sushi/toml/@v/list          versions, one a line
//	GET /github.com/!burnt!sushi/toml/@v/v0.3.1.info   {"Version":"v0.3.1","Time":"2018-08-15T10:47:33Z"}
//	GET /github.com/!burnt!sushi/toml/@v/v0.3.1.mod    module github.com/BurntSushi/toml
//	GET /github.com/!burnt!sushi/toml/@v/v0.3.1.zip    the source
//	GET /github.com/!burnt!sushi/toml/@v/master.info   the version that a branch, commit or prefix means now
//	GET /github.com/!burnt!sushi/toml/@latest          the version to take if the list has none
//	GET /cached-only/…                                 any of these, from what is held; so does the header
//	                                                   "Disable-Module-Fetch: true"
//	GET /sumdb/sum.golang.org/…                        the checksum database
//	GET / /search /modules/… /events /assets/…         for people, see Config.Pages
//	GET /status /healthz /readyz /metrics              for the machines that run the mirror
//	GET /prove/golang.org/x/text@v0.3.0                what proves a version that is held
//	GET /index?since=…&limit=…                         what is published, by time: see package feed
//
// What it promises:
//
//   - An artifact is served only if this node's gate let it in: its go.sum hash is that of a record which is proven to
//     be in the checksum database's signed tree. See ingest.go for the order of the steps, and for what is true if the
//     process dies between two of them.
//   - What was published for a module version is served for ever, with the same bytes, strong ETag and ranges, whether
//     or not the upstream and the checksum database can be reached.
//   - A failed check is 403, also of rubbish in place of a go.mod or zip; rubbish in place of an info or list, which no sum
//     can tell from an answer, is 502. A timeout is 504; what cannot be said now, and what broke off, 503. Only what is
//     known not to exist is 404, because after a 404 the go command asks somebody else (statusOf).
//   - Lists and @latest are the upstream's answers, united with what was published. While the upstream answers they are
//     less than twice [Config.ListTTL] old, which is two minutes unless configured: in the second minute the older answer
//     is sent once more while a newer one is fetched. Clients may keep them for another minute (Cache-Control). While the
//     upstream does not answer they are as old as need be. Nothing vouches for them.
//   - Every request ends within [Config.ClientWait] and the time to send the answer, which is a minute and a second for
//     each 32 KiB: the go command itself waits for ever. Every queue, cache and body is bounded.
//   - With [Config.Peers] it is one node of several. What peers send passes a gate as strict as that for upstreams
//     ([Mirror.Admit]), and what is served is what this node's own catalog says. A miss is brought in by the node whose turn
//     it is, once for all nodes ([Mirror.Bring]); a blob is copied to a majority of the voters before its manifest is
//     committed; what is missing here is pulled from the nearest node, at once for a client, and in the background for all
//     that the catalog names ([Mirror.Follow]). Lists and @latest agree on all nodes as soon as the log is applied there.
//   - Without a quorum everything committed is served. New artifacts are refused with 503, or, if [Config.OnQuorumLoss] says
//     so, verified and passed through with "Cache-Control: no-store" and "Modmirror-Committed: false", without ETag and ranges,
//     and committed when there is a quorum again ([Mirror.CommitPending]).
//   - What no manifest names is collected, and nothing else ([Mirror.CollectGarbage]): a blob that has been left over for a day, by
//     no clock that can be set, goes to the trash, from where whoever needs it after all brings it back, and later for good.
//   - Nothing of a request but module path, version and query goes upstream; of a private module not even that.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// Index is the catalog: what is published. Reads answer from this node's state, without network. An error that matches
// [io/fs.ErrNotExist] means that nothing is published there; any other means that the catalog cannot say.
type Index interface {
	// Manifest returns what is published for m.
	Manifest(ctx context.Context, m module.Version) (artifact.Manifest, error)
	// Inline returns the bytes of an info or go.mod of at most artifact.MaxInline bytes.
	Inline(ctx context.Context, d artifact.Digest) ([]byte, error)
	// Versions returns the versions of path of which anything is published, in any order.
	Versions(ctx context.Context, path string) ([]string, error)
	// Publish adds p and returns the merged manifest once it is committed and applied here: the winner, if somebody
	// published the same artifact before. An error matches artifact.ErrConflict, ErrRefused or ErrUnavailable.
	Publish(ctx context.Context, p artifact.Publication) (artifact.Manifest, error)
	// Listing returns what PublishListing made known last, and PublishListing replaces the halves that have a time.
	Listing(ctx context.Context, path string) (artifact.Listing, error)
	PublishListing(ctx context.Context, l artifact.Listing) error
}

// Upstream is where artifacts come from. Its methods must end soon after their context. An error matches
// [io/fs.ErrNotExist] only if the upstream says that there is no such thing.
type Upstream interface {
	// Fetch calls accept with the body of an artifact: size is -1 if not known, source names the sender in logs. If
	// accept's error matches artifact.ErrRefused or ErrMalformed, Fetch asks the next source, if it has one. It
	// succeeds when accept did; otherwise its error wraps accept's.
	Fetch(ctx context.Context, m module.Version, k artifact.Kind, accept func(body io.Reader, size int64, source string) error) error
	// Versions, Latest and Query return the bodies of /@v/list, /@latest and /@v/<query>.info, of bounded size.
	Versions(ctx context.Context, path string) ([]byte, error)
	Latest(ctx context.Context, path string) ([]byte, error)
	Query(ctx context.Context, path, query string) ([]byte, error)
}

// Checksums is the checksum database.
type Checksums interface {
	// Record returns what the database says about m, proven to be in a tree whose head the catalog has. An error
	// matches [io/fs.ErrNotExist] if the database does not know m.
	Record(ctx context.Context, m module.Version) (artifact.Record, error)
}

// Config is what a Mirror is made of. Index, Store and, with an Upstream, Checksums are needed.
type Config struct {
	Index     Index
	Store     *artifact.Store
	Upstream  Upstream     // nil: the mirror runs offline; what it does not hold does not exist
	Checksums Checksums    // asked before anything is fetched
	SumDB     http.Handler // answers /sumdb/…, sees the whole path; nil: 404
	Private   string       // patterns as in GOPRIVATE: such modules are refused and never looked for

	Peers        Peers   // the other nodes of the cluster; nil: there are none
	Proofs       Prover  // needed with Peers
	Changes      Changes // what Follow follows; nil: nothing
	Feed         Feed    // what /index is made of; nil: 404
	Node         string  // the id of this node, whose Changes they are: what is remembered of another's is of no use
	Dir          string  // the data directory, for follow.json, scrub.json, pending/ and leftovers/; needed by Follow, Scrub and with "passthrough"
	OnQuorumLoss string  // "passthrough": artifacts that were verified and cannot be committed now are sent all the same; "fail" or "": they are not
	PullLimit    int64   // bytes a second that Follow pulls from peers; 0: no limit
	AcquireLimit int64   // bytes a second that Acquire fetches, in all; at least MinAcquireLimit; 0: no limit

	// Room says why this node has no room on its disk for so many bytes more; the error matches artifact.ErrNoSpace. Asked with 0
	// it says whether there is any room at all. It must not wait for the disk. nil: there always is.
	Room func(need int64) error

	// Starved says why the catalog here cannot learn now what other nodes commit, as there is no room even for that. nil: it always can.
	Starved   func() error
	Names     Names         // which blobs are named, for CollectGarbage, with Dir; nil: no garbage is collected
	GCEvery   time.Duration // how often it is collected; 0: only when Collect is called
	TrashKeep time.Duration // how long collected blobs stay in the trash; 0: until the next pass
	DiskLow   func() bool   // whether the disk is nearly full, so that they have to leave at once; nil: it never is

	ScrubEvery  time.Duration // within which Scrub reads every blob again; 0: only when ScrubNow is called
	ScrubLimit  int64         // bytes a second that it reads at most; 0: no limit
	ScrubChecks []ScrubCheck  // what is looked at besides, as often

	ListTTL     time.Duration // how old a query may be, and a list or @latest before it is refreshed; 0: a minute
	ListBudget  time.Duration // how long the upstream may take for a list or @latest; 0: 20 s
	StaleWait   time.Duration // how long a client waits for a newer list if there is an older one; 0: 3 s
	NegativeTTL time.Duration // how long "no such version" is remembered; 0: 30 s; at most a minute, of which clients may use the rest
	ZipBudget   time.Duration // how long fetching and checking a zip may take; 0: 10 min
	FetchBudget time.Duration // the same for an info, go.mod or query; 0: 2.5 min
	ClientWait  time.Duration // how long a client waits for a fetch, which goes on without it; 0: 5 min

	MaxFetches    int   // infos, go.mods, lists and queries fetched at a time; 0: 64
	MaxZipFetches int   // zips fetched at a time; 0: 64: a download is a cheap stream, and the upstream bounds those of one host
	MaxChecks     int   // zips checked at a time; 0: number of processors
	NoLookAhead   bool  // fetch a go.mod only when a client asks for it
	MaxQueue      int   // fetches under way or waiting for a slot; 0: 1024
	HotBytes      int64 // memory for infos, go.mods and small zips; 0: 64 MiB
	ListBytes     int64 // memory for lists, @latest and queries, each; 0: 32 MiB

	OnEvent        func(Event)                                  // is told what happens, in any order; must not block; nil: nobody is
	Log            *slog.Logger                                 // nil discards
	Metrics        prometheus.Registerer                        // nil: none
	MetricsHandler http.Handler                                 // answers /metrics; nil: 404
	Ready          func(ctx context.Context, writes bool) error // why this node should get no requests (no new artifacts, if writes); nil: it should
	Status         func(ctx context.Context) any                // what /status says, as JSON; nil: 404
	// Prove returns what proves a version that is held, to be sent as JSON from /prove/. An error matches [io/fs.ErrNotExist]
	// if the version is not held. Nil: 404.
	Prove func(ctx context.Context, m module.Version) (any, error)
	// Pages answers what people look at: /, /search, /modules/…, /assets/… and /events, which is a stream and must end when the
	// server is shut down. It gets GET and HEAD only, and no body. Nil: 404.
	Pages http.Handler
}

// Mirror is an [http.Handler] for all of the above. Make one with New.
type Mirror struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	ids     *ids

	hot      *cache[*hotAnswer] // by escaped path; committed artifacts, so never out of date
	negative *cache[absence]    // by key of the flight
	list     *topic
	latest   *topic
	queries  *cache[*resolved] // by path@query

	absentFor []string // Cache-Control of what does not exist

	flights   *flights
	ahead     *lookAhead    // nil: none
	small     chan struct{} // slots of fetches that are no zips
	zips      chan struct{}
	checks    chan struct{}
	admits    chan struct{} // slots of blobs that come from peers
	asks      chan struct{} // slots of questions to peers
	pulls     chan struct{} // slots of pulls for clients
	relayed   chan struct{} // slots of pulls for other nodes; apart from pulls, which wait for other nodes: two would wait for each other
	relays    chan struct{} // the same for those that nobody waits for
	relaying  sync.Map      // keys of the flights of Relay that have their slot
	passing   chan struct{} // slot of what is sent and not kept
	clients   atomic.Int64  // pulls for clients under way; those of Follow give way
	pullLimit *rate.Limiter // of background pulls; nil: none
	pending   *pending      // nil: what cannot be committed is not kept
	followed  follower      // what Progress reports
	indexes   chan struct{} // slots of pages of /index that are being made
	waiting   chan struct{} // slots of clients that wait for an entry of it
	bulks     atomic.Int64  // pulls in bulk under way
	gives     chan struct{} // slots of answers to those of other nodes
	prover    *prover
	packMost  int64 // how large a blob in a pack may be; tests change it

	leftovers *leftovers // nil: no garbage is collected
	collector collector
	acquires  *rate.Limiter // nil: none
	hurried   *hurried
	draining  atomic.Bool
	stopped   atomic.Pointer[error] // why nothing is served any more; see StopServing

	losses    *losses // blobs that were here
	forgeries forgeries
	scrub     *scrubber
	serving   atomic.Int64  // requests being answered
	condemns  chan struct{} // slots of blobs that are looked at because they seem to be damaged

	step func(string) // tests stop an ingest with it; nil otherwise
}

// New returns a Mirror. It starts nothing; Close must be called for what requests start.
func New(c Config) (*Mirror, error) {
	if c.Index == nil || c.Store == nil || c.Upstream != nil && c.Checksums == nil {
		return nil, errors.New("mirror: Index, Store and, with an Upstream, Checksums are needed")
	}
	setDefault(&c.ListTTL, time.Minute)
	setDefault(&c.ListBudget, 20*time.Second)
	setDefault(&c.StaleWait, 3*time.Second)
	setDefault(&c.NegativeTTL, 30*time.Second)
	c.NegativeTTL = min(c.NegativeTTL, maxNegative)
	setDefault(&c.ZipBudget, 10*time.Minute)
	setDefault(&c.FetchBudget, 150*time.Second)
	setDefault(&c.ClientWait, 5*time.Minute)
	setDefault(&c.MaxFetches, 64)
	setDefault(&c.MaxZipFetches, 64)
	setDefault(&c.MaxChecks, runtime.GOMAXPROCS(0))
	setDefault(&c.MaxQueue, 1024)
	setDefault(&c.HotBytes, 64<<20)
	setDefault(&c.ListBytes, 32<<20)
	if err := c.checkCluster(); err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m := &Mirror{
		config:    c,
		log:       c.Log,
		ids:       newIDs(),
		hot:       newCache[*hotAnswer](c.HotBytes),
		negative:  newCache[absence](negativeBytes),
		queries:   newCache[*resolved](c.ListBytes),
		flights:   newFlights(c.MaxQueue, c.Log),
		small:     make(chan struct{}, c.MaxFetches),
		zips:      make(chan struct{}, c.MaxZipFetches),
		absentFor: absentCached(c.NegativeTTL),
		checks:    make(chan struct{}, c.MaxChecks),
		admits:    make(chan struct{}, c.MaxZipFetches),
		asks:      make(chan struct{}, c.MaxQueue),
		pulls:     make(chan struct{}, c.MaxZipFetches),
		relayed:   make(chan struct{}, c.MaxZipFetches),
		relays:    make(chan struct{}, c.MaxZipFetches),
		pullLimit: newLimit(c.PullLimit),
		indexes:   make(chan struct{}, maxIndexes),
		waiting:   make(chan struct{}, maxWaiting),
		passing:   make(chan struct{}, 1),
		losses:    newLosses(),
		condemns:  make(chan struct{}, 4),
		gives:     make(chan struct{}, bulkGives),
		prover:    newProver(),
		packMost:  artifact.MaxPacked,
	}
	m.collector.every = collectPause
	m.acquires, m.hurried = newLimit(c.AcquireLimit), newHurried()
	m.followed.found = make(chan *missing)
	m.scrub = newScrubber(m)
	m.list, m.latest = newTopic(m, classList), newTopic(m, classLatest)
	m.list.ask, m.list.held, m.list.settle = m.askList, m.heldList, m.settleList
	m.latest.ask, m.latest.held, m.latest.settle = m.askLatest, m.heldLatest, m.settleLatest
	var err error
	if c.Upstream != nil && !c.NoLookAhead {
		m.ahead = newLookAhead(m)
	}
	m.metrics, err = newMetrics(c.Metrics, m.caches())
	if err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	if c.Metrics != nil {
		if err := c.Metrics.Register(scrubMetrics{m}); err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
	}
	if m.pending, err = openPending(m); err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	if c.Names == nil || c.Dir == "" {
		return m, nil
	}
	if m.leftovers, err = openLeftovers(m); err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	return m, nil
}

// caches returns the size of each cache, by its name in the metrics.
func (m *Mirror) caches() map[string]func() (entries int, bytes int64) {
	c := map[string]func() (int, int64){"hot": m.hot.size, "list": m.list.memory.size, "latest": m.latest.memory.size, "query": m.queries.size,
		"absent": m.negative.size}
	if m.ahead != nil {
		c["asked"], c["ahead"] = m.ahead.clients.size, m.ahead.seen.size
	}
	return c
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Drain makes /readyz say 503, so that whoever balances load sends no more. Requests are answered as before.
func (m *Mirror) Drain() { m.draining.Store(true) }

// Draining reports whether Drain was called.
func (m *Mirror) Draining() bool { return m.draining.Load() }

// Close drains, begins no new fetch, and waits for those under way. When ctx ends they are cancelled, waited for, and
// the reason returned; who waits for one of them is answered 503 at once, so whoever closes the server as well should
// let ctx end a moment earlier. Follow, CommitPending and CollectGarbage must have returned before. What is held is served even after.
func (m *Mirror) Close(ctx context.Context) error {
	m.Drain()
	m.ahead.stop()
	linger := lingering
	if m.config.Store.Err() != nil {
		linger = lingeringHung
	}
	err := m.flights.close(ctx, linger)
	m.ahead.wait()
	m.pending.close()
	m.leftovers.close()
	return err
}
