package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// checkPages reads the structure of a bbolt file: its header, every page that can be reached from there, and the list of
// the free ones. bbolt itself trusts what it finds. Pages that are damaged end the process there: where a mapping ends
// before its header says, where a number leads out of it, and in what bbolt does on goroutines of its own, the scan for
// free pages and Tx.Check. So the log, for which bbolt scans at each open, is read by this first, and the catalog before
// all of it is checked. The caller keeps others from writing.
//
// The format (go.etcd.io/bbolt/internal/common), in the byte order of the machine: a page has the header
//
//	id uint64, flags uint16 (1 branch, 2 leaf, 4 meta, 16 free list), count uint16, overflow uint32
//
// and then count elements: of a branch pos uint32, key size uint32, page uint64; of a leaf flags uint32 (1: a bucket),
// pos, key size and value size uint32. pos counts from the element. A bucket's value begins with its root page and a
// number, each uint64; root page 0 means that the page follows inside of the value.
func checkPages(path string) error { return walkPages(path, true) }

// checkBranches is checkPages without the leaves of large buckets, of which it knows only where they are: for each start
// on a catalog, which may have a million leaves.
func checkBranches(path string) error { return walkPages(path, false) }

func walkPages(path string, leaves bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := pageWalk{file: f, size: info.Size(), leaves: leaves}
	m, err := w.header()
	if err != nil {
		return err
	}
	w.seen = make([]uint64, w.pages/64+1)
	w.mark(0, 2)
	if _, err := w.page(m.root, 0, nil, nil); err != nil {
		return err
	}
	if m.freeList == noFreeList {
		return nil
	}
	if err := w.free(m.freeList); err != nil {
		return fmt.Errorf("page %d: list of free pages: %w", m.freeList, err)
	}
	return nil
}

type pageWalk struct {
	file     io.ReaderAt
	size     int64
	pageSize int64
	pages    uint64   // all have a lower number
	seen     []uint64 // a bit for each
	leaves   bool     // read all leaves
}

const (
	pageHeader  = 16
	pageElement = 16
	branchPage  = 1
	leafPage    = 2
	freePage    = 16
	maxDepth    = 64
	noFreeList  = math.MaxUint64 // the list is not kept in the file
)

var errCut = errors.New("the file is cut short")

// bytes returns n bytes at off.
func (w *pageWalk) bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > w.size-n {
		return nil, fmt.Errorf("%w: it has %d bytes, and %d are wanted at %d", errCut, w.size, n, off)
	}
	b := make([]byte, n)
	_, err := w.file.ReadAt(b, off)
	return b, err
}

// meta is what matters of one of the two headers of a file.
type meta struct{ pageSize, root, freeList, pages, txid uint64 }

func (w *pageWalk) meta(off int64) (m meta, ok bool) {
	b, err := w.bytes(off+pageHeader, 64)
	if err != nil {
		return m, false
	}
	num := binary.NativeEndian
	sum := fnv.New64a()
	sum.Write(b[:56])
	if num.Uint32(b) != 0xED0CDAED || num.Uint32(b[4:]) != 2 || num.Uint64(b[56:]) != sum.Sum64() {
		return m, false
	}
	m = meta{uint64(num.Uint32(b[8:])), num.Uint64(b[16:]), num.Uint64(b[32:]), num.Uint64(b[40:]), num.Uint64(b[48:])}
	return m, m.pageSize >= 512 && m.pageSize <= 1<<24
}

// header finds the newest header.
func (w *pageWalk) header() (meta, error) {
	first, ok := w.meta(0)
	second, ok2 := first, false
	if ok {
		second, ok2 = w.meta(int64(first.pageSize))
	} else {
		for at := int64(1 << 10); at <= 1<<24 && !ok2; at <<= 1 {
			if second, ok2 = w.meta(at); second.pageSize != uint64(at) {
				ok2 = false
			}
		}
	}
	m := first
	if ok2 && (!ok || second.txid > first.txid) {
		m = second
	} else if !ok {
		return m, errors.New("the file has no header that is whole")
	}
	w.pageSize, w.pages = int64(m.pageSize), m.pages
	if w.pages > uint64(w.size/w.pageSize) {
		return m, fmt.Errorf("%w: it has %d bytes of %d", errCut, w.size, w.pages*m.pageSize)
	}
	return m, nil
}

