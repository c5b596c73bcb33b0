package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	before, _ := n.Status(t.Context())
	if before.Role != "leader" || before.ID != n.ID() || before.Leader != n.ID() || before.Cluster == "" || before.Manifests != 1 ||
		before.CatalogBytes == 0 || before.LogBytes == 0 || before.Applied == 0 || before.Term == 0 || before.Fault != "" {
		t.Errorf("Status() = %+v", before)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Publish(t.Context(), artifact.Publication{Manifest: want}); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Publish after Close: %v, want ErrUnavailable", err)
	}
	n = openNode(t, Config{Dir: dir})
	if got, err := n.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
		t.Errorf("Manifest() after a restart = %+v, %v", got, err)
	}
	after, _ := n.Status(t.Context())
	if after.ID != before.ID || after.Cluster != before.Cluster || after.Root != before.Root || after.Term <= before.Term {
		t.Errorf("Status() = %+v after a restart, before it was %+v", after, before)
	}
	publish(t, n, db, "example.com/b", "v1.0.0")
}

// The only voter does not wait for others to be heard, neither at its first start nor later.
func TestAloneLeadsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		n := openNode(t, Config{Dir: dir, HeartbeatTimeout: time.Minute}) // openNode waits 20 s
		if err := n.TrustDatabase(t.Context(), replicatetest.NewDatabase(t, "sum.example.org").Key); err != nil && !errors.Is(err, artifact.ErrRefused) {
			t.Error(err)
		}
		n.Close()
	}
}

// A copy of the files at any moment is what a crash leaves, and has everything that was answered until then.
func TestCrashCopies(t *testing.T) {
	dir := t.TempDir()
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	var acked []artifact.Manifest
	for i := range 4 {
		acked = append(acked, publish(t, n, db, "example.com/a", fmt.Sprintf("v1.%d.0", i)))
		// bbolt's files may be copied while nothing is being written: an acknowledged write is.
		crashed := copyDir(t, dir)
		again := openNode(t, Config{Dir: crashed})
		for _, want := range acked {
			if got, err := again.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
				t.Errorf("after a crash: Manifest(%s) = %+v, %v", want.Module, got, err)
			}
		}
		seq, root := n.Root()
		if s, r := again.Root(); s != seq || r != root {
			t.Errorf("Root() after a crash = %d %v, want %d %v", s, r, seq, root)
		}
		again.Close()
	}
}

