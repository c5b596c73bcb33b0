package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// branched returns the file of a catalog whose buckets have branches, leaves that go on over several pages, and free
// pages.
func branched(tb testing.TB) []byte {
	tb.Helper()
	m := newMachine(tb)
	db := replicatetest.NewDatabase(tb, "sum.example.org")
	var ms []replicatetest.Module
	for i := range 16 {
		ms = append(ms, db.AddModule(fmt.Sprintf("example.com/m%d", i), "v1.0.0", "module m\n"+strings.Repeat("// long\n", i*60)))
	}
	m.apply(trustCommand{db.Key}, clusterCommand{"c"}, headCommand{Database: db.Name, Note: db.Head(db.Size())})
	for _, mod := range ms {
		if r := m.apply(publishCommand{db.Publication(mod, db.Size())}); r[0].err != nil {
			tb.Fatal(r[0].err)
		}
	}
	b, err := os.ReadFile(m.catalog.path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := checkPages(m.catalog.path); err != nil {
		tb.Fatal(err)
	}
	w := pageWalk{file: bytes.NewReader(b), size: int64(len(b))}
	head, err := w.header()
	if err != nil {
		tb.Fatal(err)
	}
	return b[:head.pages*head.pageSize] // what follows is room to grow
}

// readDamaged opens a catalog of these bytes, reads all of it, and checks it. It returns what any of these said.
func readDamaged(tb testing.TB, path string, file []byte) error {
	tb.Helper()
	if err := os.WriteFile(path, file, 0o600); err != nil {
		tb.Fatal(err)
	}
	c := newCatalog(path)
	var err error
	if c.db, err = openDB(path, true); err != nil {
		return err
	}
	defer c.close()
	errs := []error{c.view(func(s state) error {
		for _, name := range buckets {
			s.bucket(name).ForEach(func(k, v []byte) error {
				_, err := io.Discard.Write(append(bytes.Clone(k), v...))
				s.bucket(name).Get(k)
				return err
			})
		}
		return nil
	})}
	for err := range (&Catalog{catalog: c}).Check(tb.Context(), nil) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// damagedBytes are those of a page's header and of its first elements that hold the high and the low ends of numbers.
var damagedBytes = []int{0, 5, 8, 10, 11, 12, 14, 16, 19, 20, 23, 24, 27, 28, 31, 35}

// Whatever a number in a page becomes, the catalog is refused, or reading it is an error, or it is what it was. Nothing
// kills the process: neither an index out of range, nor a number that leads out of the file.
func TestDamagedCatalogPages(t *testing.T) {
	good := branched(t)
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "catalog.db")
	unseen := 0
	for page := 0; page < len(good); page += os.Getpagesize() {
		for _, at := range damagedBytes {
			b := bytes.Clone(good)
			b[page+at] ^= 0x95
			read := readDamaged(t, path, b)
			if install(m, b) == nil && read == nil {
				unseen++
			}
		}
	}
	if all := len(good) / os.Getpagesize() * len(damagedBytes); unseen > all/2 { // there are pages that nothing leads to
		t.Errorf("%d of %d damages are not noticed", unseen, all)
	}
}

// install has m receive a snapshot that is the file b.
func install(m *machine, b []byte) error {
	k, err := m.store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 0, nil)
	if err != nil {
		return err
	}
	if _, err := k.Write(sealedStream(b)); err != nil {
		return errors.Join(err, k.Cancel())
	}
	if err := k.Close(); err != nil {
		return err
	}
	return m.store.pending.Close()
}

// A disk that loses pages while the node runs: each read says so, none says that there is nothing.
func TestPagesLostWhileOpen(t *testing.T) {
	m, _ := fullMachine(t)
	if err := os.Truncate(m.catalog.path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Manifest": second(m.catalog.Manifest(t.Context(), replicatetest.Module{}.Version)),
		"Inline":   second(m.catalog.Inline(t.Context(), artifact.Digest{})),
		"Versions": second(m.catalog.Versions(t.Context(), "example.com/a")),
		"Listing":  second(m.catalog.Listing(t.Context(), "example.com/a")),
		"Fork":     second(m.catalog.Fork(t.Context(), "sum.example.org")),
		"TreeHead": second(m.catalog.TreeHead(t.Context(), "sum.example.org", 9)),
		"Status":   m.catalog.fill(t.Context(), &Status{}),
	} {
		if !errors.Is(err, artifact.ErrDamaged) {
			t.Errorf("%s without pages: %v", what, err)
		}
	}
	if _, _, err := m.store.Open(liveID); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("a snapshot without pages: %v", err)
	}
}

// A page that is overwritten ends a write with an error, and leaves the file in use.
func TestWriteIntoDamagedPages(t *testing.T) {
	m, _ := fullMachine(t)
	f, err := os.OpenFile(m.catalog.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(2 * os.Getpagesize()); ; at += int64(os.Getpagesize()) {
		head := make([]byte, pageHeader)
		if _, err := f.ReadAt(head, at); err != nil {
			break
		}
		if binary.NativeEndian.Uint16(head[8:]) != freePage {
			f.WriteAt(bytes.Repeat([]byte{0xff}, 64), at)
		}
	}
	if err := m.catalog.update(func(s state) error { return s.count(keyConflicts) }); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("update: %v", err)
	}
	if r, ok := m.Apply(m.entry(clusterCommand{"c"})).(error); !ok || m.latch.fault() == nil {
		t.Errorf("Apply = %v, fault %v", r, m.latch.fault())
	}
}

// A bug of ours is none of the disk's.
func TestBugIsNotDamage(t *testing.T) {
	m := newMachine(t)
	defer func() {
		if recover() == nil {
			t.Error("an index out of range passes for damage")
		}
	}()
	var none []int
	m.catalog.view(func(state) error { none[len(none)] = 1; return nil })
}
