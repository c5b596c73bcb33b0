package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// logCache is how many of the newest entries are kept in memory: what followers ask for.
const logCache = 512

func logPath(dir string) string { return filepath.Join(dir, "raft", "raft.db") }

// logOptions: the opposite of the catalog's. Cutting the log's head frees many pages, whose list would be written again
// with each commit; the log is small enough to find them by a scan when it is opened.
func logOptions() *bbolt.Options {
	opt := *bbolt.DefaultOptions
	opt.Timeout = lockWait
	opt.NoFreelistSync = true
	opt.FreelistType = bbolt.FreelistMapType
	return &opt
}

// openLog opens the log at path, which must be there and whole: an empty one would forget the node's term and vote.
func openLog(path string) (store *sealedLog, err error) {
	err = lookInto(path, *logOptions(), func(tx *bbolt.Tx) error {
		if err := checkPages(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, name := range []string{"logs", "conf"} {
			if tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("%s is not a raft log: it lacks the bucket %q", path, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return newLog(path, false)
}

// newLog opens the log at path, and makes an empty one of an empty file unless it is only to be read.
func newLog(path string, readOnly bool) (store *sealedLog, err error) {
	opt := logOptions()
	opt.ReadOnly = readOnly
	err = safely(true, func() (err error) {
		bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: opt})
		store = &sealedLog{bolt}
		return err
	})
	if err != nil {
		return nil, boltError(path, err)
	}
	return store, nil
}

// createLog makes an empty log at path, unless there is one. With servers, it holds the first entry of a new cluster:
// log and bootstrap become visible together, as raft never recovers from a term without that entry.
func createLog(path string, conf *raft.Config, trans raft.Transport, servers []raft.Server) error {
	return createFile(path, func(tmp string) error {
		store, err := newLog(tmp, false)
		if err != nil {
			return err
		}
		err = store.Set(keyNode, []byte(conf.LocalID))
		if err == nil && len(servers) > 0 {
			err = raft.BootstrapCluster(conf, store, store, raft.NewDiscardSnapshotStore(), trans, raft.Configuration{Servers: servers})
		}
		return errors.Join(err, store.Close())
	})
}

// logBackend is what raft keeps on disk besides snapshots.
type logBackend interface {
	raft.LogStore
	raft.StableStore
}

// logStore is a backend whose writes stop for good at the first failure. raft itself would go on: a leader steps down
// and may be elected again, a follower logs the error and keeps a wrong idea of its last entry. If the disk is full, that
// is what happens, as nothing was written: a leader that is the only voter is elected again until its first entry fits.
type logStore struct {
	logBackend
	latch *latch
	limit time.Duration   // a write that takes longer is a failure
	ended <-chan struct{} // closed when raft has been told to end; nil: never

	running   atomic.Bool // raft's goroutines run
	truncated atomic.Bool // entries were deleted at the end, and none were written since
}

// GetLog reads an entry. One that is damaged ends the node's writes, as it can neither be applied nor be sent to others.
// raft panics if it cannot read what it is about to apply, so its goroutine ends instead, see SetUint64.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	err := s.logBackend.GetLog(index, l)
	if !errors.Is(err, artifact.ErrDamaged) {
		return err
	}
	if s.running.Load() {
		s.latch.trip(fmt.Errorf("%w; %s", err, restore))
		runtime.Goexit()
	}
	return err
}

func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

const appending = "append to the raft log"

// StoreLogs appends entries. A follower that has deleted the ones that they replace believes to have those still if this
// fails: that is not forgiven, not even to a full disk.
func (s *logStore) StoreLogs(ls []*raft.Log) error {
	err := s.latch.guard(appending, s.limit, func() error {
		if err := fault.Error(fault.LogStore); err != nil {
			return err
		}
		return s.logBackend.StoreLogs(ls)
	})
	switch {
	case err == nil:
		fault.Point(fault.LogStored)
		s.truncated.Store(false)
		s.latch.fed(appending)
	case errors.Is(err, errFull) && s.truncated.Load():
		s.latch.trip(fmt.Errorf("%w, after entries were deleted", err))
		return s.latch.fault()
	case errors.Is(err, errFull):
		s.latch.starve(appending, err)
	}
	return err
}

func (s *logStore) DeleteRange(min, max uint64) error {
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	err = s.latch.guard("cut the raft log", s.limit, func() error { return s.logBackend.DeleteRange(min, max) })
	if err == nil && max >= last {
		s.truncated.Store(true)
	}
	return err
}

func (s *logStore) Set(k, v []byte) error {
	err := s.latch.guard("write term or vote", s.limit, func() error {
		if err := fault.Error(fault.VoteStore); err != nil {
			return err
		}
		return s.logBackend.Set(k, v)
	})
	if err == nil {
		fault.Point(fault.VoteStored)
	}
	return err
}

// SetUint64 writes a number. raft panics if it cannot save its term, which would end the process, although its reads can
// go on. So this waits until there is room. If there will not be any more, or the disk has failed, the goroutine ends that
// wanted it, which is raft's main one or that of a connection; watch ends the rest of raft. A term that is there already,
// as when raft starts, is not written again: on a full disk the node would not start at all.
func (s *logStore) SetUint64(k []byte, v uint64) error {
	write := func() error {
		return s.latch.guard("write term or vote", s.limit, func() error { return s.logBackend.SetUint64(k, v) })
	}
	if !bytes.Equal(k, keyCurrentTerm) {
		return write()
	}
	if have, err := s.GetUint64(k); err == nil && have == v {
		return nil
	}
	if !s.running.Load() {
		return write()
	}
	err := s.latch.insist("write the term", s.ended, write)
	if err != nil {
		runtime.Goexit()
	}
	return nil
}
