package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate"
	"modmirror/sumdb"
	"modmirror/sumdb/sumdbtest"
)

// A restore never takes the place of what is there unasked, and never goes back to an older tree head unless somebody says why.
func TestRestoreNeverGoesBack(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(41, 42))
	s, ms := stockedSite(t, r, 3)
	older := filepath.Join(s.dir, "older")
	s.backs(older, "--data-dir", s.data)
	p := s.start()
	more := s.stock(r, 3, p.url)
	s.fails("a mirror runs on this directory", s.restoreArgs(older, s.data, "--replace")...)
	s.end(p)
	newer := filepath.Join(s.dir, "newer")
	rep := s.backs(newer, "--data-dir", s.data)

	was := tree(t, s.data)
	unchanged := func(what string) {
		t.Helper()
		if now := tree(t, s.data); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Errorf("%s changes the directory", what)
		}
	}
	s.fails("is not empty", s.restoreArgs(newer, s.data)...)
	unchanged("a restore without --replace")
	s.fails("belong together", s.restoreArgs(older, s.data, "--replace", "--force-older-head")...)
	s.fails("belong together", s.restoreArgs(older, s.data, "--replace", "--reason", "x")...)
	s.fails("--reason", s.restoreArgs(older, s.data, "--replace", "--force-older-head", "--reason", "two\nlines")...)
	s.fails("a tree head would go back ("+databaseName+" from ", s.restoreArgs(older, s.data, "--replace")...)
	unchanged("a refused restore")

	// An equal or newer head needs no force.
	s.does(s.restoreArgs(newer, s.data, "--replace")...)
	if out := s.does("cluster", "audit", "--data-dir", s.data); strings.Contains(out, "older") {
		t.Errorf("the audit says %q", out)
	}
	s.works(s.data, append(ms, more...))
	aside, err := filepath.Glob(filepath.Join(s.data, asidePrefix+"*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("aside is %q, %v", aside, err)
	}
	if now := tree(t, aside[0]); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Error("the mirror that was moved aside is not what it was")
	}

	out := s.does(s.restoreArgs(older, s.data, "--replace", "--force-older-head", "--reason", "the newer backup holds a module that must go")...)
	if !strings.Contains(out, "gone back: "+databaseName+" from ") {
		t.Errorf("restore says %q", out)
	}
	out = s.does("cluster", "audit", "--data-dir", s.data)
	if !strings.Contains(out, "restore an older tree head: the newer backup holds a module that must go ("+databaseName+" from ") || !strings.Contains(out, "restore: from a backup of cluster "+rep.Manifest.Point.Cluster) {
		t.Errorf("the audit says %q", out)
	}
	s.works(s.data, ms)

	// What nobody can read may have seen any head.
	flip(t, filepath.Join(s.data, replicate.CatalogName), 20)
	flip(t, filepath.Join(s.data, replicate.CatalogName), 4096+20)
	s.fails("it is not known which tree heads", s.restoreArgs(newer, s.data, "--replace")...)
}

// The head of another history than the mirror has seen is never taken, with or without force.
func TestRestoreOfForkedHistory(t *testing.T) {
	t.Parallel()
	s, ms := stockedSite(t, rand.New(rand.NewPCG(43, 44)), 2)
	other := newSite(t)
	other.load()
	other.up, other.db = s.up, s.db.Fork(10)
	t.Cleanup(other.up.Close)
	forked := other.db
	for forked.Size() < s.db.Size() {
		forked.Grow(1)
	}
	backup := filepath.Join(s.dir, "backup")
	s.backs(backup, "--data-dir", s.data)
	// The mirror that is to be replaced has the same number of records in another tree.
	var note restoreNote
	var err error
	if note.Heads, _, err = headsIn(t.Context(), s.data); err != nil || len(note.Heads) != 1 {
		t.Fatal(note, err)
	}
	note.Heads[0].Root = forked.Root(note.Heads[0].Size).String()
	dir := filepath.Join(s.dir, "data2")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	note.Aside, note.Moved = asidePrefix+"x", true
	if err := replicate.NoteRestore(dir, note); err != nil {
		t.Fatal(err)
	}
	s.fails("one of the two is of a forked history", s.restoreArgs(backup, dir, "--replace")...)
	s.fails("one of the two is of a forked history", s.restoreArgs(backup, dir, "--replace", "--force-older-head", "--reason", "x")...)
	s.noMirror(dir)

	// It has fewer, at which the backup never stood: that the larger tree goes on from it is not shown by its size.
	note.Heads[0].Size = 12
	note.Heads[0].Root = forked.Root(note.Heads[0].Size).String()
	if err := replicate.NoteRestore(dir, note); err != nil {
		t.Fatal(err)
	}
	s.fails("which the backup does not show to go on from those", s.restoreArgs(backup, dir, "--replace")...)
	s.noMirror(dir)
	s.does(s.restoreArgs(backup, dir, "--replace", "--force-older-head", "--reason", "looked at by hand")...)
	if out := s.does("cluster", "audit", "--data-dir", dir); !strings.Contains(out, "looked at by hand ("+databaseName+" from ") {
		t.Errorf("the audit says %q", out)
	}
	s.works(dir, ms)
}

