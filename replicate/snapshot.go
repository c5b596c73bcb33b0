package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// snapshots is raft's snapshot store. There is always exactly one snapshot, the catalog as it is now: its list says the
// index, term and configuration that the catalog itself holds, so raft replays from there, and taking one writes metadata
// only. Opening it streams the file as of one read transaction (REPLICATION §3.1, the way of Vault's integrated storage).
type snapshots struct {
	catalog *catalog
	latch   *latch
	sends   chan struct{} // holds one token per snapshot that is being sent

	mu      sync.Mutex
	pending *installed // guarded by mu; received and checked, to be restored next
}

// maxSends bounds how many snapshots are sent at the same time. Each keeps a read transaction open, and as long as one
// is, no page that is freed meanwhile can be used again.
const maxSends = 2

const (
	liveID    = "catalog"
	installID = "installed"
)

func newSnapshots(c *catalog, l *latch) *snapshots {
	return &snapshots{catalog: c, latch: l, sends: make(chan struct{}, maxSends)}
}

func liveMeta(s state) *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: liveID, Size: s.tx.Size()}
	m.Index, m.Term = s.applied()
	m.Configuration, m.ConfigurationIndex = s.members()
	return m
}

// List returns the one snapshot; none before the first entry is applied.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	var out []*raft.SnapshotMeta
	err := s.catalog.view(func(st state) error {
		if m := liveMeta(st); m.Index > 0 {
			out = append(out, m)
		}
		return nil
	})
	return out, err
}

// Open returns the catalog as a stream whose metadata, size included, are of the very transaction that it is read in;
// or, under the id of an install, the file that Restore will put in its place.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == installID {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pending == nil {
			return nil, nil, errors.New("no snapshot was installed")
		}
		return &s.pending.meta, s.pending, nil
	}
	select {
	case s.sends <- struct{}{}:
	default:
		return nil, nil, fmt.Errorf("%d snapshots are being sent already", maxSends)
	}
	meta, r, err := s.catalog.stream(func() { <-s.sends })
	if err != nil {
		<-s.sends
		return nil, nil, err
	}
	return meta, r, nil
}

// Create begins a snapshot of this node (which writes nothing but metadata) or the installation of a leader's.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("snapshot version %d is not supported", version)
	}
	return &sink{store: s, meta: raft.SnapshotMeta{Version: version, ID: installID, Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex}}, nil
}

// sink takes one snapshot in.
type sink struct {
	store *snapshots
	meta  raft.SnapshotMeta
	local bool     // set by live.Persist: the snapshot is the catalog itself
	file  *os.File // of an install, from its first byte on
	in    unsealer // writes to file
	done  bool
}

// ID names the snapshot for Open.
func (k *sink) ID() string {
	if k.local {
		return liveID
	}
	return installID
}

// Write receives a part of an install.
func (k *sink) Write(p []byte) (n int, err error) {
	if k.file == nil {
		if err := k.begin(); err != nil {
			return 0, err
		}
	}
	return k.in.Write(p)
}

// writeFile writes a part of the file in an install.
func (k *sink) writeFile(p []byte) (n int, err error) {
	err = k.store.latch.guard("write a received snapshot", hung, func() error {
		if err = fault.Error(fault.SnapshotReceive); err == nil {
			n, err = k.file.Write(p)
		}
		return err
	})
	k.meta.Size += int64(n)
	return n, err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (k *sink) begin() (err error) {
	if err := k.store.latch.fault(); err != nil {
		return err
	}
	path := k.store.catalog.path
	k.in.to = writerFunc(k.writeFile)
	k.file, err = os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempMark+"*")
	return err
}

// Cancel gives the snapshot up.
func (k *sink) Cancel() error {
	if k.done || k.file == nil {
		k.done = true
		return nil
	}
	k.done = true
	return errors.Join(k.file.Close(), os.Remove(k.file.Name()))
}

