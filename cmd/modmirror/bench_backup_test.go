//go:build bench && linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate"
	"modmirror/sumdb"
	"modmirror/sumdb/sumdbtest"
)

// TestBenchBackup is what `make bench-backup` runs: a mirror with BENCH_MANIFESTS (default: 20,000) made-up modules of 64 KiB on
// average that cannot be compressed is backed up, restored and checked, three times each, beside cp -r and sync of the same files.
// BENCH_DIR says on which disk, and keeps the mirror between runs. BENCH_ROUNDS says how often.
func TestBenchBackup(t *testing.T) {
	number := 20_000
	if v := os.Getenv("BENCH_MANIFESTS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 100 {
			t.Fatalf("BENCH_MANIFESTS=%q: want a number from 100 on", v)
		}
		number = n
	}
	work, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "modmirror-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	b := backupBench{t: t, bin: os.Getenv("MODMIRROR_BENCH_BINARY"), data: filepath.Join(work, "data"), work: work}
	if dir := os.Getenv("BENCH_DIR"); dir != "" {
		b.data = filepath.Join(dir, fmt.Sprintf("mirror-%d", number))
	}
	began := time.Now()
	b.open(number)
	t.Logf("stocked with %d modules, %d MB, in %v", number, b.bytes>>20, time.Since(began).Round(time.Second))
	rounds := 3
	if v := os.Getenv("BENCH_ROUNDS"); v != "" {
		if rounds, err = strconv.Atoi(v); err != nil {
			t.Fatalf("BENCH_ROUNDS=%q: want a number", v)
		}
	}
	if rounds == 0 { // it is only to be stocked
		return
	}
	took := map[string][]float64{}
	for range rounds {
		b.round(took)
	}
	for _, what := range []string{"cp -r; sync", "backup to a directory", "backup again, nothing new", "backup --verify", "backup to a tar", "cp -r of the backup; sync", "restore", "restore from a tar", "restore --check"} {
		s := took[what]
		slices.Sort(s)
		median := s[len(s)/2]
		fmt.Printf("%-28s %7.2f s  %7.0f MB/s  (%.2f to %.2f s)\n", what, median, float64(b.bytes)/1e6/median, s[0], s[len(s)-1])
	}
}

type backupBench struct {
	t     *testing.T
	bin   string
	data  string // the mirror's
	work  string
	key   string // of the checksum database
	bytes int64  // of blobs
}

// open finds the mirror that an earlier run has kept, or makes it.
func (b *backupBench) open(number int) {
	b.t.Helper()
	key, err := os.ReadFile(b.data + ".key")
	if err != nil {
		b.key = b.stock(number)
		if err := os.WriteFile(b.data+".key", []byte(b.key), 0o600); err != nil {
			b.t.Fatal(err)
		}
	} else {
		b.key = string(key)
	}
	store, err := artifact.OpenStoreReadOnly(b.data)
	if err != nil {
		b.t.Fatal(err)
	}
	defer store.Close()
	for ref, err := range store.All() {
		if err != nil {
			b.t.Fatal(err)
		}
		b.bytes += ref.Size
	}
}

