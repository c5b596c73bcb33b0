//go:build bench && linux

package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"modmirror/mirror/artifact"
)

// pair is nginx with the corpus as static files and a modmirror that holds the corpus.
type pair struct{ peer, mirror *server }

func (b *bench) startPair(t *testing.T) pair {
	t.Helper()
	peer, err := startNginx(b.ctx, "static", filepath.Join(b.work, "static-"+filepath.Base(t.Name())), b.tree, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, peer.stop()) })
	mirror, err := b.startMirror(b.stocked, peer.counted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, mirror.stop()) })
	return pair{peer, mirror}
}

// small measures the answers that are small: 32 connections that ask, in turn, for every one that there is.
func (b *bench) small(t *testing.T) {
	p := b.startPair(t)
	for _, kind := range []struct{ name, dir, suffix string }{
		{".info", "", ".info"},
		{".mod", "", ".mod"},
		{"list", "", "/@v/list"},
		{"lookup", "sumdb/" + database + "/lookup", ""},
		{"tile", "sumdb/" + database + "/tile", ""},
	} {
		paths, err := b.paths(kind.dir, kind.suffix)
		if err != nil {
			t.Fatal(err)
		}
		file, err := b.listFile(kind.name, paths)
		if err != nil {
			t.Fatal(err)
		}
		peer, mirror := b.loads(t, p, file, 32)
		perSecond := func(l round) float64 { return l.perSecond }
		b.add(row{kind.name + ", requests/s", pick(peer, perSecond), pick(mirror, perSecond), ratioAtLeast(0.7)})
		p99 := func(l round) float64 { return l.p99 }
		b.add(row{kind.name + ", p99 ms", pick(peer, p99), pick(mirror, p99), below(5)})
		cpu := func(l round) float64 { return l.cpu }
		b.add(row{kind.name + ", server CPU µs/request", pick(peer, cpu), pick(mirror, cpu), aim{}})
	}
}

// zips measures zips of three sizes on 4 connections.
func (b *bench) zips(t *testing.T) {
	p := b.startPair(t)
	for _, size := range []int64{50e3, 6e6, 64e6} {
		path, n, err := b.nearest(size)
		if err != nil {
			t.Fatal(err)
		}
		file, err := b.listFile(fmt.Sprint("zip-", size), []string{path})
		if err != nil {
			t.Fatal(err)
		}
		want := ratioAtLeast(1)
		if size < 1e6 {
			want = ratioAtLeast(0.7)
		}
		name := "zip of " + number(float64(n)/1e6) + " MB"
		peer, mirror := b.loads(t, p, file, 4)
		bytes := func(l round) float64 { return l.bytes }
		b.add(row{name + ", MB/s", pick(peer, bytes), pick(mirror, bytes), want})
		cpu := func(l round) float64 { return l.cpu }
		b.add(row{name + ", server CPU µs/request", pick(peer, cpu), pick(mirror, cpu), aim{}})
	}
}

