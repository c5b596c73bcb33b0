package artifact

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"

	"modmirror/mirror/artifact/fault"
)

// Draft is bytes on their way into a [Store]: a temporary file (a [ZipFile]) that hashes what is written to it and takes no more than
// its limit, or the same in memory ([Store.Hold]). It belongs to one goroutine; only ReadAt may be called by several, between writing and
// the end.
// Every draft ends with Commit, Quarantine or Discard:
//
//	d, err := store.Create(artifact.MaxZip)
//	if err != nil {
//		return err
//	}
//	defer d.Discard()
//	if _, err := io.Copy(d, body); err != nil {
//		return err
//	}
//	// check d.Ref, and the bytes through d.ReadAt
//	ref, err := d.Commit()
type Draft struct {
	s     *Store
	name  string // in the store; "" once there is nothing to remove
	f     File   // nil once closed; a *memory until it has to be a file
	hash  hash.Hash
	size  int64
	limit int64
	err   error      // the first failed write; a draft with a hole must not be committed
	flush chan error // of the fsync that Flush began, if nobody has waited for it yet; has room for one
}

// Write appends p. Once the limit would be passed, or a write has failed, it fails for good: with [ErrRefused] for the
// limit, with [ErrUnavailable] for a disk that is full or faulty.
func (d *Draft) Write(p []byte) (int, error) {
	if d.f == nil {
		return 0, d.closed("write")
	}
	if d.err != nil {
		return 0, d.err
	}
	if int64(len(p)) > d.limit-d.size {
		d.err = fmt.Errorf("more than the limit of %d bytes: %w", d.limit, ErrRefused)
		return 0, d.err
	}
	if d.size+int64(len(p)) > MaxInline {
		if d.err = d.spill(); d.err != nil {
			return 0, d.err
		}
	}
	if d.err = d.awaitFlush(); d.err != nil { // what is written now was not part of it
		return 0, d.err
	}
	n, err := d.f.Write(p)
	d.hash.Write(p[:n])
	d.size += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		d.err = d.s.fault(fmt.Sprintf("need up to %d bytes, wrote %d", d.limit, d.size), err)
		return n, d.err
	}
	return n, nil
}

// memory is the file of a draft that is none yet.
type memory struct{ b []byte }

