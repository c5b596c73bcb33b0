package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

const trashKeep = 7 * 24 * time.Hour

// A node of the test's cluster is a catalog that can be asked what is named.
func (n *node) Next(context.Context) (int64, error) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return int64(len(n.changes)), nil
}

func (n *node) Manifests(context.Context) iter.Seq2[artifact.Manifest, error] {
	return func(yield func(artifact.Manifest, error) bool) {
		n.index.mu.Lock()
		var all []artifact.Manifest
		for _, m := range n.index.manifests {
			all = append(all, m)
		}
		n.index.mu.Unlock()
		for _, m := range all {
			if !yield(m, nil) {
				return
			}
		}
	}
}

func (n *node) Settle(context.Context) error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	switch {
	case !n.c.quorum:
		return fmt.Errorf("no leader: %w", artifact.ErrNoQuorum)
	case n.applied < len(n.c.log):
		return fmt.Errorf("entry %d is not here: %w", n.applied, artifact.ErrUnavailable)
	}
	return nil
}

// orphan stores bytes that no manifest names.
func (n *node) orphan(data []byte) artifact.Ref {
	n.t.Helper()
	d, err := n.store.Create(1 << 20)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := d.Write(data); err != nil {
		n.t.Fatal(err)
	}
	ref, err := d.Commit()
	if err != nil {
		n.t.Fatal(err)
	}
	return ref
}

// helloZip is the zip that the upstream has for hello.
func (n *node) helloZip() []byte { return n.c.up.Artifact(helloV, artifact.Zip) }

// pass lets time go by on n, and collects.
func (n *node) pass(after time.Duration) Garbage {
	n.t.Helper()
	g, err := n.tryPass(after)
	if err != nil {
		n.t.Fatal(err)
	}
	return g
}

func (n *node) tryPass(after time.Duration) (Garbage, error) {
	n.lives(after)
	n.collector.every = 0
	return n.Collect(n.t.Context(), false)
}

// lives lets time go by.
func (n *node) lives(d time.Duration) {
	for i := range n.leftovers.shards {
		s := &n.leftovers.shards[i]
		s.mu.Lock()
		s.seen = s.seen.Add(-d)
		s.mu.Unlock()
	}
}

// due has an orphan for so long that the next pass collects it, but for what stands in the way.
func (n *node) due(data []byte) artifact.Ref {
	n.t.Helper()
	ref := n.orphan(data)
	n.pass(0)
	n.lives(Leftover)
	return ref
}

// isCollected fails the test unless the next pass collects ref exactly if want says so.
func (n *node) isCollected(what string, ref artifact.Ref, want bool) {
	n.t.Helper()
	_, err := n.tryPass(0)
	if got := n.store.TrashSize(ref.Digest) > 0; got != want {
		n.t.Errorf("%s: collected %v, want %v; %v", what, got, want, err)
	}
}

// What nothing names stays for a day, then in the trash for as long as it is told, and is gone then. What is named stays.
func TestCollect(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[0]
	named := c.fill(3)
	ref := n.orphan([]byte("left over"))
	was := Amount{1, ref.Size}
	for _, tt := range []struct {
		after time.Duration
		want  Garbage
	}{
		{0, Garbage{Leftovers: was}},
		{Leftover - time.Hour, Garbage{Leftovers: was, Oldest: 23 * 3600}},
		{time.Hour, Garbage{Collected: was, Trash: was}},
		{0, Garbage{Trash: was}},
		{trashKeep - time.Hour, Garbage{Trash: was}},
		{time.Hour, Garbage{Removed: was}},
		{0, Garbage{}},
	} {
		tt.want.Blobs = 3 + tt.want.Leftovers.Blobs + tt.want.Collected.Blobs
		got := n.pass(tt.after)
		got.Time = time.Time{}
		if got != tt.want {
			t.Errorf("after %v more: %+v, want %+v", tt.after, got, tt.want)
		}
	}
	if n.store.Has(ref) || n.store.TrashSize(ref.Digest) != 0 {
		t.Error("it is still there")
	}
	for _, ref := range named {
		if err := n.store.Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]float64{"collected_total": 1, "collected_bytes_total": 9, "removed_total": 1, "passes_total": 7} {
		if got := n.metric("garbage_" + name); got != want {
			t.Errorf("garbage_%s = %v, want %v", name, got, want)
		}
	}
	if files, err := filepath.Glob(filepath.Join(n.dir, "leftovers", "*")); err != nil || len(files) != 1 {
		t.Errorf("leftovers/ has %v, %v", files, err)
	} else if b, _ := os.ReadFile(files[0]); string(b) != `{"unnamed":{},"trash":{}}` {
		t.Errorf("%s: %s", files[0], b)
	}
}

