package artifact

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"modmirror/mirror/artifact/fault"
)

// A file for each small blob costs a file system many times what their bytes do: a new node would wait for it longer than for the
// network. Small blobs that come together are therefore kept in one file, as long as they are unproven:
//
//	unproven/….pack  for each blob: its SHA-256, its size in 64 bits, big-endian, and its bytes
//
// Each gets a file of its own when it is proven. The pack is removed when none of its blobs is left, so after a crash it may have some
// that are among the blobs already; those count as proven. One that was dropped may count as here, unproven, once more then.

// MaxPacked is how large a blob in a [Pack] may be.
const MaxPacked = 1 << 20

const (
	packSuffix = ".pack"
	packHead   = len(Digest{}) + 8
	packBuffer = 256 << 10
)

// Pack receives small blobs whose go.sum hashes have not been compared, and makes them durable together, unproven. It belongs to
// one goroutine. Keep or Discard ends it.
type Pack struct {
	s    *Store
	name string // of the temporary file; "" if there is none
	f    File   // nil as long as there is no blob, and after the end
	w    *bufio.Writer
	size int64
	in   []packed
	err  error // the first failed write
}

type packed struct {
	ref Ref
	off int64
}

// pack is a file of blobs of which some are unproven.
type pack struct {
	name string
	left int // blobs in it that are unproven; guarded by the mu of shelved
}

// CanPack reports whether blobs of this size can be in a [Pack], on this system.
func CanPack(size int64) bool { return size <= MaxPacked && hasMemoryFiles() }

// NewPack begins a pack. There is no file before the first blob.
func (s *Store) NewPack() *Pack { return &Pack{s: s} }

// Add puts a blob in. If b is not what r says, the error matches [ErrRefused], and the pack is as before; after any other error it
// is of no use.
func (p *Pack) Add(r Ref, b []byte) error {
	if got := RefOf(b); got != r {
		return fmt.Errorf("%v, not %v: %w", got, r, ErrRefused)
	}
	if p.err != nil {
		return p.err
	}
	if p.err = p.begin(); p.err != nil {
		return p.err
	}
	head := binary.BigEndian.AppendUint64(r.Digest[:], uint64(r.Size))
	if p.err = p.write(head); p.err == nil {
		p.in = append(p.in, packed{r, p.size})
		p.err = p.write(b)
	}
	return p.err
}

// begin makes the file for the first blob.
func (p *Pack) begin() (err error) {
	if p.f != nil {
		return nil
	}
	if p.name, p.f, err = p.s.create(); err != nil {
		return err
	}
	p.w = bufio.NewWriterSize(p.f, packBuffer)
	return nil
}

func (p *Pack) write(b []byte) error {
	n, err := p.w.Write(b)
	p.size += int64(n)
	return p.wrote(err)
}

// wrote returns what the error of a write is for the store.
func (p *Pack) wrote(err error) error {
	if err == nil {
		return nil
	}
	return p.s.fault(fmt.Sprintf("write a pack of %d bytes", p.size), err)
}

// Keep makes all that was added durable, and unproven: only if it returns nil they are here.
func (p *Pack) Keep() error {
	defer p.Discard()
	if p.err != nil || len(p.in) == 0 {
		return p.err
	}
	s := p.s
	if err := s.makeUnproven(); err != nil {
		return err
	}
	if err := p.wrote(p.w.Flush()); err != nil {
		return err
	}
	if err := s.fsync(p.f); err != nil {
		return s.fault(fmt.Sprintf("fsync %d bytes", p.size), err)
	}
	to := unprovenDir + "/" + path.Base(p.name) + packSuffix
	if err := s.nameUnproven(p.name, to); err != nil {
		return err
	}
	p.name = ""
	if err := s.syncUnproven(); err != nil {
		return err
	}
	s.unproven.addPack(to, p.in)
	fault.Point(fault.UnprovenKept)
	return nil
}

// Discard drops the pack. It does nothing after Keep.
func (p *Pack) Discard() {
	p.in, p.err = nil, cmp.Or(p.err, fmt.Errorf("the pack has ended: %w", errors.Join(fs.ErrClosed, ErrUnavailable)))
	if p.f != nil {
		_ = p.f.Close() // what mattered of it was fsynced
		p.f = nil
	}
	if p.name != "" {
		_ = p.s.disk.Remove(p.name) // or the next Sweep does
		p.name = ""
	}
}

