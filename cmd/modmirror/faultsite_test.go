//go:build faults

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate/peer"
)

// faultSite is a cluster of processes in which things are made to go wrong, and a ledger of what its clients were told.
type faultSite struct {
	*clusterSite
	ledger
	members []peer.Member
	r       *rand.Rand

	making sync.Mutex // guards r and made, the number of modules
	made   int
}

// newFaultSite makes a cluster that is founded by the first three of size nodes. Each has a control file for its points.
func newFaultSite(t *testing.T, size int, seed uint64) *faultSite {
	t.Helper()
	s := &faultSite{clusterSite: newClusterSite(t, size), r: rand.New(rand.NewPCG(seed, 0))}
	s.ledger.said, s.ledger.truth = make(map[string]digest), make(map[string]map[digest]bool)
	for _, n := range s.nodes {
		n.env = []string{"MODMIRROR_FAULTS=" + s.control(n)}
	}
	s.load()
	return s
}

// begin starts the cluster and waits until all its nodes vote.
func (s *faultSite) begin() {
	s.t.Helper()
	s.run()
	s.voters(len(s.nodes))
	for _, m := range s.view(s.nodes[0]).Nodes {
		s.members = append(s.members, peer.Member{ID: m.ID, Name: m.Name})
	}
}

func (s *faultSite) control(n *clusterNode) string { return filepath.Join(s.dir, n.name+".faults") }

// arm tells a node what is to happen to it; nothing, if there is no rule.
func (s *faultSite) arm(n *clusterNode, rules ...string) {
	s.t.Helper()
	tmp := s.control(n) + ".new" // a process reads the whole file or the one before
	if err := os.WriteFile(tmp, []byte(strings.Join(rules, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, s.control(n)); err != nil {
		s.t.Fatal(err)
	}
}

// fresh gives the upstream and the database a module that it is a node's turn to bring in; nil: any node's. Its zip has about size
// bytes.
func (s *faultSite) fresh(owner *clusterNode, size int) module.Version {
	s.t.Helper()
	s.making.Lock()
	defer s.making.Unlock()
	for {
		s.made++
		m := module.Version{Path: fmt.Sprintf("example.com/fault%d", s.made), Version: "v1.0.0"}
		if owner != nil && peer.Owner(m.String(), s.members)[0].Name != owner.name {
			continue
		}
		var key [32]byte
		for i := range key {
			key[i] = byte(s.r.Uint32())
		}
		data := make([]byte, size)
		_, _ = rand.NewChaCha8(key).Read(data) // never fails
		mod := fmt.Sprintf("module %s\n\ngo 1.21\n", m.Path)
		s.up.AddZip(m, mirrortest.Zip(m, map[string]string{"go.mod": mod, "data.bin": string(data)}), []byte(mod), nil)
		zipSum, modSum := s.up.Sums(m)
		s.db.Add(m, zipSum, modSum)
		s.db.Grow(s.r.IntN(40)) // tiles have to be fetched, too
		for _, path := range artifactPaths(m) {
			kind := map[string]artifact.Kind{".info": artifact.Info, ".mod": artifact.Mod, ".zip": artifact.Zip}[filepath.Ext(path)]
			s.ledger.add(path, s.up.Artifact(m, kind))
		}
		return m
	}
}

// artifactPaths are what a go command asks of a version, in its order.
func artifactPaths(m module.Version) []string {
	return []string{artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), artifactPath(m, artifact.Zip)}
}

// leads returns the node that leads, and the others, as the nodes say now.
func (s *faultSite) leads() (lead *clusterNode, others []*clusterNode) {
	s.t.Helper()
	s.await("leader", func() bool {
		lead, others = nil, nil
		for _, n := range s.alive() {
			if st, err := s.status(n); err == nil && st.Node.Role == "leader" && st.Node.Leader == st.Node.ID {
				lead = n
			} else {
				others = append(others, n)
			}
		}
		return lead != nil
	}, func() string { return "" })
	return lead, others
}

// status is what a node says of itself now.
func (s *faultSite) status(n *clusterNode) (st status, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.listen+"/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// settled waits until all nodes run and know of each other, hold the same catalog, by its root, and every blob of it, and have
// nothing left over of what was broken off.
func (s *faultSite) settled() {
	s.t.Helper()
	var last string
	s.await("agreement of all nodes", func() bool {
		last = ""
		var first status
		for i, n := range s.nodes {
			st, err := s.status(n)
			if err != nil {
				last = fmt.Sprintf("%s: %v", n.name, err)
				return false
			}
			if i == 0 {
				first = st
			}
			if st.Node.Seq != first.Node.Seq || st.Node.Root != first.Node.Root || st.Node.Diverged != "" || st.Node.Leader == "" || st.Ready != "ok" || st.Writes != "ok" {
				last = fmt.Sprintf("%s: %d:%v, leader %s, ready %s, writes %s, %s; %s: %d:%v", n.name, st.Node.Seq, st.Node.Root, st.Node.Leader, st.Ready, st.Writes,
					st.Node.Diverged, s.nodes[0].name, first.Node.Seq, first.Node.Root)
				return false
			}
		}
		for _, n := range s.nodes {
			v := s.view(n)
			if m, err := v.find(n.name); err != nil || m.Blobs != m.Seq || m.Missing != 0 || len(v.Problems) > 0 {
				last = fmt.Sprintf("%s: %+v, %v, %q", n.name, m, err, v.Problems)
				return false
			}
			if left := leftovers(n.dir); len(left) > 0 {
				last = fmt.Sprintf("left over at %s: %v", n.name, left)
				return false
			}
		}
		return true
	}, func() string { return last })
}

// leftovers are files in a data directory that are not in use when nothing is under way.
func leftovers(dir string) (left []string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // it is gone, as such files are
		}
		at, _ := filepath.Rel(dir, path)
		if strings.HasPrefix(at, "tmp/") || strings.HasPrefix(at, "pending/") || strings.Contains(at, ".tmp") {
			left = append(left, at)
		}
		return nil
	})
	return left
}

