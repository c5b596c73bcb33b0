package replicate

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// received returns the path of the file in a snapshot that m has received.
func received(t *testing.T, m *machine, data []byte) string {
	t.Helper()
	path := m.catalog.path + tempMark + "received"
	if err := os.WriteFile(path, data[1:len(data)-streamSealLen+1], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// snapshotOf returns a snapshot of m.
func snapshotOf(t *testing.T, m *machine) []byte {
	t.Helper()
	_, r, err := m.store.Open(liveID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// All that a new catalog asks of the disk happens while the old one can still be read: a disk that hangs stops no read.
func TestReplaceDoesNotBlockReaders(t *testing.T) {
	m, _ := fullMachine(t)
	snapshot := snapshotOf(t, m)
	fresh := newMachine(t)
	path := received(t, fresh, snapshot)
	before, err := os.Stat(fresh.catalog.path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	if err := fresh.catalog.view(func(s state) error { // a reader that is in the middle of something
		go func() { done <- fresh.catalog.replace(path) }()
		waitFor(t, "rename", func() bool {
			now, err := os.Stat(fresh.catalog.path)
			return err == nil && !os.SameFile(before, now)
		})
		if index, _ := s.applied(); index != 0 {
			t.Errorf("the reader is at index %d", index)
		}
		if len(done) > 0 {
			t.Error("the old catalog was closed under its reader")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, fresh.catalog), dump(t, m.catalog); got != want {
		t.Errorf("the new catalog is\n%s\nwant\n%s", got, want)
	}
	again := newMachine(t) // the new catalog can be sent on, although its file has another name now
	if err := again.catalog.replace(received(t, again, snapshotOf(t, fresh))); err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, again.catalog), dump(t, m.catalog); got != want {
		t.Errorf("a snapshot of the new catalog is\n%s\nwant\n%s", got, want)
	}
	fresh.logs = make([]*raft.Log, 2)
	if r := fresh.apply(clusterCommand{"c"}); r[0].err != nil {
		t.Errorf("the new catalog cannot be written: %v", r[0].err)
	}
}

// A stream that nobody reads does not keep the new catalog from its place, and does not end as if it were whole.
func TestReplaceEndsStreams(t *testing.T) {
	m, _ := fullMachine(t)
	path := received(t, m, snapshotOf(t, m))
	_, slow, err := m.store.Open(liveID)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := m.catalog.replace(path); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(slow); err == nil {
		t.Error("the stream of the old catalog ends as if it were whole")
	}
	snapshotOf(t, m)
	path = received(t, m, snapshotOf(t, m))
	m.catalog.close()
	if err := m.catalog.replace(path); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("a closed catalog is replaced: %v", err)
	}
}

// Every step of an install is a write like any other: its failure ends this node's writes.
func TestInstallFaults(t *testing.T) {
	full, _ := fullMachine(t)
	snapshot := snapshotOf(t, full)
	for _, what := range []string{"write", "fsync", "replace"} {
		m := newMachine(t)
		k, err := m.store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Write(snapshot)
		file := k.(*sink).file
		switch what {
		case "write":
			file.Close()
			_, err = k.Write(snapshot)
		case "fsync":
			file.Close()
			err = k.Close()
		case "replace":
			m.snapshots.pending = &installed{path: file.Name() + "gone", meta: k.(*sink).meta}
			_, in, oerr := m.store.Open(installID)
			if oerr != nil {
				t.Fatal(oerr)
			}
			err = m.Restore(in)
		}
		if err == nil || m.latch.fault() == nil || !strings.Contains(err.Error(), what) && what != "replace" {
			t.Errorf("%s fails: %v, fault %v", what, err, m.latch.fault())
		}
		k.Cancel()
	}
}