// loadPack finds what is in a pack that an earlier process left, and is not among the blobs. With that it knows the directories of
// those that are, which that process may not have made durable. A pack that cannot be opened has nothing, as a blob that cannot is
// not here: it is damaged, or a mirror that runs has just proven the last of it.
func (s *Store) loadPack(name string, dirs map[string]bool) {
	f, err := s.root.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return
	}
	in := readPack(f, fi.Size())
	left := in[:0]
	for _, b := range in {
		if s.Has(b.ref) {
			dirs[path.Dir(blobName(b.ref.Digest))] = true
		} else {
			left = append(left, b)
		}
	}
	s.unproven.addPack(name, left)
}

// readPack returns what is in a pack of size bytes, as far as it can be read.
func readPack(r io.ReaderAt, size int64) (in []packed) {
	var head [packHead]byte
	for off := int64(0); size-off >= int64(packHead); {
		if _, err := r.ReadAt(head[:], off); err != nil {
			break
		}
		off += int64(packHead)
		n := binary.BigEndian.Uint64(head[len(Digest{}):])
		if n > MaxPacked || int64(n) > size-off {
			break
		}
		in = append(in, packed{Ref{Digest(head[:len(Digest{})]), int64(n)}, off})
		off += int64(n)
	}
	return in
}

// openPacked returns the bytes of r, which are in a pack, in a file in memory, where the system has these. They have their
// digest, or the error matches [ErrDamaged].
func (s *Store) openPacked(ctx context.Context, r Ref, at place) (*os.File, error) {
	b, err := s.unpacked(ctx, r, at)
	if err != nil {
		return nil, err
	}
	f, err := s.memoryFile(b)
	if err != nil { // another system than the one that made the pack
		return s.openAlone(ctx, r, at)
	}
	return f, nil
}

// openAlone gives r, which is in a pack, a file of its own, unproven, and opens that.
func (s *Store) openAlone(ctx context.Context, r Ref, at place) (*os.File, error) {
	d, err := s.draftOf(r, at)
	if err == nil {
		err = s.Keep([]*Draft{d})[0]
	}
	if err != nil {
		return nil, err
	}
	return s.openAt(ctx, r, place{size: r.Size})
}

// unpacked returns the bytes of r, which are in a pack.
func (s *Store) unpacked(ctx context.Context, r Ref, at place) ([]byte, error) {
	f, err := s.root.Open(at.pack.name)
	if errors.Is(err, fs.ErrNotExist) { // it was proven meanwhile
		return nil, fmt.Errorf("open %v: %w", r, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %v: %v: %w", r, err, ErrUnavailable)
	}
	defer f.Close()
	b := bytes.NewBuffer(make([]byte, 0, r.Size))
	got, err := digestAll(ctx, io.TeeReader(io.NewSectionReader(s.disk.Blob(f), at.off, r.Size), b))
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("open %v: %w", r, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("open %v: %v: %w", r, err, ErrDamaged)
	case got != r:
		return nil, fmt.Errorf("open %v: in the pack is %v: %w", r, got, ErrDamaged)
	}
	return b.Bytes(), nil
}

// draftOf returns a draft with the bytes of r, which are in a pack.
func (s *Store) draftOf(r Ref, at place) (*Draft, error) {
	b, err := s.unpacked(context.Background(), r, at)
	if err != nil {
		return nil, err
	}
	d, err := s.Create(r.Size)
	if err != nil {
		return nil, err
	}
	if _, err := d.Write(b); err != nil {
		d.Discard()
		return nil, err
	}
	return d, nil
}

// unpack gives a blob that is in a pack a file of its own, among those that are proven. Its name is not durable yet, and it is
// still in the pack.
func (s *Store) unpack(r Ref, at place) error {
	d, err := s.draftOf(r, at)
	if err != nil {
		return err
	}
	defer d.Discard()
	if err := d.spill(); err != nil {
		return err
	}
	if err := fault.Error(fault.ProvenRename); err != nil {
		return s.fault("rename a blob", err)
	}
	return d.settle(r)
}

func isPack(name string) bool { return strings.HasSuffix(name, packSuffix) }
