package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

func changesOf(t *testing.T, n *Node, from int64) (all []artifact.Change) {
	t.Helper()
	for c, err := range n.Changes(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// Whoever follows the changes sees every manifest as it is at last, in the order of the leaves.
func TestChanges(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	db := trusting(t, n)
	a := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	for i := range pageSize + 3 {
		db.AddModule(fmt.Sprintf("example.com/m%d", i), "v1.0.0", "module x\n")
	}
	advance(t, n, db)
	half := db.Publication(a, db.Size())
	half.Manifest.Zip = artifact.Ref{}
	if len(changesOf(t, n, 0)) != 0 {
		t.Error("changes of an empty catalog")
	}
	woken := n.Wake()
	if _, err := n.Publish(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	<-woken
	first := changesOf(t, n, 0)
	if len(first) != 1 || first[0].Seq != 0 || !sameParts(first[0].Manifest, half.Manifest) {
		t.Errorf("Changes() = %+v", first)
	}
	for i := range pageSize + 3 {
		publish(t, n, db, fmt.Sprintf("example.org/n%d", i), "v1.0.0")
	}
	if _, err := n.Publish(t.Context(), db.Publication(a, db.Size())); err != nil {
		t.Fatal(err)
	}
	all := changesOf(t, n, 0)
	last := all[len(all)-1]
	if len(all) != pageSize+4 || last.Seq != pageSize+4 || last.Manifest.Module.Path != "example.com/a" || last.Manifest.Zip.IsZero() {
		t.Errorf("%d changes, the last is %+v", len(all), last)
	}
	if !slices.IsSortedFunc(all, func(a, b artifact.Change) int { return int(a.Seq - b.Seq) }) {
		t.Error("changes out of order")
	}
	for _, c := range all {
		if seq, err := n.Place(t.Context(), c.Manifest.Module); err != nil || seq != c.Seq {
			t.Errorf("Place(%s) = %d, %v, want %d", c.Manifest.Module, seq, err, c.Seq)
		}
	}
	if _, err := n.Place(t.Context(), module.Version{Path: "example.com/never", Version: "v1.0.0"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Place of nothing: %v", err)
	}
	if rest := changesOf(t, n, last.Seq); len(rest) != 1 || rest[0].Seq != last.Seq {
		t.Errorf("changes from the last leaf on: %+v", rest)
	}
	if rest := changesOf(t, n, last.Seq+1); len(rest) != 0 {
		t.Errorf("changes behind the last leaf: %+v", rest)
	}
}

// A damaged manifest does not hide the ones behind it.
func TestChangesPastDamage(t *testing.T) {
	m, _ := fullMachine(t)
	if err := m.catalog.update(func(s state) error {
		b := s.bucket(bucketManifests)
		k, v := b.Cursor().First()
		return b.Put(append([]byte{}, k...), append([]byte{}, v[:len(v)-1]...))
	}); err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, err := range m.catalog.Changes(t.Context(), 0) {
		if err == nil {
			good++
		} else if bad++; !errors.Is(err, artifact.ErrDamaged) {
			t.Error(err)
		}
	}
	if good == 0 || bad == 0 {
		t.Errorf("%d good and %d damaged changes", good, bad)
	}
}

// What has to be there and is not is an error, at its place, and is told of the catalog: whoever follows would never hear of it.
func TestChangesMissAGap(t *testing.T) {
	const leaves = 5 // the last of the module version of the first
	for what, c := range map[string]struct {
		damage func(s state, first []byte) error // first is the row of the module version as of leaf 0
		at     int64
	}{
		"a leaf":        {func(s state, _ []byte) error { return s.bucket(bucketLeaves).Delete(bigEndian(2)) }, 2},
		"the last leaf": {func(s state, _ []byte) error { return s.bucket(bucketLeaves).Delete(bigEndian(leaves - 1)) }, leaves - 1},
		"the newest form of a row": {func(s state, first []byte) error {
			return s.bucket(bucketManifests).Put([]byte("example.com/a@v1.0.0"), first)
		}, leaves - 1},
		"a leaf of this number": {func(s state, _ []byte) error {
			return moveRow(s.bucket(bucketLeaves), bigEndian(1), append(bigEndian(0), 9))
		}, 1},
	} {
		n := openNode(t, Config{Dir: t.TempDir()})
		db := trusting(t, n)
		a := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
		advance(t, n, db)
		half := db.Publication(a, db.Size())
		half.Manifest.Zip = artifact.Ref{}
		if _, err := n.Publish(t.Context(), half); err != nil {
			t.Fatal(err)
		}
		var first []byte
		if err := n.view(func(s state) error {
			first = bytes.Clone(s.bucket(bucketManifests).Get(moduleKey(a.Version)))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for i := range leaves - 2 {
			publish(t, n, db, fmt.Sprintf("example.org/n%d", i), "v1.0.0")
		}
		if _, err := n.Publish(t.Context(), db.Publication(a, db.Size())); err != nil {
			t.Fatal(err)
		}
		changesOf(t, n, 0) // without an error
		if err := n.update(func(s state) error { return c.damage(s, first) }); err != nil {
			t.Fatal(err)
		}
		var at []int64
		for change, err := range n.Changes(t.Context(), 0) {
			if errors.Is(err, artifact.ErrDamaged) {
				at = append(at, change.Seq)
			} else if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if !slices.Contains(at, c.at) {
			t.Errorf("%s is lost, and the errors are at %d, want %d", what, at, c.at)
		}
		if st, err := n.Status(t.Context()); err != nil || st.Damage == "" {
			t.Errorf("%s is lost, and the status says %q, %v", what, st.Damage, err)
		}
	}
}

func moveRow(b *bbolt.Bucket, from, to []byte) error {
	v := bytes.Clone(b.Get(from))
	return errors.Join(b.Delete(from), b.Put(to, v))
}

// RootAt is what Root was, also of what was committed in one batch, and behind an installed snapshot.
func TestRootAt(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	start, root := n.Root()
	if h, ok := n.RootAt(start); !ok || h != root {
		t.Errorf("RootAt(%d) = %v, %v", start, h, ok)
	}
	for i := range 5 {
		c.publish("example.com/a", fmt.Sprintf("v1.%d.0", i))
		seq, want := n.Root()
		if h, ok := n.RootAt(seq); !ok || h != want {
			t.Errorf("RootAt(%d) = %v, %v, want %v", seq, h, ok, want)
		}
	}
	if _, ok := n.RootAt(6); ok {
		t.Error("a root of leaves that are not there")
	}
	c.cut()
	c.join(c.add(), false)
	c.same()
	c.publish("example.com/b", "v1.0.0")
	c.same()
	for seq := int64(5); seq <= 6; seq++ {
		want, ok := n.RootAt(seq)
		if got, ok2 := c.nodes[1].RootAt(seq); !ok || !ok2 || got != want {
			t.Errorf("RootAt(%d) = %v, %v and %v, %v", seq, want, ok, got, ok2)
		}
	}
}
