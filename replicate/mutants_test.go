package replicate

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// A snapshot's members are noted in the catalog with its index, where the catalog has older ones: behind the cut of the
// log nobody else knows them.
func TestWitnessKeepsMembers(t *testing.T) {
	m := newMachine(t)
	m.apply(clusterCommand{"c"})
	conf := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "b"}, {ID: "c", Address: "d"}}}
	for _, tt := range []struct {
		index, confIndex uint64
		servers          int // afterwards
		at               uint64
	}{
		{5, 4, 2, 4},
		{5, 9, 2, 4}, // nothing new
		{7, 3, 2, 4}, // older members
	} {
		conf := conf
		if tt.confIndex == 3 {
			conf.Servers = conf.Servers[:1]
		}
		k, err := m.store.Create(raft.SnapshotVersionMax, tt.index, 1, conf, tt.confIndex, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(live{}.Persist(k), k.Close()); err != nil {
			t.Fatal(err)
		}
		if err := m.catalog.view(func(s state) error {
			index, term := s.applied()
			members, at := s.members()
			if index != tt.index || term != 1 || len(members.Servers) != tt.servers || at != tt.at {
				t.Errorf("after a snapshot at %d with members of %d: applied %d, %d; members of %d: %v", tt.index, tt.confIndex, index, term, at, members)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// recordSyncs has the fsyncs of files and directories noted, by their names, until the test ends.
func recordSyncs(t *testing.T) *[]string {
	t.Helper()
	var all []string
	sync := fsync
	t.Cleanup(func() { fsync = sync })
	fsync = func(f *os.File) error {
		all = append(all, f.Name())
		return sync(f)
	}
	return &all
}

// A file that is made, or replaced, is durable before it has its name, and its name is before anybody relies on it.
func TestFilesAreSynced(t *testing.T) {
	syncs := recordSyncs(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	fill := func(tmp string) error {
		*syncs = append(*syncs, "fill")
		return os.WriteFile(tmp, []byte("x"), 0o600)
	}
	for what, f := range map[string]func(string, func(string) error) error{"createFile": createFile, "replaceFile": replaceFile} {
		*syncs = nil
		os.Remove(path)
		if err := f(path, fill); err != nil {
			t.Fatal(err)
		}
		if got := *syncs; len(got) != 3 || got[0] != "fill" || !strings.Contains(got[1], tempMark) || got[2] != dir {
			t.Errorf("%s: %q, want fill, the temporary file, %s", what, got, dir)
		}
	}
}

// Files that another process made and gave their names before it died are durable before node.json relies on them.
func TestSettleSyncsDirectories(t *testing.T) {
	dir := t.TempDir()
	openNode(t, Config{Dir: dir}).Close()
	syncs := recordSyncs(t)
	openNode(t, Config{Dir: dir}).Close()
	for _, want := range []string{dir, filepath.Join(dir, "raft")} {
		if !slices.Contains(*syncs, want) {
			t.Errorf("%s is not fsynced at a start: %q", want, *syncs)
		}
	}
}

// The bytes of a digest keep the leaf that brought them first, whoever brings them again.
func TestInlineRowStays(t *testing.T) {
	m := newMachine(t)
	data := []byte("module example.com/a\n")
	d := artifact.DigestOf(data)
	if err := m.catalog.update(func(s state) error {
		return errors.Join(s.putInline(d, 1, data), s.putInline(d, 2, data))
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.catalog.view(func(s state) error {
		row, ok, err := s.inline(d)
		if !ok || row.seq != 1 || !bytes.Equal(row.data, data) {
			t.Errorf("inline = %+v, %v", row, ok)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// Bytes that are not those of their digest do not get out of the catalog, by any door.
func TestInlineChecksTheDigest(t *testing.T) {
	m := newMachine(t)
	d := artifact.DigestOf([]byte("right"))
	if err := m.catalog.update(func(s state) error {
		return s.bucket(bucketInline).Put(d[:], append([]byte{0, 0}, "wrong"...))
	}); err != nil {
		t.Fatal(err)
	}
	if b, err := m.catalog.Inline(t.Context(), d); !errors.Is(err, artifact.ErrDamaged) || len(b) > 0 {
		t.Errorf("Inline = %q, %v", b, err)
	}
}
