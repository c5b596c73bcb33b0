package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

const (
	forgedPath  = "/example.com/forged/@v/v1.0.0.zip"
	genuinePath = "/example.com/m0/@v/v1.0.0.zip"
)

// forge has the cluster commit, with acks that nobody gave, the zip of m0, refs[0] of fill, as that of another module.
func (c *cluster) forge(zip artifact.Ref) artifact.Manifest {
	c.t.Helper()
	return c.forgeAs("example.com/forged@v1.0.0\n-- go.mod --\nmodule example.com/forged\n", artifact.Manifest{Zip: zip})
}

// forgeAs has the cluster commit the blobs of parts as those of the module version of archive.
func (c *cluster) forgeAs(archive string, parts artifact.Manifest) artifact.Manifest {
	c.t.Helper()
	mv := c.up.Add(archive)
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	man, err := artifact.NewManifest(mv, c.sums.records[mv])
	if err != nil {
		c.t.Fatal(err)
	}
	man.Mod, man.Zip = parts.Mod, parts.Zip
	c.set(func() {
		p := artifact.Publication{Manifest: man}
		if err := c.agreed.merge(p); err != nil {
			c.t.Error(err)
		}
		c.commit(c.nodes[0], entry{manifest: &p})
	})
	return man
}

// zipHead is how a zip of mv begins, up to the name of its first entry.
func zipHead(mv module.Version) []byte {
	name := mv.String() + "/a"
	return append([]byte("PK\x03\x04"+strings.Repeat("\x00", 22)+string([]byte{byte(len(name)), 0, 0, 0})), name...)
}

// isRefused fails unless the node refuses the forged zip, with the reason, and serves the genuine one.
func (n *node) isRefused() {
	n.t.Helper()
	n.want(forgedPath, 403, "example.com/m0@v1.0.0/")
	n.want("/cached-only"+forgedPath, 403, "the cluster has committed")
	n.servesGenuine()
}

// servesGenuine fails unless the node has the zip for what it is, not only in memory.
func (n *node) servesGenuine() {
	n.t.Helper()
	n.want(genuinePath, 200, "PK")
	man, err := n.manifest(n.t.Context(), module.Version{Path: "example.com/m0", Version: "v1.0.0"})
	if err != nil {
		n.t.Fatal(err)
	}
	_, f, err := n.held(n.t.Context(), man, artifact.Zip)
	if err != nil {
		n.t.Fatal(err)
	}
	_ = f.Close()
}

func (n *node) alarms() (sum float64) {
	for _, reason := range []string{failSum, failContent, failPeer, failConflict} {
		sum += n.metric("verification_failures_total", reason)
	}
	return sum
}

// A zip that every node holds, and has proven, is committed for another module: it is never served as that, and counts as missing
// for it; as what it is it is served, and healed. It is the same after a restart, with or without a follower.
func TestForgedCommit(t *testing.T) {
	c := newCluster(t, 3)
	ref := c.fill(1)[0]
	n := c.nodes[1]
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 1 })
	man := c.forge(ref)
	n.until(func(p Progress) bool { return p.Looked == 2 && p.Missing == 1 && p.Watermark == 1 })
	n.isRefused()
	if got := n.alarms(); got != 1 {
		t.Errorf("%v alarms", got)
	}
	if err := n.Admit(t.Context(), man, artifact.Zip, ref, strings.NewReader("not read"), "a liar"); !isForged(err) {
		t.Errorf("an ack for it: %v", err)
	}

	n.lose(ref) // that it is forged does not keep what it is from coming back
	n.want(forgedPath, 403, "the cluster has committed")
	n.servesGenuine()
	n.spoil("flip", ref)
	n.store.Doubt(ref.Digest)
	n.ReportDamage(ref.Digest, artifact.ErrDamaged)
	n.until(func(p Progress) bool { return p.Missing == 1 && n.Health().Healed == 2 })
	n.servesGenuine()
	stop()

	n.boot()
	n.isRefused()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Looked == 2 && p.Missing == 1 && p.Watermark == 1 })
	n.isRefused()
	for _, r := range c.up.Requests() {
		if strings.Contains(r.Path, "forged") {
			t.Errorf("the upstream was asked for %s", r.Path)
		}
	}
}

// What a version of the program that knew nothing of this has passed by is found by the scrub, or by who asks for it.
func TestForgedBeforeTheWatermark(t *testing.T) {
	for _, by := range []string{"scrub", "client"} {
		c := newCluster(t, 3)
		ref := c.fill(1)[0]
		n := c.nodes[1]
		n.want(genuinePath, 200, "PK")
		c.forge(ref)
		if err := os.WriteFile(filepath.Join(n.dir, cursorFile), []byte(`{"next":2}`), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := n.scrubbing()
		n.until(func(p Progress) bool { return p.Watermark == 2 && p.Missing == 0 })
		if by == "scrub" {
			n.scrubAll()
		} else {
			n.isRefused()
		}
		n.until(func(p Progress) bool { return p.Watermark == 1 && p.Missing == 1 })
		n.isRefused()
		if got := n.alarms(); got != 1 {
			t.Errorf("found by a %s: %v alarms", by, got)
		}
		stop()
	}
}

// A node that lacks both takes the bytes for what they are, in bulk or not, and never again for what they are not.
func TestForgedCommitOfMissingBytes(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		c, net, refs := newBulkCluster(t, 20)
		net.mu.Lock()
		net.unknown = !bulk
		net.mu.Unlock()
		c.forge(refs[0])
		n := c.nodes[2]
		stop := n.follow()
		n.until(func(p Progress) bool { return p.Looked == 21 && p.Missing == 1 && p.Watermark == 20 && p.Unproven == 0 })
		n.whole(refs)
		n.isRefused()
		stop()
		asked := c.fetches(2, 0) + c.fetches(2, 1)
		n.isRefused()
		if again := c.fetches(2, 0) + c.fetches(2, 1); again != asked {
			t.Errorf("in bulk %v: asked for %d times after it was refused", bulk, again-asked)
		}
	}
}

