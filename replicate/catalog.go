package replicate

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
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
	bucketLeaves    = []byte("s") // seq → 32 bytes leaf hash, path@version
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
)

const catalogFormat = 1

var mapSize int64 = 64 << 30 // see catalogOptions; not a constant, as it does not fit into an int of 32 bits

// catalog is catalog.db, open. All its reads are local.
type catalog struct {
	path string

	mu sync.RWMutex
	db *bbolt.DB // guarded by mu: readers hold it shared as long as they are in a transaction; nil once closed

	streamMu sync.Mutex
	streams  map[*stream]bool // guarded by streamMu; snapshots that are being sent

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
	return safely(false, func() error {
		return c.db.View(func(tx *bbolt.Tx) error { return f(state{tx}) })
	})
}

// safely runs f, which reads pages. Where a page is not what it should be, bbolt panics; here that becomes an error, as a
// damaged page is a fault of the disk and must not take down what does not need it. With all, so do errors of the runtime,
// which damaged numbers can cause.
func safely(all bool, f func() error) (err error) {
	defer func() {
		r := recover()
		if bug, ok := r.(runtime.Error); ok && !all {
			panic(bug)
		}
		if r != nil {
			err = fmt.Errorf("damaged pages: %v: %w", r, artifact.ErrUnavailable)
		}
	}()
	return f()
}

// update calls f in a write transaction and commits it. Any error leaves the catalog as it was.
func (c *catalog) update(f func(s state) error) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.db == nil {
		return fmt.Errorf("catalog is closed: %w", artifact.ErrUnavailable)
	}
	return c.db.Update(func(tx *bbolt.Tx) error {
		if err := f(state{tx}); err != nil || c.beforeCommit == nil {
			return err
		}
		return c.beforeCommit()
	})
}

func (c *catalog) close() error {
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

// openDB opens the catalog's file at path. A file that is shorter than its own header says is refused here, because
// reading it would kill the process (it is mapped into memory).
func openDB(path string, readOnly bool) (*bbolt.DB, error) {
	look := func(tx *bbolt.Tx) error { return checkShape(tx, path) }
	if err := lookInto(path, *catalogOptions(true), look); err != nil {
		return nil, err
	}
	return openBolt(path, *catalogOptions(readOnly))
}

// checkShape reports whether tx can be read safely and is a catalog that this version understands.
func checkShape(tx *bbolt.Tx, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%s: %w: it has %d bytes of %d", path, errCut, info.Size(), tx.Size())
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%s is not a catalog: it lacks the bucket %q", path, name)
		}
	}
	if f := tx.Bucket(bucketConfig).Get(keyFormat); len(f) != 1 || f[0] != catalogFormat {
		return fmt.Errorf("%s has format %v, which this version of modmirror does not know", path, f)
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
