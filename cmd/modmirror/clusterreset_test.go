package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What reset will keep is told before it asks: also what was pulled in bulk and is not proven yet.
func TestResetSaysWhatItKeeps(t *testing.T) {
	dir := t.TempDir()
	keep := func(place, content string) {
		t.Helper()
		file := filepath.Join(dir, place, artifact.DigestOf([]byte(content)).String())
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	keep(filepath.Join("blobs", "sha256", artifact.DigestOf([]byte("a blob")).String()[:2]), "a blob")
	kept := func() string {
		var out strings.Builder
		if err := (reset{dir: dir, keepBlobs: true}).run(strings.NewReader("no\n"), &out); err == nil {
			t.Error("it goes on without a word")
		}
		return out.String()
	}
	if got := kept(); !strings.Contains(got, "Kept: 1 blobs of 6 B, and the tiles.") {
		t.Errorf("it says\n%s", got)
	}
	keep("unproven", "another")
	if got := kept(); !strings.Contains(got, "Kept: 1 blobs of 6 B, 1 more of 7 B in unproven, and the tiles.") {
		t.Errorf("it says\n%s", got)
	}
}

// FAULTS 35, the raft log and the catalog of a member: after bits have flipped it refuses to start, with what to type. Typed
// as it stands, that brings it back: a new node with the same catalog, which has pulled no blob that was sound.
func TestDamagedMemberIsReset(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	wanted := []module.Version{{Path: "example.com/quote", Version: "v1.2.0"}, {Path: "example.com/hello", Version: "v1.0.0"}, {Path: "example.com/old", Version: "v1.2.0"}}
	zips := map[string]string{}
	for _, m := range wanted {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			zips[artifactPath(m, k)] = s.says(s.nodes[0].process, artifactPath(m, k), 200, "")
		}
	}
	s.allSame()
	const magic = "\xed\xda\x0c\xed" // of both of a bbolt file's first pages
	for _, damage := range []struct{ file, what string }{{filepath.Join("raft", "raft.db"), magic}, {"catalog.db", "example.com/quote"}} {
		n := s.nodes[2]
		old := s.view(s.nodes[0])
		s.end(n.process)
		flipAll(t, filepath.Join(n.dir, damage.file), damage.what)
		rotten := rotOneBlob(t, n)

		// It refuses to start, and says what to do.
		s.launch(n)
		select {
		case <-n.exited:
		case <-time.After(time.Minute):
			t.Fatalf("%s: the node does not end\n%s", damage.file, n.output())
		}
		said := regexp.MustCompile(`modmirror: --data-dir (\S+): .*: (modmirror cluster reset --keep-blobs), with the same --data-dir`).FindStringSubmatch(n.output())
		if code := n.cmd.ProcessState.ExitCode(); code != 1 || said == nil {
			t.Fatalf("%s: exit code %d, no instruction in\n%s", damage.file, code, n.output())
		}

		// What it says, as it stands, with a person's word.
		out := s.types(said[2]+" --data-dir "+said[1], "reset\n")
		next := regexp.MustCompile(`(modmirror cluster remove \S+ --peer) ANOTHER_NODE:3001`).FindStringSubmatch(out)
		if next == nil {
			t.Fatalf("reset does not say how to go on:\n%s", out)
		}
		s.types(next[1]+" "+s.nodes[0].peer+" --cluster-token-file "+s.token, "remove\n")
		s.run(n)
		s.voters(3)
		s.allSame()

		was, err := old.find(n.name)
		if err != nil {
			t.Fatal(err)
		}
		if is, err := s.view(s.nodes[0]).find(n.name); err != nil || is.ID == was.ID {
			t.Errorf("%s: the node has the id %s, %v: it must be a new one", damage.file, is.ID, err)
		}
		if got := s.metric(n.process, `modmirror_mirror_pulls_total{outcome="done"}`); got != "1" {
			t.Errorf("%s: %s pulls, want that of the one blob that was damaged", damage.file, got)
		}
		if b, err := os.ReadFile(rotten); err != nil || artifact.DigestOf(b).String() != filepath.Base(rotten) {
			t.Errorf("%s: the damaged blob is still damaged: %v", damage.file, err)
		}
		for path, want := range zips {
			if got := s.says(n.process, "/cached-only"+path, 200, ""); got != want {
				t.Errorf("%s: %s has other bytes", damage.file, path)
			}
		}
		for _, m := range wanted {
			s.says(n.process, lookupPath(m), 200, m.Path)
		}
		if left, err := filepath.Glob(filepath.Join(n.dir, "old-node-*", "node.json")); err != nil || len(left) == 0 {
			t.Errorf("%s: nothing is left of the old node: %v", damage.file, err)
		}
	}
}

// types runs a command as a person would, whose word is yes.
func (s *clusterSite) types(line, yes string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	words := strings.Fields(line)
	cmd := exec.CommandContext(ctx, s.bin, words[1:]...)
	cmd.Env, cmd.Stdin = s.env(), strings.NewReader(yes)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// metric returns the value of a series of a process.
func (s *site) metric(p *process, series string) string {
	s.t.Helper()
	_, body := s.get(p, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "no value"
}

// flipAll changes a bit of what, wherever it stands in a file: pages that are not used any more hurt nobody.
func flipAll(t *testing.T, file, what string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(b, []byte(what)) {
		t.Fatalf("%s has no %q: %v", file, what, err)
	}
	wrong := []byte(what)
	wrong[len(wrong)/2] ^= 1
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte(what), wrong), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rotOneBlob changes a byte of one of a stopped node's blobs, and returns its file.
func rotOneBlob(t *testing.T, n *clusterNode) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.dir, "blobs", "sha256", "*", "*"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%d blobs, %v", len(files), err)
	}
	b, err := os.ReadFile(files[0])
	if err == nil {
		b[len(b)/2] ^= 1
		err = os.WriteFile(files[0], b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return files[0]
}
