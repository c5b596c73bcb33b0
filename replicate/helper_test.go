package replicate

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/mod/sumdb/note"

	"modmirror/replicate/replicatetest"
)

func verifierOf(tb testing.TB, db *replicatetest.Database) note.Verifier {
	tb.Helper()
	v, err := note.NewVerifier(db.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// machine is a state machine without Raft.
type machine struct {
	*fsm
	tb    testing.TB
	store *snapshots
	logs  []*raft.Log // all entries so far
}

func newMachine(tb testing.TB) *machine {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "catalog.db")
	if err := createCatalog(path); err != nil {
		tb.Fatal(err)
	}
	m := &machine{tb: tb}
	m.open(path)
	tb.Cleanup(func() { m.catalog.close() })
	return m
}

func (m *machine) open(path string) {
	m.tb.Helper()
	c := newCatalog(path)
	db, err := openDB(path, false)
	if err != nil {
		m.tb.Fatal(err)
	}
	db.NoSync = true // these tests are about what is computed
	c.db = db
	l := newLatch("", nil)
	m.store = newSnapshots(c, l)
	m.fsm = &fsm{catalog: c, snapshots: m.store, stable: raft.NewInmemStore(), latch: l, log: slog.New(slog.DiscardHandler), limit: time.Minute}
}

// apply makes one entry of the commands and applies it.
func (m *machine) apply(cmds ...command) []result {
	m.tb.Helper()
	l := m.entry(cmds...)
	r, ok := m.Apply(l).([]result)
	if !ok {
		m.tb.Fatalf("entry %d was not applied", l.Index)
	}
	return r
}

// entry appends an entry to the log.
func (m *machine) entry(cmds ...command) *raft.Log {
	m.tb.Helper()
	l := &raft.Log{Index: uint64(len(m.logs) + 1), Term: 1, Type: raft.LogCommand, Data: entryOf(m.tb, cmds...)}
	m.logs = append(m.logs, l)
	return l
}

func entryOf(tb testing.TB, cmds ...command) []byte {
	tb.Helper()
	data := []byte{entryFormat}
	for _, c := range cmds {
		var err error
		if data, err = appendCommand(data, c); err != nil {
			tb.Fatal(err)
		}
	}
	return data
}

// dump returns everything in a catalog as text, a row a line.
func dump(tb testing.TB, c *catalog) string {
	tb.Helper()
	var b strings.Builder
	if err := c.view(func(s state) error {
		for _, name := range buckets {
			s.bucket(name).ForEach(func(k, v []byte) error {
				fmt.Fprintf(&b, "%s %q = %q\n", name, k, v)
				return nil
			})
		}
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// copyDir copies a data directory as a crash would leave it: without closing anything.
func copyDir(tb testing.TB, from string) string {
	tb.Helper()
	to := tb.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		tb.Fatal(err)
	}
	return to
}

func writeFile(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }
