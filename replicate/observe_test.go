package replicate

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestRaftLog(t *testing.T) {
	var b bytes.Buffer
	l := newRaftLog(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})))
	l.Trace("trace")
	l.Debug("debug")
	l.Info("info")
	l.Warn("warn", "n", hclog.Fmt("%d of %d", 1, 2))
	l.With("peer", "p").Named("sub").Error("error", "err", errors.New("broken"))
	got := b.String()
	for _, want := range []string{`level=INFO msg="raft: warn" n="1 of 2"`, `level=ERROR msg="raft.sub: error" peer=p err=broken`} {
		if !strings.Contains(got, want) {
			t.Errorf("log is\n%swant %s", got, want)
		}
	}
	if n := strings.Count(got, "\n"); n != 2 {
		t.Errorf("%d lines, want 2:\n%s", n, got)
	}
	if l.IsInfo() || !l.IsWarn() || l.GetLevel() != hclog.Warn {
		t.Errorf("IsInfo() = %v, IsWarn() = %v, GetLevel() = %v", l.IsInfo(), l.IsWarn(), l.GetLevel())
	}
}

// Who failed counts as silent while raft tells of failures, and until it tells of a success; if that is lost, not for ever.
func TestPulseForgetsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		p.heard("a", false)
		if p.answers("a") || !p.answers("b") {
			t.Error("who failed answers, or who did not does not")
		}
		for range 10 {
			time.Sleep(silentFor)
			if p.answers("a") {
				t.Fatal("who fails again and again answers")
			}
			p.heard("a", false)
		}
		time.Sleep(silentFor + 1)
		if !p.answers("a") {
			t.Error("who has not failed for long is silent")
		}
		p.heard("a", false)
		p.heard("a", true)
		if !p.answers("a") {
			t.Error("who succeeded is silent")
		}
	})
}

// What raft says many times a second is told once in a while, with how often it was not.
func TestRaftLogRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := newRaftLog(slog.New(slog.NewTextHandler(&b, nil)))
		for range 100 {
			l.With("peer", "p").Error("failed to commit logs")
		}
		l.Error("another")
		time.Sleep(tellAgain) // of the bubble
		l.Error("failed to commit logs")
		if got := b.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "missed=99") {
			t.Errorf("log is\n%s", got)
		}
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	for range 2 { // a second node may register again once the first is closed
		n := openNode(t, Config{Dir: dir, Metrics: reg})
		if have, _ := n.Status(t.Context()); have.Manifests == 0 {
			publish(t, n, trusting(t, n), "example.com/a", "v1.0.0")
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP modmirror_replicate_fault 1 after a disk fault has stopped this node's writes.
# TYPE modmirror_replicate_fault gauge
modmirror_replicate_fault 0
# HELP modmirror_replicate_leader 1 if this node leads.
# TYPE modmirror_replicate_leader gauge
modmirror_replicate_leader 1
# HELP modmirror_replicate_manifests Module versions in the catalog.
# TYPE modmirror_replicate_manifests gauge
modmirror_replicate_manifests 1
`), "modmirror_replicate_fault", "modmirror_replicate_leader", "modmirror_replicate_manifests"); err != nil {
			t.Error(err)
		}
		if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
		if _, err := Open(t.Context(), Config{Dir: t.TempDir(), Metrics: reg}); err == nil {
			t.Error("two nodes share a registry")
		}
		n.Close()
	}
	if got, err := reg.Gather(); err != nil || len(got) > 0 {
		t.Errorf("after Close %d metrics are left (%v)", len(got), err)
	}
}

func TestTrim(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir(), LogBudget: 1, TrailingLogs: 5000})
	n.trim()
	if got := n.raft.ReloadableConfig().TrailingLogs; got != minTrailing {
		t.Errorf("above its budget the log keeps %d entries, want %d", got, minTrailing)
	}
	n.config.LogBudget = 1 << 40
	n.trim()
	if got := n.raft.ReloadableConfig().TrailingLogs; got != 5000 {
		t.Errorf("below its budget the log keeps %d entries, want 5000", got)
	}
}

// A peer that does not read must not keep a node from closing.
func TestCloseWhileSending(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	_, r, err := n.stream(func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(r); err == nil {
		t.Error("the stream of a closed node ends as if it were whole")
	}
}

// Nor must it keep a node whose disk failed from leaving the cluster's work to others: raft waits for its streams.
func TestFaultWhileSending(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	_, r, err := n.stream(func() {})
	if err != nil {
		t.Fatal(err)
	}
	n.StopWrites(errDisk)
	select {
	case <-r.(*stream).done:
	case <-time.After(10 * time.Second):
		t.Error("a stream goes on after a fault")
	}
}

// Each node knows how often another one took the lead since it was opened, and is woken when that happens. The first one that
// it hears of is none.
func TestLeaderChanges(t *testing.T) {
	c := newCluster(t, 3)
	first := c.leader()
	before := map[*Node]int64{}
	for _, n := range c.nodes {
		waitFor(t, "leader", func() bool { id, _, _ := n.Leader(); return id == first.ID() })
		_, before[n], _ = n.Leader()
	}
	_, _, moved := first.Leader()
	if err := first.TransferLeadership(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-moved
	waitFor(t, "other leader", func() bool { return c.leader() != first })
	for _, n := range c.nodes {
		waitFor(t, "count of a change", func() bool { _, changes, _ := n.Leader(); return changes > before[n] })
	}
	for _, n := range c.nodes {
		waitFor(t, "who is in office", func() bool { return n.InOffice() == (n == c.leader()) })
	}
	lone := openNode(t, Config{Dir: t.TempDir()})
	if id, changes, _ := lone.Leader(); id != lone.ID() || changes != 0 {
		t.Errorf("a lone node: %q leads after %d changes", id, changes)
	}
}
