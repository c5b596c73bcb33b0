package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// modmirror runs a command in a process of its own, and returns what it prints, and its errors.
func (s *site) modmirror(args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env, cmd.Dir = s.env(), s.dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// does is modmirror for what must work.
func (s *site) does(args ...string) string {
	s.t.Helper()
	out, errs, err := s.modmirror(args...)
	if err != nil {
		s.t.Fatalf("modmirror %q: %v\n%s%s", args, err, out, errs)
	}
	return out
}

// fails is modmirror for what must be refused, with what is to be said.
func (s *site) fails(says string, args ...string) {
	s.t.Helper()
	out, errs, err := s.modmirror(args...)
	if err == nil || !strings.Contains(errs, says) {
		s.t.Errorf("modmirror %q: %v, want a refusal with %q\n%s%s", args, err, says, out, errs)
	}
}

// backs makes a backup of what args say to dest.
func (s *site) backs(dest string, args ...string) (r backupReport) {
	s.t.Helper()
	out := s.does(append([]string{"backup", dest, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatalf("report of the backup: %v\n%s", err, out)
	}
	return r
}

// stock has a mirror take number modules in, and returns them.
func (s *site) stock(r *rand.Rand, number int, urls ...string) (ms []module.Version) {
	s.t.Helper()
	for i := range number {
		m := s.addRandom(r, fmt.Sprintf("example.com/stock%x/m%d", r.Uint32(), i))
		ms = append(ms, m)
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			if code, body, err := fetch(urls[i%len(urls)] + artifactPath(m, k)); err != nil || code != 200 {
				s.t.Fatalf("%s of %s: %d %s, %v", k, m, code, body, err)
			}
		}
	}
	return ms
}

// served looks whether all of ms is served as the upstream has it, with a lookup.
func (s *site) served(p *process, ms []module.Version) {
	s.t.Helper()
	for _, m := range ms {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			if code, body := s.get(p, artifactPath(m, k)); code != 200 || body != string(s.up.Artifact(m, k)) {
				s.t.Errorf("%s of %s: %d with %d bytes", k, m, code, len(body))
			}
		}
		s.says(p, lookupPath(m), 200, "\n"+m.Path+" "+m.Version+" h1:")
	}
}

// A backup of a cluster that is at work, from each of its nodes in turn, is a consistent point; restored, it is a new cluster of
// three that serves everything to a stock go command with the internet gone.
func TestBackupOfCluster(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(11, 12))
	s.run()
	s.voters(3)
	sum, err := s.download(s.nodes[0].url, app)
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, n := range s.nodes {
		urls = append(urls, n.url)
	}
	before := s.stock(r, 12, urls...)
	s.allSame()
	old := s.view(s.nodes[0])

	// Downloads go on while backups are made.
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	var later []module.Version
	for i := range 60 {
		later = append(later, s.addRandom(r, fmt.Sprintf("example.com/later/m%d", i)))
	}
	busy.Go(func() {
		for i, m := range later {
			if ctx.Err() != nil {
				return
			}
			for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
				if code, body, err := fetch(urls[i%3] + artifactPath(m, k)); err != nil || code != 200 {
					t.Errorf("while a backup is made: %s of %s: %d %s, %v", k, m, code, body, err)
				}
			}
		}
	})
	dest := filepath.Join(s.dir, "backup")
	var last backupReport
	for i, n := range s.nodes {
		args := []string{"--peer", n.peer, "--cluster-token-file", s.token}
		if i == 2 { // as on its own machine
			args = append([]string{"--data-dir", n.dir}, args[2:]...)
			s.fails("no node answers", append([]string{"backup", dest, "--data-dir", n.dir}, args[2:]...)...) // its port is not the default one
			args = []string{"--peer", n.peer, "--cluster-token-file", s.token, "--data-dir", n.dir}
		}
		rep := s.backs(dest, args...)
		if p := rep.Manifest.Point; p.Cluster != old.Cluster || p.Index < last.Manifest.Point.Index || int(p.Manifests) < len(before) {
			t.Errorf("backup from %s: %+v after %+v", n.name, p, last.Manifest.Point)
		}
		if i > 0 && rep.NewBlobs > rep.Manifest.Blobs.Files-last.Manifest.Blobs.Files {
			t.Errorf("backup from %s copies %d blobs, and %d are new", n.name, rep.NewBlobs, rep.Manifest.Blobs.Files-last.Manifest.Blobs.Files)
		}
		last = rep
	}
	cancel()
	busy.Wait()
	for _, n := range s.nodes {
		if err := n.stop(time.Minute); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
	}
	s.up.Down(true) // for good

	out := s.does("restore", "--check", dest, "--sumdb", s.db.Key())
	for _, want := range []string{"the backup is good: restored in ", "a client would have been served again after ", "checked: a mirror without network served "} {
		if !strings.Contains(out, want) {
			t.Errorf("restore --check does not say %q:\n%s", want, out)
		}
	}

	fresh := newClusterSite(t, 3)
	fresh.source = []string{"--offline", "--sumdb", s.db.Key()}
	fresh.site.up, fresh.site.db = s.up, s.db
	first := fresh.nodes[0]
	fresh.does("restore", dest, "--data-dir", first.dir, "--sumdb", s.db.Key())
	if out := fresh.does("cluster", "audit", "--data-dir", first.dir); !strings.Contains(out, "restore: from a backup of cluster "+old.Cluster) {
		t.Errorf("the audit of the new cluster says %q", out)
	}
	fresh.run()
	fresh.voters(3)
	fresh.allSame()
	now := fresh.view(first)
	if now.Cluster == old.Cluster || now.Seq != last.Manifest.Point.Seq {
		t.Errorf("the new cluster is %s with %d leaves; the old one was %s, the backup has %d", now.Cluster, now.Seq, old.Cluster, last.Manifest.Point.Seq)
	}
	for _, n := range fresh.nodes {
		if again, err := fresh.download(n.url, app); err != nil || again != sum {
			t.Errorf("through %s: %v; go.sum:\n%swant\n%s", n.name, err, again, sum)
		}
		fresh.served(n.process, before)
	}
	out, errs, err := fresh.modmirror("cluster", "audit", "--peer", fresh.nodes[2].peer, "--cluster-token-file", fresh.token)
	if err != nil || !strings.Contains(out, "restore: from a backup") {
		t.Errorf("the audit, at another node: %v\n%s%s", err, out, errs)
	}
	// A node of the old cluster does not get into the new one.
	ghost := s.nodes[1]
	ghost.extra = []string{"--join", first.peer}
	ghost.token = fresh.token
	s.launch(ghost)
	fresh.await("refusal of a node of the old cluster", func() bool {
		code, _ := httpStatus(t.Context(), "http://"+ghost.listen+"/readyz")
		return code != http.StatusOK && strings.Contains(ghost.output(), old.Cluster)
	}, ghost.output)
}
