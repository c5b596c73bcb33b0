package artifact

import (
	"archive/zip"
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The records of a zip file, by APPNOTE.TXT of PKWARE, 4.3.7 to 4.3.16. Numbers are little-endian.
const (
	localMagic     = 0x04034b50
	directoryMagic = 0x02014b50
	end64Magic     = 0x06064b50
	locator64Magic = 0x07064b50
	endMagic       = 0x06054b50

	descriptorMagic = 0x08074b50

	localLen     = 30 // without name and extra
	directoryLen = 46 // without name, extra and comment
	end64Len     = 56 // without extensible data, which nobody writes
	locator64Len = 20
	endLen       = 22 // without a comment
)

// directory is the central directory of a zip, and where the entries begin by it.
type directory struct {
	start   int64 // offset of the first header, which is the end of the last entry
	offsets []uint32
}

// readDirectory reads the end of a zip and walks over its central directory without keeping more than the offsets, so
// that nobody parses a directory that is too large. It accepts one shape only: entries, directory, end, nothing else.
func readDirectory(r io.ReaderAt, size int64) (directory, error) {
	var end [endLen]byte
	if size < endLen {
		return directory{}, fmt.Errorf("not a zip: %d bytes", size)
	}
	if err := readFull(r, end[:], size-endLen); err != nil {
		return directory{}, err
	}
	le := binary.LittleEndian
	if le.Uint32(end[0:]) != endMagic || le.Uint16(end[20:]) != 0 {
		return directory{}, errors.New("the end of the directory is not the end of the file: not a zip, cut short, or with a comment or other bytes behind it")
	}
	n, length, start := int64(le.Uint16(end[10:])), int64(le.Uint32(end[12:])), int64(le.Uint32(end[16:]))
	stop := size - endLen
	if le.Uint32(end[4:]) != 0 || le.Uint16(end[8:]) != le.Uint16(end[10:]) {
		return directory{}, errors.New("more than one disk")
	}
	if n == math.MaxUint16 || length == math.MaxUint32 || start == math.MaxUint32 {
		var err error
		if n, length, start, stop, err = readEnd64(r, n, length, start, stop); err != nil {
			return directory{}, err
		}
	}
	if n > MaxZipEntries {
		return directory{}, fmt.Errorf("%d entries, more than the limit of %d", n, MaxZipEntries)
	}
	if length > maxZipDirectory {
		return directory{}, fmt.Errorf("a directory of %d bytes, more than the limit of %d", length, maxZipDirectory)
	}
	if n < 0 || length < 0 || start < 0 || start != stop-length {
		return directory{}, fmt.Errorf("bytes in front of the zip or behind its directory: the directory of %d bytes at %d does not end at %d", length, start, stop)
	}
	return walkDirectory(r, n, start, length)
}

// readEnd64 reads the zip64 form of the end, if there is one in front of the other at stop.
func readEnd64(r io.ReaderAt, n, length, start, stop int64) (n64, length64, start64, stop64 int64, err error) {
	var b [end64Len + locator64Len]byte
	if stop < int64(len(b)) {
		return n, length, start, stop, nil
	}
	if err := readFull(r, b[:], stop-int64(len(b))); err != nil {
		return 0, 0, 0, 0, err
	}
	le := binary.LittleEndian
	end, locator := b[:end64Len], b[end64Len:]
	if le.Uint32(locator) != locator64Magic {
		return n, length, start, stop, nil
	}
	stop -= int64(len(b))
	ok := le.Uint32(locator[4:]) == 0 && le.Uint64(locator[8:]) == uint64(stop) && le.Uint32(locator[16:]) == 1 &&
		le.Uint32(end) == end64Magic && le.Uint64(end[4:]) == end64Len-12 && le.Uint64(end[16:]) == 0 &&
		le.Uint64(end[24:]) == le.Uint64(end[32:])
	if !ok {
		return 0, 0, 0, 0, errors.New("malformed zip64 end of the directory")
	}
	return int64(le.Uint64(end[32:])), int64(le.Uint64(end[40:])), int64(le.Uint64(end[48:])), stop, nil
}

// walkDirectory checks that n headers fill the directory, and bounds their names.
func walkDirectory(r io.ReaderAt, n, start, length int64) (directory, error) {
	b := bufio.NewReaderSize(io.NewSectionReader(r, start, length), 2*maxZipName)
	d := directory{start: start, offsets: make([]uint32, 0, n)}
	var h [directoryLen]byte
	var names int64
	for range n {
		if _, err := io.ReadFull(b, h[:]); err != nil {
			return directory{}, fmt.Errorf("directory of %d entries is cut short: %w", n, err)
		}
		le := binary.LittleEndian
		nameLen, rest := int(le.Uint16(h[28:])), int(le.Uint16(h[30:]))+int(le.Uint16(h[32:]))
		if le.Uint32(h[:]) != directoryMagic || le.Uint16(h[34:]) != 0 || le.Uint32(h[42:]) == math.MaxUint32 {
			return directory{}, fmt.Errorf("malformed header of entry %d of the directory", len(d.offsets))
		}
		if nameLen > maxZipName {
			return directory{}, fmt.Errorf("entry %d has a name of %d bytes, more than the limit of %d", len(d.offsets), nameLen, maxZipName)
		}
		name, err := b.Peek(nameLen)
		if err != nil {
			return directory{}, fmt.Errorf("directory of %d entries is cut short: %w", n, err)
		}
		if names += int64(nameLen) * int64(1+strings.Count(string(name), "/")); names > maxZipNames {
			return directory{}, fmt.Errorf("names too long and deep together: entry %d, %s", len(d.offsets), quote(string(name)))
		}
		if f := le.Uint16(h[8:]); f&1 != 0 {
			return directory{}, fmt.Errorf("entry %s: encrypted", quote(string(name)))
		}
		if _, err := b.Discard(nameLen + rest); err != nil {
			return directory{}, fmt.Errorf("directory of %d entries is cut short: %w", n, err)
		}
		d.offsets = append(d.offsets, le.Uint32(h[42:]))
	}
	if _, err := b.ReadByte(); err != io.EOF {
		return directory{}, fmt.Errorf("bytes between the %d entries of the directory and its end", n)
	}
	return d, nil
}

// check compares the local header and the data descriptor of every entry with the directory, and that the entries lie one behind the other from
// offset 0 to the directory. A program that reads the file from the front sees the same files then as one that starts
// at its end.
func (d directory) check(ctx context.Context, r io.ReaderAt, files []*zip.File) error {
	if len(files) != len(d.offsets) {
		return fmt.Errorf("a directory of %d entries reads as %d", len(d.offsets), len(files))
	}
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(d.offsets[a], d.offsets[b]) })
	var pos int64
	buf := make([]byte, localLen+maxZipName)
	for i, n := range order {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, next := files[n], d.start
		if i+1 < len(order) {
			next = int64(d.offsets[order[i+1]])
		}
		if off := int64(d.offsets[n]); off != pos {
			return fmt.Errorf("entry %s begins at %d, not at %d: bytes in front of it that belong to no entry", quote(f.Name), off, pos)
		}
		end, err := checkLocal(r, f, pos, next, buf)
		if err != nil {
			return fmt.Errorf("entry %s: %w", quote(f.Name), err)
		}
		pos = end
	}
	if pos != d.start {
		return fmt.Errorf("%d bytes in front of the directory that belong to no entry", d.start-pos)
	}
	return nil
}

