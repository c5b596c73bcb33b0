package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/singleflight"

	"modmirror/mirror/artifact"
)

// Catalog is the replicated state. Every node checks every command before it applies it, with pure functions.
type Catalog interface {
	// Record returns the committed record of m. An error matches [fs.ErrNotExist] if none is committed.
	Record(ctx context.Context, db string, m module.Version) (artifact.Record, error)

	// TreeHead returns the newest committed head (a signed note) of a tree of fewer than below records;
	// math.MaxInt64 asks for the newest. An error matches [fs.ErrNotExist] if there is none.
	TreeHead(ctx context.Context, db string, below int64) ([]byte, error)

	// CommitTreeHead commits a head. For the very first, base is 0 and there is no proof. Otherwise base must be the
	// size N of the newest head: for a larger one, proof is that of tlog.CheckTree(proof, n, root, N, newestRoot); a
	// smaller one becomes an anchor with that of tlog.CheckTree(proof, N, newestRoot, n, root). A head that is known
	// is no error. An error matches [artifact.ErrStale] if base is not the newest any more, [artifact.ErrRefused] if
	// the head or the proof is bad, and [artifact.ErrUnavailable] after a fork or without a quorum; in that case, and only
	// then, it matches [artifact.ErrNoQuorum] too.
	CommitTreeHead(ctx context.Context, db string, note []byte, base int64, proof tlog.TreeProof) error

	// CommitFork commits the evidence of a fork, and with it freezes the database. The first evidence stays. Evidence of
	// a committed head and one that was acknowledged before is taken and freezes nothing.
	CommitFork(ctx context.Context, f artifact.Fork) error

	// Fork returns the evidence that froze db. An error matches [fs.ErrNotExist] unless it is frozen.
	Fork(ctx context.Context, db string) (artifact.Fork, error)
}

