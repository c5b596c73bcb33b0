package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// runbook returns the commands of a page in docs, block by block: what stands between "```sh" and "```".
func runbook(t *testing.T, page string) (blocks []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), "\n```sh\n")[1:] {
		block, _, ok := strings.Cut(part, "\n```")
		if !ok {
			t.Fatalf("%s: a block does not end", page)
		}
		blocks = append(blocks, block)
	}
	return blocks
}

// shell runs a block of a runbook as an operator would who says yes, with node as the one that it is about.
func (s *clusterSite) shell(block string, n *clusterNode, answer string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", block)
	cmd.Env = append(s.env(), "PATH="+filepath.Dir(s.bin)+string(os.PathListSeparator)+os.Getenv("PATH"), "DATA="+n.dir, "OLD="+n.dir,
		"MODMIRROR_PEER="+n.peer, "MODMIRROR_CLUSTER_TOKEN_FILE="+s.token)
	cmd.Stdin = strings.NewReader(answer)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// do is shell for a block that has to succeed, and to say all of want.
func (s *clusterSite) do(block string, n *clusterNode, answer string, want ...string) string {
	s.t.Helper()
	out, err := s.shell(block, n, answer)
	if err != nil {
		s.t.Fatalf("%s\n%v\n%s", block, err, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			s.t.Errorf("%s\nsays\n%s\nwant %q", block, out, w)
		}
	}
	return out
}

// blobFile is where a node keeps the zip of m.
func (s *clusterSite) blobFile(n *clusterNode, m module.Version) string {
	d := artifact.DigestOf(s.up.Artifact(m, artifact.Zip)).String()
	return filepath.Join(n.dir, "blobs", "sha256", d[:2], d)
}

// The runbook for a majority that is lost for ever, with the commands as they stand in the page: one of three nodes goes on with all
// that was acknowledged and reached it, a stock client verifies it, the two old ones that come back with a majority of their own
// change nothing, and the cluster grows back to three on the old disks.
func TestRecoverByTheRunbook(t *testing.T) {
	t.Parallel()
	steps := runbook(t, "recover.md")
	if len(steps) != 5 {
		t.Fatalf("docs/recover.md has %d blocks of commands", len(steps))
	}
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(21, 22))
	var all []module.Version
	for i := range 12 {
		all = append(all, s.addRandom(r, fmt.Sprintf("example.com/acked%d", i)))
	}
	apart, fresh := s.addRandom(r, "example.com/apart"), s.addRandom(r, "example.com/fresh")
	s.run()
	s.voters(3)
	sum, err := s.download(s.nodes[0].url, app)
	if err != nil {
		t.Fatal(err)
	}
	acked := map[string][]byte{}
	for i, m := range all {
		for _, path := range []string{artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), artifactPath(m, artifact.Zip), lookupPath(m)} {
			if acked[path], err = bodyOf(http.DefaultClient, s.nodes[i%3].url+path); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.allSame()
	before := s.view(s.nodes[2])
	left := s.nodes[2]
	s.nodes[0].kill()
	s.nodes[1].kill()

	if out, err := s.shell(steps[0], left, ""); err == nil || !strings.Contains(out, "stop it first") {
		t.Errorf("of a node that runs: %v, %s", err, out)
	}
	if err := left.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	lacking := all[3]
	if err := os.Remove(s.blobFile(left, lacking)); err != nil { // as if only the others had copies
		t.Fatal(err)
	}
	s.do(steps[0], left, "", "n3 (", "last entry  term ", "missing: example.com/acked3@", "n1 (", before.Cluster)
	other, err := net.Listen("tcp", s.nodes[1].peer)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.shell(steps[1], left, "recover\n"); err == nil || !strings.Contains(out, "n2 at "+s.nodes[1].peer+": something answers") {
		t.Errorf("while n2 answers: %v, %s", err, out)
	}
	other.Close()
	if out, err := s.shell(steps[1], left, "y\n"); err == nil || !strings.Contains(out, "nothing is changed") {
		t.Errorf("without a yes: %v, %s", err, out)
	}
	s.do(steps[1], left, "recover\n", "n1, n2: never start them", "done: cluster "+before.Cluster+" goes on as cluster ", "missing here, see above: 1 published blob;")
	s.do(steps[1], left, "", "nothing is left to do")

	s.run(left)
	s.do(steps[2], left, "", "1 voter, 1 alive", "  recover: hosts b and c burned, ticket 4711 [cluster "+before.Cluster+" became ")
	now := s.view(left)
	if now.Cluster == before.Cluster || now.Seq != before.Seq {
		t.Errorf("cluster %s with %d changes became %s with %d", before.Cluster, before.Seq, now.Cluster, now.Seq)
	}
	served := 0
	for path, want := range acked {
		if got, err := bodyOf(http.DefaultClient, left.url+path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", path, err)
			continue
		}
		served++
	}
	t.Logf("%d of %d acknowledged artifacts and lookups are served", served, len(acked))
	if again, err := s.download(left.url, app); err != nil || again != sum {
		t.Errorf("a client of the survivor: %v", err)
	}
	s.commits(left, fresh)

	// The old ones come back from the dead, with a majority among themselves.
	s.run(s.nodes[0], s.nodes[1])
	s.sees(s.nodes[0], "leader of the old cluster", func(v clusterView) bool { return v.Leader != "" && v.quorum().alive == 2 })
	s.commits(s.nodes[0], apart)
	for _, n := range s.nodes {
		s.await("words about the recovery in the log of "+n.name, func() bool { return strings.Contains(n.output(), "was recovered without it on ") }, n.output)
	}
	if v := s.view(s.nodes[1]); v.Cluster != before.Cluster || len(v.Nodes) != 3 {
		t.Errorf("the old nodes are a cluster %s of %d, want %s", v.Cluster, len(v.Nodes), before.Cluster)
	}
	if v := s.view(left); v.Cluster != now.Cluster || len(v.Nodes) != 1 || v.Leader == "" || len(v.Problems) > 0 {
		t.Errorf("the old nodes came back, and the survivor sees %+v", v)
	}
	if out, err := s.command(left, "audit"); err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("the audit: %v\n%s", err, out)
	}
	for _, n := range s.nodes[:2] {
		if err := n.stop(time.Minute); err != nil {
			t.Fatal(err)
		}
		s.do(steps[3], n, "reset\n", "done: the old node is in ")
	}
	s.run(s.nodes[0], s.nodes[1])
	s.voters(3)
	s.allSame()
	s.do(steps[4], left, "", "3 voters, 3 alive")
	s.up.Down(true)
	for _, n := range s.nodes {
		if again, err := s.download(n.url, app); err != nil || again != sum {
			t.Errorf("a client of %s: %v", n.name, err)
		}
		for path, want := range acked {
			if got, err := bodyOf(http.DefaultClient, n.url+path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s at %s: %v", path, n.name, err)
			}
		}
		if v := s.view(n); v.Cluster != now.Cluster {
			t.Errorf("%s is of cluster %s, want %s", n.name, v.Cluster, now.Cluster)
		}
	}
}

