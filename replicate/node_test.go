package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/semver"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

func openNode(tb testing.TB, c Config) *Node {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n, err := Open(ctx, c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { n.Close() })
	return n
}

// trusting returns a database that n trusts.
func trusting(tb testing.TB, n *Node) *replicatetest.Database {
	tb.Helper()
	db := replicatetest.NewDatabase(tb, "sum.example.org")
	if err := n.TrustDatabase(tb.Context(), db.Key); err != nil {
		tb.Fatal(err)
	}
	return db
}

// advance commits the head of all of db's records.
func advance(tb testing.TB, n *Node, db *replicatetest.Database) {
	tb.Helper()
	var base int64
	if msg, err := n.TreeHead(tb.Context(), db.Name, math.MaxInt64); err == nil {
		base = treeOf(tb, db, msg)
	}
	if err := n.CommitTreeHead(tb.Context(), db.Name, db.Head(db.Size()), base, db.Prove(db.Size(), base)); err != nil {
		tb.Fatal(err)
	}
}

func treeOf(tb testing.TB, db *replicatetest.Database, msg []byte) int64 {
	tb.Helper()
	tree, err := artifact.OpenTreeHead(verifierOf(tb, db), msg)
	if err != nil {
		tb.Fatal(err)
	}
	return tree.N
}

// publish makes a module version up, advances the head and publishes it.
func publish(tb testing.TB, n *Node, db *replicatetest.Database, path, version string) artifact.Manifest {
	tb.Helper()
	m := db.AddModule(path, version, "module "+path+"\n")
	advance(tb, n, db)
	man, err := n.Publish(tb.Context(), db.Publication(m, db.Size()))
	if err != nil {
		tb.Fatal(err)
	}
	return man
}