// Config says how to Open a DB.
type Config struct {
	Key     string     // verifier key, name+hash+key; see [ParseSpec]
	Catalog Catalog    // where heads and records are committed
	Tiles   *TileStore // where tiles are kept; the caller closes it after the DB

	Proxies []Source // proxies, in the order in which to ask them; used while they answer /supported
	Direct  Source   // the database itself, used after the proxies; nil: never

	// Peers returns the other nodes of the cluster: sources of tiles, asked before all others and also if Offline is set,
	// and of the heads that these tiles lead to. They are asked in this order; who failed lately comes last. Nothing that a
	// peer says counts before it is checked. String tells peers apart, so it names the address too. A peer must not ask
	// its own peers in turn: it answers with [DB.ServePeer]. Nil: there are none.
	Peers func() []Source

	// Owner returns the node whose turn it is to look m up for all nodes of the cluster, or nil if that is this node. It is
	// asked for what a client looks up here, before the sources, and answers with [DB.ServeOwner]. It is believed no more
	// than a source: its answer is verified, and its 404 is the database's. Whatever else comes of it, this node asks the
	// sources itself. [DB.Record] does not ask it: who brings an artifact in has its turn. Nil: it is always this node's.
	Owner func(m module.Version) Source

	// Changes is what was committed, for [DB.Run] to hold the tiles of. Nil: this node holds what it looked up itself.
	Changes Changes

	// Sync returns when everything that any node had committed before the call is in Catalog, or with an error if that
	// cannot be said. It is called where this node would else have to say that it does not know. Nil: Catalog is never
	// behind.
	Sync func(ctx context.Context) error

	// Offline is the operator's statement that what is stored is all there is: an unknown record is then known not to
	// exist. Without it, a DB without sources can only say that it cannot say. No source is asked.
	Offline bool

	// Private reports whether the name of a module must not leave the mirror. Nil: none is private.
	Private func(modulePath string) bool

	LookupBudget time.Duration // for one lookup with all that it needs, whoever waits for it; 0: 120 s
	HeadInterval time.Duration // how often to ask for a newer head when no lookup needs one; 0: an hour

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

// errPrivate is matched by every error that names a private module: it is not logged.
var errPrivate = fmt.Errorf("%w: private", artifact.ErrPolicy)

const (
	maxFlights = 4096 // pieces of joined work at the same time; each is a goroutine
	maxLookups = 512  // lookups among them

	absentFor = 2 * time.Second // how long a 404 of a lookup is believed
)

// Bounds of caches, in bytes.
const (
	verifiedBytes = 8 << 20
	composedBytes = 8 << 20
	pathBytes     = 2 << 20
	headBytes     = 256 << 10
	absentBytes   = 512 << 10
	witnessBytes  = 64 << 10
	anchorBytes   = 64 << 10
)

// DB verifies the records of one checksum database and serves them. All methods are safe for concurrent use.
type DB struct {
	Config
	name     string
	verifier note.Verifier
	sources  []*source
	metrics  *metrics

	flights singleflight.Group
	lookups chan struct{} // holds one for each lookup
	queue   chan head     // heads that the witness has yet to check

	heads     *cache[string, head]                    // by note; opened before
	verified  *cache[module.Version, artifact.Record] // records checked but perhaps never committed
	absent    *cache[module.Version, time.Time]       // when a source said 404
	composed  *cache[string, composed]                // what lookups are answered with, by their path
	tilePaths *cache[string, tlog.Tile]               // paths of tiles that were served
	seen      *cache[tlog.Tree, bool]                 // heads that the witness checked
	others    *cache[tlog.Tree, bool]                 // heads of another history that an operator has acknowledged
	ready     *cache[[2]int64, bool]                  // sizes of anchor and newest head: the anchor's edge is held
	known     peerSet                                 // what is known of the peers
	owners    ownerSet                                // and of those whose turn it was
	ahead     ahead                                   // heads beyond the committed one
	progress  followed                                // how far the tiles of what is committed are held
	unsaved   atomic.Pointer[artifact.Fork]           // evidence that is not committed yet
	checked   atomic.Int64                            // when a source last confirmed the head, Unix nanoseconds; 0: never

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // guarded by mu
	flying int            // guarded by mu; joined work under way
	wg     sync.WaitGroup // counts flying; Add under mu
}

// Open returns the DB that c describes. It asks nobody anything yet; [DB.Run] does the work in the background.
func Open(c Config) (*DB, error) {
	v, err := note.NewVerifier(c.Key)
	if err != nil {
		return nil, fmt.Errorf("checksum database key %q: %v", c.Key, err)
	}
	if !validName(v.Name()) {
		return nil, fmt.Errorf("checksum database name %q is not host[/path]", v.Name())
	}
	if c.Catalog == nil || c.Tiles == nil {
		return nil, fmt.Errorf("checksum database %s: no catalog or no tile store", v.Name())
	}
	if c.LookupBudget <= 0 {
		c.LookupBudget = 120 * time.Second
	}
	if c.HeadInterval <= 0 {
		c.HeadInterval = time.Hour
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("database", v.Name())
	db := &DB{
		Config:    c,
		name:      v.Name(),
		verifier:  v,
		lookups:   make(chan struct{}, maxLookups),
		queue:     make(chan head, 64),
		heads:     newCache[string, head](headBytes),
		verified:  newCache[module.Version, artifact.Record](verifiedBytes),
		absent:    newCache[module.Version, time.Time](absentBytes),
		composed:  newCache[string, composed](composedBytes),
		tilePaths: newCache[string, tlog.Tile](pathBytes),
		seen:      newCache[tlog.Tree, bool](witnessBytes),
		others:    newCache[tlog.Tree, bool](witnessBytes),
		ready:     newCache[[2]int64, bool](anchorBytes),
		ahead:     newAhead(),
	}
	if !c.Offline {
		for _, p := range c.Proxies {
			db.sources = append(db.sources, newSource(len(db.sources), p, true))
		}
		if c.Direct != nil {
			db.sources = append(db.sources, newSource(len(db.sources), c.Direct, false))
		}
	}
	checked := db.lastChecked(time.Now())
	if len(db.sources) == 0 {
		checked = nil
	}
	if db.metrics, err = newMetrics(c.Metrics, db.name, db.cached, checked); err != nil {
		return nil, fmt.Errorf("checksum database %s: %w", db.name, err)
	}
	db.ctx, db.cancel = context.WithCancel(context.Background())
	return db, nil
}

// cached returns how many bytes of memory the caches take.
func (db *DB) cached() int64 {
	return db.heads.size() + db.verified.size() + db.absent.size() + db.composed.size() + db.tilePaths.size() +
		db.seen.size() + db.others.size() + db.ready.size() + db.Tiles.Cached()
}

// lastChecked returns a function that says when a source last confirmed the head; start as long as none has.
func (db *DB) lastChecked(start time.Time) func() time.Time {
	return func() time.Time {
		if at := db.checked.Load(); at != 0 {
			return time.Unix(0, at)
		}
		return start
	}
}

// Name returns the database's name.
func (db *DB) Name() string { return db.name }

// Close ends all work under way and waits for it.
func (db *DB) Close() error {
	db.mu.Lock()
	db.closed = true
	db.mu.Unlock()
	db.cancel()
	db.wg.Wait()
	db.metrics.unregister()
	return nil
}

// begin counts a piece of work that Close waits for, and end counts it off.
func (db *DB) begin() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return fmt.Errorf("%s: shutting down: %w", db.name, artifact.ErrUnavailable)
	}
	if db.flying >= maxFlights {
		return fmt.Errorf("%s: too many requests at once: %w", db.name, artifact.ErrUnavailable)
	}
	db.flying++
	db.wg.Add(1)
	return nil
}

