//go:build bench && linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/replicatetest"
)

// A usual version: an info with an origin, and a go.mod of a module with some dependencies. A proof in a tree of 70 million
// records has ten hashes more than one in the made-up database; here they are a part of the go.mod.
const (
	usualInfo = 200
	usualMod  = 1000 + 10*32
)

// capacity measures what docs/capacity.md has tables of: the disk that the catalog and the log of so many module versions
// take, and the start and memory of a mirror with them. Each version has an info and a go.mod, published together, and every
// third gets a zip later, as clients ask for them.
func (b *bench) capacity(t *testing.T) {
	for _, count := range []int{10_000, 100_000} {
		dir := filepath.Join(b.work, fmt.Sprint("capacity", count))
		zips := b.publishUsual(t, dir, count)
		name := fmt.Sprintf("%d versions, %d with a zip, ", count, zips)
		for _, f := range []string{"catalog.db", "raft/raft.db"} {
			st, err := os.Stat(filepath.Join(dir, f))
			if err != nil {
				t.Fatal(err)
			}
			b.add(row{name + f + ", MB", nil, samples{float64(st.Size()) / 1e6}, aim{}})
			b.add(row{name + f + ", bytes/version", nil, samples{float64(st.Size()) / float64(count)}, aim{}})
		}
		var ready, rss, anon samples
		for range b.rounds {
			r, m, a := b.startOn(t, dir)
			ready, rss, anon = append(ready, r.Seconds()*1e3), append(rss, m), append(anon, a)
		}
		b.add(row{name + "start to first 200, ms", nil, ready, aim{}})
		b.add(row{name + "RSS idle after start, MB", nil, rss, aim{}})
		b.add(row{name + "of it not pages of the two files, MB", nil, anon, aim{}})
	}
}

// publishUsual publishes count module versions and returns how many have a zip.
func (b *bench) publishUsual(t *testing.T, dir string, count int) (zips int) {
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
		v := nth(manyVersions + i)
		head := "module " + v.Path + "\n\ngo 1.26\n\n// " + fmt.Sprint(i)
		modules[i] = db.AddModule(v.Path, v.Version, head+strings.Repeat("x", usualMod-len(head)-1)+"\n")
		origin := fmt.Sprintf(`{"Version":"%s","Time":"2024-05-06T07:08:09Z","Origin":{"VCS":"git","URL":"https://%s"}}`, v.Version, v.Path)
		modules[i].Info = []byte(strings.Replace(origin, `"}}`, strings.Repeat("x", max(0, usualInfo-len(origin)))+`"}}`, 1))
	}
	size := db.Size()
	if err := n.CommitTreeHead(b.ctx, db.Name, db.Head(size), 0, nil); err != nil {
		t.Fatal(err)
	}
	const part = 10_000
	for from := 0; from < count; from += part {
		var first, later []artifact.Publication
		for i, m := range modules[from : from+part] {
			p := db.Publication(m, size)
			p.Manifest.Zip = artifact.Ref{}
			first = append(first, p)
			if i%3 == 0 {
				p := db.Publication(m, size)
				p.Info, p.Mod, p.Manifest.Info, p.Manifest.Mod = nil, nil, artifact.Ref{}, artifact.Ref{}
				later = append(later, p)
			}
		}
		zips += len(later)
		for _, ps := range [][]artifact.Publication{first, later} {
			if err := publishEach(b.ctx, n, ps); err != nil {
				t.Fatal(err)
			}
		}
	}
	return zips
}

// startOn starts a mirror on dir, and returns how long it takes to be ready, and what memory it has some seconds later.
func (b *bench) startOn(t *testing.T, dir string) (ready time.Duration, rss, anon float64) {
	t.Helper()
	addr, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	peers, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s, stop := b.spawn(t, []string{"serve", "--offline", "--data-dir", dir, "--listen", addr, "--peer-listen", peers, "--log-level", "error"})
	defer stop()
	if err := awaitStatus(b.ctx, "http://"+addr+"/readyz", time.Minute, isOK); err != nil {
		t.Fatal(err)
	}
	ready = time.Since(begin)
	b.idle(5 * time.Second)
	return ready, b.memory(t, s, "VmRSS"), b.memory(t, s, "RssAnon")
}