// loads lets wrk ask both servers in turn, after a round that does not count.
func (b *bench) loads(t *testing.T, p pair, file string, connections int) (peer, mirror []round) {
	t.Helper()
	one := func(s *server, d time.Duration) round {
		l, err := b.wrk(s, file, connections, d)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one(p.peer, time.Second)
	one(p.mirror, time.Second)
	for range b.rounds {
		peer = append(peer, one(p.peer, b.seconds))
		mirror = append(mirror, one(p.mirror, b.seconds))
	}
	return peer, mirror
}

func pick(loads []round, f func(round) float64) (s samples) {
	for _, l := range loads {
		s = append(s, f(l))
	}
	return s
}

// warm measures what a developer waits for: the go command with empty caches, everything held by the server.
func (b *bench) warm(t *testing.T) {
	p := b.startPair(t)
	peer, mirror := samples{}, samples{}
	for round := range b.coldRounds() + 1 {
		for _, s := range []struct {
			*server
			to *samples
		}{{p.peer, &peer}, {p.mirror, &mirror}} {
			took, err := b.goDownload(s.url)
			if err != nil {
				t.Fatal(err)
			}
			if round > 0 { // the first fills the caches of the disk
				*s.to = append(*s.to, took.Seconds())
			}
		}
	}
	b.add(row{"go mod download all, warm, s", peer, mirror, ratioAtMost(1.05)})
}

// start measures how long it takes from the start of the process to the first good answer, and its memory then.
func (b *bench) start(t *testing.T) {
	upstream, err := startNginx(b.ctx, "static", filepath.Join(b.work, "static-start"), b.tree, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { report(t, upstream.stop()) })
	mods, err := b.paths("", ".mod")
	if err != nil {
		t.Fatal(err)
	}
	var fresh, held, idle samples
	for round := range b.rounds {
		took, _ := b.startOnce(t, filepath.Join(b.work, fmt.Sprint("fresh-", round)), upstream.url, "/healthz")
		fresh = append(fresh, took.Seconds()*1e3)
		took, mb := b.startOnce(t, b.stocked, upstream.url, mods[0])
		held, idle = append(held, took.Seconds()*1e3), append(idle, mb)
	}
	b.add(row{"start to first 200, new data, ms", nil, fresh, below(100)})
	b.add(row{"start to first .mod, held data, ms", nil, held, below(100)})
	b.add(row{"RSS idle after start, MB", nil, idle, below(50)})

	p := b.startPair(t)
	file, err := b.listFile("idle", mods)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.wrk(p.mirror, file, 32, b.seconds); err != nil {
		t.Fatal(err)
	}
	big, _, err := b.nearest(64e6)
	if err != nil {
		t.Fatal(err)
	}
	if err := getAll(b.ctx, p.mirror.url, []string{big, big, big, big}); err != nil {
		t.Fatal(err)
	}
	b.idle(10 * time.Second)
	b.add(row{"RSS idle 10 s after load, MB", nil, samples{b.memory(t, p.mirror, "VmRSS")}, below(50)})
}

// startOnce returns how long a modmirror on data takes to answer path, and its memory two seconds later.
func (b *bench) startOnce(t *testing.T, data, upstream, path string) (time.Duration, float64) {
	t.Helper()
	addr, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s, stop := b.spawn(t, append([]string{"serve", "--listen", addr}, mirrorArgs(data, upstream)...))
	defer stop()
	begin := time.Now()
	if err := awaitStatus(b.ctx, "http://"+addr+path, 20*time.Second, isOK); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	b.idle(2 * time.Second)
	return took, b.memory(t, s, "VmRSS")
}

func (b *bench) memory(t *testing.T, s *server, field string) float64 {
	t.Helper()
	mb, err := memoryOf(s.pids, field)
	if err != nil {
		t.Fatal(err)
	}
	return mb
}

// h1 measures the check of a large zip against the sum alone.
func (b *bench) h1(t *testing.T) {
	p, size, err := b.nearest(64e6)
	if err != nil {
		t.Fatal(err)
	}
	escaped, err := url.PathUnescape(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(b.tree, filepath.FromSlash(escaped)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := module.Version{Path: "golang.org/toolchain", Version: filepath.Base(toolchain)}
	var one, ours samples // MB/s
	for round := range b.rounds + 1 {
		begin := time.Now()
		want, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
		if err != nil {
			t.Fatal(err)
		}
		alone := time.Since(begin)
		begin = time.Now()
		got, err := artifact.CheckZip(context.Background(), f, size, m)
		if err != nil || got.H1 != want {
			t.Fatalf("CheckZip = %q, %v, want %q", got.H1, err, want)
		}
		if took := time.Since(begin); round > 0 {
			one, ours = append(one, float64(size)/1e6/alone.Seconds()), append(ours, float64(size)/1e6/took.Seconds())
		}
	}
	b.add(row{"check of a zip of " + number(float64(size)/1e6) + " MB, MB/s (peer: dirhash.HashZip)", one, ours, ratioAtLeast(2)})
}
