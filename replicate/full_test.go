package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

var errNoSpace = &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}

// fullLog is a log on a disk that can run full.
type fullLog struct {
	logBackend
	full atomic.Bool
}

func (f *fullLog) do(write func() error) error {
	if f.full.Load() {
		return errNoSpace
	}
	return write()
}

func (f *fullLog) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }
func (f *fullLog) StoreLogs(ls []*raft.Log) error {
	return f.do(func() error { return f.logBackend.StoreLogs(ls) })
}
func (f *fullLog) DeleteRange(a, b uint64) error {
	return f.do(func() error { return f.logBackend.DeleteRange(a, b) })
}
func (f *fullLog) Set(k, v []byte) error { return f.do(func() error { return f.logBackend.Set(k, v) }) }
func (f *fullLog) SetUint64(k []byte, v uint64) error {
	return f.do(func() error { return f.logBackend.SetUint64(k, v) })
}

// saysFull checks an answer that a node gives while its disk is full.
func saysFull(t *testing.T, n *Node, p artifact.Publication) {
	t.Helper()
	_, err := n.Publish(t.Context(), p)
	if !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "no space on the disk of "+n.config.Dir) || strings.Contains(err.Error(), "fault") {
		t.Errorf("Publish on a full disk: %v", err)
	}
}

// A full disk stops the only voter of a cluster only as long as it is full, whatever raft wanted to write meanwhile.
func TestFullLog(t *testing.T) {
	dir, f, faults := t.TempDir(), &fullLog{}, make(chan error, 9)
	n := openNode(t, Config{Dir: dir, HeartbeatTimeout: 100 * time.Millisecond, OnFault: func(err error) { faults <- err },
		wrapLog: func(b logBackend) logBackend { f.logBackend = b; return f }})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	advance(t, n, db)
	p := db.Publication(m, db.Size())
	for i := range 2 {
		f.full.Store(true)
		saysFull(t, n, p)
		waitFor(t, "step down", func() bool { return n.raft.State() != raft.Leader })
		waitFor(t, "wait for the term", func() bool { // an election without a disk
			n.latch.mu.Lock()
			defer n.latch.mu.Unlock()
			return n.latch.starving["write the term"] != nil
		})
		saysFull(t, n, p)
		if st, err := n.Status(t.Context()); err != nil || !strings.Contains(st.Fault, "no space") {
			t.Errorf("Status() on a full disk = %+v, %v", st, err)
		}
		if got, err := n.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
			t.Errorf("Manifest() on a full disk = %+v, %v", got, err)
		}
		f.full.Store(false)
		waitFor(t, "recovery", func() bool { _, err := n.Publish(t.Context(), p); return err == nil })
		if st, err := n.Status(t.Context()); err != nil || st.Fault != "" || st.Role != "leader" {
			t.Errorf("Status() when there is room again = %+v, %v", st, err)
		}
		m := db.AddModule("example.com/d", fmt.Sprintf("v1.%d.0", i), "module example.com/d\n")
		advance(t, n, db)
		p = db.Publication(m, db.Size())
	}
	f.full.Store(true) // and a node on a full disk can be closed
	saysFull(t, n, p)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if len(faults) > 0 {
		t.Errorf("a full disk is reported as a fault: %v", <-faults)
	}
	n = openNode(t, Config{Dir: dir})
	if _, err := n.Publish(t.Context(), p); err != nil {
		t.Error(err)
	}
	n.Close()
	checkClean(t, dir)
}

// A catalog without room holds its entries back, and skips none.
func TestFullCatalog(t *testing.T) {
	dir, faults := t.TempDir(), make(chan error, 9)
	n := openNode(t, Config{Dir: dir, OnFault: func(err error) { faults <- err }})
	db := trusting(t, n)
	m := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	advance(t, n, db)
	p := db.Publication(m, db.Size())
	var full atomic.Bool
	n.beforeCommit = func() error {
		if full.Load() {
			return errNoSpace
		}
		return nil
	}
	full.Store(true)
	for range 2 {
		saysFull(t, n, p)
	}
	full.Store(false)
	waitFor(t, "recovery", func() bool { _, err := n.Publish(t.Context(), p); return err == nil })
	full.Store(true)
	if err := n.TrustDatabase(t.Context(), replicatetest.NewDatabase(t, "other.example.org").Key); !errors.Is(err, errFull) {
		t.Errorf("TrustDatabase on a full disk = %v", err)
	}
	n.Close()
	n = openNode(t, Config{Dir: dir})
	publish(t, n, db, "example.com/c", "v1.0.0")
	n.Close()
	checkClean(t, dir)
	if len(faults) > 0 {
		t.Errorf("a full disk is reported as a fault: %v", <-faults)
	}
}

