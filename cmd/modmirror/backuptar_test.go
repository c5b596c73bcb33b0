package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"modmirror/replicate"
)

// entry is a file in a tar, or what pretends to be one.
type entry struct {
	tar.Header
	data []byte
}

func readTar(t *testing.T, b []byte) (all []entry) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{*h, data})
	}
}

func writeTar(t *testing.T, all []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name string, data []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600}, data}
}

// One file, and a stream, are a backup like a directory.
func TestBackupAsTar(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(31, 32))
	s, ms := stockedSite(t, r, 6)
	dest := filepath.Join(s.dir, "backup.tar")
	rep := s.backs(dest, "--data-dir", s.data)
	if rep.NewBlobs != len(ms)+1 || rep.Manifest.Blobs.Files != len(ms)+1 {
		t.Errorf("%d of %d blobs are in the tar, want %d", rep.NewBlobs, rep.Manifest.Blobs.Files, len(ms)+1)
	}
	dir := filepath.Join(s.dir, "a")
	s.does(s.restoreArgs(dest, dir)...)
	s.works(dir, ms)
	if out := s.does("restore", "--check", dest, "--sumdb", s.db.Key()); !strings.Contains(out, "the backup is good") {
		t.Errorf("restore --check says %q", out)
	}

	// Through a pipe, as over ssh to another machine.
	dir = filepath.Join(s.dir, "b")
	from := exec.CommandContext(t.Context(), s.bin, "backup", "-", "--data-dir", s.data)
	to := exec.CommandContext(t.Context(), s.bin, s.restoreArgs("-", dir)...)
	var said, out bytes.Buffer
	from.Env, to.Env, from.Stderr, to.Stdout, to.Stderr = s.env(), s.env(), &said, &out, &out
	pipe, err := from.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	to.Stdin = pipe
	if err := from.Start(); err != nil {
		t.Fatal(err)
	}
	errTo := to.Run()
	if err := from.Wait(); err != nil || errTo != nil {
		t.Fatalf("backup - | restore -: %v, %v\n%s%s", err, errTo, &said, &out)
	}
	if !strings.Contains(said.String(), "is complete") {
		t.Errorf("backup - says on standard error %q", &said)
	}
	s.works(dir, ms)
	if left, err := filepath.Glob(filepath.Join(s.dir, ".*backup*")); err != nil || len(left) > 0 {
		t.Errorf("backups leave %q, %v", left, err)
	}
}

