package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"modmirror/replicate/peer"
)

// clusterSite is a cluster of processes on loopback in front of one upstream and its checksum database.
type clusterSite struct {
	*site
	token  string   // file with the secret
	source []string // flags that say where artifacts and records come from
	nodes  []*clusterNode
}

// clusterNode is one node. Its addresses stay when it is restarted.
type clusterNode struct {
	*process // the present or last one
	name     string
	dir      string // the data
	listen   string
	peer     string
	via      string // where others reach it, if that is not peer
	token    string // file with another secret than the cluster's
	bin      string // another binary than the site's
	at       place  // where it runs; nil: here
	extra    []string
	env      []string // besides that of all
	pid      atomic.Int64
}

// newClusterSite makes a cluster of size nodes that are not started.
func newClusterSite(t *testing.T, size int) *clusterSite {
	t.Helper()
	s := &clusterSite{site: newSite(t)}
	s.source = []string{"--upstream", s.up.URL(), "--sumdb", s.db.Key()}
	s.token = s.newToken("cluster-token")
	for range size {
		s.addNode()
	}
	return s
}

func (s *clusterSite) newToken(name string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(peer.NewToken().String()+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// addNode names a further node, which is not started.
func (s *clusterSite) addNode() *clusterNode {
	s.t.Helper()
	n := &clusterNode{name: fmt.Sprintf("n%d", len(s.nodes)+1)}
	n.dir = filepath.Join(s.dir, n.name)
	var err1, err2 error
	n.listen, err1 = freeAddress()
	n.peer, err2 = freeAddress()
	if err1 != nil || err2 != nil {
		s.t.Fatal(err1, err2)
	}
	s.nodes = append(s.nodes, n)
	return n
}

// join is the list that every node is given.
func (s *clusterSite) join() string {
	var all []string
	for _, n := range s.nodes {
		all = append(all, cmp.Or(n.via, n.peer))
	}
	return strings.Join(all, ",")
}

// args is the command line of a node, the same at each start.
func (s *clusterSite) args(n *clusterNode) []string {
	return slices.Concat([]string{"--data-dir", n.dir, "--node-id", n.name, "--peer-listen", n.peer, "--bootstrap-expect", "3", "--join", s.join(),
		"--cluster-token-file", cmp.Or(n.token, s.token), "--drain-delay", "0s"}, s.source, n.extra)
}

// launch starts a node and does not wait.
func (s *clusterSite) launch(n *clusterNode) {
	s.t.Helper()
	s.launchWith(n, s.args(n)...)
}

func (s *clusterSite) launchWith(n *clusterNode, args ...string) {
	s.t.Helper()
	p, err := launchAt(n.at, cmp.Or(n.bin, s.bin), s.dir, filepath.Join(s.dir, n.name+".log"), n.listen, append(s.env(), n.env...), args)
	if err != nil {
		s.t.Fatal(err)
	}
	n.process = p
	n.pid.Store(int64(p.cmd.Process.Pid))
	s.t.Cleanup(func() {
		p.kill()
		if s.t.Failed() {
			s.t.Logf("log of %s:\n%s", n.name, tail(p.output(), 6000))
		}
	})
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// run starts nodes, all if none is named, and waits until they are ready.
func (s *clusterSite) run(nodes ...*clusterNode) {
	s.t.Helper()
	if len(nodes) == 0 {
		nodes = s.nodes
	}
	for _, n := range nodes {
		s.launch(n)
	}
	for _, n := range nodes {
		if err := n.waitReady(60 * time.Second); err != nil {
			s.t.Fatalf("%s: %v", n.name, err)
		}
	}
}

// alive returns the nodes that run.
func (s *clusterSite) alive() (out []*clusterNode) {
	for _, n := range s.nodes {
		if n.process == nil {
			continue
		}
		select {
		case <-n.exited:
		default:
			out = append(out, n)
		}
	}
	return out
}

// modmirror is a command of the program, to run where the node does.
func (n *clusterNode) modmirror(ctx context.Context, s *clusterSite, args ...string) *exec.Cmd {
	cmd := commandAt(ctx, n.at, s.bin, args...)
	cmd.Env = s.env()
	return cmd
}

// commandAt is a command to run at a place; nil: here.
func commandAt(ctx context.Context, at place, name string, args ...string) *exec.Cmd {
	if at == nil {
		return exec.CommandContext(ctx, name, args...)
	}
	return at.Command(ctx, name, args...)
}

// command runs modmirror with the cluster's secret against a node.
func (s *clusterSite) command(n *clusterNode, args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := n.modmirror(ctx, s, slices.Concat([]string{"cluster"}, args, []string{"--peer", n.peer, "--cluster-token-file", s.token})...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// view asks a node how it sees the cluster.
func (s *clusterSite) view(n *clusterNode) (v clusterView) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := n.modmirror(ctx, s, "cluster", "status", "--json", "--peer", n.peer, "--cluster-token-file", s.token)
	out, err := cmd.Output() // it ends with 1 if there are problems
	if jerr := json.Unmarshal(out, &v); jerr != nil {
		s.t.Fatalf("cluster status of %s: %v, %v\n%s", n.name, err, jerr, out)
	}
	return v
}

// sees waits until a node sees the cluster as ok wants it.
func (s *clusterSite) sees(n *clusterNode, what string, ok func(clusterView) bool) clusterView {
	s.t.Helper()
	var v clusterView
	s.await(what, func() bool { v = s.view(n); return ok(v) }, func() string { b, _ := json.MarshalIndent(v, "", " "); return string(b) })
	return v
}

// await polls until cond holds.
func (s *clusterSite) await(what string, cond func() bool, last func() string) {
	s.t.Helper()
	s.within(time.Minute, what, cond, last)
}

// within is await with another limit.
func (s *clusterSite) within(limit time.Duration, what string, cond func() bool, last func() string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			s.t.Fatalf("no %s within %v\n%s", what, limit, last())
		case <-tick.C:
		}
	}
}

// voters waits until the cluster has as many voters as nodes run, at most want, and all see that.
func (s *clusterSite) voters(want int) {
	s.t.Helper()
	for _, n := range s.alive() {
		s.sees(n, fmt.Sprintf("%d voters seen by %s", want, n.name), func(v clusterView) bool { return v.quorum() == quorum{want, want} && v.Leader != "" })
	}
}

// leader returns the node that leads.
func (s *clusterSite) leader() *clusterNode {
	s.t.Helper()
	v := s.sees(s.alive()[0], "leader", func(v clusterView) bool { return v.Leader != "" })
	return s.named(v.nameOf(v.Leader))
}

func (s *clusterSite) named(name string) *clusterNode {
	s.t.Helper()
	for _, n := range s.nodes {
		if n.name == name {
			return n
		}
	}
	s.t.Fatalf("no node %q", name)
	return nil
}

// proxies is the client's line.
func proxies(nodes ...*clusterNode) string {
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.url)
	}
	return strings.Join(urls, "|")
}