// checkLocal checks the local header of f at off and returns where the entry ends, no later than next.
func checkLocal(r io.ReaderAt, f *zip.File, off, next int64, buf []byte) (end int64, err error) {
	h := buf[:min(localLen+len(f.Name), len(buf))]
	if next-off < int64(len(h)) {
		return 0, errors.New("overlaps the next one")
	}
	if err := readFull(r, h, off); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if le.Uint32(h) != localMagic {
		return 0, errors.New("no local header where the directory says")
	}
	if nameLen := int(le.Uint16(h[26:])); nameLen != len(f.Name) || string(h[localLen:]) != f.Name {
		return 0, fmt.Errorf("its local header has another name, %s", quote(string(h[localLen:min(len(h), localLen+nameLen)])))
	}
	if le.Uint16(h[8:]) != f.Method || f.Method != zip.Store && f.Method != zip.Deflate {
		return 0, fmt.Errorf("compressed by method %d, by %d in the local header", f.Method, le.Uint16(h[8:]))
	}
	extra := off + int64(len(h))
	data := extra + int64(le.Uint16(h[28:]))
	if data > next || f.CompressedSize64 > uint64(next-data) {
		return 0, errors.New("overlaps the next one")
	}
	if err := checkLocalSizes(r, f, h, extra, data); err != nil {
		return 0, err
	}
	end = data + int64(f.CompressedSize64)
	if f.Flags&hasDescriptor == 0 {
		return end, nil // and whatever is in front of next finds that it does not begin here
	}
	if err := checkDescriptor(r, f, end, next); err != nil {
		return 0, err
	}
	return next, nil
}

