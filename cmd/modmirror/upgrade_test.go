package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// beforeLevels is the last commit without feature levels: a later one writes and says almost the same as this one, and would
// prove little.
const beforeLevels = "811598f398023aa8a5a0d92fec0d4be607920482"

// oldRelease is modmirror as it was at a commit.
type oldRelease struct {
	commit string
	bin    string
	levels bool // it knows feature levels
}

// release builds modmirror as it was at want, or at the oldest commit that this checkout has.
func release(t *testing.T, want string) (r oldRelease) {
	t.Helper()
	git := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", filepath.Join("..", "..")}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, stderr.Bytes())
		}
		return out, err
	}
	if _, err := git("rev-parse", "HEAD"); err != nil {
		t.Fatalf("this test builds older versions of modmirror, so it needs the repository's history and git, not only the files: git clone it, with history. %v", err)
	}
	out, err := git("rev-parse", "--verify", "--quiet", want+"^{commit}")
	if err != nil {
		all, lerr := git("rev-list", "HEAD")
		if lerr != nil {
			t.Fatal(lerr)
		}
		lines := bytes.Fields(all)
		out = lines[len(lines)-1]
		t.Logf("commit %s is not in this checkout, whose history begins at %s: that is taken, and it proves LESS; a clone with all of its history (git fetch --unshallow) proves more", want, out)
	}
	r.commit = strings.TrimSpace(string(out))
	_, err = git("cat-file", "-e", r.commit+":replicate/level.go")
	r.levels = err == nil
	tree, err := git("archive", "--format=tar", r.commit)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := untar(tree, dir); err != nil {
		t.Fatal(err)
	}
	r.bin = filepath.Join(dir, "modmirror")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=old", "-o", r.bin, "./cmd/modmirror")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build of commit %s: %v\n%s", r.commit, err, out)
	}
	return r
}

// untar writes the files of an archive below dir.
func untar(archive []byte, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err == nil {
			err = root.MkdirAll(filepath.Dir(h.Name), 0o750)
		}
		if err == nil {
			err = root.WriteFile(h.Name, b, 0o600)
		}
		if err != nil {
			return err
		}
	}
}

// builds has go commands download new modules through front, one after the other, until it is stopped.
type builds struct {
	count atomic.Int64
	stop  atomic.Bool
	ended chan error // has room for one
}

func (s *clusterSite) build(front string, mods []module.Version) *builds {
	b := &builds{ended: make(chan error, 1)}
	go func() {
		for i := 0; !b.stop.Load(); i++ {
			m := mods[i%len(mods)]
			if _, err := s.download(front, "module app\n\ngo 1.21\n\nrequire "+m.Path+" "+m.Version+"\n"); err != nil {
				b.ended <- fmt.Errorf("build %d: %w", i, err)
				return
			}
			b.count.Add(1)
		}
		b.ended <- nil
	}()
	return b
}

// more waits for another build.
func (s *clusterSite) more(b *builds) {
	s.t.Helper()
	before := b.count.Load()
	s.await("a build", func() bool { return b.count.Load() > before || len(b.ended) > 0 }, func() string { return "" })
}

// crosses has each node bring something new in, which each other one serves.
func (s *clusterSite) crosses(r *rand.Rand, name string) {
	s.t.Helper()
	for i, n := range s.nodes {
		m := s.addRandom(r, fmt.Sprintf("example.com/%s%d", name, i))
		s.commits(n, m)
		for _, o := range s.alive() {
			for _, path := range []string{artifactPath(m, artifact.Zip), artifactPath(m, artifact.Mod), lookupPath(m)} {
				if _, err := bodyOf(http.DefaultClient, o.url+path); err != nil {
					s.t.Errorf("brought in by %s: %v", n.name, err)
				}
			}
		}
	}
}

// replace stops a node and starts it with another binary; "": the one of this tree.
func (s *clusterSite) replace(n *clusterNode, bin string) {
	s.t.Helper()
	if err := n.stop(time.Minute); err != nil {
		s.t.Fatal(err)
	}
	n.bin = bin
	s.run(n)
	s.voters(3)
}

