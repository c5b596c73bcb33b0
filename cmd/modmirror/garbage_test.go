package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// gc runs modmirror gc against a node.
func (s *clusterSite) gc(n *clusterNode, args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, slices.Concat([]string{"gc", "--peer", n.peer, "--cluster-token-file", s.token}, args)...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// leaveOver gives a node that is stopped a blob that nothing names, as if it had run for age since.
func (n *clusterNode) leaveOver(t *testing.T, data string, age time.Duration) (blob, trash string) {
	t.Helper()
	d := artifact.DigestOf([]byte(data))
	shard := hex.EncodeToString(d[:1])
	blob, trash = filepath.Join(n.dir, "blobs", "sha256", shard, d.String()), filepath.Join(n.dir, "trash", shard, d.String())
	for file, text := range map[string]string{
		blob: data,
		filepath.Join(n.dir, "leftovers", shard+".json"): fmt.Sprintf(`{"unnamed":{%q:%d}}`, d, age),
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return blob, trash
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// A node collects what nothing names, when it is told to, and says what it did; what is committed stays. Without a leader it
// collects nothing, and says why.
func TestGarbage(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	if _, err := s.download(proxies(s.nodes...), app); err != nil {
		t.Fatal(err)
	}
	s.allSame()
	n := s.nodes[2]
	s.end(n.process)
	young, _ := n.leaveOver(t, "young", 0)
	old, trash := n.leaveOver(t, "left over for long", 25*time.Hour)
	s.run(n)
	s.allSame()
	named, err := filepath.Glob(filepath.Join(n.dir, "blobs", "sha256", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	says := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in:\n%s", w, out)
			}
		}
	}
	out, err := s.gc(n, "--dry-run")
	if err != nil || !exists(old) {
		t.Fatalf("gc --dry-run: %v\n%s", err, out)
	}
	says(out, "would be collected: 1 blob (18 B)", "left over, kept:    1 blob (5 B)", "in the trash:       0 blobs")
	if out, err = s.gc(n); err != nil || exists(old) || !exists(trash) || !exists(young) {
		t.Fatalf("gc: %v\n%s", err, out)
	}
	says(out, "collected:          1 blob (18 B)", "in the trash:       1 blob (18 B)")
	for _, file := range named {
		if file != old && !exists(file) {
			t.Errorf("%s is gone", file)
		}
	}
	for _, want := range []string{"collected_total 1", "collected_bytes_total 18", "trash_bytes 18", "leftovers 1"} {
		s.says(n.process, "/metrics", http.StatusOK, "modmirror_mirror_garbage_"+want+"\n")
	}
	s.allSame()

	s.nodes[0].kill()
	s.nodes[1].kill()
	s.sees(n, "loss of the leader", func(v clusterView) bool { return v.Leader == "" })
	out, err = s.gc(n)
	if err == nil {
		t.Fatalf("gc without a leader:\n%s", out)
	}
	says(out, "no garbage is collected", "leader")
	s.says(n.process, "/status", http.StatusOK, `"error": "no garbage is collected`)
}

// A single node without any internal port collects as well, by itself.
func TestGarbageOfOne(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := &clusterNode{dir: s.data}
	p := s.start()
	s.end(p)
	old, trash := n.leaveOver(t, "left over for long", 25*time.Hour)
	busy, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	p = s.start("--gc-every", "1s", "--peer-listen", busy)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for exists(old) || !exists(trash) {
		select {
		case <-ctx.Done():
			t.Fatalf("it is not collected\n%s", p.output())
		case <-tick.C:
		}
	}
}