// A blob that has not been proven yet is not lost to what it is because somebody asks for it as what it is not.
func TestForgedCommitOfUnprovenBytes(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	c.forge(refs[0])
	n := c.nodes[2]
	release := n.noChecks()
	defer release()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Unproven == 20 && p.Missing == 1 && p.Watermark == 20 })
	n.want(forgedPath, 403, "the cluster has committed")
	if !n.store.HasUnproven(refs[0]) {
		t.Error("what it is has lost it")
	}
	release()
	n.until(func(p Progress) bool { return p.Unproven == 0 })
	n.isRefused()
}

// Whoever is handed over as something else by a peer, and cannot tell from where it is, has it checked whole: a client is told, once
// for all.
func TestForgedCommitOnANodeWithout(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.down[2] = true })
	ref := c.fill(1)[0]
	c.set(func() { c.down[2] = false })
	c.forge(ref)
	n := c.nodes[2]
	n.want(forgedPath, 403, "the cluster has committed")
	asked := c.fetches(2, 0) + c.fetches(2, 1)
	n.want(forgedPath, 403, "the cluster has committed")
	if again := c.fetches(2, 0) + c.fetches(2, 1); again != asked {
		t.Errorf("asked for %d times after it was refused", again-asked)
	}
	n.want(genuinePath, 200, "PK")
}

// Two versions may have one large go.mod; a version that has another one may not.
func TestForgedGoMod(t *testing.T) {
	large := "-- .mod --\nmodule example.com/large\n// " + strings.Repeat("x", artifact.MaxInline) + "\n"
	c := newCluster(t, 3)
	var mod artifact.Ref
	for i := range 2 {
		mv := c.up.Add(fmt.Sprintf("example.com/large@v1.0.%d\n%s", i, large))
		zip, sum := c.up.Sums(mv)
		c.sums.set(mv, zip, sum)
		mod = artifact.RefOf(c.up.Artifact(mv, artifact.Mod))
		for _, n := range c.nodes {
			n.want(fmt.Sprintf("/example.com/large/@v/v1.0.%d.mod", i), 200, "module example.com/large")
		}
	}
	c.forgeAs("example.com/forged@v1.0.0\n-- go.mod --\nmodule example.com/forged\n", artifact.Manifest{Mod: mod})
	for _, n := range c.nodes {
		n.want("/example.com/forged/@v/v1.0.0.mod", 403, "the cluster has committed")
		n.want("/example.com/large/@v/v1.0.0.mod", 200, "module example.com/large")
	}
}

// A zip without any file is the same for all modules: it is served for those whose record says so.
func TestForgedEmptyZip(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	empty := append([]byte("PK\x05\x06"), make([]byte, 18)...)
	ref := n.orphan(empty)
	sums, err := artifact.CheckZip(t.Context(), openBytes(t, empty), ref.Size, module.Version{Path: "example.com/empty", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		sum string
		err error
	}{{sums.H1, nil}, {"h1:" + strings.Repeat("A", 43) + "=", artifact.ErrRefused}} {
		man := artifact.Manifest{Module: module.Version{Path: "example.com/empty", Version: "v1.0.0"}, ZipSum: want.sum, Zip: ref}
		if err := n.genuine(t.Context(), man, artifact.Zip); !errors.Is(err, want.err) {
			t.Errorf("with the sum %s: %v", want.sum, err)
		}
	}
}

func openBytes(t *testing.T, b []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "zip")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Bytes that have rotted where their name stands are healed, and not taken for those of another version.
func TestRottenNameIsNotForged(t *testing.T) {
	c := newCluster(t, 3)
	ref := c.fill(1)[0]
	n := c.nodes[1]
	n.want(genuinePath, 200, "PK")
	name := filepath.Join(n.dir, "blobs", "sha256", ref.Digest.String()[:2], ref.Digest.String())
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[32] ^= 1
	if err := errors.Join(os.WriteFile(name, b, 0o600), os.Chtimes(name, time.Time{}, fi.ModTime())); err != nil {
		t.Fatal(err)
	}
	man, err := n.manifest(t.Context(), module.Version{Path: "example.com/m0", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.load(t.Context(), man, artifact.Zip); !errors.Is(err, artifact.ErrDamaged) || isForged(err) {
		t.Errorf("load = %v", err)
	}
	_, f, err := n.held(context.Background(), man, artifact.Zip)
	if err != nil || errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("held = %v", err)
	}
	_ = f.Close()
	if err := n.store.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
}
