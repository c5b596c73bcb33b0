//go:build wan

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate/replicatetest/wannet"
)

// wanSite is a cluster whose nodes are hosts of several zones, far from each other, and of an upstream that each zone reaches
// by a way of its own. Each zone has a host for clients, too.
type wanSite struct {
	*clusterSite
	net    *wannet.Net
	zones  []string
	hosts  map[string]*wannet.Host
	zoneOf map[*clusterNode]string
	seeds  []string // addresses that --join names: the first node of each zone

	making sync.Mutex // guards r and made, the number of modules
	r      *rand.Rand
	made   int
}

// The way between two zones, and from a zone to the upstream, which stands in a zone of its own.
var (
	farAway   = wannet.Policy{Delay: 40 * time.Millisecond, Rate: 200e6, Queue: 2 << 20}
	toSources = wannet.Policy{Delay: 10 * time.Millisecond, Rate: 500e6, Queue: 2 << 20}
)

const beyond = "beyond" // the zone of the upstream

// newWANSite makes a cluster that is not started: three nodes in each of the zones z1, z2 and z3.
func newWANSite(t *testing.T, seed uint64) *wanSite {
	t.Helper()
	if err := wannet.Check(); err != nil {
		t.Fatalf("these tests need root, network namespaces and TUN devices:\n%v", err)
	}
	network, err := wannet.New(wannet.Config{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after all that runs on it
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &wanSite{clusterSite: newClusterSite(t, 0), net: network, hosts: map[string]*wannet.Host{}, zoneOf: map[*clusterNode]string{},
		r: rand.New(rand.NewPCG(seed, 0))}
	s.plain()
	s.load()
	s.serveUpstream()
	for _, zone := range []string{"z1", "z2", "z3"} {
		s.addZone(zone, 3)
	}
	s.calmWeather()
	return s
}

// addHost adds a host to the network.
func (s *wanSite) addHost(name, zone string) *wannet.Host {
	s.t.Helper()
	h, err := s.net.Host(name, zone)
	if err != nil {
		s.t.Fatal(err)
	}
	s.hosts[name] = h
	return h
}

// serveUpstream has the upstream answer on a host of its own.
func (s *wanSite) serveUpstream() {
	s.t.Helper()
	h := s.addHost("upstream", beyond)
	ln, err := h.Listen("tcp", h.Addr().String()+":80")
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{Handler: s.up, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }() // it ends with Close
	s.t.Cleanup(func() { _ = server.Close(); <-done })
	s.source = []string{"--upstream", "http://" + ln.Addr().String(), "--sumdb", s.db.Key()}
}

// addZone adds a zone of nodes, and a host for clients. Its first node is one of those that found the cluster.
func (s *wanSite) addZone(zone string, size int) {
	s.t.Helper()
	s.zones = append(s.zones, zone)
	for i := range size {
		s.addWANNode(zone, string(rune('a'+i)))
	}
	s.seeds = append(s.seeds, s.inZone(zone)[0].peer)
	s.addHost(zone+"-client", zone)
}

// addWANNode adds a node to a zone. It is not started.
func (s *wanSite) addWANNode(zone, letter string) *clusterNode {
	s.t.Helper()
	h := s.addHost(zone+letter, zone)
	addr := h.Addr().String()
	n := &clusterNode{name: zone + letter, at: h, listen: addr + ":3000", peer: addr + ":3001"}
	n.dir = filepath.Join(s.dir, n.name)
	n.extra = []string{"--zone", zone}
	s.zoneOf[n] = zone
	s.nodes = append(s.nodes, n)
	return n
}

// inZone returns the nodes of a zone.
func (s *wanSite) inZone(zone string) (out []*clusterNode) {
	for _, n := range s.nodes {
		if s.zoneOf[n] == zone {
			out = append(out, n)
		}
	}
	return out
}

// others returns the nodes of all other zones.
func (s *wanSite) others(zone string) (out []*clusterNode) {
	for _, n := range s.nodes {
		if s.zoneOf[n] != zone {
			out = append(out, n)
		}
	}
	return out
}

// otherZones returns all zones of nodes but one.
func (s *wanSite) otherZones(zone string) (out []string) {
	for _, z := range s.zones {
		if z != zone {
			out = append(out, z)
		}
	}
	return out
}

// calmWeather is the network as it should be.
func (s *wanSite) calmWeather() {
	for i, a := range s.zones {
		s.net.Both(a, beyond, toSources)
		for _, b := range s.zones[:i] {
			s.net.Both(a, b, farAway)
		}
	}
}

// between changes the way between each two zones, in both directions.
func (s *wanSite) between(p wannet.Policy) {
	for i, a := range s.zones {
		for _, b := range s.zones[:i] {
			s.net.Both(a, b, p)
		}
	}
}

// cutOff parts a zone from all others, and from the upstream.
func (s *wanSite) cutOff(zone string) {
	for _, other := range append([]string{beyond}, s.zones...) {
		if other != zone {
			s.net.Both(zone, other, wannet.Policy{Block: true})
		}
	}
}

// wanArgs is the command line of a node. All have the same, but for what is their own.
func (s *wanSite) wanArgs(n *clusterNode) []string {
	args := []string{"--data-dir", n.dir, "--node-id", n.name, "--peer-listen", n.peer, "--join", strings.Join(s.seeds, ","),
		"--cluster-token-file", s.token, "--drain-delay", "0s", "--raft-profile", "wan"}
	if !slices.Contains(n.extra, roleReplica) { // which may found nothing
		args = append(args, "--bootstrap-expect", "3")
	}
	return slices.Concat(args, s.source, n.extra)
}

// start starts nodes, the founders first, and waits until they are ready.
func (s *wanSite) startAll(nodes ...*clusterNode) {
	s.t.Helper()
	for _, n := range nodes {
		s.launchWith(n, s.wanArgs(n)...)
	}
	for _, n := range nodes {
		if err := n.waitReady(time.Minute); err != nil {
			s.t.Fatalf("%s: %v", n.name, err)
		}
	}
}

// begin founds the cluster, with a voter in each zone unless seeds says otherwise, and adds the others.
func (s *wanSite) begin() {
	s.t.Helper()
	var first, rest []*clusterNode
	for _, n := range s.nodes {
		if slices.Contains(s.seeds, n.peer) {
			first = append(first, n)
		} else {
			rest = append(rest, n)
		}
	}
	s.startAll(first...)
	s.startAll(rest...)
	s.same(time.Minute)
}

// nodeStatus is what a node says of itself now.
func (s *wanSite) nodeStatus(n *clusterNode) (st status, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	b, err := s.body(ctx, n, "/status")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// body asks a node, from its own host, and returns what it answers with 200.
func (s *wanSite) body(ctx context.Context, n *clusterNode, path string) ([]byte, error) {
	a, err := getVia(ctx, n.http(), n.url+path)
	if err == nil && a.code != http.StatusOK {
		err = fmt.Errorf("GET %s of %s: %d %.300s", path, n.name, a.code, a.body)
	}
	return a.body, err
}

// getVia gets what an URL has.
func getVia(ctx context.Context, client *http.Client, url string) (a said, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(resp.Body)
	a.code, a.committed = resp.StatusCode, resp.Header.Get("Modmirror-Committed") == ""
	return a, err
}

// same waits until all nodes have the same catalog, by its root, and every blob of it, and returns how long that took.
func (s *wanSite) same(limit time.Duration) time.Duration {
	s.t.Helper()
	begin := time.Now()
	var last string
	s.within(limit, "agreement of all nodes", func() bool {
		last = s.difference()
		return last == ""
	}, func() string { return last })
	return time.Since(begin)
}

// difference says what keeps the nodes from being the same; "": nothing.
func (s *wanSite) difference() string {
	var first status
	for i, n := range s.nodes {
		st, err := s.nodeStatus(n)
		if err != nil {
			return fmt.Sprintf("%s: %v", n.name, err)
		}
		if i == 0 {
			first = st
		}
		if st.Node.Seq != first.Node.Seq || st.Node.Root != first.Node.Root || st.Node.Diverged != "" || st.Node.Leader == "" || st.Ready != "ok" || st.Writes != "ok" {
			return fmt.Sprintf("%s: %d:%v, leader %q, ready %s, writes %s, %s; %s has %d:%v", n.name, st.Node.Seq, st.Node.Root, st.Node.Leader, st.Ready,
				st.Writes, st.Node.Diverged, s.nodes[0].name, first.Node.Seq, first.Node.Root)
		}
	}
	v := s.view(s.nodes[0])
	v.Problems = slices.DeleteFunc(v.Problems, func(p string) bool { return strings.Contains(p, "its loss stops commits") }) // a test may want that
	if len(v.Nodes) != len(s.nodes) || len(v.Problems) > 0 {
		return fmt.Sprintf("%d members, %q", len(v.Nodes), v.Problems)
	}
	for _, m := range v.Nodes {
		if m.Seq != first.Node.Seq || m.Blobs != m.Seq || m.Missing != 0 {
			return fmt.Sprintf("%s holds all blobs of %d leaves, lacks %d, of %d", m.Name, m.Blobs, m.Missing, first.Node.Seq)
		}
	}
	return ""
}

// leading returns the node that leads, as it says itself, and its term.
func (s *wanSite) leading(among []*clusterNode) (lead *clusterNode, term uint64) {
	s.t.Helper()
	s.await("leader", func() bool {
		for _, n := range among {
			if st, err := s.nodeStatus(n); err == nil && st.Node.Role == "leader" && st.Node.Leader == st.Node.ID {
				lead, term = n, st.Node.Term
				return true
			}
		}
		return false
	}, func() string { return "" })
	return lead, term
}

// term returns the newest term that nodes know of.
func (s *wanSite) term() (t uint64) {
	s.t.Helper()
	for _, n := range s.nodes {
		st, err := s.nodeStatus(n)
		if err != nil {
			s.t.Fatalf("%s: %v", n.name, err)
		}
		t = max(t, st.Node.Term)
	}
	return t
}

// elected returns how often a node became the leader.
func (s *wanSite) elected() (n int) {
	for _, node := range s.nodes {
		n += strings.Count(node.output(), "entering leader state")
	}
	return n
}

// fresh gives the upstream and the database a module whose zip has about size bytes, and the paths of its artifacts with what is
// true of them.
func (s *wanSite) fresh(size int) (m module.Version, truth map[string][]byte) {
	s.t.Helper()
	s.making.Lock()
	defer s.making.Unlock()
	s.made++
	m = module.Version{Path: fmt.Sprintf("example.com/wan%d", s.made), Version: "v1.0.0"}
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
	truth = map[string][]byte{}
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		truth[artifactPath(m, k)] = s.up.Artifact(m, k)
	}
	return m, truth
}

// clientIn has a go command with nothing cached download and verify versions, on the host for clients of a zone.
func (s *wanSite) clientIn(zone, proxy string, ms ...module.Version) error {
	dir, err := os.MkdirTemp(s.dir, "client-")
	if err != nil {
		return err
	}
	return s.downloadAt(s.hosts[zone+"-client"], dir, proxy, requiring(ms...), "")
}

// requiring is the go.mod of a program that needs these versions.
func requiring(ms ...module.Version) string {
	var text strings.Builder
	text.WriteString("module app\n\ngo 1.21\n")
	for _, m := range ms {
		fmt.Fprintf(&text, "\nrequire %s %s\n", m.Path, m.Version)
	}
	return text.String()
}

// artifactPathsOf are what a go command asks of a version, in its order.
func artifactPathsOf(m module.Version) []string {
	return []string{artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), artifactPath(m, artifact.Zip)}
}

// sound ends all nodes in order, and has fsck look at what they leave.
func (s *wanSite) sound(t *testing.T) {
	t.Helper()
	for _, n := range s.nodes {
		if err := n.stop(time.Minute); err != nil {
			t.Errorf("%s does not end in order: %v", n.name, err)
			continue
		}
		cmd := exec.CommandContext(t.Context(), s.bin, "fsck", "--data-dir", n.dir)
		cmd.Env = s.env()
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all is well") {
			t.Errorf("fsck of %s: %v\n%s", n.name, err, out)
		}
	}
}

// crossed returns what every zone has sent to every other one, without the way to the upstream, by pair.
func (s *wanSite) crossed() map[[2]string]wannet.Traffic {
	out := map[[2]string]wannet.Traffic{}
	for _, a := range s.zones {
		for _, b := range s.zones {
			if a != b {
				out[[2]string{a, b}] = s.net.Between(a, b)
			}
		}
	}
	return out
}

// arrivedIn returns the bytes that arrived in a zone from the other ones since before.
func arrivedIn(zone string, before, after map[[2]string]wannet.Traffic) (bytes int64) {
	for pair := range maps.Keys(after) {
		if pair[1] == zone {
			bytes += after[pair].Minus(before[pair]).Delivered.Bytes
		}
	}
	return bytes
}