func (m *memory) Write(p []byte) (int, error) {
	m.b = append(m.b, p...)
	return len(p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m *memory) Sync() error                             { return nil }
func (m *memory) Close() error                            { return nil }

// spill makes a file of a draft that is in memory.
func (d *Draft) spill() error {
	m, ok := d.f.(*memory)
	if !ok {
		return nil
	}
	name, f, err := d.s.create()
	if err != nil {
		return err
	}
	d.name, d.f = name, f
	if n, err := f.Write(m.b); err != nil || n < len(m.b) {
		return d.s.fault(fmt.Sprintf("need up to %d bytes, wrote %d", d.limit, n), cmp.Or(err, io.ErrShortWrite))
	}
	return nil
}

// Flush begins to fsync what was written, so that Commit has less to wait for: the caller can check the bytes meanwhile. They are not
// durable before Commit returns. Of a draft in memory there is nothing to fsync yet: the file that it becomes would be taken for
// durable. It does nothing while many others are under way: each has a thread of the system.
func (d *Draft) Flush() {
	if d.f == nil || d.err != nil || d.flush != nil {
		return
	}
	if _, ok := d.f.(*memory); ok {
		return
	}
	select {
	case d.s.flushes <- struct{}{}:
	default:
		return
	}
	f, flush := d.f, make(chan error, 1)
	d.flush = flush
	go func() {
		defer func() { <-d.s.flushes }()
		flush <- d.s.fsync(f)
	}()
}

// awaitFlush waits for the end of the fsync that Flush began, if there is one. Its failure is one of the disk, whatever becomes
// of the draft.
func (d *Draft) awaitFlush() error {
	if d.flush == nil {
		return nil
	}
	err := <-d.flush
	d.flush = nil
	if err != nil {
		return d.s.fault(fmt.Sprintf("fsync %d bytes", d.size), err)
	}
	return nil
}

// sync makes all bytes durable: by the fsync that Flush began, or by one of its own.
func (d *Draft) sync() error {
	if d.flush != nil {
		return d.awaitFlush()
	}
	if err := d.s.fsync(d.f); err != nil {
		return d.s.fault(fmt.Sprintf("fsync %d bytes", d.size), err)
	}
	return nil
}

func (s *Store) fsync(f File) error {
	err := s.watch("fsync a file", func() error {
		if err := fault.Error(fault.BlobFsync); err != nil {
			return err
		}
		return f.Sync()
	})
	if err == nil {
		fault.Point(fault.BlobFsynced)
	}
	return err
}

// ReadAt reads what was written.
func (d *Draft) ReadAt(p []byte, off int64) (int, error) {
	if d.f == nil {
		return 0, d.closed("read")
	}
	return d.f.ReadAt(p, off)
}

// Size returns the number of bytes written.
func (d *Draft) Size() int64 { return d.size }

// Ref returns the digest and size of what was written so far.
func (d *Draft) Ref() Ref { return Ref{Digest: Digest(d.hash.Sum(nil)), Size: d.size} }

// Name returns the name of the temporary file, for software that wants one; [CheckZip] does. A draft in memory has none that is of use.
func (d *Draft) Name() string { return filepath.Join(d.s.dir, filepath.FromSlash(d.name)) }

// Commit makes the bytes durable under their digest and ends the draft, also if it fails. The bytes are on the disk
// when it returns: the file is fsynced, read back and compared, renamed, and the directory is fsynced. If the store has
// the bytes already, and they are right (they are read to know that), they stay untouched. An error matches [ErrUnavailable], or is that of an earlier Write.
func (d *Draft) Commit() (Ref, error) {
	defer d.Discard()
	if d.f == nil {
		return Ref{}, d.closed("commit")
	}
	if d.err != nil {
		return Ref{}, d.err
	}
	if err := d.s.Err(); err != nil {
		return Ref{}, err
	}
	if err := d.spill(); err != nil {
		return Ref{}, err
	}
	ref := d.Ref()
	defer d.s.Reserve(ref.Digest)() // bytes that are found must still be there in the end
	dir, err := d.s.shard(ref.Digest)
	if err != nil {
		return Ref{}, err
	}
	if !d.s.intact(ref, true) {
		if err := d.settle(ref); err != nil {
			return Ref{}, err
		}
	}
	// Also for a blob that was there: the commit that made it may not have come so far yet.
	err = d.s.watch("fsync a directory", func() error {
		if err := fault.Error(fault.BlobDirSync); err != nil {
			return err
		}
		return d.s.disk.SyncDir(dir)
	})
	if err != nil {
		// Not even a full disk is forgiven here: the name is in place, and the next fsync may pass without it.
		return Ref{}, d.s.latch("fsync the directory of a blob", err)
	}
	fault.Point(fault.BlobDurable)
	return ref, nil
}

// settle makes the draft's bytes durable and gives them their name.
func (d *Draft) settle(ref Ref) error {
	if err := d.sync(); err != nil {
		return err
	}
	if err := d.readBack(); err != nil {
		return err
	}
	d.s.renaming.Lock()
	defer d.s.renaming.Unlock()
	if d.s.intact(ref, false) { // another commit was faster
		return nil
	}
	err := d.s.watch("rename a file", func() error {
		if err := fault.Error(fault.BlobRename); err != nil {
			return err
		}
		return d.s.disk.Rename(d.name, blobName(ref.Digest))
	})
	if err != nil {
		return d.s.fault("rename a draft", err)
	}
	d.name = ""
	if fi, err := d.s.root.Lstat(blobName(ref.Digest)); err == nil {
		d.s.verified.add(ref.Digest, fileIDOf(fi)) // it was read back
	}
	return nil
}

// readBack compares what the file holds with what was written to it.
func (d *Draft) readBack() error {
	ref := d.Ref()
	got, err := digestAll(context.Background(), io.NewSectionReader(d.f, 0, ref.Size+1))
	if err == nil && got != ref {
		err = fmt.Errorf("wrote %v, read %v", ref, got)
	}
	if err != nil {
		return d.s.fault("read a draft back", err)
	}
	return nil
}

// Discard drops the draft. It does nothing after Commit, Quarantine or an earlier Discard.
func (d *Draft) Discard() {
	if d.f == nil {
		return
	}
	_ = d.awaitFlush() // the store knows of its failure, and whoever commits the next draft
	_ = d.f.Close()    // what mattered of it was fsynced
	d.f = nil
	if d.name != "" {
		_ = d.s.disk.Remove(d.name) // or the next Sweep does
		d.name = ""
	}
}

// closed returns the error for a draft that has ended.
func (d *Draft) closed(what string) error {
	return fmt.Errorf("%s a draft that has ended: %w", what, errors.Join(fs.ErrClosed, ErrUnavailable))
}