// A blob that is due stays as long as any clause of the rule speaks for it.
func TestCollectKeeps(t *testing.T) {
	for what, keep := range map[string]func(n *node, ref artifact.Ref) (letGo func()){
		"nothing": func(*node, artifact.Ref) func() { return nil },
		"reserved": func(n *node, ref artifact.Ref) func() {
			return n.store.Reserve(ref.Digest)
		},
		"waits for a quorum": func(n *node, ref artifact.Ref) func() {
			man := n.manifestOf(helloV)
			it := &intent{Kind: artifact.Zip, Manifest: man, Ref: ref}
			n.Mirror.pending.add(it)
			return func() { n.Mirror.pending.drop(it); n.pass(0); n.lives(Leftover) } // its day begins then
		},
		"no leader": func(n *node, ref artifact.Ref) func() {
			n.c.set(func() { n.c.quorum = false })
			return func() { n.c.set(func() { n.c.quorum = true }) }
		},
		"lags": func(n *node, ref artifact.Ref) func() {
			n.c.set(func() { n.paused = true })
			if err := (clusterIndex{n.c.nodes[1].index, n.c.nodes[1]}).PublishListing(n.t.Context(), artifact.Listing{Path: "example.com/other"}); err != nil {
				n.t.Fatal(err)
			}
			return n.resume
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 3, func(cf *Config) { cf.OnQuorumLoss = passThrough })
			n := c.nodes[0]
			ref := n.due(n.helloZip())
			letGo := keep(n, ref)
			n.isCollected(what, ref, letGo == nil)
			if letGo != nil {
				letGo()
				n.isCollected("afterwards", ref, true)
			}
		})
	}
}

// manifestOf returns a manifest without parts, as it is spread.
func (n *node) manifestOf(mv module.Version) artifact.Manifest {
	n.t.Helper()
	rec, err := n.c.sums.Record(n.t.Context(), mv)
	if err != nil {
		n.t.Fatal(err)
	}
	man := artifact.Manifest{Module: mv, Record: rec}
	man.ZipSum, man.ModSum = n.c.up.Sums(mv)
	return man
}

// The trap: an ack for a leftover that has been here for long is a promise for a day from now on, also if the node that gave it
// dies right afterwards. So is a publication of this node.
func TestAckRenews(t *testing.T) {
	unread := iotest.ErrReader(errors.New("the bytes are here"))
	for what, ack := range map[string]func(n *node, ref artifact.Ref) error{
		"an ack": func(n *node, ref artifact.Ref) error {
			return n.Admit(n.t.Context(), n.manifestOf(helloV), artifact.Zip, ref, unread, "peer")
		},
		"a publication that fails": func(n *node, ref artifact.Ref) error {
			n.c.set(func() { n.c.enough = 5 })
			if a := n.get(zipPath); a.status < 500 {
				return fmt.Errorf("%d %s", a.status, a.body)
			}
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 3)
			n := c.nodes[0]
			ref := n.due(n.helloZip())
			if err := ack(n, ref); err != nil {
				t.Fatal(err)
			}
			n.boot() // on what is on the disk; the process before did nothing else
			n.lives(Leftover)
			n.isCollected("just acked", ref, false)
			n.lives(Leftover - time.Minute)
			n.isCollected("a minute less than a day later", ref, false)
			n.lives(time.Minute)
			n.isCollected("a day later", ref, true)
		})
	}
}