func (db *DB) end() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.flying--
	db.wg.Done()
}

// Record returns what the database says of m: the committed record, or one found and verified now. Its proof is then
// against a committed head, and every tile that a client without any state needs to verify it is held durably. If the
// cluster has no quorum to commit the head with, the proof is against a signed head that is proven consistent with the
// committed one, and [DB.Run] commits that when it can; [DB.Commit] says whether it is committed.
//
// An error matches [fs.ErrNotExist] if the database does not know m, [artifact.ErrPolicy] if m is private
// or nothing that a database can know,
// [artifact.ErrRefused] if a check failed, [artifact.ErrMalformed] if a source talks rubbish, [artifact.ErrUnavailable] if
// nobody can say now or the database is frozen by a fork, and [context.DeadlineExceeded] if the budget is spent.
func (db *DB) Record(ctx context.Context, m module.Version) (artifact.Record, error) {
	r, how, err := db.record(ctx, m)
	db.metrics.looked(how, err)
	return r, err
}

// record is Record. It says also where the record comes from.
func (db *DB) record(ctx context.Context, m module.Version) (r artifact.Record, how string, err error) {
	if err := checkModule(m); err != nil {
		return r, "", fmt.Errorf("%v: %w", err, artifact.ErrPolicy)
	}
	if db.Private != nil && db.Private(m.Path) {
		return r, "", fmt.Errorf("%s is private and not asked of %s: %w", m, db.name, errPrivate)
	}
	r, err = db.Catalog.Record(ctx, db.name, m)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, "catalog", err
	}
	r, how, err = db.recordElsewhere(ctx, m)
	if err == nil || db.Sync == nil {
		return r, how, err
	}
	late, err := db.recordLate(ctx, m, err)
	return late, "catalog", err
}

// recordElsewhere returns the record of m, which is not committed as far as this node knows.
func (db *DB) recordElsewhere(ctx context.Context, m module.Version) (r artifact.Record, how string, err error) {
	if len(db.sources) == 0 {
		if db.Offline {
			return r, "", fmt.Errorf("%s is not stored, and this mirror is offline: %w", m, fs.ErrNotExist)
		}
		return r, "", fmt.Errorf("%s is not stored, and there is nowhere to ask for it: %w", m, artifact.ErrUnavailable)
	}
	if err := db.frozen(ctx); err != nil {
		return r, "", err
	}
	if r, ok := db.verified.get(m); ok {
		if r, err := db.renew(ctx, r); err == nil {
			return r, "cache", nil
		}
	}
	if at, ok := db.absent.get(m); ok && time.Since(at) < absentFor {
		return r, "", fmt.Errorf("%s: %s does not know it: %w", m, db.name, fs.ErrNotExist)
	}
	v, err := db.once(ctx, "lookup "+m.String(), db.LookupBudget, func(ctx context.Context) (any, error) {
		return db.lookup(ctx, m)
	})
	if err != nil {
		return artifact.Record{}, "", fmt.Errorf("look up %s at %s: %w", m, db.name, err)
	}
	return v.(artifact.Record), "source", nil
}
