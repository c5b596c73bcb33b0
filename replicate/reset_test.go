package replicate

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
)

// A reset makes a new node of a directory, keeps the old one aside byte by byte, and leaves everything else where it is.
func TestReset(t *testing.T) {
	c := newCluster(t, 2)
	want := c.publish("example.com/a", "v1.0.0")
	c.same()
	old, dir := c.nodes[1].ID(), c.dirs[1]
	if _, err := Reset(dir, false); !errors.Is(err, ErrLocked) {
		t.Errorf("Reset while the node runs: %v", err)
	}
	c.close(1)
	blob, other := filepath.Join(dir, "blobs", "sha256", "x"), filepath.Join("sumdb", "x", ".cursor")
	before := map[string][]byte{}
	for _, name := range []string{blob, filepath.Join(dir, other), filepath.Join(dir, "formed.json")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), writeFile(name, []byte(name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"node.json", "formed.json", filepath.Join("raft", "raft.db"), "catalog.db", other} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = b
	}
	if err := os.Truncate(filepath.Join(dir, "catalog.db"), 3*4096); err != nil { // it cannot be read
		t.Fatal(err)
	}
	before["catalog.db"] = before["catalog.db"][:3*4096]
	aside, err := Reset(dir, false, other, "not there")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range before {
		if got, err := os.ReadFile(filepath.Join(aside, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s aside has %d bytes, want %d; %v", name, len(got), len(want), err)
		}
		if have, _ := exists(filepath.Join(dir, name)); have {
			t.Errorf("%s is still there", name)
		}
	}
	if b, err := os.ReadFile(blob); err != nil || string(b) != blob {
		t.Errorf("a blob is %q, %v", b, err)
	}
	if _, err := Reset(dir, false); !errors.Is(err, ErrNothingToReset) {
		t.Errorf("Reset again: %v", err)
	}
	c.open(1)
	if id := c.nodes[1].ID(); id == old {
		t.Error("the node has its old id: what it voted for is forgotten")
	}
	c.close(1)
	if got, err := c.nodes[0].Manifest(t.Context(), want.Module); err != nil || !sameParts(got, want) {
		t.Errorf("at the other node: %+v, %v", got, err)
	}
}

// A reset that is interrupted leaves a directory that no node starts on, and goes on when it is repeated.
func TestResetInterrupted(t *testing.T) {
	for _, at := range []string{"formed.json", "raft", "catalog.db"} { // what cannot be moved
		c := newCluster(t, 2)
		c.close(1)
		dir := c.dirs[1]
		if err := writeFile(filepath.Join(dir, "formed.json"), nil); err != nil {
			t.Fatal(err)
		}
		for _, name := range resetOrder() { // as if it had died before it moved at
			if name == at {
				break
			}
			if err := moveAside(dir, filepath.Join(dir, "old-node-1"), name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "there is no node.json") {
			t.Errorf("interrupted before %s: a start says %v", at, err)
		}
		if _, err := Reset(dir, false); err != nil {
			t.Errorf("interrupted before %s: %v", at, err)
		}
		openNode(t, Config{Dir: dir}).Close()
	}
}

// The only member of a cluster is not reset by mistake: nobody could give it its catalog.
func TestResetAlone(t *testing.T) {
	dir := t.TempDir()
	if _, err := Reset(dir, true); !errors.Is(err, ErrNothingToReset) {
		t.Errorf("Reset of an empty directory: %v", err)
	}
	n := openNode(t, Config{Dir: dir})
	id := n.ID()
	n.Close()
	if _, err := Reset(dir, false); !errors.Is(err, ErrAlone) || errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("Reset of a single node: %v", err)
	}
	n = openNode(t, Config{Dir: dir})
	if n.ID() != id {
		t.Error("a reset that was refused changed the node")
	}
	n.Close()
	if _, err := Reset(dir, true); err != nil {
		t.Errorf("Reset by force: %v", err)
	}
	if n = openNode(t, Config{Dir: dir}); n.ID() == id {
		t.Error("a reset by force changed nothing")
	}
	n.Close()
}
