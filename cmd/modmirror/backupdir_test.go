package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/mirrortest"
	"modmirror/replicate"
)

// stockedSite is a mirror that has number modules, one with a go.mod that is a blob, and is stopped.
func stockedSite(t *testing.T, r *rand.Rand, number int) (*site, []module.Version) {
	t.Helper()
	s := newSite(t)
	s.load()
	p := s.start()
	ms := append(s.stock(r, number, p.url), s.addLargeMod(p))
	s.end(p)
	return s, ms
}

// addLargeMod has the mirror take in a module whose go.mod is too large for the catalog.
func (s *site) addLargeMod(p *process) module.Version {
	s.t.Helper()
	m := module.Version{Path: "example.com/large", Version: "v1.0.0"}
	mod := "module example.com/large\n\ngo 1.21\n" + strings.Repeat("// a long story\n", 5000)
	s.up.AddZip(m, mirrortest.Zip(m, map[string]string{"go.mod": mod, "a.go": "package large\n"}), []byte(mod), nil)
	zipSum, modSum := s.up.Sums(m)
	s.db.Add(m, zipSum, modSum)
	for _, ext := range []string{".info", ".mod", ".zip"} {
		s.want(p, "/example.com/large/@v/v1.0.0"+ext, 200)
	}
	return m
}

// restoreArgs is a command line that restores source into dir.
func (s *site) restoreArgs(source, dir string, more ...string) []string {
	return append([]string{"restore", source, "--data-dir", dir, "--sumdb", s.db.Key()}, more...)
}

// works starts a mirror without network on dir, which must serve ms, and looks at it with fsck.
func (s *site) works(dir string, ms []module.Version) {
	s.t.Helper()
	data := s.data
	s.data = dir
	defer func() { s.data = data }()
	p := s.start("--offline")
	s.served(p, ms)
	s.end(p)
	s.wantClean()
}

// noMirror looks whether no mirror starts on dir: because there is nothing, or it says that it is being restored into.
func (s *site) noMirror(dir string) {
	s.t.Helper()
	if empty, err := isEmptyDir(dir, func(name string) bool { return strings.HasPrefix(name, replicate.RestoringName+".") }); err != nil {
		s.t.Fatal(err)
	} else if empty {
		return
	}
	data := s.data
	s.data = dir
	defer func() { s.data = data }()
	if text := s.refuses("--offline"); !strings.Contains(text, "a restore into this directory was interrupted") {
		s.t.Errorf("serve on what an interrupted restore left says %q", text)
	}
}