// A cluster of the version before feature levels is upgraded node by node, as docs/upgrade.md says, while builds go on: none fails.
// As long as one node is old, both versions serve each other, and a node may go back. Then the level rises, and an old binary is
// refused: by itself on a directory that has seen the level, and by the others at the door.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	old := release(t, beforeLevels)
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(41, 42))
	var mods []module.Version
	for i := range 60 {
		mods = append(mods, s.addRandom(r, fmt.Sprintf("example.com/up%d", i)))
	}
	for _, n := range s.nodes {
		n.bin = old.bin
	}
	s.run()
	s.voters(3)
	sum, err := s.download(s.nodes[0].url, app)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(s.balance())
	defer front.Close()
	b := s.build(front.URL, mods)

	s.replace(s.nodes[0], "")
	s.more(b)
	s.crosses(r, "mixed")
	if !old.levels {
		out, err := s.command(s.nodes[0], "status")
		if want := fmt.Sprintf("feature level 1; %d waits for: n2 (old) supports level 1, n3 (old) supports level 1", replicate.NewestLevel); err != nil || !strings.Contains(out, want) {
			t.Errorf("status: %v\n%s\nwant %q", err, out, want)
		}
	}
	cmd := exec.CommandContext(t.Context(), old.bin, "cluster", "status", "--peer", s.nodes[0].peer, "--cluster-token-file", s.token)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "3 voters, 3 alive") {
		t.Errorf("the old command asks a new node: %v\n%s", err, out)
	}
	s.replace(s.nodes[0], old.bin) // a downgrade, which still works
	s.crosses(r, "back")
	s.replace(s.nodes[0], "")
	s.more(b)
	s.replace(s.nodes[1], "")
	s.more(b)
	if v := s.view(s.nodes[0]); !old.levels && (v.Level.Now != 1 || v.Level.Newest != replicate.NewestLevel) {
		t.Errorf("with an old node the level is %+v", v.Level)
	}
	s.replace(s.nodes[2], "")
	for _, n := range s.nodes {
		s.sees(n, "the newest level", func(v clusterView) bool {
			return v.Level.Now == replicate.NewestLevel && len(v.Level.Waits) == 0
		})
	}
	s.crosses(r, "new")
	if old.levels {
		t.Logf("commit %s knows feature levels: how one that does not is refused is not tested", old.commit)
	} else {
		s.tooOld(old)
	}
	b.stop.Store(true)
	if err := <-b.ended; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d builds", b.count.Load())
	s.allSame()
	for _, n := range s.nodes[:3] {
		if again, err := s.download(n.url, app); err != nil || again != sum {
			t.Errorf("through %s: %v", n.name, err)
		}
	}
}

// tooOld starts the old binary where it must not run any more.
func (s *clusterSite) tooOld(old oldRelease) {
	s.t.Helper()
	n := s.nodes[2]
	if err := n.stop(time.Minute); err != nil {
		s.t.Fatal(err)
	}
	n.bin = old.bin
	said := len(n.output())
	s.launch(n)
	s.await("end of the old binary", func() bool { return hasEnded(n) }, n.output)
	if out := n.output()[said:]; n.err == nil || !strings.Contains(out, `catalog row cfg \"level\"`) && !strings.Contains(out, `catalog row cfg "level"`) {
		s.t.Errorf("the old binary ends with %v on a directory that has seen the level:\n%s", n.err, tail(out, 2000))
	}
	n.bin = ""
	s.run(n)
	s.voters(3)
	fourth := s.addNode()
	fourth.bin = old.bin
	s.launch(fourth)
	words := fmt.Sprintf("supports level 1, and the cluster is at level %d", replicate.NewestLevel)
	s.await("refusal of an old node that joins", func() bool { return strings.Contains(fourth.output(), words) }, fourth.output)
	if status, err := httpStatus(s.t.Context(), "http://"+fourth.listen+"/readyz"); err != nil || status != http.StatusServiceUnavailable {
		s.t.Errorf("an old node that joins is ready: %d, %v", status, err)
	}
	fourth.kill()
	found := false
	for _, n := range s.nodes[:3] {
		found = found || strings.Contains(n.output(), words) && strings.Contains(n.output(), "class=too-old")
	}
	if !found {
		s.t.Error("no node says that it refused an old one")
	}
	if v := s.view(s.nodes[0]); len(v.Nodes) != 3 {
		s.t.Errorf("there are %d members", len(v.Nodes))
	}
}

func hasEnded(n *clusterNode) bool {
	select {
	case <-n.exited:
		return true
	default:
		return false
	}
}

// A node of the commit before this one and two of this one are one cluster.
func TestPreviousCommit(t *testing.T) {
	t.Parallel()
	old := release(t, "HEAD^")
	s := newClusterSite(t, 3)
	s.load()
	s.nodes[1].bin = old.bin
	s.run()
	s.voters(3)
	r := rand.New(rand.NewPCG(43, 44))
	s.crosses(r, "previous")
	s.replace(s.nodes[2], old.bin)
	s.replace(s.nodes[1], "") // afterwards: three new ones could raise the feature level beyond the old one
	s.crosses(r, "next")
	s.allSame()
}
