//go:build faults

package main

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest/faultproxy"
)

// netSite is a cluster whose nodes reach each other through a network that can be made bad.
type netSite struct {
	*faultSite
	net *faultproxy.Net
}

func newNetSite(t *testing.T, size int, seed uint64) *netSite {
	t.Helper()
	s := &netSite{faultSite: newFaultSite(t, size, seed)}
	nodes := s.nodes // which do not change
	s.net = faultproxy.New(func(c net.Conn) string {
		var pids []int
		for _, n := range nodes {
			pids = append(pids, int(n.pid.Load()))
		}
		pid, err := faultproxy.Whose(c, pids)
		for _, n := range nodes {
			if err == nil && pid > 0 && int(n.pid.Load()) == pid {
				return n.name
			}
		}
		return "" // it has died since
	})
	t.Cleanup(s.net.Close)
	for _, n := range s.nodes {
		var err error
		if n.via, err = s.net.Listen(n.name, n.peer); err != nil {
			t.Fatal(err)
		}
		n.extra = append(n.extra, "--advertise", n.via, "--voters", fmt.Sprint(size), "--log-level", "debug")
	}
	return s
}

func namesOf(nodes []*clusterNode) (names []string) {
	for _, n := range nodes {
		names = append(names, n.name)
	}
	return names
}

// repack has the upstream send another zip of the same version from now on: its files are the same and so is their h1, its bytes
// are others.
func (s *netSite) repack(m module.Version) {
	s.t.Helper()
	old := s.up.Artifact(m, artifact.Zip)
	z, err := zip.NewReader(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		s.t.Fatal(err)
	}
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range z.File {
		out, err := w.CreateHeader(&zip.FileHeader{Name: f.Name, Method: zip.Store})
		if err != nil {
			s.t.Fatal(err)
		}
		in, err := f.Open()
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.up.AddZip(m, b.Bytes(), s.up.Artifact(m, artifact.Mod), s.up.Artifact(m, artifact.Info))
	s.add(artifactPath(m, artifact.Zip), b.Bytes())
}

// buildRun are go commands that run one after the other until they are stopped, each with nothing cached.
type buildRun struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	done atomic.Int64
	errs chan error
}

// build has go commands download a version that next names through proxy, and verify it.
func (s *netSite) build(proxy string, next func(i int) module.Version) *buildRun {
	ctx, cancel := context.WithCancel(s.t.Context())
	b := &buildRun{stop: cancel, errs: make(chan error, 1)}
	b.wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			m := next(i)
			if _, err := s.download(proxy, requires(m)); err != nil {
				b.errs <- fmt.Errorf("build %d of %s through %s: %w", i, m, proxy, err)
				return
			}
			b.done.Add(1)
		}
	})
	return b
}

func requires(ms ...module.Version) string {
	var text strings.Builder
	text.WriteString("module app\n\ngo 1.21\n")
	for _, m := range ms {
		fmt.Fprintf(&text, "\nrequire %s %s\n", m.Path, m.Version)
	}
	return text.String()
}

// makes waits until so many more builds have succeeded.
func (s *netSite) makes(b *buildRun, more int64, what string) {
	s.t.Helper()
	until := b.done.Load() + more
	s.await(what, func() bool { return b.done.Load() >= until || len(b.errs) > 0 }, func() string { return fmt.Sprint(b.done.Load()) })
	s.noError(b)
}

func (s *netSite) noError(b *buildRun) {
	s.t.Helper()
	select {
	case err := <-b.errs:
		s.t.Fatal(err)
	default:
	}
}

// end waits for the build under way, which must succeed too.
func (s *netSite) end(b *buildRun) {
	s.t.Helper()
	b.stop()
	b.wg.Wait()
	s.noError(b)
}

// terms returns what the nodes say of their terms.
func (s *netSite) terms() map[string]uint64 {
	s.t.Helper()
	out := make(map[string]uint64)
	for _, n := range s.alive() {
		st, err := s.status(n)
		if err != nil {
			s.t.Fatalf("%s: %v", n.name, err)
		}
		out[n.name] = st.Node.Term
	}
	return out
}

// calm checks that nodes have not gone through more than a few terms since: whoever could not win an election did not begin one
// (Raft §9.6, pre-vote), so it disturbs nobody when it is back.
func (s *netSite) calm(before map[string]uint64, few uint64) {
	s.t.Helper()
	now := s.terms()
	first, last := uint64(0), uint64(0)
	for _, t := range before {
		first = max(first, t)
	}
	for _, t := range now {
		last = max(last, t)
	}
	s.t.Logf("terms before %v, after %v; %d times a node became leader", before, now, s.elections())
	if last > first+few {
		s.t.Errorf("the term went from %d to %d: %v, %v", first, last, before, now)
	}
}

// elections returns how often a node became the leader.
func (s *netSite) elections() (n int) {
	for _, node := range s.nodes {
		n += strings.Count(node.output(), "raft: entering leader state")
	}
	return n
}

// highest returns the newest term.
func highest(terms map[string]uint64) (t uint64) {
	for v := range maps.Values(terms) {
		t = max(t, v)
	}
	return t
}