// dies waits until a node has killed itself at a point, and says so.
func (s *faultSite) dies(n *clusterNode, p fault.Name, logged int) {
	s.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s does not come to %s", n.name, p)
	}
	ws := n.cmd.ProcessState.Sys().(syscall.WaitStatus)
	said := n.output()[logged:]
	if !ws.Signaled() || ws.Signal() != syscall.SIGKILL || !strings.Contains(said, fmt.Sprintf("fault: %s hit ", p)) {
		s.t.Fatalf("%s ended with %v, not at %s", n.name, n.cmd.ProcessState, p)
	}
}

// ask asks a node, and notes what it says. An error is for no answer, or half of one.
func (s *faultSite) ask(n *clusterNode, path string) (a said, err error) {
	a, err = s.get200(n, path, 30*time.Second)
	if err == nil {
		s.note(path, n.name, a)
	}
	return a, err
}

func (s *faultSite) get200(n *clusterNode, path string, limit time.Duration) (a said, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.listen+path, nil)
	if err != nil {
		return a, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(resp.Body)
	a.code, a.committed = resp.StatusCode, resp.Header.Get("Modmirror-Committed") == ""
	return a, err
}

// wholeOrAbsent checks what a node has of a version by itself: all bytes of an artifact or none.
func (s *faultSite) wholeOrAbsent(n *clusterNode, m module.Version) {
	s.t.Helper()
	for _, path := range artifactPaths(m) {
		a, err := s.get200(n, "/cached-only"+path, 30*time.Second)
		switch {
		case err != nil:
			s.t.Errorf("%s of %s: %v", path, n.name, err)
		case a.code == http.StatusOK:
			s.note(path, n.name, a)
		case a.code != http.StatusNotFound:
			s.t.Errorf("%s of %s: %d %s", path, n.name, a.code, a.body)
		}
	}
}

// everywhere waits until every node answers with the bytes of a version, as committed ones.
func (s *faultSite) everywhere(m module.Version) {
	s.t.Helper()
	for _, path := range artifactPaths(m) {
		for _, n := range s.nodes {
			var last said
			s.await(path+" of "+n.name, func() bool {
				a, err := s.ask(n, path)
				last = a
				return err == nil && a.code == http.StatusOK && a.committed
			}, func() string { return fmt.Sprintf("%d %.300s", last.code, last.body) })
		}
	}
}

// kept checks that all nodes still have everything that was ever answered, without the upstream, and that nothing happened that
// must not.
func (s *faultSite) kept() {
	s.t.Helper()
	s.up.Down(true)
	defer s.up.Down(false)
	for _, path := range s.order {
		for _, n := range s.nodes {
			a, err := s.get200(n, path, 30*time.Second)
			if err != nil || a.code != http.StatusOK || !a.committed || sha256.Sum256(a.body) != s.said[path] {
				s.t.Errorf("%s of %s was answered before: now %d, %d bytes, committed %t, %v", path, n.name, a.code, len(a.body), a.committed, err)
			}
		}
	}
	for _, text := range s.wrong {
		s.t.Error(text)
	}
}

// sound ends all nodes in order, and has fsck look at what they leave: every blob that the catalog names, by its bytes, among
// others.
func (s *faultSite) sound() {
	s.t.Helper()
	for _, n := range s.nodes {
		if err := n.stop(time.Minute); err != nil {
			s.t.Errorf("%s does not end in order: %v", n.name, err)
			continue
		}
		cmd := exec.CommandContext(s.t.Context(), s.bin, "fsck", "--data-dir", n.dir)
		cmd.Env = s.env()
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all is well") {
			s.t.Errorf("fsck of %s: %v\n%s", n.name, err, out)
		}
	}
}
