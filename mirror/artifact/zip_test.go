package artifact_test

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

var hello = module.Version{Path: "example.com/hello", Version: "v1.0.0"}

// open puts b into a file.
func open(t testing.TB, b []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t testing.TB, b []byte) (artifact.ZipSums, error) {
	t.Helper()
	return artifact.CheckZip(t.Context(), open(t, b), int64(len(b)), hello)
}

func entry(name, data string) mirrortest.Entry {
	return mirrortest.Entry{Name: hello.String() + "/" + name, Data: data}
}

// streamed returns a zip as the go command writes it, with data descriptors. Names that end in a slash are directories.
func streamed(names ...string) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range names {
		f, _ := w.Create(hello.String() + "/" + name)
		if !strings.HasSuffix(name, "/") && name != "" && name != "empty" {
			fmt.Fprintf(f, "content of %s", name)
		}
	}
	w.Close()
	return b.Bytes()
}

// honestZips are all accepted; the first is the one that tests break.
func honestZips() map[string][]byte {
	mod := entry("go.mod", "module example.com/hello\n")
	noise := make([]byte, 300<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	return map[string][]byte{
		"as the go command writes it":    streamed("z.go", "go.mod", "a/b.go", "empty"),
		"without data descriptors":       mirrortest.HonestZip(hello),
		"without a go.mod":               mirrortest.RawZip("", entry("a.go", "package a\n")),
		"with an empty go.mod":           mirrortest.RawZip("", entry("go.mod", "")),
		"no entries":                     mirrortest.RawZip(""),
		"stored":                         mirrortest.Repack(mirrortest.HonestZip(hello)),
		"with directories":               streamed("", "d/", "d/x.go", "go.mod"),
		"names that sort by byte":        mirrortest.RawZip("", entry("é.go", "1"), entry("a-b", "2"), entry("a/b", "3"), entry("a b", "4")),
		"incompressible, several blocks": mirrortest.RawZip("", mod, entry("noise", string(noise))),
		"modes and extra fields":         mirrortest.RawZip("", mirrortest.Entry{Name: hello.String() + "/x.sh", Data: "x", Mode: 0o755, Extra: []byte{1, 2, 0, 0}}),
		"its own name in an extra field": mirrortest.RawZip("", mirrortest.Entry{Name: mod.Name, Data: mod.Data, Extra: mirrortest.UnicodePath(mod.Name, mod.Name)}),
		"zip64 without need":             zip64(mirrortest.HonestZip(hello)),
		"zip64 sizes without need":       local64(),
		"descriptor":                     described(false, 4),
		"signed descriptor":              described(true, 4),
		"descriptor of zip64":            described(false, 8),
		"signed descriptor of zip64":     described(true, 8),
	}
}

// extras returns a zip with these extra fields, in its local header and in the directory.
func extras(local, directory []byte) []byte {
	header, data, central := oneEntry(0)
	name := int(central[28])
	header[28], central[30] = byte(len(local)), byte(len(directory))
	central = slices.Insert(central, 46+name, directory...)
	end := len(central) - 22
	binary.LittleEndian.PutUint32(central[end+12:], uint32(end))
	return joined(central, header, local, data)
}

// field returns an extra field.
func field(id uint16, data ...uint64) []byte {
	b := binary.LittleEndian.AppendUint16(nil, id)
	b = binary.LittleEndian.AppendUint16(b, uint16(8*len(data)))
	for _, n := range data {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// What extra fields say is what the headers say: some programs believe the ones, some the others.
func TestCheckZipOfExtraFields(t *testing.T) {
	name, other, any := hello.String()+"/go.mod", hello.String()+"/go.sum", field(0x5455, 1)
	same, differs, sizes := mirrortest.UnicodePath(name, name), mirrortest.UnicodePath(name, other), field(1, 25, 25)
	wrongSum := slices.Clone(differs)
	wrongSum[5]++
	for _, tt := range []struct {
		name             string
		local, directory []byte
		want             string // "": accepted
	}{
		{"none", nil, nil, ""},
		{"of other kinds", any, slices.Concat(any, any), ""},
		{"the same name", same, same, ""},
		{"another name in the local header", differs, nil, `another name, "` + other},
		{"another name in the directory", nil, differs, `another name, "` + other},
		{"another name behind others", nil, slices.Concat(any, same, differs), `another name, "` + other},
		{"another name that the sum makes void", nil, wrongSum, `another name, "` + other},
		{"an empty name", mirrortest.UnicodePath(name, ""), nil, "another name"},
		{"a name cut short", nil, []byte{0x75, 0x70, 2, 0, 1, 2}, "another name"},
		{"zip64 sizes in the directory", nil, sizes, "needs none"},
		{"an empty zip64 field in the directory", nil, field(1), "needs none"},
		{"zip64 sizes that nothing announces", sizes, nil, "does not announce"},
		{"zip64 sizes twice", slices.Concat(sizes, sizes), nil, "two extra fields"},
		{"a field that is longer than all", []byte{1, 2, 3, 0, 0}, nil, "cut short"},
		{"a field that is longer than all, in the directory", nil, []byte{1, 2, 3, 0, 0}, "cut short"},
		{"a field without a length", nil, slices.Concat(any, []byte{1, 2, 3}), "cut short"},
	} {
		b := extras(tt.local, tt.directory)
		if _, err := dirhash.HashZip(open(t, b).Name(), dirhash.Hash1); err != nil {
			t.Fatalf("%s: the go command cannot read it: %v", tt.name, err)
		}
		sums, err := check(t, b)
		if tt.want != "" {
			refused(t, tt.name, sums, err, tt.want)
		} else if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for name, fields := range map[string]func(packed, raw uint64) []byte{
		"lacks the zip64 sizes": func(_, raw uint64) []byte { return field(1, raw) },
		"that it announces":     func(packed, raw uint64) []byte { return field(1, raw, packed, 0) },
		"two extra fields":      func(packed, raw uint64) []byte { return slices.Concat(field(1, raw, packed), field(1, raw, packed)) },
	} {
		sums, err := check(t, announced64(fields))
		refused(t, "announced zip64 sizes", sums, err, name)
	}
}

// oneEntry returns the parts of a zip with a go.mod: its local header, the compressed data, and the directory.
func oneEntry(flags uint16) (header, data, directory []byte) {
	e := entry("go.mod", "module example.com/hello\n")
	e.Flags = flags
	b := mirrortest.RawZip("", e)
	central := bytes.Index(b, []byte("PK\x01\x02"))
	at := 30 + len(e.Name)
	return b[:at:at], b[at : at+int(b[central+20])], bytes.Clone(b[central:])
}

// joined returns the zip of these parts, with the right offset of the directory.
func joined(directory []byte, front ...[]byte) []byte {
	b := slices.Concat(front...)
	binary.LittleEndian.PutUint32(directory[len(directory)-6:], uint32(len(b)))
	return append(b, directory...)
}

// local64 returns a zip whose local header has the sizes in an extra field, as it must have them from 4 GiB on.
func local64() []byte {
	return announced64(func(packed, raw uint64) []byte { return field(1, raw, packed) })
}

// announced64 returns a zip whose local header announces sizes in its extra fields.
func announced64(fields func(packed, raw uint64) []byte) []byte {
	header, data, directory := oneEntry(0)
	le := binary.LittleEndian
	extra := fields(uint64(le.Uint32(header[18:])), uint64(le.Uint32(header[22:])))
	copy(header[18:], "\xff\xff\xff\xff\xff\xff\xff\xff")
	header[28] = byte(len(extra))
	return joined(directory, header, extra, data)
}

// descriptorAt is where the data descriptor begins in what described returns.
var descriptorAt = func() int {
	header, data, _ := oneEntry(8)
	return len(header) + len(data)
}()

// described returns a zip whose data descriptor has sizes of so many bytes.
func described(signed bool, width int) []byte {
	header, data, directory := oneEntry(8)
	var d []byte
	if signed {
		d = append(d, "PK\x07\x08"...)
	}
	d = append(d, directory[16:20]...)
	for _, at := range []int{20, 24} {
		d = append(d, append(directory[at:at+4:at+4], 0, 0, 0, 0)[:width]...)
	}
	return joined(directory, header, data, d)
}

// changed returns b with the byte at i flipped.
func changed(b []byte, i int, mask byte) []byte {
	b[i] ^= mask
	return b
}

// zip64 returns b with its end in the zip64 form.
func zip64(b []byte) []byte {
	le, stop := binary.LittleEndian, len(b)-22
	old := b[stop:]
	out := append(bytes.Clone(b[:stop]), "PK\x06\x06"...)
	out = le.AppendUint64(out, 44)
	out = append(out, 45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, n := range []uint64{uint64(le.Uint16(old[8:])), uint64(le.Uint16(old[10:])), uint64(le.Uint32(old[12:])), uint64(le.Uint32(old[16:])), 0} {
		out = le.AppendUint64(out, n)
	}
	out = append(out[:len(out)-8], "PK\x06\x07\x00\x00\x00\x00"...)
	out = le.AppendUint64(out, uint64(stop))
	out = append(out, 1, 0, 0, 0)
	out = append(out, "PK\x05\x06\x00\x00\x00\x00"...)
	out = append(out, bytes.Repeat([]byte{0xff}, 12)...)
	return append(out, 0, 0)
}

func TestCheckZipEqualsDirhash(t *testing.T) {
	list := honestZips()
	list["zip64 by number of entries"] = mirrortest.ManyEntries(hello, 1<<16+5)
	for name, b := range list {
		want, err := dirhash.HashZip(open(t, b).Name(), dirhash.Hash1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := check(t, b)
		if err != nil || got.H1 != want {
			t.Errorf("%s: CheckZip = %s, %v, dirhash.HashZip = %s", name, got.H1, err, want)
		}
		r, _ := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		var raw int64
		for _, f := range r.File {
			raw += int64(f.UncompressedSize64)
		}
		if got.Files != len(r.File) || got.Raw != raw {
			t.Errorf("%s: CheckZip counts %d files, %d bytes, want %d, %d", name, got.Files, got.Raw, len(r.File), raw)
		}
	}
}

func TestCheckZipReturnsGoMod(t *testing.T) {
	for _, tt := range []struct {
		name string
		zip  []byte
		want []byte
	}{
		{"at the root", mirrortest.HonestZip(hello), mirrortest.HonestMod(hello)},
		{"none", mirrortest.RawZip("", entry("a.go", "package a\n")), nil},
		{"empty", mirrortest.RawZip("", entry("go.mod", "")), []byte{}},
	} {
		got, err := check(t, tt.zip)
		if err != nil || !bytes.Equal(got.GoMod, tt.want) || (got.GoMod == nil) != (tt.want == nil) {
			t.Errorf("%s: GoMod = %q, %v, want %q", tt.name, got.GoMod, err, tt.want)
		}
	}
}

func TestCheckZipRefusesHostileZips(t *testing.T) {
	for _, h := range mirrortest.HostileZips(hello) {
		sums, err := check(t, h.Zip)
		refused(t, h.Name, sums, err, "")
	}
}

// refused reports whether a check ended in a refusal that is fit to be shown.
func refused(t *testing.T, what string, sums artifact.ZipSums, err error, want string) {
	t.Helper()
	if !errors.Is(err, artifact.ErrRefused) || errors.Is(err, fs.ErrNotExist) || sums.H1 != "" {
		t.Errorf("%s: CheckZip = %v, %v, want ErrRefused", what, sums, err)
		return
	}
	msg := err.Error()
	if !strings.Contains(msg, want) {
		t.Errorf("%s: the message does not name %q: %s", what, want, msg)
	}
	if len(msg) > 1200 || strings.ContainsFunc(msg, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Errorf("%s: unsafe message %q", what, msg)
	}
}

func TestCheckZipNamesTheOffender(t *testing.T) {
	good := mirrortest.HonestZip(hello)
	le := binary.LittleEndian
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	edit64 := func(f func(b []byte)) []byte {
		b := zip64(good)
		f(b)
		return b
	}
	central := bytes.Index(good, []byte("PK\x01\x02"))
	end := len(good) - 22
	long := strings.Repeat("x", 5000)
	for _, tt := range []struct {
		name string
		zip  []byte
		want string
	}{
		{"go.mod with a blank", mirrortest.RawZip("", entry("go.mod ", "module x\n")), `/go.mod "`},
		{"go.mod with a blank below", mirrortest.RawZip("", entry("sub/ go.MOD", "module x\n")), `/sub/ go.MOD"`},
		{"duplicate directory", streamed("d/", "d/"), `/d/"`},
		{"escape sequences", mirrortest.RawZip("", entry("\x1b[2Jx", "")), `\x1b[2Jx`},
		{"long name", mirrortest.RawZip("", entry(long, "")), "4096"},
		{"deep names", mirrortest.RawZip("", deep(600)...), "too long and deep"},
		{"device", mirrortest.RawZip("", mirrortest.Entry{Name: hello.String() + "/dev", Mode: fs.ModeDevice | 0o666}), "not a regular file"},
		{"encrypted", edit(func(b []byte) { b[central+8] |= 1 }), "encrypted"},
		{"other method in the local header", edit(func(b []byte) { b[8] = 0 }), "method"},
		{"zip64 end elsewhere", edit64(func(b []byte) { b[end+56+8]-- }), "zip64"},
		{"zip64 end with more in it", edit64(func(b []byte) { b[end+4]++ }), "zip64"},
		{"zip64 with two counts", edit64(func(b []byte) { b[end+24]++ }), "zip64"},
		{"zip64 on two disks", edit64(func(b []byte) { b[end+56+16]++ }), "zip64"},
		{"zip64 with a huge count", edit64(func(b []byte) { b[end+30], b[end+38] = 1, 1 }), "200000"},
		{"zip64 with a negative count", edit64(func(b []byte) { b[end+31], b[end+39] = 0x80, 0x80 }), ""},
		{"zip64 with a negative length", edit64(func(b []byte) { b[end+47] = 0x80 }), ""},
		{"two disks", edit(func(b []byte) { b[end+4] = 1 }), "disk"},
		{"shorter name in the local header", edit(func(b []byte) { b[26]--; b[28]++ }), "another name"},
		{"junk behind the directory", slices.Concat(good[:end], []byte("junk"), good[end:]), "does not end"},
		{"entry on another disk", edit(func(b []byte) { b[central+34]++ }), "entry 0"},
		{"zip64 locator of another disk", edit64(func(b []byte) { b[end+56+4]++ }), "zip64"},
		{"zip64 end of another disk", edit64(func(b []byte) { b[end+16]++ }), "zip64"},
		{"other count for this disk", edit(func(b []byte) { b[end+8]++ }), "disk"},
		{"count too small", edit(func(b []byte) { b[end+8]--; b[end+10]-- }), "between"},
		{"count too large", edit(func(b []byte) { b[end+8]++; b[end+10]++ }), "cut short"},
		{"large directory", edit(func(b []byte) { le.PutUint32(b[end+12:], 64<<20) }), "33554432"},
		{"overlap", edit(func(b []byte) { b[central+20]++ }), "overlaps"},
		{"hole", edit(func(b []byte) { b[18]--; b[central+20]-- }), "belong to no entry"},
		{"tail in front of the directory", moveDirectory(good), "belong to no entry"},
		{"zip64 sizes announced and missing", edit(func(b []byte) { copy(b[18:], "\xff\xff\xff\xff\xff\xff\xff\xff") }), "zip64 sizes"},
		{"zip64 sizes that lie", changed(local64(), 30+len(hello.String())+len("/go.mod")+4, 1), "other sizes"},
		{"8-byte sizes that lie", changed(described(true, 8), descriptorAt+8, 1), "data descriptor"},
		{"no signature where there is place for one", changed(described(true, 8), descriptorAt, 1), "data descriptor"},
		{"a descriptor of an odd size", slices.Concat(described(false, 4)[:descriptorAt], []byte("x"), described(false, 4)[descriptorAt:]), ""},
		{"offset in zip64", edit(func(b []byte) { le.PutUint32(b[central+42:], 1<<32-1) }), "entry 0"},
	} {
		sums, err := check(t, tt.zip)
		refused(t, tt.name, sums, err, tt.want)
	}
}

// deep returns n entries whose names are as long and as deep as they may be.
func deep(n int) (list []mirrortest.Entry) {
	for i := range n {
		list = append(list, entry(fmt.Sprintf("%04d", i)+strings.Repeat("/x", 2000), ""))
	}
	return list
}

// moveDirectory puts bytes between the last entry and the directory.
func moveDirectory(b []byte) []byte {
	const junk = "as long as a CRC" // a data descriptor has 16 bytes, but nothing announces one
	central, end := bytes.Index(b, []byte("PK\x01\x02")), len(b)-22
	out := append(bytes.Clone(b[:central]), junk...)
	out = append(out, b[central:]...)
	binary.LittleEndian.PutUint32(out[len(junk)+end+16:], uint32(central+len(junk)))
	return out
}

func TestCheckZipEnforcesSizes(t *testing.T) {
	b := mirrortest.Bomb(hello, 600<<20)
	sums, err := check(t, b)
	refused(t, "bomb", sums, err, "524288000")

	f := open(t, nil)
	if err := os.Truncate(f.Name(), artifact.MaxZip+1); err != nil {
		t.Fatal(err)
	}
	sums, err = artifact.CheckZip(t.Context(), f, artifact.MaxZip+1, hello)
	refused(t, "large file", sums, err, "524288000")

	big := entry("go.mod", "x")
	big.Declared = 16<<20 + 1
	sums, err = check(t, mirrortest.RawZip("", big))
	refused(t, "large go.mod", sums, err, "16777216")

	b = streamed("a/", "b") // x/mod does not count directories
	binary.LittleEndian.PutUint32(b[22:], 1<<30)
	binary.LittleEndian.PutUint32(b[bytes.Index(b, []byte("PK\x01\x02"))+24:], 1<<30)
	sums, err = check(t, b)
	refused(t, "directory with contents", sums, err, "524288000")
}

func TestLyingZipCostsNothing(t *testing.T) {
	b := mirrortest.Bomb(hello, 2<<30)
	central := bytes.LastIndex(b, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(b[22:], 10)
	binary.LittleEndian.PutUint32(b[central+24:], 10)
	f := open(t, b)
	cost := func() (time.Duration, uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		sums, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		refused(t, "lie", sums, err, "not the 10 bytes")
		return took, after.TotalAlloc - before.TotalAlloc
	}
	took, n := cost()
	for range 4 {
		if again, _ := cost(); again < took {
			took = again // the machine has other things to do, too
		}
	}
	if n > 8<<20 || took > time.Second {
		t.Errorf("a lying zip of %d bytes costs %v and %d bytes of memory", len(b), took, n)
	}
}

// A flipped byte is refused, or changes h1, or changes nothing that a reader of the zip sees. In the last case the digest
// of the bytes tells the two apart.
func TestCheckZipUnderFlippedBytes(t *testing.T) {
	for _, name := range []string{"as the go command writes it", "without data descriptors", "zip64 without need"} {
		good := honestZips()[name]
		want, err := check(t, good)
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, good)
		var refusals, same int
		for i := range good {
			for _, mask := range []byte{0x01, 0x20, 0xff} {
				b := bytes.Clone(good)
				b[i] ^= mask
				if err := os.WriteFile(f.Name(), b, 0o600); err != nil {
					t.Fatal(err)
				}
				got, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello)
				if err != nil {
					if !errors.Is(err, artifact.ErrRefused) {
						t.Errorf("%s: byte %d ^ %#x: %v, want ErrRefused", name, i, mask, err)
					}
					refusals++
					continue
				}
				if h1, err := dirhash.HashZip(f.Name(), dirhash.Hash1); err != nil || h1 != got.H1 {
					t.Errorf("%s: byte %d ^ %#x: CheckZip = %s, dirhash.HashZip = %s, %v", name, i, mask, got.H1, h1, err)
				}
				if got.H1 != want.H1 {
					continue
				}
				same++
				if contents(b) != contents(good) || !bytes.Equal(got.GoMod, want.GoMod) {
					t.Errorf("%s: byte %d ^ %#x: same h1, other contents", name, i, mask)
				}
			}
		}
		if refusals == 0 || same == 0 {
			t.Errorf("%s: %d refusals, %d times the same h1: the test is blind", name, refusals, same)
		}
	}
}

// contents returns what archive/zip reads in b, in the order of the directory.
func contents(b []byte) string {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			return err.Error()
		}
		data, err := io.ReadAll(r)
		fmt.Fprintf(&out, "%q %q %v\n", f.Name, data, err)
	}
	return out.String()
}

// slowFile calls before in front of every read.
type slowFile struct {
	*os.File
	before func(n int64) error
	reads  atomic.Int64
}

func (f *slowFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.before(f.reads.Add(1)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func TestCheckZipEndsWithItsContext(t *testing.T) {
	b := honestZips()["incompressible, several blocks"]
	for _, at := range []int64{1, 2, 8, 12} {
		ctx, cancel := context.WithCancel(t.Context())
		f := &slowFile{File: open(t, b), before: func(n int64) error {
			if n == at {
				cancel()
			}
			return nil
		}}
		_, err := artifact.CheckZip(ctx, f, int64(len(b)), hello)
		if !errors.Is(err, context.Canceled) || errors.Is(err, artifact.ErrRefused) {
			t.Errorf("cancelled at read %d of %d: %v, want context.Canceled", at, f.reads.Load(), err)
		}
		cancel()
	}
}

// A disk that cannot be read says nothing about the zip, and must not look like a missing version either.
func TestCheckZipTellsReadFaultsFromRefusals(t *testing.T) {
	b := honestZips()["as the go command writes it"]
	broken := errors.New("input/output error")
	for at := int64(1); ; at++ {
		f := &slowFile{File: open(t, b), before: func(n int64) error {
			if n >= at {
				return fmt.Errorf("read: %w", broken)
			}
			return nil
		}}
		_, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello)
		if err == nil {
			if at < 10 {
				t.Errorf("no fault in %d reads", at)
			}
			break
		}
		if !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, artifact.ErrRefused) {
			t.Errorf("fault at read %d: %v, want ErrUnavailable", at, err)
		}
	}
	f := open(t, b)
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	_, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello)
	if !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, artifact.ErrRefused) {
		t.Errorf("without the file: %v, want ErrUnavailable", err)
	}
}

func TestCheckZipComparesTheNamedFile(t *testing.T) {
	b := mirrortest.HonestZip(hello)
	f := open(t, b)
	other := mirrortest.RawZip("", entry("other.go", "package other\n"))
	if err := os.WriteFile(f.Name()+".new", other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.Name()+".new", f.Name()); err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("other file under the name: %v, want ErrUnavailable", err)
	}
}