// tree lists the files below dir with their sizes, times and digests.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		all[name] = fmt.Sprintf("%v %x", fi.ModTime(), sha256.Sum256(b))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// Into the same directory again, what is there stays untouched, and what is new is copied; one that was interrupted goes on; old
// generations go, and every one that is left can be restored.
func TestBackupIsIncremental(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(21, 22))
	s, ms := stockedSite(t, r, 10)
	dest := filepath.Join(s.dir, "backup")
	first := s.backs(dest, "--data-dir", s.data)
	if first.NewBlobs != len(ms)+1 || first.Manifest.Blobs.Files != len(ms)+1 || first.Unchanged {
		t.Errorf("the first backup copies %d of %d blobs, want %d", first.NewBlobs, first.Manifest.Blobs.Files, len(ms)+1)
	}
	was := tree(t, dest)
	again := s.backs(dest, "--data-dir", s.data)
	if again.NewBlobs != 0 || !again.Unchanged || again.Generation != first.Generation {
		t.Errorf("the same again: %+v", again)
	}
	if now := tree(t, dest); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Errorf("the same again changes files:\n%v\nbefore\n%v", now, was)
	}

	p := s.start()
	more := s.stock(r, 4, p.url)
	s.end(p)
	second := s.backs(dest, "--data-dir", s.data)
	if second.NewBlobs != len(more) || second.Manifest.Blobs.Files != len(ms)+1+len(more) {
		t.Errorf("the second backup copies %d of %d blobs, want %d", second.NewBlobs, second.Manifest.Blobs.Files, len(more))
	}
	now := tree(t, dest)
	for name, old := range was {
		if strings.HasPrefix(name, "blobs/") && now[name] != old {
			t.Errorf("%s was copied again: %s, before %s", name, now[name], old)
		}
	}

	// The older generation is as it was: with it, what came later is not there.
	old := filepath.Join(s.dir, "old")
	s.does(s.restoreArgs(dest, old, "--generation", first.Generation)...)
	s.works(old, ms)
	s.fails("is not the name of one", s.restoreArgs(dest, filepath.Join(s.dir, "x"), "--generation", "../"+first.Generation)...)

	// An interrupted backup has its blobs, and no generation.
	if err := os.RemoveAll(filepath.Join(dest, generationsDir, second.Generation)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dest, generationsDir, makingPrefix+"left"), 0o700); err != nil {
		t.Fatal(err)
	}
	resumed := s.backs(dest, "--data-dir", s.data, "--keep", "1")
	if resumed.NewBlobs != 0 || resumed.Manifest.Point != second.Manifest.Point || !slices.Equal(resumed.Removed, []string{first.Generation}) {
		t.Errorf("after an interruption: %+v", resumed)
	}
	left, err := os.ReadDir(filepath.Join(dest, generationsDir))
	if err != nil || len(left) != 1 || left[0].Name() != resumed.Generation {
		t.Errorf("generations are %v, %v, want %s alone", left, err, resumed.Generation)
	}
	dir := filepath.Join(s.dir, "new")
	s.does(s.restoreArgs(dest, dir)...)
	s.works(dir, append(ms, more...))

	// What rots in a backup is found by --verify, and replaced.
	victim := someBlob(t, dest)
	flip(t, victim, 10)
	if rep := s.backs(dest, "--data-dir", s.data); rep.NewBlobs != 0 || len(rep.Healed) != 0 {
		t.Errorf("without --verify: %+v", rep)
	}
	if rep := s.backs(dest, "--data-dir", s.data, "--verify"); rep.NewBlobs != 1 || len(rep.Healed) != 1 || !strings.Contains(rep.Healed[0], "was damaged in the backup") {
		t.Errorf("with --verify: %+v", rep)
	}
	s.does("restore", "--check", dest, "--sumdb", s.db.Key())

	// So does a catalog: what is made again is another generation, and the damaged one is named.
	victim = filepath.Join(dest, generationsDir, resumed.Generation, replicate.CatalogName)
	flip(t, victim, 4096)
	if rep := s.backs(dest, "--data-dir", s.data); !rep.Unchanged {
		t.Errorf("without --verify: %+v", rep)
	}
	rep := s.backs(dest, "--data-dir", s.data, "--verify")
	if rep.Unchanged || rep.Generation == resumed.Generation || rep.Manifest.Point != resumed.Manifest.Point || len(rep.Healed) != 1 || !strings.Contains(rep.Healed[0], resumed.Generation+" cannot be restored") {
		t.Errorf("with --verify: %+v", rep)
	}
	s.does("restore", "--check", dest, "--sumdb", s.db.Key())
	if rep := s.backs(dest, "--data-dir", s.data, "--verify", "--keep", "1"); !rep.Unchanged || len(rep.Removed) != 1 {
		t.Errorf("the same again: %+v", rep)
	}

	s.fails("has other files in it than a backup", "backup", s.data, "--data-dir", s.data)
	other := newSite(t)
	other.load()
	other.end(other.start())
	s.fails("name another directory", "backup", dest, "--data-dir", other.data)
}

// someBlob returns the file of the largest blob below dir.
func someBlob(t *testing.T, dir string) (path string) {
	t.Helper()
	var most int64
	for name := range tree(t, filepath.Join(dir, "blobs")) {
		name = filepath.Join(dir, "blobs", name)
		if fi, err := os.Stat(name); err == nil && fi.Size() > most {
			path, most = name, fi.Size()
		}
	}
	return path
}

// flip turns a bit of a file.
func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x10
	replace(t, path, b)
}

// replace gives a file other bytes.
func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// resealed changes a manifest as somebody would who knows how it is sealed.
func resealed(t *testing.T, path string, change func(m *backupManifest)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	change(&m)
	if b, err = m.encode(); err != nil {
		t.Fatal(err)
	}
	replace(t, path, b)
}

