//go:build bench && linux

package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/replicate"
	"modmirror/sumdb"
	"modmirror/sumdb/sumdbtest"
)

// stockUsual makes the data directory of a mirror that is stopped and holds number made-up module versions of usual sizes, each
// with an info, a go.mod and a zip, and whose records are the next ones of db.
func stockUsual(t *testing.T, dir string, db *sumdbtest.Database, number int) {
	t.Helper()
	n, err := replicate.Open(t.Context(), replicate.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { report(t, n.Close()) }()
	zips, err := writeZips(dir, number)
	if err != nil {
		t.Fatal(err)
	}
	mod := func(i int) []byte { return modOf(usualVersion(i), i) }
	for i := range number {
		db.Add(usualVersion(i), zips[i].sum, mirrortest.ModSum(mod(i)))
	}
	size := db.Size()
	if err := n.TrustDatabase(t.Context(), db.Key()); err != nil {
		t.Fatal(err)
	}
	if err := n.CommitTreeHead(t.Context(), db.Name(), db.Head(size), 0, nil); err != nil {
		t.Fatal(err)
	}
	var records []artifact.Record
	for part := range slices.Chunk(zips, 20_000) { // what is proposed at a time stands in memory
		var ps []artifact.Publication
		for _, z := range part {
			i := len(records)
			m := usualVersion(i)
			text := sumdbtest.Text(m, z.sum, mirrortest.ModSum(mod(i)))
			r := artifact.Record{Database: db.Name(), ID: int64(i), Text: []byte(text), TreeSize: size, Proof: db.Prove(size, int64(i))}
			man, err := artifact.NewManifest(m, r)
			if err != nil {
				t.Fatal(err)
			}
			info := infoOf(m)
			man.Info, man.Mod, man.Zip = artifact.RefOf(info), artifact.RefOf(mod(i)), z.ref
			ps = append(ps, artifact.Publication{Manifest: man, Info: info, Mod: mod(i)})
			records = append(records, r)
		}
		if err := publishEach(t.Context(), n, ps); err != nil {
			t.Fatal(err)
		}
	}
	if err := collectUsual(t.Context(), dir, db, records); err != nil {
		t.Fatal(err)
	}
}

func usualVersion(i int) module.Version {
	return module.Version{Path: fmt.Sprintf("example.com/owner%d/module%d", i%7919, i/10), Version: fmt.Sprintf("v1.%d.0", i%10)}
}

func infoOf(m module.Version) []byte {
	return fmt.Appendf(nil, `{"Version":"%s","Time":"2024-05-06T07:08:09Z","Origin":{"VCS":"git","URL":"https://%s","Hash":"%040d"}}`, m.Version, m.Path, 1)
}

func modOf(m module.Version, i int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "module %s\n\ngo 1.21\n\nrequire (\n", m.Path)
	for k := range i % 30 {
		fmt.Fprintf(&b, "\texample.com/owner%d/module%d v1.%d.0\n", k, k, k%10)
	}
	b.WriteString(")\n")
	return b.Bytes()
}

func collectUsual(ctx context.Context, dir string, db *sumdbtest.Database, records []artifact.Record) error {
	tiles, err := sumdb.OpenTiles(tilesDir(dir, db.Name()))
	if err != nil {
		return err
	}
	size := db.Size()
	c := &sumdb.Collector{Head: tlog.Tree{N: size, Hash: db.Root(size)}, Store: tiles, From: []sumdb.Source{db}}
	for batch := range slices.Chunk(records, 1000) {
		if err := c.Records(ctx, batch); err != nil {
			return err
		}
	}
	return tiles.Close()
}

// usualZip is a zip that was written.
type usualZip struct {
	ref artifact.Ref
	sum string
}

// writeZips writes number zips straight into the store below dir: to make 5 GB of them durable one by one is not what is measured.
func writeZips(dir string, number int) ([]usualZip, error) {
	store, err := artifact.OpenStore(dir) // makes the directories
	if err != nil {
		return nil, err
	}
	if err := store.Close(); err != nil {
		return nil, err
	}
	blobs := filepath.Join(dir, "blobs", "sha256")
	for shard := range artifact.Shards {
		if err := os.MkdirAll(filepath.Join(blobs, fmt.Sprintf("%02x", shard)), 0o700); err != nil {
			return nil, err
		}
	}
	pool := newZipPool()
	out := make([]usualZip, number)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range number {
		g.Go(func() error {
			b, sum, err := pool.zip(usualVersion(i), i)
			if err != nil {
				return err
			}
			out[i] = usualZip{artifact.RefOf(b), sum}
			name := out[i].ref.Digest.String()
			return os.WriteFile(filepath.Join(blobs, name[:2], name), b, 0o600)
		})
	}
	return out, g.Wait()
}

// zipPool is files that are packed already: zips of 5 GB are put together from them in the time of writing those.
type zipPool []packedFile

type packedFile struct {
	header zip.FileHeader // without a name
	packed []byte
	sum    [sha256.Size]byte
}

// newZipPool makes files that are packed to a third or a quarter, as sources are.
func newZipPool() (pool zipPool) {
	r := rand.New(rand.NewPCG(3, 4))
	words := make([]string, 3000)
	for i := range words {
		word := make([]byte, 2+r.IntN(10))
		for k := range word {
			word[k] = byte('a' + r.IntN(26))
		}
		words[i] = string(word)
	}
	for range 600 {
		var raw bytes.Buffer
		for size := int(math.Exp(8.3 + 0.9*r.NormFloat64())); raw.Len() < size; {
			raw.WriteString(words[min(int(r.ExpFloat64()*300), len(words)-1)])
			raw.WriteString([]string{" ", " ", " ", ".", "(", ")\n\t", " := ", ", "}[r.IntN(8)])
		}
		pool = append(pool, pack(raw.Bytes()))
	}
	return pool
}

func pack(raw []byte) packedFile {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(raw) // to memory
	_ = w.Close()
	return packedFile{zip.FileHeader{Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(raw), CompressedSize64: uint64(b.Len()), UncompressedSize64: uint64(len(raw))}, b.Bytes(), sha256.Sum256(raw)}
}

// zip makes the zip of the i-th version, and its h1. Sizes are lognormal: half have less than 20 KB, one of a thousand more than 1 MB.
func (pool zipPool) zip(m module.Version, i int) ([]byte, string, error) {
	r := rand.New(rand.NewPCG(5, uint64(i)))
	size := min(int(math.Exp(9.9+1.35*r.NormFloat64())), 20<<20)
	prefix := m.Path + "@" + m.Version + "/"
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	var lines []string
	add := func(name string, f packedFile) error {
		f.header.Name = prefix + name
		lines = append(lines, fmt.Sprintf("%x  %s\n", f.sum, f.header.Name))
		w, err := z.CreateRaw(&f.header)
		if err != nil {
			return err
		}
		_, err = w.Write(f.packed)
		return err
	}
	if err := add("go.mod", pack(modOf(m, i))); err != nil {
		return nil, "", err
	}
	for k := 0; b.Len() < size; k++ {
		if err := add(fmt.Sprintf("p%d/file%d.go", k%9, k), pool[r.IntN(len(pool))]); err != nil {
			return nil, "", err
		}
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[66:], b[66:]) })
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return b.Bytes(), "h1:" + base64.StdEncoding.EncodeToString(sum[:]), nil
}
