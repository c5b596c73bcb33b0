package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// saved writes what c sends to a file in dir, and returns its path.
func saved(t *testing.T, c *catalog, dir string) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Send(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "received")
	if err := ReceiveCatalog(path, &b, 1<<30); err != nil {
		t.Fatal(err)
	}
	return path
}

// A cluster that is founded anew from what any node sent holds the same under the same root, is another cluster, and grows.
func TestRefound(t *testing.T) {
	old := newCluster(t, 3)
	for i := range 3 {
		old.publishAt(i, "example.com/a", []string{"v1.0.0", "v1.1.0", "v1.2.0"}[i])
	}
	old.same()
	seq, root := old.nodes[2].Root()
	gone := old.nodes[1].ID()
	old.lead("remove", func(lead *Node) error {
		if lead.ID() == gone {
			gone = old.nodes[0].ID()
		}
		return lead.Remove(t.Context(), gone)
	})

	old.lead("note where a vote goes", func(lead *Node) error { return lead.noteRebalance(t.Context(), old.nodes[2].ID()) })
	waitFor(t, "the note at node 2", func() (noted bool) {
		if err := old.nodes[2].view(func(s state) error { noted = s.rebalancing() != ""; return nil }); err != nil {
			t.Fatal(err)
		}
		return noted
	})

	dir := t.TempDir()
	path := saved(t, old.nodes[2].catalog, dir)
	c, err := OpenCatalogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for err := range c.Check(t.Context(), nil) {
		t.Errorf("what was sent is damaged: %v", err)
	}
	point, err := c.Point(t.Context())
	if err != nil || point.Seq != seq || point.Root != root || point.Cluster != old.nodes[2].Cluster() || point.Manifests != 3 {
		t.Fatalf("Point() = %+v, %v, want %d leaves and %v", point, err, seq, root)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := NoteRestore(dir, nil); err != nil {
		t.Fatal(err)
	}
	why := someAudit()
	id, err := Refound(dir, path, why)
	if err != nil {
		t.Fatal(err)
	}
	cat, err := OpenCatalog(dir)
	if err != nil {
		t.Fatal(err)
	}
	for err := range cat.Check(t.Context(), nil) {
		t.Errorf("fsck of what was founded anew: %v", err)
	}
	if err := cat.Close(); err != nil {
		t.Fatal(err)
	}

	fresh := &cluster{t: t, net: newNetwork(), db: old.db}
	fresh.add()
	fresh.dirs[0] = dir
	n := fresh.open(0)
	if n.ID() != id.Node || n.Cluster() != id.Cluster || n.Cluster() == old.nodes[2].Cluster() || n.ID() == old.nodes[2].ID() {
		t.Errorf("it is node %s of cluster %s, want %+v and another than before", n.ID(), n.Cluster(), id)
	}
	if s, r := n.Root(); s != seq || r != root {
		t.Errorf("it holds %d leaves with the root %v, want %d and %v", s, r, seq, root)
	}
	if all, err := n.Audits(t.Context()); err != nil || len(all) != 1 || all[0].Reason != why.Reason {
		t.Errorf("Audits() = %+v, %v", all, err)
	}
	fresh.registered(0)
	table(t, n.catalog, id.Node)
	if err := n.view(func(s state) error {
		if s.gone(gone) {
			t.Error("who was removed from the old cluster is in the table of the new one")
		}
		if to := s.rebalancing(); to != "" {
			t.Errorf("a vote is on its way to node %s of the old cluster", to)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	fresh.publish("example.com/b", "v1.0.0")
	fresh.add()
	fresh.join(1, true)
	fresh.same()
	fresh.close(0)
	fresh.open(0)
	fresh.publish("example.com/c", "v1.0.0")
	fresh.same()
}

// A restore that did not come to its end is no node, and can be repeated.
func TestInterruptedRefound(t *testing.T) {
	from, _ := lived(t)
	cat, err := OpenCatalog(from)
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	seq, root := cat.Root()
	for _, left := range [][]string{{}, {"raft"}, {"raft", CatalogName}, {"raft", CatalogName, "node.json"}} {
		dir, whole := t.TempDir(), t.TempDir()
		if err := NoteRestore(dir, map[string]int{"a": 1}); err != nil {
			t.Fatal(err)
		}
		if err := NoteRestore(whole, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := Refound(whole, saved(t, cat.catalog, whole)); err != nil {
			t.Fatal(err)
		}
		for _, name := range left { // as far as the first one came
			if err := os.Rename(filepath.Join(whole, name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrRestoring) {
			t.Errorf("with %q: Open() = %v, want %v", left, err, ErrRestoring)
		}
		if _, err := Identify(dir); !errors.Is(err, ErrRestoring) {
			t.Errorf("with %q: Identify() = %v, want %v", left, err, ErrRestoring)
		}
		if _, err := OpenCatalog(dir); !errors.Is(err, ErrRestoring) {
			t.Errorf("with %q: OpenCatalog() = %v, want %v", left, err, ErrRestoring)
		}
		if b, err := RestoreNote(dir); err != nil || strings.TrimSpace(string(b)) != `{"a":1}` {
			t.Errorf("with %q: RestoreNote() = %q, %v", left, b, err)
		}
		if _, err := Refound(dir, saved(t, cat.catalog, dir)); err != nil {
			t.Fatalf("with %q: %v", left, err)
		}
		n := openNode(t, Config{Dir: dir})
		if s, r := n.Root(); s != seq || r != root {
			t.Errorf("with %q: it holds %d leaves with the root %v, want %d and %v", left, s, r, seq, root)
		}
		n.Close()
	}
}

// Refound makes a node of nothing that was not begun, and of no empty catalog.
func TestRefoundRefused(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	path := saved(t, m.catalog, dir)
	if _, err := Refound(dir, path); err == nil {
		t.Error("a directory becomes a node's without NoteRestore")
	}
	if err := NoteRestore(dir, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Refound(dir, path); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("Refound() of an empty catalog = %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node.json after a refusal: %v", err)
	}
}

// What is not what was sent leaves no file.
func TestReceiveCatalog(t *testing.T) {
	m, _ := fullMachine(t)
	var b bytes.Buffer
	if err := m.catalog.Send(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	size := int64(len(good) - streamSealLen)
	flipped := func(at int) []byte { b := bytes.Clone(good); b[at] ^= 1; return b }
	bad := map[string][]byte{"nothing": {}, "a byte too many": append(bytes.Clone(good), 0)}
	for _, at := range []int{0, 1, len(good) / 3, len(good) / 2, len(good) - 33, len(good) - 1} {
		bad[fmt.Sprintf("flipped at %d", at)] = flipped(at)
		bad[fmt.Sprintf("cut at %d", at)] = good[:at]
	}
	for name, data := range bad {
		path := filepath.Join(t.TempDir(), "c")
		if err := ReceiveCatalog(path, bytes.NewReader(data), size+100); err == nil {
			t.Errorf("%s: received", name)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file is left (%v)", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "c")
	if err := ReceiveCatalog(path, bytes.NewReader(good), size-1); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("more than the limit: %v", err)
	}
	if err := ReceiveCatalog(path, bytes.NewReader(good), size); err != nil {
		t.Fatal(err)
	}
	if err := ReceiveCatalog(path, bytes.NewReader(good), size); !errors.Is(err, fs.ErrExist) {
		t.Errorf("received twice: %v", err)
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, good[1:1+size]) {
		t.Errorf("the file is not what was sent (%v)", err)
	}
}

// A node whose catalog is known not to be right sends none.
func TestDamagedCatalogIsNotSent(t *testing.T) {
	m, _ := fullMachine(t)
	m.catalog.damage.found(damaged(errors.New("a bit"), "a row"))
	if err := m.catalog.Send(t.Context(), new(bytes.Buffer)); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("Send() = %v, want %v", err, artifact.ErrDamaged)
	}
}

// What is sent while entries are applied is the catalog as it was after one of them: that which it says.
func TestSendIsOnePoint(t *testing.T) {
	db := replicatetest.NewDatabase(t, "sum.example.org")
	const number = 120
	var ms []replicatetest.Module
	for i := range number {
		path := fmt.Sprintf("example.com/m%d", i)
		ms = append(ms, db.AddModule(path, "v1.0.0", "module "+path+"\n"))
	}
	m := newMachine(t)
	m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(number)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i, mod := range ms {
			m.apply(publishCommand{db.Publication(mod, number)}, auditCommand{Audit{Time: time.Unix(int64(i+1), 0), Actor: "a", Action: "b", Reason: "c"}})
		}
	}()
	points := map[uint64]bool{}
	var dumps []string
	var at []uint64
	for busy := true; busy; {
		select {
		case <-done:
			busy = false
		default:
		}
		c, err := OpenCatalogFile(saved(t, m.catalog, t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		point, err := c.Point(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !points[point.Index] {
			points[point.Index] = true
			dumps, at = append(dumps, dump(t, c.catalog)), append(at, point.Index)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(points) < 3 {
		t.Errorf("only the points %v were sent: nothing was applied meanwhile", at)
	}
	for i, index := range at {
		again := newMachine(t)
		for _, l := range m.logs[:index] {
			again.Apply(l)
		}
		if want := dump(t, again.catalog); dumps[i] != want {
			t.Errorf("what was sent as of entry %d is not what the log leads to:\n%s\nwant\n%s", index, dumps[i], want)
		}
	}
}

// Rows of an audit are of a feature level that the catalog of an older cluster has not: one that is founded anew with them has that
// level before any node can join, or one that does not know such rows would take them for damage.
func TestRefoundRaisesLevel(t *testing.T) {
	why := Audit{Time: time.Unix(1_700_000_000, 0), Actor: "root@host", Action: "restore", Reason: "from a backup"}
	for _, tt := range []struct {
		audit []Audit
		level int
	}{{[]Audit{why}, auditLevel}, {nil, firstLevel}} {
		m := newMachine(t)
		m.apply(clusterCommand{"c"})
		if now := levelIn(t, m.catalog); now != firstLevel {
			t.Fatalf("the catalog is of level %d", now)
		}
		dir := t.TempDir()
		if err := NoteRestore(dir, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := Refound(dir, saved(t, m.catalog, dir), tt.audit...); err != nil {
			t.Fatal(err)
		}
		c, err := OpenCatalog(dir)
		if err != nil {
			t.Fatal(err)
		}
		if now := levelIn(t, c.catalog); now != tt.level {
			t.Errorf("with %d audits the level is %d, want %d", len(tt.audit), now, tt.level)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A catalog that a later version wrote is no damaged one: who restores it is told so, and with what it can be read.
func TestCatalogFileOfTheFuture(t *testing.T) {
	m, _ := fullMachine(t)
	path := saved(t, m.catalog, t.TempDir())
	if err := setRow(path, "cfg", keyLevel, binary.AppendUvarint(nil, newestLevel+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCatalogFile(path); !errors.Is(err, errNewer) || strings.Contains(err.Error(), "damaged") {
		t.Errorf("OpenCatalogFile = %v, want %v", err, errNewer)
	}
}