// What cannot be forgotten durably is not acked; the age that is on the disk still must not count in another life.
func TestAckNeedsTheDisk(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[0]
	ref := n.due(n.helloZip())
	dir := filepath.Join(n.dir, leftoverDir)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no directory can be made, nor a file in it removed
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Admit(t.Context(), n.manifestOf(helloV), artifact.Zip, ref, bytes.NewReader(n.helloZip()), "peer"); !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("acked: %v", err)
		}
	}
}

// A disk on which not even the directory of the ages can be made is full, and not faulty: nothing is noted, and writing goes on.
func TestNoRoomForAges(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	if err := n.leftovers.drop(0); err != nil {
		t.Error(err)
	}
	if err := n.store.Err(); err != nil {
		t.Errorf("writing has ended: %v", err)
	}
}

// Ages are added up over the lives of a node, and the time of day and of files is never asked: a wrong one ages nothing.
func TestAgesOutliveProcesses(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[0]
	ref := n.orphan([]byte("left over"))
	name := filepath.Join(n.dir, "blobs", "sha256", ref.Digest.String()[:2], ref.Digest.String())
	if err := os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	n.pass(0)
	for range 11 {
		n.pass(Leftover / 12)
		n.boot() // a long time is over: it is not known how long
	}
	n.lives(Leftover/12 - time.Minute)
	n.isCollected("a minute less than a day in twelve lives", ref, false)
	n.lives(time.Minute)
	n.isCollected("a day in twelve lives", ref, true)
	// Files of which nothing can be made count as none.
	ref = n.due([]byte("another"))
	file := filepath.Join(n.dir, leftoverName(ref.Digest[0]))
	for _, bad := range []string{"", "{", `{"unnamed":{"ab":1}}`, fmt.Sprintf(`{"unnamed":{%q:-1}}`, ref.Digest), `{"trash":{"x":1}}`,
		fmt.Sprintf(`{"format":2,"unnamed":{%q:%d}}`, ref.Digest, Leftover)} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		n.boot()
		n.lives(Leftover)
		n.isCollected(bad, ref, false)
	}
}

// meanwhile is a catalog in which something happens when the collector reads what is new in it for the last time.
type meanwhile struct {
	*node
	f func()
}

func (x *meanwhile) Changes(ctx context.Context, from int64) iter.Seq2[artifact.Change, error] {
	if x.f != nil {
		x.f()
	}
	return x.node.Changes(ctx, from)
}

// A commit that arrives at any moment of a pass is seen, or the blob comes back: whoever is committed has it in the end, and no
// node asks another one for it.
func TestCommitDuringPass(t *testing.T) {
	for at := 1; at <= 3; at++ { // of the shard's look, of the one before the move, after it
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			c := newCluster(t, 3, func(cf *Config) { cf.Names = &meanwhile{node: cf.Names.(*node)} })
			n := c.nodes[2]
			ref := n.due(n.helloZip())
			c.set(func() { c.down[2] = true }) // it gives no ack
			defer n.follow()()
			looks := 0
			commit := func() {
				if looks++; looks == at {
					c.nodes[0].want(zipPath, 200, "PK")
				}
			}
			n.config.Names.(*meanwhile).f = commit
			n.isCollected("committed during a pass", ref, at == 3)
			n.config.Names.(*meanwhile).f = nil
			if at == 3 {
				commit()
			}
			n.until(func(p Progress) bool { return p.Watermark == 1 && p.Missing == 0 })
			if err := n.store.Verify(t.Context(), ref); err != nil {
				t.Error(err)
			}
			if len(c.fetched) != 0 {
				t.Errorf("fetched from others: %v", c.fetched)
			}
		})
	}
}