// hasDescriptor is the flag of an entry whose checksum and sizes stand behind it.
const hasDescriptor = 8

// checkLocalSizes checks that the local header h of f, with its extra fields between two offsets, says what the directory
// does. With a data descriptor it may leave that to it, and say 0.
func checkLocalSizes(r io.ReaderAt, f *zip.File, h []byte, extra, data int64) error {
	le := binary.LittleEndian
	if flags := le.Uint16(h[6:]); flags != f.Flags {
		return fmt.Errorf("flags %#x, %#x in the local header", f.Flags, flags)
	}
	if err := checkDirectoryExtra(f.Extra, f.Name); err != nil {
		return err
	}
	packed, raw := uint64(le.Uint32(h[18:])), uint64(le.Uint32(h[22:]))
	announced := packed == math.MaxUint32 && raw == math.MaxUint32
	packed64, raw64, err := checkLocalExtra(r, extra, data, f.Name, announced)
	if err != nil {
		return err
	}
	if announced {
		packed, raw = packed64, raw64
	}
	same := func(local, want uint64) bool { return local == want || local == 0 && f.Flags&hasDescriptor != 0 }
	if !same(uint64(le.Uint32(h[14:])), uint64(f.CRC32)) || !same(packed, f.CompressedSize64) || !same(raw, f.UncompressedSize64) {
		return errors.New("its local header has another checksum or other sizes")
	}
	return nil
}

// checkDescriptor checks that exactly a data descriptor of f lies between two offsets: checksum and sizes of 4 or 8 bytes,
// with or without a signature (APPNOTE.TXT, 4.3.9).
func checkDescriptor(r io.ReaderAt, f *zip.File, from, to int64) error {
	var buf [24]byte
	n := to - from
	if n != 12 && n != 16 && n != 20 && n != 24 {
		return fmt.Errorf("%d bytes behind it, which are no data descriptor and belong to no entry", n)
	}
	b := buf[:n]
	if err := readFull(r, b, from); err != nil {
		return err
	}
	le, ok := binary.LittleEndian, true
	if n == 16 || n == 24 {
		ok, b = le.Uint32(b) == descriptorMagic, b[4:]
	}
	packed, raw := uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))
	if len(b) == 20 {
		packed, raw = le.Uint64(b[4:]), le.Uint64(b[12:])
	}
	if !ok || le.Uint32(b) != f.CRC32 || packed != f.CompressedSize64 || raw != f.UncompressedSize64 {
		return errors.New("its data descriptor has another checksum or other sizes")
	}
	return nil
}

// readFull reads all of b at off; a file that ends before is not what its directory says.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