// A catalog that is behind its log catches up, whatever the batch it died in.
func TestCatalogBehindLog(t *testing.T) {
	dir := t.TempDir()
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	publish(t, n, db, "example.com/a", "v1.0.0")
	old, err := os.ReadFile(n.path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		publish(t, n, db, "example.com/b", fmt.Sprintf("v1.%d.0", i))
	}
	seq, root := n.Root()
	n.Close()
	if err := os.WriteFile(filepath.Join(dir, "catalog.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	n = openNode(t, Config{Dir: dir})
	if s, r := n.Root(); s != seq || r != root {
		t.Errorf("Root() after the catalog fell behind = %d %v, want %d %v", s, r, seq, root)
	}
}

// Files that do not belong together are refused with words, not repaired by forgetting.
func TestMismatchedFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"log lost":          {func(dir string) error { return os.Remove(logPath(dir)) }, "there is no raft log"},
		"catalog lost":      {func(dir string) error { return os.Remove(filepath.Join(dir, "catalog.db")) }, "there is no catalog"},
		"catalog cut short": {func(dir string) error { return os.Truncate(filepath.Join(dir, "catalog.db"), 8192) }, "cut short"},
		"catalog is text": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "catalog.db"), bytes.Repeat([]byte("text"), 9999), 0o600)
		}, "invalid database"},
		"node.json empty": {func(dir string) error { return os.Truncate(filepath.Join(dir, "node.json"), 0) }, "does not say which node"},
		"node.json of another cluster": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"node":"x","cluster":"y"}`), 0o600)
		}, `is of node "x"`},
	} {
		dir := t.TempDir()
		n := openNode(t, Config{Dir: dir})
		publish(t, n, trusting(t, n), "example.com/a", "v1.0.0")
		n.Close()
		if err := tt.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, tt.want)
		}
	}
}

// A crash while the node is created leaves temporary files at most; what is whole is kept.
func TestCreationInterrupted(t *testing.T) {
	dir := t.TempDir()
	id, err := loadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "catalog.db"+tempMark+"123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, Config{Dir: dir})
	if n.ID() != id.Node {
		t.Errorf("ID() = %s, want %s", n.ID(), id.Node)
	}
	if have, _ := exists(left); have {
		t.Error("the temporary file is still there")
	}
	n.Close()
	// As if the process had died between two steps.
	for _, undo := range [][]string{{}, {"catalog.db"}, {"catalog.db", "raft/raft.db"}} {
		for _, name := range undo {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if len(undo) == 1 { // the log cannot have led to anything yet
			n := &Node{}
			n.config.setDefaults()
			_, n.config.transport = raft.NewInmemTransport("")
			n.config.Dir, n.id, n.catalog = dir, id, newCatalog(filepath.Join(dir, "catalog.db"))
			if err := errors.Join(os.Remove(logPath(dir)), n.createLog()); err != nil {
				t.Fatal(err)
			}
		}
		if err := id.write(filepath.Join(dir, "node.json")); err != nil {
			t.Fatal(err)
		}
		if n = openNode(t, Config{Dir: dir}); n.ID() != id.Node {
			t.Errorf("without %q: ID() = %s, want %s", undo, n.ID(), id.Node)
		}
		n.Close()
	}
}

// Of several first starts on one directory one founds the node; the others are told that it runs, and nothing else.
func TestRacingFirstStarts(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		type opened struct {
			n   *Node
			err error
		}
		all := make(chan opened)
		const starts = 6
		for range starts {
			go func() {
				n, err := Open(t.Context(), Config{Dir: dir})
				all <- opened{n, err}
			}()
		}
		var running []*Node
		for range starts {
			if o := <-all; o.err == nil {
				running = append(running, o.n)
			} else if !errors.Is(o.err, ErrLocked) {
				t.Errorf("a start beside another: %v", o.err)
			}
		}
		if len(running) != 1 {
			t.Errorf("%d nodes run", len(running))
		}
		for _, n := range running {
			n.Close()
		}
		checkClean(t, dir)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	n := openNode(t, Config{Dir: dir})
	start := time.Now()
	_, err := Open(t.Context(), Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second Open: %v, want ErrLocked on one line", err)
	}
	if _, err := OpenCatalog(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("OpenCatalog while the node runs: %v, want ErrLocked", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v to say so", d)
	}
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	n.Close()
	c, err := OpenCatalog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := c.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
		t.Errorf("Catalog.Manifest() = %+v, %v", got, err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.Role != "stopped" || st.Manifests != 1 || st.LogBytes == 0 || st.ID != n.ID() {
		t.Errorf("Catalog.Status() = %+v, %v", st, err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("Open while a Catalog is open: %v, want ErrLocked", err)
	}
	if _, err := OpenCatalog(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenCatalog of nothing: %v, want fs.ErrNotExist", err)
	}
}

// faulty is a log whose writes fail or hang on demand.
type faulty struct {
	logBackend
	fail   atomic.Bool
	writes atomic.Int64
	gate   chan struct{} // if not nil, StoreLogs waits for a token
	mu     sync.Mutex
	sizes  []int // of the data of each entry with commands
}

var errDisk = errors.New("input/output error")

func (f *faulty) StoreLogs(ls []*raft.Log) error {
	for _, l := range ls {
		if l.Type == raft.LogCommand {
			f.mu.Lock()
			f.sizes = append(f.sizes, len(l.Data))
			gate := f.gate
			f.mu.Unlock()
			if gate != nil {
				<-gate
			}
		}
	}
	f.writes.Add(1)
	if f.fail.Load() {
		return errDisk
	}
	return f.logBackend.StoreLogs(ls)
}

func (f *faulty) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

func withFaults(f *faulty) func(logBackend) logBackend {
	return func(b logBackend) logBackend { f.logBackend = b; return f }
}

// stopped waits for the fault and checks what is promised of a node after it.
func stopped(t *testing.T, n *Node, faults <-chan error, want artifact.Manifest, p artifact.Publication) {
	t.Helper()
	select {
	case err := <-faults:
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("OnFault(%v), want one line", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("OnFault is not called")
	}
	for range 3 {
		if _, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("Publish after a fault: %v, want ErrUnavailable", err)
		}
	}
	if got, err := n.Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
		t.Errorf("Manifest() after a fault = %+v, %v", got, err)
	}
	<-n.raftDone
	if st, err := n.Status(t.Context()); err != nil || st.Fault == "" || st.Role != "shutdown" || st.Leader != "" {
		t.Errorf("Status() after a fault = %+v, %v", st, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if len(faults) > 0 {
		t.Error("OnFault is called twice")
	}
}

func TestLogFault(t *testing.T) {
	dir, f, faults := t.TempDir(), &faulty{}, make(chan error, 9)
	n := openNode(t, Config{Dir: dir, OnFault: func(err error) { faults <- err }, wrapLog: withFaults(f)})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	advance(t, n, db)
	p := db.Publication(m, db.Size())
	f.fail.Store(true)
	if _, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Publish on a failing disk: %v, want ErrUnavailable", err)
	}
	writes := f.writes.Load()
	f.fail.Store(false) // the disk recovers; the node does not trust it any more
	stopped(t, n, faults, want, p)
	if f.writes.Load() != writes {
		t.Errorf("%d writes after the fault", f.writes.Load()-writes)
	}
	n = openNode(t, Config{Dir: dir})
	if _, err := n.Publish(t.Context(), p); err != nil {
		t.Errorf("Publish after a restart: %v", err)
	}
}

// Nothing reaches a disk that failed once, not even what would succeed.
func TestLatch(t *testing.T) {
	calls := make(chan error, 9)
	l := newLatch("", func(err error) { calls <- err })
	f := &faulty{logBackend: raft.NewInmemStore()}
	s := &logStore{logBackend: f, latch: l, limit: time.Minute}
	if err := s.StoreLog(&raft.Log{Index: 1}); err != nil {
		t.Fatal(err)
	}
	f.fail.Store(true)
	if err := s.StoreLog(&raft.Log{Index: 2}); !errors.Is(err, errDisk) || !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("StoreLog on a failing disk: %v", err)
	}
	f.fail.Store(false)
	for what, err := range map[string]error{
		"StoreLogs":   s.StoreLogs([]*raft.Log{{Index: 2}}),
		"DeleteRange": s.DeleteRange(1, 1),
		"Set":         s.Set([]byte("k"), []byte("v")),
		"SetUint64":   s.SetUint64([]byte("k"), 1),
	} {
		if !errors.Is(err, errDisk) {
			t.Errorf("%s after a fault: %v, want the fault", what, err)
		}
	}
	if n, _ := f.LastIndex(); n != 1 || f.writes.Load() != 2 {
		t.Errorf("after the fault the log ends at %d, want 1", n)
	}
	l.trip(errors.New("another"))
	if err := <-calls; !errors.Is(err, errDisk) {
		t.Errorf("OnFault(%v), want the first fault", err)
	}
	if len(calls) > 0 {
		t.Error("OnFault is called twice")
	}
}

func TestHangingLog(t *testing.T) {
	f, faults := &faulty{}, make(chan error, 9)
	n := openNode(t, Config{Dir: t.TempDir(), OnFault: func(err error) { faults <- err }, wrapLog: withFaults(f), hung: 200 * time.Millisecond})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	advance(t, n, db)
	p := db.Publication(m, db.Size())
	gate := make(chan struct{})
	f.mu.Lock()
	f.gate = gate
	f.mu.Unlock()
	f.fail.Store(true) // what comes of it in the end is of no interest any more
	time.AfterFunc(time.Second, func() { close(gate) })
	if _, err := n.Publish(t.Context(), p); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Publish on a hanging disk: %v, want ErrUnavailable", err)
	}
	stopped(t, n, faults, want, p)
}

// A catalog that cannot be written stops the node; the next start applies what is missing.
func TestCatalogFault(t *testing.T) {
	dir, faults := t.TempDir(), make(chan error, 9)
	n := openNode(t, Config{Dir: dir, OnFault: func(err error) { faults <- err }})
	db := trusting(t, n)
	want := publish(t, n, db, "example.com/a", "v1.0.0")
	var ms []replicatetest.Module
	for i := range 40 {
		ms = append(ms, db.AddModule("example.com/b", fmt.Sprintf("v1.%d.0", i), "module example.com/b // "+strings.Repeat("x", 50<<10)+fmt.Sprint(i)+"\n"))
	}
	extra := db.AddModule("example.com/c", "v1.0.0", "module example.com/c\n")
	advance(t, n, db)
	n.db.MaxSize = 1 << 20 // the disk is full from here
	var failed atomic.Int64
	var wg sync.WaitGroup
	for _, m := range ms {
		p := db.Publication(m, db.Size())
		wg.Go(func() {
			if _, err := n.Publish(t.Context(), p); errors.Is(err, artifact.ErrUnavailable) {
				failed.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if failed.Load() == 0 {
		t.Error("2 MB fit into 1 MB")
	}
	stopped(t, n, faults, want, db.Publication(extra, db.Size()))
	n = openNode(t, Config{Dir: dir})
	publishAll(t, n, db, ms)
	n.Close()
	checkClean(t, dir)
}

// checkClean checks the catalog in dir.
func checkClean(t *testing.T, dir string) {
	t.Helper()
	c, err := OpenCatalog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for err := range c.Check(t.Context(), nil) {
		t.Errorf("Check: %v", err)
	}
}

// What queues up while an entry is in flight goes together, up to the limit.
func TestCoalescing(t *testing.T) {
	f := &faulty{}
	n := openNode(t, Config{Dir: t.TempDir(), wrapLog: withFaults(f)})
	db := trusting(t, n)
	var ms []replicatetest.Module
	for i := range 64 {
		ms = append(ms, db.AddModule("example.com/b", fmt.Sprintf("v1.%d.0", i), "module example.com/b // "+strings.Repeat("x", 10<<10)+fmt.Sprint(i)+"\n"))
	}
	advance(t, n, db)
	gate := make(chan struct{})
	f.mu.Lock()
	f.gate, f.sizes = gate, nil
	f.mu.Unlock()
	go n.Publish(t.Context(), db.Publication(ms[0], db.Size()))
	waitFor(t, "an entry in flight", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.sizes) == 1 })
	go func() {
		waitFor(t, "a full queue", func() bool { return len(n.queue) == len(ms)-1 })
		close(gate)
	}()
	publishAll(t, n, db, ms[1:])
	f.mu.Lock()
	defer f.mu.Unlock()
	total := 0
	for _, s := range f.sizes[1:] {
		total += s
		if s > maxBatch+1 {
			t.Errorf("entry of %d bytes, want at most %d", s, maxBatch)
		}
	}
	if got, want := len(f.sizes), 1+(total+maxBatch-1)/maxBatch+1; got > want {
		t.Errorf("%d publications of %d bytes took %d entries %v, want at most %d", len(ms)-1, total/len(ms), got, f.sizes, want)
	}
}

// waitFor waits until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); {
		if time.Since(start) > 20*time.Second {
			t.Errorf("no %s within 20 s", what)
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestTooLarge(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	l := artifact.Listing{Path: "example.com/a", Listed: time.Unix(1, 0)}
	for i := range 60000 {
		l.Versions = append(l.Versions, fmt.Sprintf("v1.0.%d", i))
	}
	if err := n.PublishListing(t.Context(), l); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("PublishListing of 600 KB: %v, want ErrRefused", err)
	}
	l.Versions = l.Versions[:30000] // larger than a batch, travels alone
	if err := n.PublishListing(t.Context(), l); err != nil {
		t.Error(err)
	}
	before, _ := n.Status(t.Context())
	l.Listed = time.Unix(2, 0)
	if err := n.PublishListing(t.Context(), l); err != nil {
		t.Error(err)
	}
	if after, _ := n.Status(t.Context()); after.Applied != before.Applied {
		t.Error("a listing that says the same took an entry")
	}
}

func TestContexts(t *testing.T) {
	f := &faulty{}
	n := openNode(t, Config{Dir: t.TempDir(), wrapLog: withFaults(f)})
	db := trusting(t, n)
	m := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	advance(t, n, db)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Publish(ctx, db.Publication(m, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish(canceled) = %v", err)
	}
	if _, err := n.Manifest(ctx, m.Version); !errors.Is(err, context.Canceled) {
		t.Errorf("Manifest(canceled) = %v", err)
	}
	gate := make(chan struct{})
	f.mu.Lock()
	f.gate = gate
	f.mu.Unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Publish(ctx, db.Publication(m, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Publish(on a slow disk) = %v, want context.DeadlineExceeded", err)
	}
	close(gate)
	if _, err := n.Publish(t.Context(), db.Publication(m, 1)); err != nil {
		t.Errorf("Publish again = %v", err)
	}
	if _, err := Open(ctx, Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("Open with a context that has ended returns a node that may not lead")
	}
}

// The time that it takes to open the files is not taken from what a caller grants for an election.
func TestSlowFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	slow := func(b logBackend) logBackend { <-ctx.Done(); return b }
	n, err := Open(ctx, Config{Dir: t.TempDir(), wrapLog: slow})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	ctx2, cancel2 := context.WithTimeout(t.Context(), time.Hour)
	cancel2()
	later, end := restOf(ctx2)()
	defer end()
	<-later.Done()
}

// Entries and the index that they lead to are one transaction: a catalog that has the one without the other would apply entries twice
// after a crash, or never.
func TestIndexIsOneTransactionWithTheData(t *testing.T) {
	m := newMachine(t)
	m.apply(clusterCommand{"c"})
	number := func() (n int) {
		if err := m.catalog.view(func(s state) error { n = s.tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := number()
	m.fsm.ApplyBatch([]*raft.Log{m.entry(registerCommand{somePeer()}), m.entry(holdCommand{"ID1", true})})
	if n := number() - before; n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	if err := m.catalog.view(func(s state) error {
		if index, _ := s.applied(); index != uint64(len(m.logs)) {
			t.Errorf("applied %d, want %d", index, len(m.logs))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