// commits asks n for the zip of m, which nobody has yet, and wants it committed.
func (s *clusterSite) commits(n *clusterNode, m module.Version) {
	s.t.Helper()
	resp, err := http.Get(n.url + artifactPath(m, artifact.Zip))
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Modmirror-Committed") != "" || resp.Header.Get("ETag") == "" {
		s.t.Errorf("%s at %s: %d, %v", m, n.name, resp.StatusCode, resp.Header)
	}
}

// A recovery that is killed at any moment leaves the old state or the new one, and repeating it is harmless.
func TestRecoverKilled(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	sum, err := s.download(s.nodes[0].url, app)
	if err != nil {
		t.Fatal(err)
	}
	s.allSame()
	left := s.nodes[2]
	for _, n := range s.nodes {
		n.kill()
	}
	whole := left.dir
	r := rand.New(rand.NewPCG(23, 24))
	states := map[string]int{}
	took := time.Minute // of the first one, which is not killed
	for i := range 13 {
		left.dir = filepath.Join(s.dir, fmt.Sprintf("killed%d", i))
		if err := os.CopyFS(left.dir, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		args := []string{"cluster", "recover", "--yes", "--data-dir", left.dir, "--reason", "a test"}
		cmd := exec.Command(s.bin, args...)
		cmd.Env = s.env()
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wait := took
		if i > 0 {
			wait = took/4 + time.Duration(r.Int64N(int64(took)))
		}
		kill := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		if i == 0 {
			took = time.Since(begin)
		}
		states[fmt.Sprint(err == nil)]++
		out, err := s.offline(args...)
		if err != nil || !strings.Contains(out, "done: ") && !strings.Contains(out, "nothing is left to do") {
			t.Fatalf("repeated: %v\n%s", err, out)
		}
		if out, err := s.offline("fsck", "--data-dir", left.dir); err != nil {
			t.Errorf("fsck: %v\n%s", err, out)
		}
		var rem remains
		out, err = s.offline("cluster", "recover", "--show", "--json", "--data-dir", left.dir)
		if err == nil {
			err = json.Unmarshal([]byte(out), &rem)
		}
		if err != nil || len(rem.Members) != 1 || rem.Recovered.IsZero() || len(rem.Missing) > 0 || rem.Blobs == 0 {
			t.Errorf("--show: %v\n%s", err, out)
		}
	}
	t.Logf("recoveries that were not killed: %v", states)
	s.run(left)
	if again, err := s.download(left.url, app); err != nil || again != sum {
		t.Errorf("a client: %v", err)
	}
}

// offline runs modmirror against no node.
func (s *site) offline(args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A command line that makes no sense, and what is no survivor.
func TestRecoverRefuses(t *testing.T) {
	s := newSite(t)
	s.load()
	p := s.start()
	s.want(p, "/example.com/hello/@v/v1.0.0.mod", 200)
	s.end(p)
	data := s.flags()[slices.Index(s.flags(), "--data-dir")+1]
	for what, tt := range map[string]struct {
		args []string
		want string
	}{
		"no reason":       {[]string{"--data-dir", data}, "--reason is needed"},
		"a single node":   {[]string{"--data-dir", data, "--reason", "x"}, "the only member of its cluster"},
		"no data":         {[]string{"--data-dir", t.TempDir(), "--reason", "x"}, "there is no catalog.db"},
		"JSON of a deed":  {[]string{"--data-dir", data, "--reason", "x", "--json"}, "only with --show"},
		"an odd reason":   {[]string{"--data-dir", data, "--reason", "\x1b[2J"}, ""},
		"two words apart": {[]string{"now"}, "unknown command"},
	} {
		out, err := s.offline(append([]string{"cluster", "recover", "--yes"}, tt.args...)...)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: %v, %s, want %q", what, err, out, tt.want)
		}
	}
	s.wantClean()
}