// A tar that is cut at any point, that has a bit turned anywhere, or a file in it that does not belong there, is refused, nothing
// is made outside of the data directory, and no mirror starts on what was restored (FAULTS 39).
func TestHostileTar(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(33, 34))
	s, ms := stockedSite(t, r, 4)
	dest := filepath.Join(s.dir, "backup.tar")
	s.backs(dest, "--data-dir", s.data)
	good, err := os.ReadFile(dest)
	if err != nil {
		t.Fatal(err)
	}
	all := readTar(t, good)
	at := func(prefix string) int {
		i := slices.IndexFunc(all, func(e entry) bool { return strings.HasPrefix(e.Name, prefix) })
		if i < 0 {
			t.Fatalf("there is no %s", prefix)
		}
		return i
	}
	blob, tile, last := at("blobs/"), at("sumdb/"), len(all)-1
	if all[0].Name != replicate.CatalogName || all[last].Name != manifestName || blob != 1 {
		t.Fatalf("the tar has %d files, from %s to %s", len(all), all[0].Name, all[last].Name)
	}
	with := func(i int, extra ...entry) []byte { return writeTar(t, slices.Insert(slices.Clone(all), i, extra...)) }
	without := func(i int) []byte { return writeTar(t, slices.Delete(slices.Clone(all), i, i+1)) }
	changed := func(i int, change func(e *entry)) []byte {
		more := slices.Clone(all)
		more[i].data = slices.Clone(more[i].data)
		change(&more[i])
		return writeTar(t, more)
	}
	turned := func(i, at int) []byte { return changed(i, func(e *entry) { e.data[at] ^= 4 }) }
	special := func(kind byte, name, link string) entry {
		return entry{tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o777}, nil}
	}
	unknown := blobFile([32]byte{0xff, 0xee})
	cases := map[string]struct {
		tar  []byte
		says string
	}{
		"nothing":                         {nil, "cut short"},
		"no tar":                          {bytes.Repeat([]byte("text "), 400), "damaged or cut short"},
		"a path out of it first":          {with(0, file("../../evil", []byte("x"))), `begins with "../../evil"`},
		"a path out of it":                {with(blob, file("../../evil", []byte("x"))), `"../../evil" does not belong`},
		"an absolute path":                {with(blob, file("/tmp/evil", []byte("x"))), `"/tmp/evil" does not belong`},
		"a path out of blobs":             {with(blob, file("blobs/sha256/../../../evil", []byte("x"))), "is not the name of a blob"},
		"a path out of tiles":             {with(tile, file(tilePrefix(databaseName)+"tile/8/0/../../../../evil", all[tile].data)), "is no tile"},
		"a blob in another spelling":      {with(blob, file("blobs//sha256/"+strings.TrimPrefix(all[blob].Name, "blobs/sha256/"), all[blob].data)), "is not the name of a blob"},
		"a link":                          {with(blob, special(tar.TypeSymlink, "blobs/sha256/aa", "/tmp")), "is no file"},
		"a hard link":                     {with(blob, special(tar.TypeLink, all[blob].Name, "/etc/passwd")), "is no file"},
		"a directory":                     {with(blob, special(tar.TypeDir, "blobs/", "")), "is no file"},
		"a file of holes":                 {sparseTar(t, replicate.CatalogName, 16<<20), "holes"},
		"a device":                        {with(blob, special(tar.TypeChar, "blobs/x", "")), "is no file"},
		"a node's file":                   {with(blob, file("node.json", []byte(`{}`))), `"node.json" does not belong`},
		"a secret":                        {with(last, file(tokenName, []byte("x"))), "does not belong"},
		"a blob that nothing names":       {with(blob, file(unknown, []byte("x"))), "does not belong into this backup"},
		"a blob twice":                    {with(blob+1, all[blob]), "is not in its place"},
		"a blob less":                     {without(blob), "is not in its place"},
		"the last blob less":              {without(tile - 1), "missing"},
		"a larger blob":                   {changed(blob, func(e *entry) { e.data = append(e.data, make([]byte, 1<<20)...) }), "limit"},
		"a smaller blob":                  {changed(blob, func(e *entry) { e.data = e.data[:len(e.data)/2] }), "it is damaged"},
		"a bit of a blob":                 {turned(blob, 77), all[blob].Name},
		"a bit of a tile":                 {turned(tile, 3), all[tile].Name},
		"a tile less":                     {without(tile), "tile/8/"},
		"a tile of another tree":          {changed(tile, func(e *entry) { e.data = otherTile(e.data) }), "do not lead to the signed root"},
		"a huge tile":                     {changed(tile, func(e *entry) { e.data = make([]byte, 1<<20) }), "file of"},
		"a tile of an unknown database":   {with(tile, file("sumdb/evil.example.org/tile/8/0/000", all[tile].data)), "does not belong"},
		"a bit of the catalog":            {turned(0, len(all[0].data)/2), replicate.CatalogName},
		"another catalog":                 {changed(0, func(e *entry) { e.data = []byte("SQLite format 3") }), replicate.CatalogName},
		"a bit of the manifest":           {turned(last, 30), manifestName},
		"no manifest":                     {without(last), "there is no manifest.json at the end"},
		"a catalog larger than the disk":  {headerOnly(t, replicate.CatalogName, 1<<50), "and the catalog of the backup has"},
		"a huge manifest":                 {changed(last, func(e *entry) { e.data = make([]byte, maxBackupManifest+2) }), "has more than"},
		"a file behind the manifest":      {with(last+1, file("blobs/x", []byte("x"))), `"blobs/x" does not belong`},
		"something behind the end":        {append(slices.Clone(good), "something"...), "something behind its end"},
		"another tar behind the end":      {append(slices.Clone(good), good...), "something behind its end"},
		"a checksum of a header is wrong": {func() []byte { b := slices.Clone(good); b[150] ^= 1; return b }(), "damaged or cut short"},
	}
	ends := 0
	for n, e := range all { // cut in every file, and between two
		ends += 512
		for _, cut := range []int{ends - 512, ends - 300, ends, ends + len(e.data)/2} {
			if n < 4 || n > last-2 {
				cases[fmt.Sprintf("cut at %d in %s", cut, e.Name)] = struct {
					tar  []byte
					says string
				}{good[:cut], ""}
			}
		}
		ends += (len(e.data) + 511) / 512 * 512
	}
	cases["cut in the middle"] = struct {
		tar  []byte
		says string
	}{good[:len(good)/2], "cut short"}
	i := 0
	for name, tt := range cases {
		i++
		path := filepath.Join(s.dir, fmt.Sprintf("bad%d.tar", i))
		if err := os.WriteFile(path, tt.tar, 0o600); err != nil {
			t.Fatal(err)
		}
		data := filepath.Join(s.dir, fmt.Sprintf("data%d", i))
		out, errs, err := s.modmirror(s.restoreArgs(path, data)...)
		if err == nil || !strings.Contains(errs, tt.says) || strings.Contains(errs, "panic") {
			t.Errorf("%s: %v, want a refusal with %q\n%s%s", name, err, tt.says, out, errs)
		}
		if i%8 == 0 {
			s.noMirror(data)
		} else if _, err := os.Stat(filepath.Join(data, "node.json")); err == nil {
			t.Errorf("%s: there is a node.json", name)
		}
		if i%16 == 0 { // the right one mends what a wrong one has begun
			s.does(s.restoreArgs(dest, data)...)
			s.works(data, ms)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*evil*")); len(left) > 0 {
		t.Errorf("a tar has made %q", left)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.dir), "evil")); err == nil {
		t.Error("a tar has made a file outside")
	}
}

// headerOnly returns the beginning of a tar that says that such a file follows.
func headerOnly(t *testing.T, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sparseTar returns a tar with one file of holes (PAX, GNU sparse format 1.0).
func sparseTar(t *testing.T, name string, size int) []byte {
	t.Helper()
	var records string
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=" + name, fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		records += fmt.Sprintf("%d %s\n", len(kv)+4, kv) // two digits, a space and the end of the line
	}
	holes := make([]byte, 512)
	copy(holes, fmt.Sprintf("1\n%d\n0\n", size))
	b := writeTar(t, []entry{file("records", []byte(records)), file("holes", holes)})
	b[156] = tar.TypeXHeader
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// otherTile returns a tile file that is whole, with other hashes.
func otherTile(b []byte) []byte {
	hashes := slices.Clone(b[:len(b)-32])
	hashes[0] ^= 1
	sum := sha256.Sum256(hashes)
	return append(hashes, sum[:]...)
}
