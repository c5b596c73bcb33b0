package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// The reads below are methods of both Node and Catalog. They ask nobody: a node may be late, never wrong.

// read runs f in a read transaction unless ctx is done. In a catalog that is known to be damaged, what f does not find may
// be there all the same: the error is not one of absence then.
func (c *catalog) read(ctx context.Context, f func(s state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.diverged.Load(); err != nil {
		return *err
	}
	err := c.view(f)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bad := c.damage.err(); bad != nil {
		return fmt.Errorf("%v, but the catalog is damaged: %w", err, bad)
	}
	return err
}

// Manifest returns what is committed for m. An error matches [fs.ErrNotExist] if nothing is.
func (c *catalog) Manifest(ctx context.Context, m module.Version) (artifact.Manifest, error) {
	var row manifestRow
	err := c.read(ctx, func(s state) (err error) {
		var ok bool
		row, ok, err = s.manifest(moduleKey(m))
		if err == nil && !ok {
			err = fmt.Errorf("manifest of %s: %w", m, fs.ErrNotExist)
		}
		return err
	})
	return row.Manifest, err
}

// Inline returns the bytes of an info or a go.mod that the catalog holds. An error matches [fs.ErrNotExist] if it does
// not hold them; they are a blob then, or not published.
func (c *catalog) Inline(ctx context.Context, d artifact.Digest) (data []byte, err error) {
	err = c.read(ctx, func(s state) error {
		row, ok, err := s.inline(d)
		if err == nil && !ok {
			err = fmt.Errorf("inline bytes %v: %w", d, fs.ErrNotExist)
		}
		data = append([]byte{}, row.data...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Versions returns the committed versions of a module path, in any order. No version is no error.
func (c *catalog) Versions(ctx context.Context, path string) (versions []string, err error) {
	prefix := []byte(path + "@")
	err = c.read(ctx, func(s state) error {
		cur := s.bucket(bucketManifests).Cursor()
		for k, _ := cur.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cur.Next() {
			versions = append(versions, string(k[len(prefix):]))
			if len(versions)%pageSize == 0 && ctx.Err() != nil { // there may be hundreds of thousands
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return versions, err
}

// Listing returns what the upstream last said about path. An error matches [fs.ErrNotExist] if it never said anything.
func (c *catalog) Listing(ctx context.Context, path string) (l artifact.Listing, err error) {
	err = c.read(ctx, func(s state) (err error) {
		var ok bool
		l, ok, err = s.listing(path)
		if err == nil && !ok {
			err = fmt.Errorf("listing of %s: %w", path, fs.ErrNotExist)
		}
		return err
	})
	return l, err
}

// Record returns the committed record of m, if it is one of the checksum database db. Otherwise the error matches
// [fs.ErrNotExist].
func (c *catalog) Record(ctx context.Context, db string, m module.Version) (artifact.Record, error) {
	man, err := c.Manifest(ctx, m)
	if err != nil {
		return artifact.Record{}, err
	}
	if man.Record.Database != db {
		return artifact.Record{}, fmt.Errorf("record of %s in %s: %w", m, db, fs.ErrNotExist)
	}
	return man.Record, nil
}

// TreeHead returns the newest committed head (a signed note) of the checksum database db with fewer than below records;
// [math.MaxInt64] asks for the newest of all. An error matches [fs.ErrNotExist] if there is none.
func (c *catalog) TreeHead(ctx context.Context, db string, below int64) (note []byte, err error) {
	err = c.read(ctx, func(s state) error {
		h, ok, err := s.newest(db, below)
		if err == nil && !ok {
			err = fmt.Errorf("tree head of %s below %d: %w", db, below, fs.ErrNotExist)
		}
		if err == nil {
			note = bytes.Clone(h.note)
			err = c.signed.check(db, note, func() error { return s.isSigned(db, h) })
		}
		return err
	})
	return note, err
}

// signedNotes remembers which heads were found to be signed: every lookup reads one, and a signature takes ten times as long
// to verify as all the rest of it. A note with a bit turned is another note.
type signedNotes struct {
	mu    sync.Mutex
	known map[string]bool // by database and note; guarded by mu
}

const maxSignedNotes = 256 // a database has a newest head and two anchors in use

// check calls verify unless it has said yes to the note before.
func (s *signedNotes) check(db string, note []byte, verify func() error) error {
	key := db + "\x00" + string(note)
	s.mu.Lock()
	known := s.known[key]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := verify(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxSignedNotes {
		s.known = make(map[string]bool)
	}
	s.known[key] = true
	return nil
}

// isSigned verifies the signature of a committed head again, as whoever is handed it would blame the database for a bit
// that this node's disk turned.
func (s state) isSigned(db string, h headRow) error {
	v, err := s.verifier(db)
	if err != nil {
		return err
	}
	if v == nil {
		err = errors.New("the database is not trusted")
	} else {
		_, err = artifact.OpenTreeHead(v, h.note)
	}
	if err != nil {
		return damaged(err, "tree head of %s with %d records", db, h.N)
	}
	return nil
}

// DatabaseKey returns the note verifier key by which the checksum database db is trusted. An error matches
// [fs.ErrNotExist] if it is not.
func (c *catalog) DatabaseKey(ctx context.Context, db string) (key string, err error) {
	err = c.read(ctx, func(s state) error {
		if key = string(s.bucket(bucketKeys).Get([]byte(db))); key == "" {
			return fmt.Errorf("key of checksum database %q: %w", db, fs.ErrNotExist)
		}
		return nil
	})
	return key, err
}

// Fork returns the evidence that freezes the checksum database db. An error matches [fs.ErrNotExist] if it is not frozen.
func (c *catalog) Fork(ctx context.Context, db string) (f artifact.Fork, err error) {
	err = c.read(ctx, func(s state) (err error) {
		var ok bool
		f, ok, err = s.frozen(db)
		if err == nil && !ok {
			err = fmt.Errorf("fork of %s: %w", db, fs.ErrNotExist)
		}
		return err
	})
	return f, err
}

// Forks returns all evidence of forks: that which freezes a checksum database, or, with acked, that which somebody acknowledged.
func (c *catalog) Forks(ctx context.Context, acked bool) (all []artifact.Fork, err error) {
	err = c.read(ctx, func(s state) error {
		return s.bucket(bucketKeys).ForEach(func(db, _ []byte) error {
			return s.forks(string(db), func(_ []byte, row forkRow) error {
				if row.acked == acked {
					all = append(all, row.Fork)
				}
				return nil
			})
		})
	})
	return all, err
}

// pageSize is how many rows are read in one transaction of an iteration.
const pageSize = 256

// Manifests iterates over all manifests, by path and version. It reads page by page, so the loop's body may take its
// time; what is published meanwhile may or may not be seen. The first error ends it.
func (c *catalog) Manifests(ctx context.Context) iter.Seq2[artifact.Manifest, error] {
	return func(yield func(artifact.Manifest, error) bool) {
		var after []byte
		for {
			page := make([]artifact.Manifest, 0, pageSize)
			err := c.read(ctx, func(s state) error {
				cur := s.bucket(bucketManifests).Cursor()
				k, v := cur.Seek(after)
				if after != nil && bytes.Equal(k, after) {
					k, v = cur.Next()
				}
				for ; k != nil && len(page) < pageSize; k, v = cur.Next() {
					row, err := parseManifestRow(v)
					if err != nil {
						return damaged(err, "catalog row %q", k)
					}
					page = append(page, row.Manifest)
					after = bytes.Clone(k)
				}
				return nil
			})
			for _, m := range page {
				if !yield(m, nil) {
					return
				}
			}
			if err != nil {
				yield(artifact.Manifest{}, err)
				return
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

// MaxModules bounds a page of [Node.Modules].
const MaxModules = 1000

// Modules returns module paths that have a committed version and begin with prefix: at most limit (at most and by default
// [MaxModules]), following the path after, which is "" for the first page and the last path of the page before for
// another. The order is the catalog's.
func (c *catalog) Modules(ctx context.Context, prefix, after string, limit int) (paths []string, err error) {
	if limit <= 0 || limit > MaxModules {
		limit = MaxModules
	}
	err = c.read(ctx, func(s state) error {
		cur := s.bucket(bucketManifests).Cursor()
		from := prefix
		if after != "" {
			from = max(from, after+"A") // 'A' follows '@': beyond all versions of that path
		}
		for k, _ := cur.Seek([]byte(from)); k != nil && len(paths) < limit && bytes.HasPrefix(k, []byte(prefix)); {
			path, _, _ := bytes.Cut(k, []byte("@"))
			paths = append(paths, string(path))
			k, _ = cur.Seek(append(bytes.Clone(path), 'A'))
		}
		return nil
	})
	return paths, err
}

// Root returns the number of leaves of the Merkle tree over all changes of manifests, and its root hash (RFC 6962). Two
// nodes with the same number have the same root, or one of them is damaged.
func (c *catalog) Root() (seq int64, root tlog.Hash) {
	c.view(func(s state) error {
		tree, err := s.merkle()
		seq, root = tree.size, tree.root()
		return err
	})
	return seq, root
}

// Status is what a node knows of itself.
type Status struct {
	ID            string    `json:"id"`      // of this node, for ever
	Cluster       string    `json:"cluster"` // "" as long as it is not known
	Role          string    `json:"role"`    // leader, follower, candidate, shutdown; stopped for a Catalog
	Leader        string    `json:"leader"`  // the id of the leader; "" as long as there is none
	Term          uint64    `json:"term"`    // raft's
	Applied       uint64    `json:"applied"` // index of the last entry that is in the catalog
	Seq           int64     `json:"seq"`     // leaves of the Merkle tree
	Root          tlog.Hash `json:"root"`    // its root
	Manifests     int64     `json:"manifests"`
	Conflicts     int64     `json:"conflicts"`
	Clock         time.Time `json:"clock"` // every change up to then is in the catalog
	CatalogBytes  int64     `json:"catalogBytes"`
	LogBytes      int64     `json:"logBytes"`
	Databases     []string  `json:"databases"` // trusted checksum databases
	Frozen        []string  `json:"frozen"`    // those with a fork that nobody acknowledged
	Fault         string    `json:"fault"`     // why this node stopped writing, or cannot as long as its disk is full; "" if it can
	Full          bool      `json:"full"`      // Fault is no more than that: it ends when there is room
	Damage        string    `json:"damage"`    // what of the catalog is damaged: it may hold more than it finds; "" if nothing is known
	LeaderAddress string    `json:"leaderAddress"`
	Name          string    `json:"name"`
	Zone          string    `json:"zone"`
	NodeRole      string    `json:"nodeRole"` // what the node may become: RoleVoter or RoleReplica
	Version       string    `json:"version"`
	Boot          string    `json:"boot"`        // random text of this life
	Starts        uint64    `json:"starts"`      // how often its directory was opened
	LastIndex     uint64    `json:"lastIndex"`   // of the log
	CommitIndex   uint64    `json:"commitIndex"` // as far as this node knows
	Refused       string    `json:"refused"`     // why the cluster does not take this node; "" if it does
	Level         int       `json:"level"`       // feature level of the cluster
	Profile       string    `json:"profile"`     // how patient raft is: lan or wan; "" for a Catalog
	Diverged      string    `json:"diverged"`    // what shows that this node holds something else than the majority; "": nothing
}

// fill sets what the catalog itself knows.
func (c *catalog) fill(ctx context.Context, st *Status) error {
	defer func() {
		if err := c.damage.err(); err != nil {
			st.Damage = printable(err).Error()
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.view(func(s state) error { // also of a catalog that is not to be read any more
		tree, err := s.merkle()
		if err != nil {
			return err
		}
		st.Seq, st.Root = tree.size, tree.root()
		st.Cluster, st.Level = s.cluster(), s.level()
		st.Applied, st.Term = s.applied()
		if at, err := s.clock(); err == nil { // else it is told as damage when it is needed
			st.Clock = time.UnixMicro(max(at, 0)).UTC()
		}
		st.Manifests, st.Conflicts = s.number(keyManifests), s.number(keyConflicts)
		st.CatalogBytes = s.tx.Size()
		return s.bucket(bucketKeys).ForEach(func(k, _ []byte) error {
			st.Databases = append(st.Databases, string(k))
			_, isFrozen, err := s.frozen(string(k))
			if isFrozen {
				st.Frozen = append(st.Frozen, string(k))
			}
			return err
		})
	})
}