// mark notes n pages from id on as seen. It reports whether one is out of range or was seen before.
func (w *pageWalk) mark(id, n uint64) bool {
	if id >= w.pages || n > w.pages-id {
		return false
	}
	for i := id; i < id+n; i++ {
		if w.seen[i/64]&(1<<(i%64)) != 0 {
			return false
		}
		w.seen[i/64] |= 1 << (i % 64)
	}
	return true
}

// page checks the page id and all below it, and returns its type. Its keys are not below low (unless that is nil), and
// below high.
func (w *pageWalk) page(id uint64, depth int, low, high []byte) (flags uint16, err error) {
	if id >= w.pages || depth > maxDepth {
		return 0, fmt.Errorf("page %d: out of range", id)
	}
	off := int64(id) * w.pageSize
	buf, err := w.bytes(off, w.pageSize)
	if err != nil {
		return 0, fmt.Errorf("page %d: %w", id, err)
	}
	num := binary.NativeEndian
	overflow := uint64(num.Uint32(buf[12:]))
	if num.Uint64(buf) != id || !w.mark(id, overflow+1) {
		return 0, fmt.Errorf("page %d: it is page %d, or there are two ways to it", id, num.Uint64(buf))
	}
	p := elements{
		walk: w, id: id, off: off, size: int64(overflow+1) * w.pageSize, depth: depth, buf: buf,
		flags: num.Uint16(buf[8:]), count: int(num.Uint16(buf[10:])), low: low, high: high,
	}
	if err := p.check(); err != nil {
		return 0, fmt.Errorf("page %d: %w", id, err)
	}
	return p.flags, nil
}

// free checks the list of free pages, which begins at page id: the header, and count numbers. If that is 0xffff, the
// first number is the count. It comes last, as no page may be free and in use.
func (w *pageWalk) free(id uint64) error {
	if id >= w.pages {
		return errors.New("out of range")
	}
	off := int64(id) * w.pageSize
	head, err := w.bytes(off, pageHeader+8)
	if err != nil {
		return err
	}
	num := binary.NativeEndian
	count, first := uint64(num.Uint16(head[10:])), int64(pageHeader)
	if count == math.MaxUint16 {
		count, first = num.Uint64(head[pageHeader:]), pageHeader+8
	}
	overflow := uint64(num.Uint32(head[12:]))
	if num.Uint64(head) != id || num.Uint16(head[8:]) != freePage || !w.mark(id, overflow+1) || count > w.pages {
		return errors.New("malformed, or there are two ways to it")
	}
	if first+int64(count)*8 > int64(overflow+1)*w.pageSize {
		return fmt.Errorf("%d numbers do not fit", count)
	}
	ids, err := w.bytes(off+first, int64(count)*8)
	if err != nil {
		return err
	}
	for ; len(ids) > 0; ids = ids[8:] {
		if page := num.Uint64(ids); !w.mark(page, 1) {
			return fmt.Errorf("page %d is out of range, in use, or free twice", page)
		}
	}
	return nil
}

// elements is the content of one page.
type elements struct {
	walk      *pageWalk
	id        uint64
	off, size int64 // where the page is in the file
	flags     uint16
	count     int
	depth     int
	low, high []byte
	buf       []byte // the first bytes of it; values have up to half a megabyte, and are not looked at here
}