// Entries that were given up are not skipped: what comes after them is not applied either.
func TestNothingIsSkipped(t *testing.T) {
	m := newMachine(t)
	ended := make(chan struct{})
	m.ended = ended
	close(ended)
	m.catalog.beforeCommit = func() error { return errNoSpace }
	first, next := m.entry(clusterCommand{"a"}), m.entry(clusterCommand{"b"})
	if err, ok := m.Apply(first).(error); !ok || !errors.Is(err, errFull) {
		t.Errorf("Apply on a full disk = %v", err)
	}
	m.catalog.beforeCommit = nil
	if err, ok := m.Apply(next).(error); !ok || !errors.Is(err, errFull) {
		t.Errorf("Apply of the entry behind = %v", err)
	}
	if got := dump(t, m.catalog); strings.Contains(got, "cluster") {
		t.Errorf("an entry was skipped:\n%s", got)
	}
}

func TestIsFull(t *testing.T) {
	for _, tt := range []struct {
		err  error
		full bool
	}{
		{errNoSpace, true},
		{&fs.PathError{Op: "write", Err: syscall.EDQUOT}, true},
		{&fs.PathError{Op: "truncate", Err: syscall.ENOSPC}, true},
		{&fs.PathError{Op: "write", Err: syscall.EIO}, false},
		{&fs.PathError{Op: "sync", Err: syscall.ENOSPC}, false}, // what was taken may be lost
		{syscall.ENOSPC, false},                                 // of fdatasync
		{errDisk, false},
	} {
		if isFull(tt.err) != tt.full {
			t.Errorf("isFull(%v) = %v", tt.err, !tt.full)
		}
	}
}

// A follower that has deleted entries, and has no room for those in their place, does not know its own end any more.
func TestFullAfterTruncation(t *testing.T) {
	f := &fullLog{logBackend: raft.NewInmemStore()}
	s := &logStore{logBackend: f, latch: newLatch("", nil), limit: time.Minute}
	for i := range uint64(5) {
		if err := s.StoreLog(&raft.Log{Index: i + 1}); err != nil {
			t.Fatal(err)
		}
	}
	store := func(index uint64, fault bool) {
		t.Helper()
		f.full.Store(true)
		err := s.StoreLog(&raft.Log{Index: index})
		f.full.Store(false)
		if !errors.Is(err, errFull) || (s.latch.fault() != nil) != fault {
			t.Errorf("StoreLog(%d) = %v, fault %v", index, err, s.latch.fault())
		}
	}
	if err := s.DeleteRange(1, 2); err != nil { // the head is not the end
		t.Fatal(err)
	}
	store(6, false)
	if err := s.DeleteRange(4, 5); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLog(&raft.Log{Index: 4}); err != nil {
		t.Fatal(err)
	}
	store(5, false)
	if err := s.DeleteRange(4, 4); err != nil {
		t.Fatal(err)
	}
	store(4, true)
}

// raft panics if it cannot save its term. It must not come to that, neither while it runs nor when it starts (see below).
func TestTermThatCannotBeSaved(t *testing.T) {
	f := &fullLog{logBackend: raft.NewInmemStore()}
	s := &logStore{logBackend: f, latch: newLatch("", nil), limit: time.Minute}
	s.running.Store(true)
	s.latch.trip(errDisk)
	ended := make(chan bool)
	go func() {
		returned := false
		defer func() { ended <- returned || recover() != nil }()
		_ = s.SetUint64(keyCurrentTerm, 7)
		returned = true
	}()
	if <-ended {
		t.Error("SetUint64 returns to raft after a fault")
	}
	if err := s.SetUint64(keyLastVoteTerm, 7); !errors.Is(err, errDisk) {
		t.Errorf("SetUint64 of a vote after a fault = %v", err)
	}

}