// A mirror that is frozen, as a database has signed two histories, does not go on because an older backup is restored in its place.
func TestRestoreForgetsNoFork(t *testing.T) {
	t.Parallel()
	s, _ := stockedSite(t, rand.New(rand.NewPCG(45, 46)), 2)
	before, frozen, acked := filepath.Join(s.dir, "before"), filepath.Join(s.dir, "frozen"), filepath.Join(s.dir, "acked")
	s.backs(before, "--data-dir", s.data)
	forked := s.db.Fork(10)
	forked.Grow(1)
	n, err := replicate.Open(t.Context(), replicate.Config{Dir: s.data})
	if err != nil {
		t.Fatal(err)
	}
	f := artifact.Fork{Database: s.db.Name(), A: s.db.Head(11), B: forked.Head(11)}
	if err := errors.Join(n.CommitFork(t.Context(), f), n.Close()); err != nil {
		t.Fatal(err)
	}
	s.backs(frozen, "--data-dir", s.data)
	other := filepath.Join(s.dir, "other")
	if err := os.CopyFS(other, os.DirFS(s.data)); err != nil {
		t.Fatal(err)
	}
	s.does("sumdb", "ack-fork", s.db.Name(), "--data-dir", other)
	s.backs(acked, "--data-dir", other)

	is := func(dir string, want bool) {
		t.Helper()
		_, forks, err := headsIn(t.Context(), dir)
		if err != nil || len(forks) == 1 != want {
			t.Errorf("%s has the open forks %+v, %v; frozen should be %v", dir, forks, err, want)
		}
	}
	says := databaseName + " is frozen, as it has signed two histories"
	s.fails(says, s.restoreArgs(before, s.data, "--replace")...)
	is(s.data, true)
	s.does(s.restoreArgs(frozen, s.data, "--replace")...)
	is(s.data, true)
	s.does(s.restoreArgs(acked, s.data, "--replace")...) // somebody looked at the evidence
	is(s.data, false)
	s.does(s.restoreArgs(frozen, s.data, "--replace")...)
	s.does(s.restoreArgs(before, s.data, "--replace", "--force-older-head", "--reason", "a drill")...)
	if out := s.does("cluster", "audit", "--data-dir", s.data); !strings.Contains(out, "a drill ("+says) {
		t.Errorf("the audit says %q", out)
	}
}