func (p *elements) check() error {
	if p.flags != branchPage && p.flags != leafPage {
		return fmt.Errorf("unexpected type %#x", p.flags)
	}
	if p.flags == branchPage && p.count == 0 {
		return errors.New("a branch without elements")
	}
	table := int64(pageHeader + p.count*pageElement)
	if table > p.size {
		return fmt.Errorf("%d elements do not fit", p.count)
	}
	buf := p.buf
	if int64(len(buf)) < table {
		var err error
		if buf, err = p.walk.bytes(p.off, table); err != nil {
			return err
		}
	}
	get := func(at, n int64) ([]byte, error) {
		if at < table || n > p.size-at {
			return nil, errors.New("an element points out of its page")
		}
		if at+n <= int64(len(buf)) {
			return buf[at : at+n], nil
		}
		return p.walk.bytes(p.off+at, n)
	}
	num := binary.NativeEndian
	var keys [][]byte
	for i := range p.count {
		at := int64(pageHeader + i*pageElement)
		e := buf[at:]
		pos, keySize, valueSize := num.Uint32(e), num.Uint32(e[4:]), uint32(0)
		if p.flags == leafPage {
			pos, keySize, valueSize = num.Uint32(e[4:]), num.Uint32(e[8:]), num.Uint32(e[12:])
		}
		start := at + int64(pos)
		key, err := get(start, int64(keySize))
		if err != nil {
			return err
		}
		if start+int64(keySize)+int64(valueSize) > p.size {
			return errors.New("a value points out of its page")
		}
		if i > 0 && bytes.Compare(keys[i-1], key) >= 0 || p.low != nil && bytes.Compare(key, p.low) < 0 || p.high != nil && bytes.Compare(key, p.high) >= 0 {
			return errors.New("keys are out of order")
		}
		keys = append(keys, key)
		if p.flags == leafPage && num.Uint32(e)&1 != 0 {
			v, err := get(start+int64(keySize), int64(valueSize))
			if err != nil {
				return err
			}
			if err := p.bucket(v, start+int64(keySize)); err != nil {
				return err
			}
		}
	}
	if p.flags == leafPage {
		return nil
	}
	children := func(i int) uint64 { return num.Uint64(buf[pageHeader+i*pageElement+8:]) }
	return p.children(keys, children)
}

// children checks what is below a branch. All leaves of a tree are equally deep: where the first child is one, all are.
func (p *elements) children(keys [][]byte, child func(i int) uint64) error {
	areLeaves := false
	for i, key := range keys {
		if areLeaves && !p.walk.leaves {
			if !p.walk.mark(child(i), 1) {
				return fmt.Errorf("page %d: out of range, or there are two ways to it", child(i))
			}
			continue
		}
		high := p.high
		if i+1 < len(keys) {
			high = keys[i+1]
		}
		flags, err := p.walk.page(child(i), p.depth+1, key, high)
		if err != nil {
			return err
		}
		areLeaves = flags == leafPage
	}
	return nil
}

// bucket checks the bucket whose value v stands at at in the page.
func (p *elements) bucket(v []byte, at int64) error {
	if len(v) < pageHeader {
		return errors.New("malformed bucket")
	}
	num := binary.NativeEndian
	if root := num.Uint64(v); root != 0 {
		_, err := p.walk.page(root, p.depth+1, nil, nil)
		return err
	}
	if len(v) < 2*pageHeader || p.depth > maxDepth {
		return errors.New("malformed bucket")
	}
	in := elements{
		walk: p.walk, id: p.id, off: p.off + at + pageHeader, size: int64(len(v) - pageHeader), depth: p.depth + 1,
		flags: num.Uint16(v[pageHeader+8:]), count: int(num.Uint16(v[pageHeader+10:])),
	}
	if in.flags != leafPage {
		return errors.New("malformed bucket")
	}
	return in.check()
}

// lookInto opens the bbolt file at path for reading, which maps it and trusts no more than its header, and asks look
// whether the rest may be relied on. It comes before every open for writing: bbolt makes a new database of an empty file,
// and dies of one that is cut short.
func lookInto(path string, opt bbolt.Options, look func(tx *bbolt.Tx) error) error {
	opt.ReadOnly = true
	opt.InitialMmapSize = 0
	db, err := openBolt(path, opt)
	if err != nil {
		return err
	}
	err = safely(true, func() error { return db.View(look) })
	return errors.Join(err, db.Close())
}

// openBolt opens the bbolt file at path, which must exist and not be empty.
func openBolt(path string, opt bbolt.Options) (db *bbolt.DB, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err // bbolt would create it
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("open %s: %w: it is empty", path, errCut)
	}
	open := func() error {
		return safely(true, func() (err error) {
			db, err = bbolt.Open(path, 0o600, &opt)
			return err
		})
	}
	err = open()
	if errors.Is(err, syscall.ENOMEM) && opt.InitialMmapSize > 0 { // a limit on address space
		opt.InitialMmapSize = 0
		err = open()
	}
	return db, boltError(path, err)
}

// boltError says which file an error of an open is about.
func boltError(path string, err error) error {
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}
