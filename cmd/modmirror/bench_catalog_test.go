//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/replicatetest"
)

// many is the module with many versions.
const (
	many         = "example.com/many"
	manyVersions = 10_000
)

// catalog measures a catalog of BENCH_MANIFESTS (default: 1,000,000) manifests of made-up modules, each with an info and a
// small go.mod, among them one module with 10,000 versions.
func (b *bench) catalog(t *testing.T) {
	count := 1_000_000
	if v := os.Getenv("BENCH_MANIFESTS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < manyVersions {
			t.Fatalf("BENCH_MANIFESTS=%q: want a number from %d on", v, manyVersions)
		}
		count = n
	}
	dir := filepath.Join(b.work, "catalog")
	took := b.fillCatalog(t, dir, count)
	name := fmt.Sprintf("catalog of %d manifests, ", count)
	st, err := os.Stat(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	b.add(row{name + "applied/s", nil, samples{float64(count) / took.Seconds()}, aim{}})
	b.add(row{name + "bytes/manifest", nil, samples{float64(st.Size()) / float64(count)}, aim{}})
	var open, p99, list samples
	for range b.rounds {
		begin := time.Now()
		n, err := replicate.Open(b.ctx, replicate.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, time.Since(begin).Seconds())
		begin = time.Now()
		versions, err := n.Versions(b.ctx, many)
		if err != nil || len(versions) != manyVersions {
			t.Fatalf("Versions = %d, %v", len(versions), err)
		}
		list = append(list, time.Since(begin).Seconds()*1e3)
		p99 = append(p99, lookups(t, n, count))
		report(t, n.Close())
	}
	b.add(row{name + "open, s", nil, open, below(1)})
	b.add(row{name + "lookup p99, ms", nil, p99, below(1)})
	b.add(row{fmt.Sprintf("%slist of %d versions, ms", name, manyVersions), nil, list, below(5)})
}

// nth is the i-th module version of the catalog.
func nth(i int) module.Version {
	if i < manyVersions {
		return module.Version{Path: many, Version: fmt.Sprintf("v1.%d.%d", i/100, i%100)}
	}
	return module.Version{Path: fmt.Sprintf("example.com/owner%d/module%d", i%7919, i/10), Version: fmt.Sprintf("v1.%d.0", i%10)}
}

// lookups returns the 99th percentile, in ms, of looking up module versions at random.
func lookups(t *testing.T, n *replicate.Node, count int) float64 {
	t.Helper()
	const tries = 100_000
	all := make([]time.Duration, tries)
	for i := range all {
		m := nth(rand.IntN(count))
		begin := time.Now()
		if _, err := n.Manifest(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		all[i] = time.Since(begin)
	}
	slices.Sort(all)
	return all[tries*99/100].Seconds() * 1e3
}

// fillCatalog publishes count manifests, through the log, with all proofs checked, and returns how long that took: the
// making of them does not count.
func (b *bench) fillCatalog(t *testing.T, dir string, count int) time.Duration {
	t.Helper()
	n, err := replicate.Open(b.ctx, replicate.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { report(t, n.Close()) }()
	db := replicatetest.NewDatabase(t, "sum.example.org")
	if err := n.TrustDatabase(b.ctx, db.Key); err != nil {
		t.Fatal(err)
	}
	modules := make([]replicatetest.Module, count)
	for i := range modules {
		m := nth(i)
		modules[i] = db.AddModule(m.Path, m.Version, "module "+m.Path+"\n\ngo 1.26\n")
	}
	size := db.Size()
	if err := n.CommitTreeHead(b.ctx, db.Name, db.Head(size), 0, nil); err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	const part = 20_000
	for ; len(modules) > 0; modules = modules[min(part, len(modules)):] {
		ps := make([]artifact.Publication, min(part, len(modules)))
		for i := range ps {
			ps[i] = db.Publication(modules[i], size)
		}
		begin := time.Now()
		if err := publishEach(b.ctx, n, ps); err != nil {
			t.Fatal(err)
		}
		took += time.Since(begin)
	}
	return took
}

// publishEach publishes ps, 512 at a time.
func publishEach(ctx context.Context, n *replicate.Node, ps []artifact.Publication) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(512)
	for _, p := range ps {
		g.Go(func() error {
			_, err := n.Publish(ctx, p)
			return err
		})
	}
	return g.Wait()
}