// kill -9 of a backup and of a restore at moments that nobody chose: run again, both come to their end, and in between there is no
// backup that can be restored but a whole one, and no mirror.
func TestKilledBackupAndRestore(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s, ms := stockedSite(t, r, 60)
	dest := filepath.Join(s.dir, "backup")
	whole := s.backs(filepath.Join(s.dir, "whole"), "--data-dir", s.data)
	killed := func(args []string, within float64) bool {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), s.bin, args...)
		cmd.Env = s.env()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(r.Float64() * within * float64(time.Second))) // not to wait for anything: the moment is what is being drawn
		_ = cmd.Process.Kill()
		return cmd.Wait() != nil
	}
	cut := 0
	for range 8 {
		if killed([]string{"backup", dest, "--data-dir", s.data}, whole.Seconds*1.5) {
			cut++
		}
		gens, _ := filepath.Glob(filepath.Join(dest, generationsDir, "2*"))
		for _, g := range gens { // with a name it is whole
			s.does("restore", "--check", dest, "--sumdb", s.db.Key(), "--generation", filepath.Base(g))
		}
		if len(gens) > 0 {
			if err := os.RemoveAll(dest); err != nil {
				t.Fatal(err)
			}
		}
	}
	rep := s.backs(dest, "--data-dir", s.data)
	if left, err := filepath.Glob(filepath.Join(dest, generationsDir, makingPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("killed backups leave %q, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(dest, "tmp", "*")); err != nil || len(left) > 0 {
		t.Errorf("killed backups leave %q, %v", left, err)
	}

	dir := filepath.Join(s.dir, "restored")
	var out restoreReport
	if err := json.Unmarshal([]byte(s.does(s.restoreArgs(dest, filepath.Join(s.dir, "once"), "--json")...)), &out); err != nil {
		t.Fatal(err)
	}
	cutRestores := 0
	for range 8 {
		cut := killed(s.restoreArgs(dest, dir), out.Seconds*1.5)
		_, marked := os.Stat(filepath.Join(dir, replicate.RestoringName))
		if _, err := os.Stat(filepath.Join(dir, "node.json")); err == nil && marked != nil { // it has come to its end
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		} else if cut {
			cutRestores++
			s.noMirror(dir)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "node.json")); err != nil {
		s.does(s.restoreArgs(dest, dir)...)
	}
	s.works(dir, ms)
	if left, err := filepath.Glob(filepath.Join(dir, workPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("killed restores leave %q, %v", left, err)
	}
	t.Logf("%d backups and %d restores were cut; the one that came to its end copied %d blobs", cut, cutRestores, rep.NewBlobs)
	if cut == 0 || cutRestores == 0 {
		t.Error("nothing was killed while it was at work")
	}
}

// The mirror that is moved aside is there as a whole, however often the restore that moves it is killed.
func TestKilledReplace(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(45, 46))
	s, ms := stockedSite(t, r, 3)
	backup := filepath.Join(s.dir, "backup")
	s.backs(backup, "--data-dir", s.data)
	was := tree(t, s.data)
	heads, _, err := headsIn(t.Context(), s.data)
	if err != nil {
		t.Fatal(err)
	}
	// As a kill leaves it that comes after some of the files were moved.
	note := restoreNote{Aside: asidePrefix + "x", Heads: heads}
	if err := replicate.NoteRestore(s.data, note); err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(s.data, note.Aside)
	for _, name := range []string{"node.json", "raft"} {
		if err := os.MkdirAll(aside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(s.data, name), filepath.Join(aside, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.noMirror(s.data)
	s.does(s.restoreArgs(backup, s.data)...)
	if now := tree(t, aside); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Errorf("the mirror that was moved aside is not what it was:\n%v\nwas\n%v", now, was)
	}
	s.works(s.data, ms)
}

// A backup that is kept in the very directory that it is to be restored into would be moved aside while it is read.
func TestRestoreFromInside(t *testing.T) {
	t.Parallel()
	s, ms := stockedSite(t, rand.New(rand.NewPCG(53, 54)), 2)
	inside := filepath.Join(s.data, "backups", "daily")
	s.backs(inside, "--data-dir", s.data)
	tar := filepath.Join(s.data, "mirror.tar")
	s.backs(tar, "--data-dir", s.data)
	link := filepath.Join(s.dir, "link")
	if err := os.Symlink(s.data, link); err != nil {
		t.Fatal(err)
	}
	was := tree(t, s.data)
	for _, from := range []string{inside, tar, filepath.Join(link, "backups", "daily")} {
		s.fails("which would be moved aside", s.restoreArgs(from, s.data, "--replace")...)
		if now := tree(t, s.data); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Fatalf("a refused restore changes the directory")
		}
	}
	elsewhere := filepath.Join(s.dir, "elsewhere")
	if err := os.Rename(filepath.Join(s.data, "backups"), elsewhere); err != nil {
		t.Fatal(err)
	}
	s.does(s.restoreArgs(filepath.Join(elsewhere, "daily"), s.data, "--replace")...)
	aside, err := filepath.Glob(filepath.Join(s.data, asidePrefix+"*", "mirror.tar"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("aside is %q, %v", aside, err)
	}
	s.does(s.restoreArgs(aside[0], s.data, "--replace")...) // what was moved aside once stays where it is
	s.works(s.data, ms)
}

// A drill leaves nothing behind, whether the backup is good or not, and touches no mirror.
func TestDrill(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(47, 48))
	s, _ := stockedSite(t, r, 3)
	backup, temp := filepath.Join(s.dir, "backup"), filepath.Join(s.dir, "temp")
	s.backs(backup, "--data-dir", s.data)
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	was := tree(t, s.dir)
	check := []string{"restore", "--check", backup, "--sumdb", s.db.Key(), "--temp-dir", temp}
	var rep drillReport
	if err := json.Unmarshal([]byte(s.does(append(check, "--json")...)), &rep); err != nil {
		t.Fatal(err)
	}
	if rep.Asked != 4 || rep.Lookups != 4 || rep.Artifacts != 12 || rep.Bytes == 0 || rep.Seconds <= 0 || rep.Restore.Checked.Manifests != 4 {
		t.Errorf("the drill says %+v", rep)
	}
	nothing := func(what string) {
		t.Helper()
		if now := tree(t, s.dir); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Errorf("%s leaves\n%v\nbefore there was\n%v", what, now, was)
		}
	}
	nothing("a drill")
	victim := someBlob(t, backup)
	b, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, victim, 99)
	was = tree(t, s.dir)
	s.fails(filepath.Base(victim), check...)
	nothing("a drill of a damaged backup")
	s.fails("leave --data-dir", append(check, "--data-dir", s.data)...)
	replace(t, victim, b)
}