// app is a module that needs others of testdata/modules.
const app = "module app\n\ngo 1.21\n\nrequire example.com/hello v1.0.0\n"

// download has a go command with nothing cached download and verify all that gomod needs, through proxy. It returns go.sum.
func (s *clusterSite) download(proxy, gomod string) (string, error) {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "client-")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.downloadIn(dir, proxy, gomod, ""); err != nil {
		return "", err
	}
	sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	return string(sum), err
}

// downloadIn is download in a directory that has a go.sum, unless sums is empty.
func (s *clusterSite) downloadIn(dir, proxy, gomod, sums string) error {
	return s.downloadAt(nil, dir, proxy, gomod, sums)
}

// downloadAt is downloadIn at a place; nil: here.
func (s *clusterSite) downloadAt(at place, dir, proxy, gomod, sums string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(gomod), 0o600); err != nil {
		return err
	}
	if sums != "" {
		if err := os.WriteFile(filepath.Join(dir, "go.sum"), []byte(sums), 0o600); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := commandAt(ctx, at, "go", "mod", "download", "all")
	cmd.Dir = dir
	cmd.Env = append(s.env(), "GOPATH="+filepath.Join(dir, "gopath"), "GOFLAGS=-modcacherw -mod=mod", "GOENV=off", "GOTOOLCHAIN=local",
		"GOCACHE="+filepath.Join(dir, "cache"), "GOSUMDB="+s.db.Key(), "GOPROXY="+proxy)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod download: %v\n%s", err, out)
	}
	return nil
}

// allSame waits until all nodes that run hold the same catalog and every blob of it.
func (s *clusterSite) allSame() {
	s.t.Helper()
	s.agree(s.alive()[0])
}

// agree waits until n sees that all nodes hold the same.
func (s *clusterSite) agree(n *clusterNode) {
	s.t.Helper()
	s.sees(n, "agreement", func(v clusterView) bool {
		for _, m := range v.Nodes {
			if !m.Alive || m.Seq != v.Nodes[0].Seq || m.Blobs != m.Seq || m.Missing != 0 {
				return false
			}
		}
		return len(v.Nodes) > 0 && len(v.Problems) == 0
	})
}