// stock makes the data directory of a mirror that is stopped, and returns the key of its checksum database.
func (b *backupBench) stock(number int) string {
	b.t.Helper()
	db := sumdbtest.New("sum.example.com/bench")
	ctx := b.t.Context()
	n, err := replicate.Open(ctx, replicate.Config{Dir: b.data})
	if err != nil {
		b.t.Fatal(err)
	}
	store, err := artifact.OpenStore(b.data)
	if err != nil {
		b.t.Fatal(err)
	}
	mod := func(i int) string { return fmt.Sprintf("module example.com/m%d\n\ngo 1.21\n", i) }
	version := func(i int) module.Version {
		return module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}
	}
	zip := func(i int) []byte {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		data := make([]byte, 1+r.IntN(128<<10))
		_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}).Read(data) // never fails
		return mirrortest.Zip(version(i), map[string]string{"go.mod": mod(i), "data.bin": string(data)})
	}
	refs := make([]artifact.Ref, number)
	sums := make([]string, number)
	var g errgroup.Group
	g.SetLimit(16)
	for i := range number {
		g.Go(func() error {
			z := zip(i)
			d, err := store.Create(int64(len(z)))
			if err != nil {
				return err
			}
			defer d.Discard()
			if _, err := d.Write(z); err != nil {
				return err
			}
			sums[i] = mirrortest.ZipSum(z)
			refs[i], err = d.Commit()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.t.Fatal(err)
	}
	for i := range number {
		db.Add(version(i), sums[i], mirrortest.ModSum([]byte(mod(i))))
	}
	size := db.Size()
	if err := n.TrustDatabase(ctx, db.Key()); err != nil {
		b.t.Fatal(err)
	}
	if err := n.CommitTreeHead(ctx, db.Name(), db.Head(size), 0, nil); err != nil {
		b.t.Fatal(err)
	}
	var records []artifact.Record
	var publish errgroup.Group
	publish.SetLimit(256)
	for i := range number {
		m := version(i)
		r := artifact.Record{Database: db.Name(), ID: int64(i), Text: []byte(sumdbtest.Text(m, sums[i], mirrortest.ModSum([]byte(mod(i))))), TreeSize: size, Proof: db.Prove(size, int64(i))}
		records = append(records, r)
		publish.Go(func() error {
			man, err := artifact.NewManifest(m, r)
			if err != nil {
				return err
			}
			info := []byte(`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z"}`)
			man.Info, man.Mod, man.Zip = artifact.RefOf(info), artifact.RefOf([]byte(mod(i))), refs[i]
			_, err = n.Publish(ctx, artifact.Publication{Manifest: man, Info: info, Mod: []byte(mod(i))})
			return err
		})
	}
	if err := publish.Wait(); err != nil {
		b.t.Fatal(err)
	}
	b.collect(ctx, db, tlog.Tree{N: size, Hash: db.Root(size)}, records)
	if err := store.Close(); err != nil {
		b.t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		b.t.Fatal(err)
	}
	return db.Key()
}

func (b *backupBench) collect(ctx context.Context, db *sumdbtest.Database, head tlog.Tree, records []artifact.Record) {
	b.t.Helper()
	tiles, err := sumdb.OpenTiles(tilesDir(b.data, db.Name()))
	if err != nil {
		b.t.Fatal(err)
	}
	c := &sumdb.Collector{Head: head, Store: tiles, From: []sumdb.Source{db}}
	for batch := range slices.Chunk(records, 1000) {
		if err := c.Records(ctx, batch); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := tiles.Close(); err != nil {
		b.t.Fatal(err)
	}
}

// round does everything once.
func (b *backupBench) round(took map[string][]float64) {
	b.t.Helper()
	at := func(name string) string { return filepath.Join(b.work, name) }
	time1 := func(what string, f func()) {
		began := time.Now()
		f()
		took[what] = append(took[what], time.Since(began).Seconds())
	}
	copied := func(from, to string) func() {
		return func() { b.does("sh", "-c", fmt.Sprintf("cp -r %s %s && sync %s && sync", from, to, to)) }
	}
	key := b.key
	time1("cp -r; sync", copied(b.data, at("cp")))
	b.gone(at("cp"))
	time1("backup to a directory", func() { b.does(b.bin, "backup", at("backup"), "--data-dir", b.data) })
	time1("backup again, nothing new", func() { b.does(b.bin, "backup", at("backup"), "--data-dir", b.data) })
	time1("backup --verify", func() { b.does(b.bin, "backup", at("backup"), "--data-dir", b.data, "--verify") })
	time1("cp -r of the backup; sync", copied(at("backup"), at("cp")))
	b.gone(at("cp"))
	var rep restoreReport
	time1("restore", func() {
		out := b.does(b.bin, "restore", at("backup"), "--data-dir", at("restored"), "--sumdb", key, "--json")
		if err := json.Unmarshal(out, &rep); err != nil {
			b.t.Fatal(err)
		}
	})
	b.t.Logf("of the restore: %.2f s to copy, %.2f s to check", rep.Copy, rep.Verify)
	b.gone(at("restored"))
	time1("restore --check", func() {
		b.does(b.bin, "restore", "--check", at("backup"), "--sumdb", key, "--temp-dir", b.work)
	})
	b.gone(at("backup"))
	time1("backup to a tar", func() { b.does(b.bin, "backup", at("backup.tar"), "--data-dir", b.data) })
	time1("restore from a tar", func() { b.does(b.bin, "restore", at("backup.tar"), "--data-dir", at("restored"), "--sumdb", key) })
	b.gone(at("restored"))
	b.gone(at("backup.tar"))
}

func (b *backupBench) does(name string, args ...string) []byte {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func (b *backupBench) gone(path string) {
	b.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		b.t.Fatal(err)
	}
}