// What is in the trash and named is brought back by whoever needs it first: a client, the follower, an ack, the next pass. What
// rotted there is fetched from another node.
func TestTrashIsBroughtBack(t *testing.T) {
	for what, need := range map[string]func(n *node, ref artifact.Ref){
		"a client": func(n *node, _ artifact.Ref) { n.want(zipPath, 200, "PK") },
		"an ack": func(n *node, ref artifact.Ref) {
			if err := n.Admit(n.t.Context(), n.manifestOf(helloV), artifact.Zip, ref, iotest.ErrReader(errors.New("the bytes are here")), "peer"); err != nil {
				n.t.Error(err)
			}
		},
		"the follower": func(n *node, _ artifact.Ref) {
			stop := n.follow()
			n.until(func(p Progress) bool { return p.Watermark == 1 && p.Missing == 0 })
			stop()
		},
		"a pass": func(n *node, _ artifact.Ref) { n.pass(2 * trashKeep) },
		"a client, and it rotted": func(n *node, ref artifact.Ref) {
			name := filepath.Join(n.dir, "trash", ref.Digest.String()[:2], ref.Digest.String())
			if err := os.WriteFile(name, bytes.Repeat([]byte("x"), int(ref.Size)), 0o600); err != nil {
				n.t.Fatal(err)
			}
			n.want(zipPath, 200, "PK")
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 3)
			n := c.nodes[2]
			ref := n.due(n.helloZip())
			n.isCollected("due", ref, true)
			c.set(func() { c.down[2] = true })
			c.nodes[0].want(zipPath, 200, "PK")
			need(n, ref)
			if err := n.store.Verify(t.Context(), ref); err != nil {
				t.Error(err)
			}
			if got := len(c.fetched) > 0; got != strings.Contains(what, "rotted") {
				t.Errorf("fetched from others: %v", c.fetched)
			}
			n.pass(2 * trashKeep)
			if err := n.store.Verify(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is in the trash leaves before its time only if the disk is nearly full, and what is named not even then.
func TestTrashOfFullDisk(t *testing.T) {
	low := false
	c := newCluster(t, 3, func(cf *Config) { cf.DiskLow = func() bool { return low } })
	n := c.nodes[2]
	ref, other := n.due(n.helloZip()), n.orphan([]byte("other"))
	n.isCollected("due", ref, true)
	n.pass(Leftover)
	c.set(func() { c.down[2] = true })
	c.nodes[0].want(zipPath, 200, "PK")
	low = true
	g := n.pass(0)
	if want := (Amount{1, other.Size}); g.Removed != want || !g.Early || n.store.TrashSize(other.Digest) != 0 {
		t.Errorf("%+v, want %+v removed early", g, want)
	}
	if err := n.store.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// Where a pass meets what it can neither look at nor move, for want of room for a directory, it goes on: the room that is in the
// trash is needed all the more. That the pass was not whole is said.
func TestCollectGoesOn(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	kept := n.due(n.helloZip())
	n.isCollected("due", kept, true)
	shard := kept.Digest[0]
	if shard == 0 {
		t.Fatal("its directory is the first")
	}
	first := filepath.Join(n.dir, "blobs", "sha256", "00")
	if err := os.WriteFile(first, nil, 0o600); err != nil { // which cannot be listed
		t.Fatal(err)
	}
	if _, err := n.tryPass(trashKeep); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("the pass: %v", err)
	}
	if n.store.TrashSize(kept.Digest) != 0 {
		t.Error("what is due behind a directory that cannot be read is not removed")
	}
}

// A dry run says what a pass would do, and does nothing, not even grow anything older.
func TestDryRun(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[0]
	ref := n.orphan([]byte("left over"))
	n.collector.every = 0
	dry := func() Garbage {
		g, err := n.Collect(t.Context(), true)
		if err != nil || !g.DryRun {
			t.Fatalf("%+v, %v", g, err)
		}
		return g
	}
	for range 3 {
		n.lives(Leftover)
		if g := dry(); g.Leftovers.Blobs != 1 || g.Collected.Blobs != 0 || n.Garbage() != (Garbage{}) {
			t.Errorf("%+v", g)
		}
	}
	n.pass(0)
	n.lives(Leftover)
	if g := dry(); g.Leftovers.Blobs != 0 || g.Collected != (Amount{1, ref.Size}) || !n.store.Has(ref) {
		t.Errorf("%+v", g)
	}
	n.pass(0)
	n.lives(trashKeep)
	if g := dry(); g.Removed != (Amount{1, ref.Size}) || n.store.TrashSize(ref.Digest) == 0 {
		t.Errorf("%+v", g)
	}
}

// No pass is done on a catalog that cannot be read, a disk that is not written to, or beside another one; the node says why.
func TestNoPass(t *testing.T) {
	c := newCluster(t, 3, func(cf *Config) { cf.Names = &brokenNames{node: cf.Names.(*node)} })
	n := c.nodes[0]
	ref := n.due([]byte("left over"))
	refused := func(what string) {
		t.Helper()
		if _, err := n.tryPass(Leftover); !errors.Is(err, ErrNoPass) || !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) || !n.store.Has(ref) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := n.GarbageError(); err == nil && what != "another pass" {
			t.Errorf("%s: nobody is told", what)
		}
	}
	x := n.config.Names.(*brokenNames)
	for _, err := range []error{fs.ErrNotExist, artifact.ErrDamaged} {
		x.err = err
		refused(err.Error())
	}
	x.err = nil
	n.collector.pass.Lock()
	refused("another pass")
	n.collector.pass.Unlock()
	n.store.StopWrites(errors.New("fsync"))
	refused("a disk that failed")
}

type brokenNames struct {
	*node
	err error
}

func (x *brokenNames) Manifests(ctx context.Context) iter.Seq2[artifact.Manifest, error] {
	if x.err == nil {
		return x.node.Manifests(ctx)
	}
	return func(yield func(artifact.Manifest, error) bool) { yield(artifact.Manifest{}, x.err) }
}

// All nodes collect all the time, as if each pass came a day after the one before, while versions are published: none that is
// committed is missing in the end on any node, and none was ever answered wrongly.
func TestCollectorsRace(t *testing.T) {
	c := newCluster(t, 3)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		stopFollowing := n.follow()
		defer stopFollowing()
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := n.tryPass(Leftover); err != nil {
					t.Errorf("pass: %v", err)
					return
				}
			}
		})
	}
	refs := c.fill(30)
	stop()
	wg.Wait()
	for _, n := range c.nodes {
		n.until(func(p Progress) bool { return p.Watermark == int64(len(refs)) && p.Missing == 0 })
		for _, ref := range refs {
			f, err := n.store.Open(ref)
			if err != nil {
				t.Errorf("%s: %v", name(n.id), err)
				continue
			}
			if got, _ := io.ReadAll(f); artifact.RefOf(got) != ref {
				t.Errorf("%s: %v has other bytes", name(n.id), ref)
			}
			f.Close()
		}
	}
}