// Whatever is damaged in a backup, or put there, is refused and named, and no mirror starts on what was restored.
func TestDamagedBackup(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(23, 24))
	s, ms := stockedSite(t, r, 6)
	good := filepath.Join(s.dir, "backup")
	rep := s.backs(good, "--data-dir", s.data)
	gen := filepath.Join(generationsDir, rep.Generation)
	blob, err := filepath.Rel(good, someBlob(t, good))
	if err != nil {
		t.Fatal(err)
	}
	large := blobFile(largeMod(t, good))
	var tiles []string
	for name := range tree(t, filepath.Join(good, "sumdb")) {
		tiles = append(tiles, filepath.Join("sumdb", name))
	}
	outside := filepath.Join(s.dir, "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	type damage struct {
		name string
		do   func(dir string) error
		says string
	}
	flipped := func(name string, at int, says string) damage {
		return damage{fmt.Sprintf("byte %d of %s turned", at, filepath.Base(name)), func(dir string) error { flip(t, filepath.Join(dir, name), at); return nil }, says}
	}
	linked := func(name string) func(dir string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			return errors.Join(os.Rename(path, path+"x"), os.Rename(path+"x", filepath.Join(s.dir, "moved")), os.Symlink(filepath.Join(s.dir, "moved"), path))
		}
	}
	size := rep.Manifest.Catalog.Bytes
	cases := []damage{
		flipped(backupMark, 3, backupMark),
		flipped(filepath.Join(gen, manifestName), 1, manifestName),
		flipped(filepath.Join(gen, manifestName), 200, manifestName),
		flipped(filepath.Join(gen, replicate.CatalogName), 20, "catalog.db is damaged"),
		flipped(filepath.Join(gen, replicate.CatalogName), int(size/2), "catalog.db is damaged"),
		flipped(filepath.Join(gen, replicate.CatalogName), int(size-1), "catalog.db is damaged"),
		flipped(blob, 0, filepath.Base(blob)),
		flipped(blob, 1000, filepath.Base(blob)),
		flipped(large, 70_000, "mod of example.com/large@v1.0.0"),
		flipped(tiles[0], 40, "sumdb/"),
		{"a blob is missing", func(dir string) error { return os.Remove(filepath.Join(dir, blob)) }, filepath.Base(blob)},
		{"a blob is cut", func(dir string) error { return os.Truncate(filepath.Join(dir, blob), 100) }, filepath.Base(blob)},
		{"a tile is missing", func(dir string) error { return os.Remove(filepath.Join(dir, tiles[0])) }, "tile/8/"},
		{"the catalog is missing", func(dir string) error { return os.Remove(filepath.Join(dir, gen, replicate.CatalogName)) }, "catalog.db"},
		{"the catalog is cut", func(dir string) error { return os.Truncate(filepath.Join(dir, gen, replicate.CatalogName), size/2) }, "catalog.db is damaged"},
		{"the manifest is missing", func(dir string) error { return os.Remove(filepath.Join(dir, gen, manifestName)) }, manifestName},
		{"the manifest is cut", func(dir string) error { return os.Truncate(filepath.Join(dir, gen, manifestName), 100) }, "cut short"},
		{"a blob is a link", linked(blob), filepath.Base(blob)},
		{"the catalog is a link", linked(filepath.Join(gen, replicate.CatalogName)), "does not belong into a backup"},
		{"a directory is a link", linked("sumdb"), "does not belong into a backup"},
		{"a stranger at the top", func(dir string) error { return os.WriteFile(filepath.Join(dir, "run.sh"), nil, 0o600) }, `"run.sh" does not belong into a backup`},
		{"a stranger in the generation", func(dir string) error { return os.WriteFile(filepath.Join(dir, gen, "node.json"), nil, 0o600) }, "node.json"},
		{"the manifest of another point", func(dir string) error {
			resealed(t, filepath.Join(dir, gen, manifestName), func(m *backupManifest) { m.Point.Seq++ })
			return nil
		}, "is not that of this catalog"},
		{"a manifest that leaves a blob out", func(dir string) error {
			resealed(t, filepath.Join(dir, gen, manifestName), func(m *backupManifest) { m.Blobs.Files-- })
			return errors.Join(os.Remove(filepath.Join(dir, blob)))
		}, "is not that of this catalog"},
		{"an unknown format", func(dir string) error {
			resealedFormat(t, filepath.Join(dir, gen, manifestName))
			return nil
		}, "has format 2"},
		{"a catalog that says something else", func(dir string) error {
			path := filepath.Join(dir, gen, replicate.CatalogName)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for at, sum := 0, []byte("h1:"); ; { // every one: some are on pages that are in use no more
				n := bytes.Index(b[at:], sum)
				if n < 0 {
					break
				}
				at += n + len(sum)
				b[at+2] ^= 1
			}
			replace(t, path, b)
			resealed(t, filepath.Join(dir, gen, manifestName), func(m *backupManifest) { m.Catalog.SHA256 = fmt.Sprintf("%x", sha256.Sum256(b)) })
			return nil
		}, "the catalog is damaged"},
	}
	for i, tt := range cases {
		dir := filepath.Join(s.dir, fmt.Sprintf("bad%d", i))
		if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
			t.Fatal(err)
		}
		if err := tt.do(dir); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		data := filepath.Join(s.dir, fmt.Sprintf("data%d", i))
		out, errs, err := s.modmirror(s.restoreArgs(dir, data)...)
		if err == nil || !strings.Contains(errs, tt.says) {
			t.Errorf("%s: %v, want a refusal with %q\n%s%s", tt.name, err, tt.says, out, errs)
		}
		s.noMirror(data)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		_ = os.RemoveAll(filepath.Join(s.dir, "moved"))
		if i%4 != 0 {
			continue
		}
		// The right backup mends what a wrong one has begun.
		s.does(s.restoreArgs(good, data)...)
		s.works(data, ms)
	}

	// A backup by somebody who has a database, and a key, of their own.
	s.fails("the backup trusts the checksum database "+databaseName+" by the key", "restore", good, "--data-dir", filepath.Join(s.dir, "y"))
	s.noMirror(filepath.Join(s.dir, "y"))
}