func TestPublishAndRead(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	ctx := t.Context()
	db := trusting(t, n)
	m := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	advance(t, n, db)
	p := db.Publication(m, 1)

	modOnly := p
	modOnly.Info, modOnly.Manifest.Info, modOnly.Manifest.Zip = nil, artifact.Ref{}, artifact.Ref{}
	man, err := n.Publish(ctx, modOnly)
	if err != nil || man.Mod != p.Manifest.Mod || !man.Zip.IsZero() {
		t.Fatalf("Publish(go.mod only) = %+v, %v", man, err)
	}
	if man, err = n.Publish(ctx, p); err != nil || man.Zip != p.Manifest.Zip || man.Info != p.Manifest.Info {
		t.Fatalf("Publish(all) = %+v, %v", man, err)
	}
	before, _ := n.Status(ctx)
	if _, err = n.Publish(ctx, p); err != nil {
		t.Fatal(err)
	}
	if after, _ := n.Status(ctx); after.Applied != before.Applied || after.Seq != 2 || after.Manifests != 1 {
		t.Errorf("publishing the same again changed the status from %+v to %+v", before, after)
	}
	other := p
	other.Manifest.Zip = artifact.RefOf([]byte("zipped by somebody else"))
	if man, err = n.Publish(ctx, other); err != nil || man.Zip != p.Manifest.Zip {
		t.Errorf("Publish(other zip of the same sum) = %v, %v, want the first zip", man.Zip, err)
	}

	if have, err := n.Manifest(ctx, m.Version); err != nil || !sameParts(have, p.Manifest) {
		t.Errorf("Manifest() = %+v, %v", have, err)
	}
	if b, err := n.Inline(ctx, p.Manifest.Mod.Digest); err != nil || !bytes.Equal(b, m.Mod) {
		t.Errorf("Inline(go.mod) = %q, %v", b, err)
	}
	if b, err := n.Inline(ctx, p.Manifest.Info.Digest); err != nil || !bytes.Equal(b, m.Info) {
		t.Errorf("Inline(info) = %q, %v", b, err)
	}
	if r, err := n.Record(ctx, db.Name, m.Version); err != nil || r.ID != m.ID {
		t.Errorf("Record() = %+v, %v", r, err)
	}
	for what, err := range map[string]error{
		"unknown manifest": second(n.Manifest(ctx, replicatetest.Module{}.Version)),
		"unknown bytes":    second(n.Inline(ctx, artifact.Digest{})),
		"other database":   second(n.Record(ctx, "other.example.org", m.Version)),
		"unknown listing":  second(n.Listing(ctx, "example.com/a")),
		"head below 1":     second(n.TreeHead(ctx, db.Name, 1)),
		"head below 0":     second(n.TreeHead(ctx, db.Name, -5)),
		"head of nobody":   second(n.TreeHead(ctx, "other.example.org", math.MaxInt64)),
		"fork":             second(n.Fork(ctx, db.Name)),
		"ack of no fork":   n.AckFork(ctx, db.Name),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Versions are not read to the end for somebody who leaves while they are.
func TestVersionsEndWithContext(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	if err := n.update(func(s state) error {
		for i := range 2 * pageSize {
			if err := s.bucket(bucketManifests).Put(fmt.Appendf(nil, "example.com/m@v1.0.%d", i), []byte{0}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if all, err := n.Versions(t.Context(), "example.com/m"); err != nil || len(all) != 2*pageSize {
		t.Errorf("%d versions, %v", len(all), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if all, err := n.Versions(&leaving{ctx, cancel}, "example.com/m"); !errors.Is(err, context.Canceled) || len(all) > pageSize {
		t.Errorf("for somebody who leaves: %d versions, %v", len(all), err)
	}
}

// leaving is a context that ends when it is first asked whether it has.
type leaving struct {
	context.Context
	end context.CancelFunc
}

func (l *leaving) Err() error {
	defer l.end()
	return l.Context.Err()
}

func TestVersionsAndModules(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	db := trusting(t, n)
	for _, v := range []string{"v1.10.0", "v1.2.0", "v1.9.0", "v0.0.0-20200101000000-abcdefabcdef"} {
		publish(t, n, db, "example.com/a", v)
	}
	for _, p := range []string{"example.com/a/b", "example.com/a-b", "example.com/aZ", "example.org/x"} {
		publish(t, n, db, p, "v1.0.0")
	}
	want := []string{"v0.0.0-20200101000000-abcdefabcdef", "v1.2.0", "v1.9.0", "v1.10.0"}
	got, err := n.Versions(t.Context(), "example.com/a")
	if semver.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("Versions() = %q, %v, want %q", got, err, want)
	}
	if got, err := n.Versions(t.Context(), "example.com/none"); err != nil || len(got) != 0 {
		t.Errorf("Versions(unknown) = %q, %v", got, err)
	}
	all, err := n.Modules(t.Context(), "example.com/a", "", 0)
	if err != nil || len(all) != 4 || !slices.Contains(all, "example.com/a") {
		t.Fatalf("Modules() = %q, %v, want 4", all, err)
	}
	var paged []string
	for after := ""; ; {
		page, err := n.Modules(t.Context(), "example.com/a", after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
		after = page[0]
	}
	if !slices.Equal(paged, all) {
		t.Errorf("pages of one = %q, want %q", paged, all)
	}
	count := 0
	for _, err := range n.Manifests(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 8 {
		t.Errorf("Manifests() yields %d, want 8", count)
	}
}

func TestManifestsCrossesPages(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	db := trusting(t, n)
	var ms []replicatetest.Module
	for i := range 2*pageSize + 1 {
		ms = append(ms, db.AddModule(fmt.Sprintf("example.com/m%d", i), "v1.0.0", "module m\n"))
	}
	advance(t, n, db)
	publishAll(t, n, db, ms)
	seen := map[string]bool{}
	for m, err := range n.Manifests(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if seen[m.Module.Path] {
			t.Errorf("Manifests() yields %s twice", m.Module)
		}
		seen[m.Module.Path] = true
	}
	if len(seen) != len(ms) {
		t.Errorf("Manifests() yields %d different ones, want %d", len(seen), len(ms))
	}
	if st, _ := n.Status(t.Context()); st.Manifests != int64(len(ms)) || st.Seq != int64(len(ms)) {
		t.Errorf("Status() = %+v, want %d manifests", st, len(ms))
	}
}

// publishAll publishes all modules at the same time.
func publishAll(tb testing.TB, n *Node, db *replicatetest.Database, ms []replicatetest.Module) {
	tb.Helper()
	errs := make(chan error)
	for _, m := range ms {
		p := db.Publication(m, db.Size())
		go func() { _, err := n.Publish(tb.Context(), p); errs <- err }()
	}
	for range ms {
		if err := <-errs; err != nil {
			tb.Error(err)
		}
	}
}

func TestForkAtNode(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	ctx := t.Context()
	db := trusting(t, n)
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	fork := db.Fork()
	db.Add("left\n")
	fork.Add("right\n")
	advance(t, n, db)
	if err := n.CommitTreeHead(ctx, db.Name, db.Head(2), 7, nil); err != nil {
		t.Errorf("CommitTreeHead(known) = %v", err)
	}
	if err := n.CommitTreeHead(ctx, db.Name, db.Head(1), 7, nil); !errors.Is(err, artifact.ErrStale) {
		t.Errorf("CommitTreeHead(wrong base) = %v, want ErrStale", err)
	}
	if err := n.CommitTreeHead(ctx, db.Name, db.Head(1), -1, nil); !errors.Is(err, artifact.ErrStale) {
		t.Errorf("CommitTreeHead(negative base) = %v, want ErrStale", err)
	}
	if err := n.CommitTreeHead(ctx, db.Name, []byte("x"), 2, nil); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("CommitTreeHead(no note) = %v, want ErrRefused", err)
	}
	if err := n.CommitTreeHead(ctx, db.Name, fork.Head(2), 2, nil); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("CommitTreeHead(other history) = %v, want ErrRefused", err)
	}
	f, err := n.Fork(ctx, db.Name)
	if err != nil || f.Check(verifierOf(t, db)) != nil {
		t.Fatalf("Fork() = %v, %v, want evidence", f, err)
	}
	if st, _ := n.Status(ctx); !slices.Equal(st.Frozen, []string{db.Name}) || !slices.Equal(st.Databases, []string{db.Name}) {
		t.Errorf("Status() = %+v, want %s frozen", st, db.Name)
	}
	p := db.Publication(mod, 2)
	if _, err := n.Publish(ctx, p); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Publish while frozen = %v, want ErrUnavailable", err)
	}
	if err := n.CommitFork(ctx, f); err != nil {
		t.Errorf("CommitFork(known) = %v", err)
	}
	if err := n.AckFork(ctx, db.Name); err != nil {
		t.Error(err)
	}
	if _, err := n.Publish(ctx, p); err != nil {
		t.Errorf("Publish after AckFork = %v", err)
	}
}