func TestCheckZipSurvivesPanics(t *testing.T) {
	b := honestZips()["as the go command writes it"]
	for at := int64(1); at < 12; at++ {
		f := &slowFile{File: open(t, b), before: func(n int64) error {
			if n == at {
				panic("index out of range")
			}
			return nil
		}}
		if _, err := artifact.CheckZip(t.Context(), f, int64(len(b)), hello); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("panic at read %d: %v, want ErrRefused", at, err)
		}
	}
}

func TestCheckZipOfAnotherVersion(t *testing.T) {
	b := mirrortest.HonestZip(hello)
	for _, m := range []module.Version{
		{Path: "example.com/hello", Version: "v1.0.1"},
		{Path: "example.com/hell", Version: "v1.0.0"},
		{Path: "example.com/hello", Version: "v1.0"},
		{Path: "example.com/hello/v2", Version: "v1.0.0"},
	} {
		if _, err := artifact.CheckZip(t.Context(), open(t, b), int64(len(b)), m); !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("as %s: %v, want ErrRefused", m, err)
		}
	}
}

// What CheckZip accepts, the go command accepts with the same sum, and whoever reads it from the front sees the same.
func FuzzCheckZip(f *testing.F) {
	for name, b := range honestZips() {
		if name != "incompressible, several blocks" {
			f.Add(b)
		}
	}
	for _, h := range mirrortest.HostileZips(hello) {
		if len(h.Zip) < 4<<10 {
			f.Add(h.Zip)
		}
	}
	f.Add(extras(field(1, 25, 25), nil))
	f.Add(extras(nil, field(1, 25, 25)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		file := open(t, b)
		got, err := artifact.CheckZip(t.Context(), file, int64(len(b)), hello)
		if err != nil {
			if !errors.Is(err, artifact.ErrRefused) {
				t.Errorf("CheckZip: %v, want ErrRefused", err)
			}
			return
		}
		if _, err := modzip.CheckZip(hello, file.Name()); err != nil {
			t.Errorf("CheckZip accepts what x/mod refuses: %v", err)
		}
		if h1, err := dirhash.HashZip(file.Name(), dirhash.Hash1); err != nil || h1 != got.H1 {
			t.Errorf("CheckZip = %s, dirhash.HashZip = %s, %v", got.H1, h1, err)
		}
		if h1, ok := frontH1(b); ok && h1 != got.H1 {
			t.Errorf("CheckZip = %s, but read from its front it is %s", got.H1, h1)
		}
	})
}