// resealedFormat has a manifest be in a format that is not known yet.
func resealedFormat(t *testing.T, path string) {
	resealed(t, path, func(m *backupManifest) { m.Format = backupFormat + 1 })
}

// largeMod returns the digest of the go.mod of addLargeMod.
func largeMod(t *testing.T, dir string) (d [32]byte) {
	t.Helper()
	for name := range tree(t, filepath.Join(dir, "blobs")) {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(b, []byte("module example.com/large\n")) {
			return sha256.Sum256(b)
		}
	}
	t.Fatal("the large go.mod is not in the backup")
	return d
}

// What a backup of a node that is stopped lacks is said, and there is no generation then.
func TestBackupOfDamagedNode(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(25, 26))
	s, _ := stockedSite(t, r, 4)
	victim := someBlob(t, s.data)
	flip(t, victim, 500)
	dest := filepath.Join(s.dir, "backup")
	s.fails(filepath.Base(victim)+", cannot be had", "backup", dest, "--data-dir", s.data)
	s.fails("no backup in it has come to its end", s.restoreArgs(dest, filepath.Join(s.dir, "x"))...)
	s.fails(filepath.Base(victim)+", cannot be had", "backup", dest+".tar", "--data-dir", s.data)
	if left, err := filepath.Glob(filepath.Join(s.dir, "*backup.tar*")); err != nil || len(left) > 0 {
		t.Errorf("a tar that failed leaves %q, %v", left, err)
	}
	if err := os.Remove(victim); err != nil {
		t.Fatal(err)
	}
	s.fails("cannot be had", "backup", dest, "--data-dir", s.data)
}

// Nothing in a backup is a secret of the cluster, and nobody else can read it.
func TestBackupHasNoSecrets(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(27, 28))
	s, _ := stockedSite(t, r, 2)
	token, err := os.ReadFile(filepath.Join(s.data, tokenName))
	if err != nil || len(bytes.TrimSpace(token)) < 20 {
		t.Fatalf("the token is %q, %v", token, err)
	}
	dest := filepath.Join(s.dir, "backup")
	s.does("backup", dest, "--data-dir", s.data)
	s.does("backup", dest+".tar", "--data-dir", s.data)
	if err := filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, fi.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dest + ".tar"); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the tar has the mode %v, %v", fi.Mode(), err)
	}
	node, err := os.ReadFile(filepath.Join(s.data, "node.json"))
	if err != nil || !json.Valid(node) {
		t.Fatal(err)
	}
	for _, path := range append(files(t, dest), dest+".tar") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{bytes.TrimSpace(token), []byte("PRIVATE KEY")} {
			if bytes.Contains(b, secret) {
				t.Errorf("%s has %q in it", path, secret)
			}
		}
	}
	dir := filepath.Join(s.dir, "restored")
	s.does(s.restoreArgs(dest, dir)...)
	for _, path := range files(t, dir) {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is restored with the mode %v, %v", path, fi.Mode(), err)
		}
	}
}

func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	for name := range tree(t, dir) {
		all = append(all, filepath.Join(dir, name))
	}
	return all
}

// A backup that is asked to be slow is.
func TestBackupLimit(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(29, 30))
	s, _ := stockedSite(t, r, 10)
	rep := s.backs(filepath.Join(s.dir, "a"), "--data-dir", s.data)
	began := time.Now()
	speed := max(rep.NewBytes/2, 1) // bytes a second, but for the first that come at once
	s.backs(filepath.Join(s.dir, "b"), "--data-dir", s.data, "--limit", fmt.Sprint(speed))
	least := time.Duration(float64(rep.NewBytes-copyStep) / float64(speed) * float64(time.Second))
	if took := time.Since(began); took < least {
		t.Errorf("%d bytes at %d a second took %v, want at least %v", rep.NewBytes, speed, took, least)
	}
}

// What a kill leaves of the first moments of a backup goes with the next one.
func TestBackupSweeps(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, ".evidence-1")
	for _, marked := range []bool{false, true} {
		if err := os.WriteFile(left, []byte("mod"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, lock, err := makeBackupDir(dir)
		if err != nil {
			t.Fatalf("marked %v: %v", marked, err)
		}
		if _, _, err := makeBackupDir(dir); !errors.Is(err, replicate.ErrLocked) {
			t.Errorf("two at once: %v", err)
		}
		if err := errors.Join(lock.Close(), d.isBackup(), d.noStrangers("", []string{backupMark, generationsDir})); err != nil {
			t.Errorf("marked %v: %v", marked, err)
		}
	}
}
