package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// storedBlobs returns the files of all blobs in a data directory, in the order of their names.
func storedBlobs(t *testing.T, data string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// rotBlob turns a bit of a blob as a disk does: nobody has written the file.
func rotBlob(t *testing.T, file string) {
	t.Helper()
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[len(b)/2] ^= 4
	if err := errors.Join(os.WriteFile(file, b, 0o600), os.Chtimes(file, time.Time{}, fi.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// intactBlob reports whether a file has the bytes that its name is the digest of.
func intactBlob(file string) bool {
	b, err := os.ReadFile(file)
	return err == nil && artifact.DigestOf(b).String() == filepath.Base(file)
}

// command runs a command of modmirror, and returns what it prints and its exit code.
func (s *site) command(args ...string) (string, int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%q: %v", args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// FAULTS 35, a blob of a node alone: `modmirror scrub` finds what rots while the node runs, heals it from the upstream, and says so.
// What nobody can give it ends with exit code 1 for, and names, and so does the status, until it is healed without being asked to.
func TestScrubCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.load()
	peer, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	p := s.start("--peer-listen", peer)
	zips := map[string]string{"/example.com/quote/@v/v1.2.0.zip": "", "/example.com/hello/@v/v1.0.0.zip": "", "/example.com/old/@v/v1.2.0.zip": ""}
	for path := range zips {
		zips[path] = s.says(p, path, 200, "PK")
	}
	scrub := []string{"scrub", "--peer", peer, "--data-dir", s.data}
	if out, code := s.command(scrub...); code != 0 || !strings.Contains(out, "3 blobs") || !strings.Contains(out, "0 blobs damaged in this scrub, 0 not healed") {
		t.Errorf("of what is well: exit code %d\n%s", code, out)
	}

	files := storedBlobs(t, s.data)
	rotBlob(t, files[0])
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	if out, code := s.command(scrub...); code != 0 || !strings.Contains(out, "2 blobs damaged in this scrub, 0 not healed") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for _, file := range files {
		if !intactBlob(file) {
			t.Errorf("%s is not healed", file)
		}
	}
	if b, err := os.ReadFile(filepath.Join(s.data, "quarantine", "damaged", filepath.Base(files[0])+".json")); err != nil || !strings.Contains(string(b), `"damage": "bytes"`) {
		t.Errorf("in quarantine: %s, %v", b, err)
	}

	s.up.Down(true)
	rotBlob(t, files[2])
	out, code := s.command(scrub...)
	if code != 1 || !strings.Contains(out, "1 blob damaged in this scrub, 1 not healed") || !strings.Contains(out, "NOT HEALED: example.com/") || !strings.Contains(out, filepath.Base(files[2])) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if out, _ := s.command("status", "--server", p.url); !strings.Contains(out, "NOT HEALED: example.com/") || !strings.Contains(out, "everything was read since") {
		t.Errorf("status:\n%s", out)
	}
	var st status
	if out, _ := s.command("status", "--json", "--server", p.url); json.Unmarshal([]byte(out), &st) != nil || st.Scrub.Health.Unhealed != 1 || st.Scrub.Health.List[0].Tries == 0 {
		t.Errorf("status:\n%s", out)
	}
	for _, line := range []string{"modmirror_mirror_unhealed_blobs 1", `modmirror_mirror_bad_blobs_total{by="scrub",damage="bytes"} 2`, `modmirror_mirror_bad_blobs_total{by="scrub",damage="missing"} 1`,
		`modmirror_mirror_healed_blobs_total{from="upstream"} 2`, "modmirror_mirror_scrub_period_seconds 2.592e+06", "modmirror_mirror_scrub_stuck 0"} {
		s.says(p, "/metrics", 200, line)
	}
	p.kill() // and what is not healed is known to the next process
	p = s.start("--peer-listen", peer)
	if out, _ := s.command("status", "--server", p.url); !strings.Contains(out, "NOT HEALED") {
		t.Errorf("status after a restart:\n%s", out)
	}
	s.up.Down(false)
	soon(t, "the healing", func() bool { return intactBlob(files[2]) })
	if out, code := s.command(scrub...); code != 0 || !strings.Contains(out, "0 not healed") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for path, want := range zips {
		if got := s.says(p, path, 200, "PK"); got != want {
			t.Errorf("GET %s: other bytes than before", path)
		}
	}
	s.end(p)
	s.wantClean()
}

// Neither Ctrl-C of the command nor the death of the node ends a scrub; --stop does.
func TestScrubGoesOn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.load()
	peer, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	p := s.start("--peer-listen", peer)
	for _, path := range []string{"/example.com/quote/@v/v1.2.0.zip", "/example.com/hello/@v/v1.0.0.zip"} {
		s.says(p, path, 200, "PK")
	}
	scrub := []string{"scrub", "--peer", peer, "--data-dir", s.data}
	cmd := exec.CommandContext(t.Context(), s.bin, append(slices.Clone(scrub), "--limit", "10")...)
	cmd.Env = s.env()
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has a line to show
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(out)
	if err := cmd.Wait(); err == nil || !strings.Contains(string(text), "the scrub goes on at the node") {
		t.Errorf("Ctrl-C: %v\n%s", err, text)
	}
	asked := func() bool {
		var st status
		out, _ := s.command("status", "--json", "--server", p.url)
		return json.Unmarshal([]byte(out), &st) == nil && !st.Scrub.Asked.IsZero()
	}
	soon(t, "the scrub", asked)
	state := filepath.Join(s.data, "scrub.json")
	soon(t, "the state", func() bool { b, _ := os.ReadFile(state); return strings.Contains(string(b), `"asked":true`) })
	p.kill()
	p = s.start("--peer-listen", peer)
	soon(t, "the scrub after a restart", asked)
	if out, code := s.command(append(slices.Clone(scrub), "--stop")...); code != 0 {
		t.Errorf("--stop: %d\n%s", code, out)
	}
	soon(t, "the end", func() bool { return !asked() })
	if out, code := s.command(scrub...); code != 0 || !strings.Contains(out, "2 blobs") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	s.end(p)
	if out, code := s.command(scrub...); code != 1 || !strings.Contains(out, "modmirror fsck") {
		t.Errorf("of a mirror that is stopped: %d\n%s", code, out)
	}
}

// Without a period nothing is read again by itself, and the start says so.
func TestScrubIsOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.start("--scrub-every", "0")
	soon(t, "the warning", func() bool { return strings.Contains(p.output(), "--scrub-every 0") })
	if out, _ := s.command("status", "--server", p.url); !strings.Contains(out, "only on request") {
		t.Errorf("status:\n%s", out)
	}
	s.end(p)
	if out, code := s.command(append([]string{"serve", "--scrub-every", "-1h"}, s.flags()...)...); code != 2 || !strings.Contains(out, "--scrub-every") {
		t.Errorf("a negative period: %d\n%s", code, out)
	}
}

// FAULTS 35, a blob of a cluster: with the upstream gone, bytes that rot on one node's disk are found by a read after a restart, and by
// a scrub while it runs; clients get the right ones all the time, and the disk gets them back from another node.
func TestRottenBlobInCluster(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	fresh := s.addRandom(rand.New(rand.NewPCG(5, 6)), "example.com/fresh")
	s.run()
	s.voters(3)
	path := artifactPath(fresh, artifact.Zip)
	want := s.want(s.nodes[0].process, path, 200)
	s.allSame()
	n := s.nodes[1]
	var files []string
	s.await("blob at "+n.name, func() bool { files = storedBlobs(t, n.dir); return len(files) == 1 && intactBlob(files[0]) }, n.output)
	s.up.Down(true)

	n.kill()
	rotBlob(t, files[0])
	s.run(n)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=100-199")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	part, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusPartialContent || string(part) != want[100:200] {
		t.Errorf("a part of what rots: %s, %d bytes, %v", resp.Status, len(part), err)
	}
	if got := s.want(n.process, path, 200); got != want {
		t.Error("other bytes than before")
	}
	s.await("healed blob", func() bool { return intactBlob(files[0]) }, n.output)
	s.says(n.process, "/metrics", 200, `modmirror_mirror_healed_blobs_total{from="peer"} 1`)

	for i, spoil := range []func(){
		func() { rotBlob(t, files[0]) },
		func() {
			if err := os.Truncate(files[0], 100); err != nil {
				t.Fatal(err)
			}
		},
		func() {
			if err := os.Remove(files[0]); err != nil {
				t.Fatal(err)
			}
		},
	} {
		spoil()
		out, code := s.site.command("scrub", "--peer", n.peer, "--cluster-token-file", s.token)
		if code != 0 || !strings.Contains(out, "1 blob damaged in this scrub, 0 not healed") || !intactBlob(files[0]) {
			t.Errorf("spoilt the %d. time: exit code %d, healed: %v\n%s", i+1, code, intactBlob(files[0]), out)
		}
		if got := s.want(n.process, path, 200); got != want {
			t.Error("other bytes than before")
		}
	}
	s.allSame()
}
