package mirrortest

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"golang.org/x/mod/module"
)

// Entry is one file in a [RawZip].
type Entry struct {
	Name     string // as it stands in the zip, with the prefix module@version/
	Data     string
	Local    string      // name in the local header, of the same length, if it differs
	Declared uint64      // size that the headers declare, if it is not that of Data
	CRC      uint32      // checksum that the headers declare, if it is not that of Data
	Behind   string      // bytes behind the compressed data that count as part of them
	Method   uint16      // zip.Deflate if zero
	Flags    uint16      // set in both headers, in addition
	Mode     fs.FileMode // unix mode bits, if not zero
	Extra    []byte
}

// RawZip returns a zip of exactly these entries in this order, whatever the rules for modules.
// It panics if archive/zip cannot write one, or a Local name has another length.
func RawZip(comment string, entries ...Entry) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	must(z.SetComment(comment))
	locals := make(map[string]string)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.Name, Method: zip.Deflate, Flags: e.Flags, Extra: e.Extra, CRC32: crc32.ChecksumIEEE([]byte(e.Data)), UncompressedSize64: uint64(len(e.Data))}
		data := deflate(e.Data)
		if e.Method != 0 {
			h.Method, data = e.Method, []byte(e.Data)
		}
		if e.Declared != 0 {
			h.UncompressedSize64 = e.Declared
		}
		if e.CRC != 0 {
			h.CRC32 = e.CRC
		}
		if e.Mode != 0 {
			h.SetMode(e.Mode)
		}
		data = append(data, e.Behind...)
		h.CompressedSize64 = uint64(len(data))
		w, err := z.CreateRaw(h)
		must(err)
		_, err = w.Write(data)
		must(err)
		if e.Local != "" {
			locals[e.Name] = e.Local
		}
	}
	must(z.Close())
	out := b.Bytes()
	for name, local := range locals {
		if len(name) != len(local) {
			panic(fmt.Sprintf("mirrortest: local name %q has not the length of %q", local, name))
		}
		copy(out[bytes.Index(out, []byte(name)):], local) // a local header stands before the central directory
	}
	return out
}

// Repack returns a zip with the contents and the go.sum hash of b, but with other bytes: nothing is compressed.
// It is as good as b; only the first of the two that is committed may ever be served.
func Repack(b []byte) []byte {
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	must(err)
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, f := range r.File {
		src, err := f.Open()
		must(err)
		dst, err := z.CreateHeader(&zip.FileHeader{Name: f.Name, Method: zip.Store})
		must(err)
		_, err = io.Copy(dst, src)
		must(err)
	}
	must(z.Close())
	return out.Bytes()
}

// Bomb returns a zip of about a thousandth of size whose one file has size bytes, in whole MiB, truthfully declared.
func Bomb(m module.Version, size int64) []byte {
	mib := make([]byte, 1<<20)
	var block bytes.Buffer // compressed, ends at a byte, refers to nothing before it: it may be repeated
	w, err := flate.NewWriter(&block, flate.BestCompression)
	must(err)
	_, err = w.Write(mib)
	must(err)
	must(w.Flush())
	n := int(size >> 20)
	data := append(bytes.Repeat(block.Bytes(), n), 3, 0) // and an empty last block
	h := &zip.FileHeader{Name: m.String() + "/bomb.bin", Method: zip.Deflate, CompressedSize64: uint64(len(data)), UncompressedSize64: uint64(n) << 20}
	for range n {
		h.CRC32 = crc32.Update(h.CRC32, crc32.IEEETable, mib)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	dst, err := z.CreateRaw(h)
	must(err)
	_, err = dst.Write(data)
	must(err)
	must(z.Close())
	return b.Bytes()
}

// ManyEntries returns a zip with so many empty files.
func ManyEntries(m module.Version, n int) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range n {
		_, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%s/f%d", m, i), Method: zip.Store})
		must(err)
	}
	must(z.Close())
	return b.Bytes()
}

// Hostile is a zip that no mirror may store.
type Hostile struct {
	Name    string // what is wrong with it, as a phrase
	Zip     []byte
	SameSum bool // its go.sum hash is that of the honest zip: only its bytes give it away
}

// HonestMod and HonestZip are the go.mod file and the zip that the zips of [HostileZips] are made from.
func HonestMod(m module.Version) []byte { return []byte("module " + m.Path + "\n") }

// HonestZip is described at [HonestMod].
func HonestZip(m module.Version) []byte { return RawZip("", honest(m)...) }

func honest(m module.Version) []Entry {
	return []Entry{
		{Name: m.String() + "/go.mod", Data: string(HonestMod(m))},
		{Name: m.String() + "/hello.go", Data: "package hello\n\nconst Answer = 42\n"},
	}
}