// A start on a full disk serves what is stored, says what is the matter, and writes when there is room.
func TestStartOnFullDisk(t *testing.T) {
	dir, f, faults := t.TempDir(), &fullLog{}, make(chan error, 9)
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	n.Close()
	f.full.Store(true)
	reg := prometheus.NewRegistry()
	n = openNode(t, Config{Dir: dir, HeartbeatTimeout: 100 * time.Millisecond, Metrics: reg, OnFault: func(err error) { faults <- err },
		wrapLog: func(b logBackend) logBackend { f.logBackend = b; return f }})
	if got, err := n.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
		t.Errorf("Manifest() on a full disk = %+v, %v", got, err)
	}
	if err := n.TrustDatabase(t.Context(), db.Key); err != nil {
		t.Errorf("TrustDatabase(known) on a full disk = %v", err)
	}
	if st, err := n.Status(t.Context()); err != nil || !st.Full || !strings.Contains(st.Fault, "no space on the disk of "+dir) {
		t.Errorf("Status() on a full disk = %+v, %v", st, err)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP modmirror_replicate_disk_full 1 as long as this node cannot write because its disk is full.
# TYPE modmirror_replicate_disk_full gauge
modmirror_replicate_disk_full 1
# HELP modmirror_replicate_fault 1 after a disk fault has stopped this node's writes.
# TYPE modmirror_replicate_fault gauge
modmirror_replicate_fault 0
`), "modmirror_replicate_fault", "modmirror_replicate_disk_full"); err != nil {
		t.Error(err)
	}
	f.full.Store(false)
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	waitFor(t, "recovery", func() bool { st, _ := n.Status(t.Context()); return st.Role == "leader" && st.Fault == "" })
	advance(t, n, db)
	if _, err := n.Publish(t.Context(), db.Publication(m, db.Size())); err != nil {
		t.Errorf("Publish() when there is room = %v", err)
	}
	if len(faults) > 0 {
		t.Errorf("a full disk is reported as a fault: %v", <-faults)
	}
}

// Whatever keeps the only voter from leading, the error of the start has it.
func TestNoLeaderSaysWhy(t *testing.T) {
	dir := t.TempDir()
	openNode(t, Config{Dir: dir}).Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stuck := make(chan struct{})
	defer close(stuck)
	_, err := Open(ctx, Config{Dir: dir, wrapLog: func(b logBackend) logBackend { return stuckLog{b, stuck} }})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "raft is a") {
		t.Errorf("Open = %v", err)
	}
}

// stuckLog is a log that takes no entries, and says nothing.
type stuckLog struct {
	logBackend
	stuck chan struct{}
}

func (s stuckLog) StoreLogs([]*raft.Log) error { <-s.stuck; return errDisk }

var keyLastVoteTerm = []byte("LastVoteTerm")

func TestStopWrites(t *testing.T) {
	faults := make(chan error, 9)
	n := openNode(t, Config{Dir: t.TempDir(), OnFault: func(err error) { faults <- err }})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	advance(t, n, db)
	for range 3 {
		n.StopWrites(errDisk)
	}
	if st, _ := n.Status(t.Context()); !strings.Contains(st.Fault, errDisk.Error()) {
		t.Errorf("Status() = %+v", st)
	}
	stopped(t, n, faults, want, db.Publication(m, db.Size()))
}

// A write that hung too long has failed, also if it comes back well; nothing is told that it succeeded.
func TestWriteThatHungIsLate(t *testing.T) {
	l := newLatch("", nil)
	if err := l.guard("write", time.Millisecond, func() error { <-l.done; return nil }); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("guard = %v, want the fault", err)
	}
	called := false
	if err := l.guard("write", time.Minute, func() error { called = true; return nil }); err == nil || called {
		t.Errorf("guard after a fault = %v, called %v", err, called)
	}
}

// Every kind of write trips the latch by itself.
func TestEveryWriteIsGuarded(t *testing.T) {
	for what, write := range map[string]func(*logStore) error{
		"StoreLogs":   func(s *logStore) error { return s.StoreLogs([]*raft.Log{{Index: 1}}) },
		"DeleteRange": func(s *logStore) error { return s.DeleteRange(1, 1) },
		"Set":         func(s *logStore) error { return s.Set([]byte("k"), []byte("v")) },
		"SetUint64":   func(s *logStore) error { return s.SetUint64([]byte("k"), 1) },
	} {
		s := &logStore{logBackend: brokenLog{raft.NewInmemStore()}, latch: newLatch("", nil), limit: time.Minute}
		if err := write(s); !errors.Is(err, errDisk) || s.latch.fault() == nil {
			t.Errorf("%s on a broken disk = %v, fault %v", what, err, s.latch.fault())
		}
	}
}

type brokenLog struct{ logBackend }

func (brokenLog) StoreLogs([]*raft.Log) error      { return errDisk }
func (brokenLog) DeleteRange(uint64, uint64) error { return errDisk }
func (brokenLog) Set([]byte, []byte) error         { return errDisk }
func (brokenLog) SetUint64([]byte, uint64) error   { return errDisk }