// Close completes the snapshot. Of this node's own, it notes in the catalog up to where the log may be cut now. An
// install is made durable and checked as a whole, first against its seal, before anything relies on it.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	if k.local {
		k.done = true
		return k.store.witness(k.meta)
	}
	if k.file == nil {
		k.done = true
		return errors.New("install of a snapshot without a byte")
	}
	if err := k.in.check(); err != nil {
		return errors.Join(fmt.Errorf("installed snapshot is refused: %w: %w", err, artifact.ErrRefused), k.Cancel())
	}
	if err := k.store.latch.guard("fsync a received snapshot", hung, k.sync); err != nil {
		return errors.Join(err, k.Cancel())
	}
	if err := k.store.validate(k.file.Name(), k.meta); err != nil {
		return errors.Join(fmt.Errorf("installed snapshot is refused: %w", err), k.Cancel())
	}
	k.done = true
	if err := k.store.latch.guard("close a received snapshot", hung, k.file.Close); err != nil {
		return errors.Join(err, os.Remove(k.file.Name()))
	}
	k.store.mu.Lock()
	k.store.pending = &installed{path: k.file.Name(), meta: k.meta}
	k.store.mu.Unlock()
	fault.Point(fault.SnapshotReceived)
	return nil
}

func (k *sink) sync() error {
	if err := fault.Error(fault.SnapshotFsync); err != nil {
		return err
	}
	return k.file.Sync()
}

// witness notes that everything up to meta.Index is in the catalog. It may be a little more than the last entry that was
// applied, as raft counts entries that it does not hand to the catalog; after the log is cut there, a restart must not
// ask for them.
func (s *snapshots) witness(meta raft.SnapshotMeta) error {
	return s.latch.guard("note a snapshot in the catalog", hung, func() error {
		err := s.catalog.update(func(st state) error {
			if index, _ := st.applied(); index >= meta.Index {
				return errNothing
			}
			if _, index := st.members(); index < meta.ConfigurationIndex {
				if err := st.setMembers(meta.ConfigurationIndex, raft.EncodeConfiguration(meta.Configuration)); err != nil {
					return err
				}
			}
			return st.setApplied(meta.Index, meta.Term)
		})
		if errors.Is(err, errNothing) {
			return nil
		}
		return err
	})
}

// validate checks a received catalog: its pages, every row as fsck does, that it holds what the leader says, and that it
// is of our cluster and not older than what is applied here (promises that this node gave would be taken back). What a
// leader's disk has damaged, or a leader has made up, comes no further than here, as with entries of the log.
func (s *snapshots) validate(path string, meta raft.SnapshotMeta) error {
	if err := checkPages(path); err != nil { // before bbolt's own check, whose goroutine would end the process
		return err
	}
	db, err := openDB(path, true)
	if err != nil {
		return err
	}
	err = safely(true, func() error {
		return db.View(func(tx *bbolt.Tx) error {
			for bad := range tx.Check() {
				err = errors.Join(err, bad)
			}
			if err != nil {
				return err
			}
			if err := s.fits(state{tx}, meta); err != nil {
				return err
			}
			return checkRows(state{tx})
		})
	})
	return errors.Join(err, db.Close())
}

// checkRows returns the first problem of a catalog.
func checkRows(s state) (first error) {
	k := &checker{state: s, ctx: context.Background(), yield: func(err error) bool { first = err; return false }}
	k.each = k.rows
	if err := k.run(); err != nil && first == nil {
		return err
	}
	return first
}

// fits reports whether the received catalog is the one that the leader announced, and may take the place of this one.
func (s *snapshots) fits(got state, meta raft.SnapshotMeta) error {
	if index, _ := got.applied(); index < meta.Index {
		return fmt.Errorf("it ends at index %d, not at %d", index, meta.Index)
	}
	return s.catalog.view(func(have state) error {
		if index, _ := have.applied(); index > meta.Index {
			return fmt.Errorf("it ends at index %d, and %d is applied here", meta.Index, index)
		}
		if a, b := have.cluster(), got.cluster(); a != "" && b != "" && a != b {
			return fmt.Errorf("it is of cluster %s, this node is of cluster %s: %w", b, a, artifact.ErrRefused)
		}
		return nil
	})
}

// installed is a catalog that was received and checked, on its way to Restore. Its content is its path.
type installed struct {
	path string
	meta raft.SnapshotMeta
}

// Read does not happen: Restore renames the file.
func (*installed) Read([]byte) (int, error) { return 0, io.EOF }

// Close removes the file if Restore did not take it.
func (in *installed) Close() error {
	if err := os.Remove(in.path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