// HostileZips returns one zip for each way of being wrong that is known (archive/zip, golang.org/x/mod/zip and
// golang.org/x/mod/sumdb/dirhash each let some of them pass).
func HostileZips(m module.Version) []Hostile {
	good := honest(m)
	clean := HonestZip(m)
	streamed, descriptor := streamedZip(m)
	p := m.String() + "/"
	with := func(more ...Entry) []byte { return RawZip("", append(honest(m), more...)...) }
	change := func(set func(e *Entry)) []byte {
		list := honest(m)
		set(&list[1])
		return RawZip("", list...)
	}
	list := []Hostile{
		{"a script in front", append([]byte("#!/bin/sh\nexec rm -rf /\n"), clean...), true},
		{"junk behind", append(bytes.Clone(clean), "trailing junk"...), true},
		{"a comment", RawZip("a comment", good...), true},
		{"another name in the local header", change(func(e *Entry) { e.Local = p + "jello.go" }), true},
		{"a symbolic link by mode", change(func(e *Entry) { e.Mode = fs.ModeSymlink | 0o777 }), true},
		{"encrypted by the local header", local(clean, 6, 1), true},
		{"a data descriptor announced by the local header", local(clean, 6, 8), true},
		{"another checksum in the local header", local(clean, 14, 1), true},
		{"another packed size in the local header", local(clean, 18, 1), true},
		{"another size in the local header", local(clean, 22, 1), true},
		{"no sizes in the local header", local(clean, 18, clean[18], 0, 0, 0, clean[22]), true},
		{"a data descriptor without a signature", local(streamed, descriptor, 1), false},
		{"another checksum in the data descriptor", local(streamed, descriptor+4, 1), false},
		{"another packed size in the data descriptor", local(streamed, descriptor+8, 1), true},
		{"another size in the data descriptor", local(streamed, descriptor+12, 1), true},
		{"bytes behind the end of the compressed data", change(func(e *Entry) { e.Behind = "#!/bin/sh\n" }), true},
		{"an entry behind the end of the compressed data", change(func(e *Entry) { e.Behind = string(clean[:len(clean)/2]) }), true},
		{"a gap between the entries", gap(clean, []byte(p+"hello.go")), true},
		{"another name in an extra field", change(func(e *Entry) { e.Extra = UnicodePath(e.Name, p+"evil.go") }), true},
		{"a duplicate entry", with(good[1]), false},
		{"a duplicate entry with other content", with(Entry{Name: good[1].Name, Data: "package evil\n"}), false},
		{"a path with dots", with(Entry{Name: p + "../../evil.go", Data: "x"}), false},
		{"an absolute path", with(Entry{Name: "/etc/evil", Data: "x"}), false},
		{"a backslash", with(Entry{Name: p + `a\b.go`, Data: "x"}), false},
		{"a device name", with(Entry{Name: p + "CON.go", Data: "x"}), false},
		{"a newline in a name", with(Entry{Name: p + "a\nb.go", Data: "x"}), false},
		{"a NUL in a name", with(Entry{Name: p + "a\x00b.go", Data: "x"}), false},
		{"names equal but for case", with(Entry{Name: p + "HELLO.go", Data: "x"}), false},
		{"a nested go.mod", with(Entry{Name: p + "sub/go.mod", Data: "module sub\n"}), false},
		{"a GO.MOD in capitals", RawZip("", Entry{Name: p + "GO.MOD", Data: string(HonestMod(m))}, good[1]), false},
		{"a file that is a directory too", with(Entry{Name: p + "hello.go/x.go", Data: "x"}), false},
		{"another module's prefix", with(Entry{Name: "example.com/other@v1.0.0/x.go", Data: "x"}), false},
		{"another version's prefix", RawZip("", Entry{Name: m.Path + "@v0.0.1/go.mod", Data: string(HonestMod(m))}), false},
		{"a size that is too small", with(Entry{Name: p + "lie.bin", Data: string(make([]byte, 8<<20)), Declared: 10}), false},
		{"a size that is too large", with(Entry{Name: p + "lie.bin", Data: "x", Declared: 1 << 20}), false},
		{"a wrong checksum", change(func(e *Entry) { e.CRC = 1 }), false},
		{"an unknown compression", with(Entry{Name: p + "x.go", Data: "x", Method: 99}), false},
		{"an end cut off", clean[:len(clean)-10], false},
		{"a page of HTML", []byte("<!DOCTYPE html>\n<title>Please log in</title>\n"), false},
		{"nothing at all", nil, false},
	}
	return list
}

// streamedZip returns the honest zip with data descriptors, and where that of its first entry begins.
func streamedZip(m module.Version) (b []byte, descriptor int) {
	list := honest(m)
	for i := range list {
		list[i].Flags = 8
	}
	return RawZip("", list...), 30 + len(list[0].Name) + len(deflate(list[0].Data))
}

// local returns b with bytes of its first entry, whose local header is at 0, flipped by these masks.
func local(b []byte, offset int, masks ...byte) []byte {
	b = bytes.Clone(b)
	for i, mask := range masks {
		b[offset+i] ^= mask
	}
	return b
}

// gap inserts junk in front of the local header of the entry with this name and moves the offsets accordingly.
func gap(b, name []byte) []byte {
	const junk = "hidden between the entries"
	b = bytes.Clone(b)
	local := bytes.Index(b, name) - 30
	central := bytes.LastIndex(b, name) - 46
	end := len(b) - 22
	le := binary.LittleEndian
	le.PutUint32(b[central+42:], le.Uint32(b[central+42:])+uint32(len(junk)))
	le.PutUint32(b[end+16:], le.Uint32(b[end+16:])+uint32(len(junk)))
	out := append(bytes.Clone(b[:local]), junk...)
	return append(out, b[local:]...)
}

// UnicodePath returns an extra field by which an entry called name is called as, for Info-ZIP's unzip (APPNOTE.TXT, 4.6.9).
func UnicodePath(name, as string) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{0x75, 0x70}, uint16(5+len(as)))
	b = binary.LittleEndian.AppendUint32(append(b, 1), crc32.ChecksumIEEE([]byte(name)))
	return append(b, as...)
}

func deflate(s string) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	must(err)
	_, err = io.WriteString(w, s)
	must(err)
	must(w.Close())
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