// The filter never misses what is named, and seldom takes for named what is not.
func TestNamedFilter(t *testing.T) {
	const size = 20_000
	s, err := readNames(t.Context(), counted(size), func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i := range size {
		if !s.has(digestOf(i)) {
			t.Fatalf("blob %d is named", i)
		}
	}
	wrong := 0
	for i := range size {
		if s.has(digestOf(size + i)) {
			wrong++
		}
	}
	if wrong > size/100 {
		t.Errorf("%d of %d are wrongly taken for named", wrong, size)
	}
	if got := len(s.bits) * 8; got > size*8 {
		t.Errorf("%d bytes for %d manifests", got, size)
	}
}

func digestOf(i int) artifact.Digest { return artifact.DigestOf(fmt.Append(nil, i)) }

// counted is a catalog of so many manifests.
type counted int

func (n counted) Next(context.Context) (int64, error) { return int64(n), nil }
func (n counted) Settle(context.Context) error        { return nil }
func (n counted) Manifests(context.Context) iter.Seq2[artifact.Manifest, error] {
	return func(yield func(artifact.Manifest, error) bool) {
		for i := range int(n) {
			if !yield(artifact.Manifest{Zip: artifact.Ref{Digest: digestOf(i), Size: 1}}, nil) {
				return
			}
		}
	}
}
func (n counted) Changes(context.Context, int64) iter.Seq2[artifact.Change, error] {
	return func(func(artifact.Change, error) bool) {}
}
