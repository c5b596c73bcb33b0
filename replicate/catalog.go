package replicate

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// ErrLocked means that another process has the data directory open.
var ErrLocked = errors.New("data directory is in use by another process")

// lockWait is how long an open waits for another process to let go: long enough for one that is just closing.
const lockWait = 200 * time.Millisecond

// Buckets of catalog.db. Numbers in keys are big endian, so that keys sort as they do.
var (
	bucketManifests = []byte("m") // path@version → uvarint seq of its newest leaf, manifest
	bucketInline    = []byte("b") // digest → byte encoding (0: as it is), uvarint seq of the leaf that brought it, bytes
	bucketLeaves    = []byte("s") // seq → 32 bytes leaf hash, path@version, and from level 3 on byte 0, microseconds since 1970
	bucketConflicts = []byte("c") // path@version \0 hash → committed manifest, refused manifest
	bucketHeads     = []byte("t") // database \0 size → 32 bytes root hash, signed note
	bucketKeys      = []byte("k") // database → verifier key
	bucketForks     = []byte("f") // database \0 hash → byte acknowledged, evidence
	bucketListings  = []byte("l") // path → listing
	bucketConfig    = []byte("cfg")

	buckets = [][]byte{bucketManifests, bucketInline, bucketLeaves, bucketConflicts, bucketHeads, bucketKeys, bucketForks, bucketListings, bucketConfig}
)

// Keys of bucket cfg.
var (
	keyFormat    = []byte("format")    // byte 1
	keyApplied   = []byte("applied")   // index, term of the last entry that is in the catalog
	keyMembers   = []byte("members")   // index of the last configuration entry, its data
	keyMerkle    = []byte("merkle")    // compact.encode
	keyManifests = []byte("manifests") // how many
	keyConflicts = []byte("conflicts") // how many
	keyCluster   = []byte("cluster")   // the cluster's id
	keyLevel     = []byte("level")     // uvarint; absent: 1
	keyClock     = []byte("time")      // uvarint microseconds since 1970; absent: no change has a time. It stands behind the level, which tells older versions more
	// and the node table, see nodePrefix, the audit, see auditPrefix, and earlier clusters, see wasPrefix
)

const catalogFormat = 1

var mapSize int64 = 64 << 30 // see catalogOptions; not a constant, as it does not fit into an int of 32 bits

// catalog is catalog.db, open. All its reads are local.
type catalog struct {
	path string

	writing sync.Mutex // held by who writes, and before mu by who replaces db: a write that hangs must not keep readers waiting

	mu sync.RWMutex
	db *bbolt.DB // guarded by mu, and for who writes by writing: readers hold mu shared as long as they are in a transaction; nil once closed

	streamMu sync.Mutex
	streams  map[*stream]bool // guarded by streamMu; snapshots that are being sent

	generation atomic.Uint64 // how often db was replaced
	damage     damageLog
	signed     signedNotes
	diverged   atomic.Pointer[error] // why nothing of it may be served any more; see Compare

	beforeCommit func() error // set by tests to make the disk fail; may be nil
}

func newCatalog(path string) *catalog { return &catalog{path: path, streams: map[*stream]bool{}} }

// view calls f in a read transaction. f must not keep what it reads, nor take long.
func (c *catalog) view(f func(s state) error) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.db == nil {
		return fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	err := safely(false, func() error {
		return c.db.View(func(tx *bbolt.Tx) error { return f(state{tx}) })
	})
	if errors.Is(err, artifact.ErrDamaged) {
		c.damage.found(err)
	}
	return err
}

// safely runs f, which reads pages. Where a page is not what it should be, bbolt panics, or follows a number out of the
// file, which is mapped into memory; here that becomes an error, as a damaged page is a fault of the disk and must not
// take down what does not need it. A bug of ours goes on as what it is; but with all, any panic becomes an error.
func safely(all bool, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // of this goroutine
	defer func() {
		r := recover()
		if bug, ok := r.(runtime.Error); ok && !all && !isFault(bug) && !ofBolt() {
			panic(bug)
		}
		if r != nil {
			err = fmt.Errorf("damaged pages: %v: %w", r, artifact.ErrDamaged)
		}
	}()
	return f()
}

// isFault reports whether err is about an address that cannot be read, see [debug.SetPanicOnFault].
func isFault(err runtime.Error) bool {
	_, ok := err.(interface{ Addr() uintptr })
	return ok
}

// ofBolt reports whether the panic that the caller has recovered from arose in bbolt: a number in a page of which it made
// an index.
func ofBolt() bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs[:])])
	panicked := false
	for {
		f, more := frames.Next()
		inside := strings.HasPrefix(f.Function, "runtime.") || strings.HasPrefix(f.Function, "internal/")
		if panicked && !inside {
			return strings.HasPrefix(f.Function, "go.etcd.io/bbolt")
		}
		panicked = panicked || f.Function == "runtime.gopanic"
		if !more {
			return false
		}
	}
}

// update calls f in a write transaction and commits it. Any error leaves the catalog as it was.
func (c *catalog) update(f func(s state) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	db := c.db // nobody replaces it now
	if db == nil {
		return fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	return safely(false, func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			if err := f(state{tx}); err != nil || c.beforeCommit == nil {
				return err
			}
			return c.beforeCommit()
		})
	})
}

func (c *catalog) close() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil {
		return nil
	}
	c.endStreams()
	db := c.db
	c.db = nil
	return db.Close()
}

// createCatalog makes an empty catalog at path, unless there is one.
func createCatalog(path string) error {
	return createFile(path, func(tmp string) error {
		db, err := bbolt.Open(tmp, 0o600, catalogOptions(false))
		if err != nil {
			return err
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, name := range buckets {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return state{tx}.initialize()
		})
		return errors.Join(err, db.Close())
	})
}

// openDB opens the catalog's file at path. What bbolt would follow blindly is looked at first: the header, the branches
// and the list of free pages. The leaves are too many for each start (see scrub); where one of those is damaged, it is
// noticed when it is read.
func openDB(path string, readOnly bool) (*bbolt.DB, error) {
	look := func(tx *bbolt.Tx) error { return checkShape(tx, path) }
	if err := lookInto(path, *catalogOptions(true), look); err != nil {
		return nil, err
	}
	return openBolt(path, *catalogOptions(readOnly))
}

// checkShape reports whether tx can be read safely and is a catalog that this version understands.
func checkShape(tx *bbolt.Tx, path string) error {
	if err := checkBranches(path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%s is not a catalog: it lacks the bucket %q", path, name)
		}
	}
	if f := tx.Bucket(bucketConfig).Get(keyFormat); len(f) != 1 {
		return fmt.Errorf("%s does not say its format", path)
	} else if f[0] != catalogFormat {
		return unknownFormat(path, f[0], catalogFormat)
	}
	return nil
}

// catalogOptions: the freelist is written with each commit, because finding it again means to read the whole file
// (108 s for 1.7 GB on a busy disk); it stays small, as almost nothing is ever deleted. The map is larger than any
// expected file, which costs address space only, so that growing never has to wait for readers.
func catalogOptions(readOnly bool) *bbolt.Options {
	opt := *bbolt.DefaultOptions
	opt.Timeout = lockWait
	opt.FreelistType = bbolt.FreelistMapType
	opt.ReadOnly = readOnly
	opt.NoStatistics = true
	if runtime.GOOS == "linux" && strconv.IntSize == 64 && !readOnly {
		opt.InitialMmapSize = int(mapSize)
	}
	return &opt
}