// frontH1 returns the h1 of what a program sees that reads a zip from its front to the directory, and believes no size of
// what it can inflate. It is not ok if there is an entry with a data descriptor that is not compressed: that has no end.
func frontH1(b []byte) (h1 string, ok bool) {
	le, files := binary.LittleEndian, make(map[string][]byte)
	var names []string
	for len(b) >= 30 && le.Uint32(b) == 0x04034b50 {
		flags, method, size := le.Uint16(b[6:]), le.Uint16(b[8:]), int(le.Uint32(b[18:]))
		name, extra := int(le.Uint16(b[26:])), int(le.Uint16(b[28:]))
		names = append(names, string(b[30:30+name]))
		b = b[30+name+extra:]
		switch {
		case method == zip.Deflate:
			in := bytes.NewReader(b) // flate takes no byte too many from one
			data, err := io.ReadAll(flate.NewReader(in))
			if err != nil {
				return "deflate: " + err.Error(), size > 0
			}
			files[names[len(names)-1]], b = data, b[len(b)-in.Len():]
		case flags&8 != 0 || size > len(b):
			return "", false
		default:
			files[names[len(names)-1]], b = b[:size], b[size:]
		}
		for flags&8 != 0 && len(b) >= 4 && le.Uint32(b) != 0x04034b50 && le.Uint32(b) != 0x02014b50 {
			b = b[4:] // of the descriptor
		}
	}
	h1, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files[name])), nil })
	return h1, err == nil
}

func BenchmarkCheckZip(b *testing.B) {
	zipped := benchZip()
	f := open(b, zipped)
	b.Run("CheckZip", func(b *testing.B) {
		b.SetBytes(int64(len(zipped)))
		for b.Loop() {
			if _, err := artifact.CheckZip(b.Context(), f, int64(len(zipped)), hello); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("dirhash", func(b *testing.B) {
		b.SetBytes(int64(len(zipped)))
		for b.Loop() {
			if _, err := dirhash.HashZip(f.Name(), dirhash.Hash1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchZip is about 60 MB of text-like files, of many sizes.
func benchZip() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for i := 0; out.Len() < 60<<20; i++ {
		f, _ := w.Create(fmt.Sprintf("%s/p%d/f%d.go", hello, i%97, i))
		line := make([]byte, 48)
		for range 1 << r.IntN(13) {
			for j := range line {
				line[j] = byte('a' + r.IntN(26)*r.IntN(2))
			}
			_, _ = f.Write(line)
		}
	}
	w.Close()
	return out.Bytes()
}