// A blob that the node has lost or damaged is taken from another node, and that is said.
func TestBackupHealsFromPeers(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(49, 50))
	s.run()
	s.voters(3)
	ms := s.stock(r, 4, s.nodes[0].url, s.nodes[1].url)
	s.allSame()
	n := s.nodes[0]
	victim := someBlob(t, n.dir)
	flip(t, victim, 300)
	dest := filepath.Join(s.dir, "backup")
	rep := s.backs(dest, "--peer", n.peer, "--cluster-token-file", s.token, "--data-dir", n.dir)
	if len(rep.Healed) != 1 || !strings.Contains(rep.Healed[0], "was taken from node n") || !strings.Contains(rep.Healed[0], "it is damaged") {
		t.Errorf("what was healed is said to be %q", rep.Healed)
	}
	s.up.Down(true)
	dir := filepath.Join(s.dir, "restored")
	s.does(s.restoreArgs(dest, dir)...)
	s.works(dir, ms)
}

func TestManifest(t *testing.T) {
	m := backupManifest{Format: backupFormat, Made: time.Unix(1_700_000_000, 0).UTC(), Version: "v1", Point: replicate.Point{Cluster: "C", Index: 7, Seq: 3},
		Databases: []backupDatabase{{Name: "a", Key: "k", Size: 3, Root: "r"}}}
	good, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseManifest(good); err != nil || fmt.Sprint(got) != fmt.Sprint(m) {
		t.Fatalf("parseManifest() = %+v, %v", got, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := parseManifest(bad); err == nil {
			t.Errorf("with byte %d turned it is accepted: %q", i, bad)
		}
		if _, err := parseManifest(good[:i]); err == nil {
			t.Errorf("cut at %d it is accepted", i)
		}
	}
	if _, err := parseManifest(append(bytes.Clone(good), '\n')); err == nil {
		t.Error("with a line more it is accepted")
	}
}

// A catalog that is right in itself names zips only by their SHA-256: one whose content the checksum database does not vouch for,
// which no mirror would have taken in, is found by its go.sum hash.
func TestForgedZip(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx := t.Context()
	n, err := replicate.Open(ctx, replicate.Config{Dir: s.data})
	if err != nil {
		t.Fatal(err)
	}
	store, err := artifact.OpenStore(s.data)
	if err != nil {
		t.Fatal(err)
	}
	m := module.Version{Path: "example.com/forged", Version: "v1.0.0"}
	const mod = "module example.com/forged\n"
	right := mirrortest.Zip(m, map[string]string{"go.mod": mod, "a.go": "package forged\n"})
	wrong := mirrortest.Zip(m, map[string]string{"go.mod": mod, "a.go": "package f0rged\n"})
	id := s.db.Add(m, mirrortest.ZipSum(right), mirrortest.ModSum([]byte(mod)))
	size := s.db.Size()
	d, err := store.Create(int64(len(wrong)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(wrong); err != nil {
		t.Fatal(err)
	}
	ref, err := d.Commit()
	if err != nil {
		t.Fatal(err)
	}
	text := sumdbtest.Text(m, mirrortest.ZipSum(right), mirrortest.ModSum([]byte(mod)))
	r := artifact.Record{Database: s.db.Name(), ID: id, Text: []byte(text), TreeSize: size, Proof: s.db.Prove(size, id)}
	man, err := artifact.NewManifest(m, r)
	if err != nil {
		t.Fatal(err)
	}
	man.Mod, man.Zip = artifact.RefOf([]byte(mod)), ref
	if err := errors.Join(n.TrustDatabase(ctx, s.db.Key()), n.CommitTreeHead(ctx, s.db.Name(), s.db.Head(size), 0, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Publish(ctx, artifact.Publication{Manifest: man, Mod: []byte(mod)}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(collectAll(ctx, s, r), store.Close(), n.Close()); err != nil {
		t.Fatal(err)
	}
	for _, dest := range []string{filepath.Join(s.dir, "backup"), filepath.Join(s.dir, "backup.tar")} {
		s.backs(dest, "--data-dir", s.data)
		dir := dest + ".restored"
		s.fails("the zip's sum is "+mirrortest.ZipSum(wrong)+", committed is "+mirrortest.ZipSum(right), s.restoreArgs(dest, dir)...)
		s.noMirror(dir)
	}
}

// collectAll brings the tiles of a record into the site's data.
func collectAll(ctx context.Context, s *site, r artifact.Record) error {
	tiles, err := sumdb.OpenTiles(tilesDir(s.data, s.db.Name()))
	if err != nil {
		return err
	}
	c := &sumdb.Collector{Head: tlog.Tree{N: r.TreeSize, Hash: s.db.Root(r.TreeSize)}, Store: tiles, From: []sumdb.Source{s.db}}
	return errors.Join(c.Records(ctx, []artifact.Record{r}), tiles.Close())
}
