package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"modmirror/mirror/artifact"
)

// simDisk is the disk of one machine, as far as blobs are on it. It knows what a power cut would take: the contents of files
// that were not fsynced, and the names made, changed or removed since their directory was. It outlives the lives of its node,
// as what a killed process wrote is still in the kernel's memory; only without power is it gone.
//
// What is written is in the real directory at once, so that it can be read there. image makes of it what is left after a cut.
type simDisk struct {
	mu      sync.Mutex
	rng     *rand.Rand               // guarded by mu, as all that follows
	dirty   map[string]bool          // files whose contents are not
	blobs   map[string]bool          // names of blobs
	changes []nameChange             // of names, in order, that are not durable
	stored  map[artifact.Digest]bool // blobs whose bytes and names are durable

	removed func(artifact.Digest) // told of each blob that is taken away with the right bytes in it; called with mu held
	full    bool                  // there is no space
	failing error                 // the next fsync fails with this, once
	slow    time.Duration         // how long an fsync takes more
}

// nameChange is a change of a directory.
type nameChange struct {
	dir      string
	from, to string // a rename; or only to: a directory that was made
}

func newSimDisk(seed uint64, removed func(artifact.Digest)) *simDisk {
	return &simDisk{removed: removed, rng: rand.New(rand.NewPCG(seed, 2)), dirty: map[string]bool{}, blobs: map[string]bool{}, stored: map[artifact.Digest]bool{}}
}

// holds reports whether the blob would survive a power cut.
func (d *simDisk) holds(digest artifact.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stored[digest]
}

func (d *simDisk) setFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (d *simDisk) setSlow(slow time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = slow
}

// failOnce has the next fsync fail.
func (d *simDisk) failOnce(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = err
}

// mount returns the disk for one life of the node, which has its files below root.
func (d *simDisk) mount(root *os.Root) *simMount {
	return &simMount{Disk: artifact.NewDisk(root), root: root, d: d}
}

const simBlobs = "blobs/sha256"

// image makes a copy of the data directory from at to, as it is after a crash of the process, or after a power cut: of what is
// not durable some is there and some is not. Nobody may be writing.
func (d *simDisk) image(from, to string, power bool) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = nil
	if !power {
		return nil
	}
	at := func(name string) string { return filepath.Join(to, filepath.FromSlash(name)) }
	for name := range d.dirty {
		fi, err := os.Lstat(at(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.Truncate(at(name), d.rng.Int64N(fi.Size()+1)*int64(d.rng.IntN(2)))
		}
		if err != nil {
			return err
		}
	}
	for _, c := range slices.Backward(d.changes) {
		if d.rng.IntN(3) == 0 {
			continue // the kernel had written it already
		}
		var err error
		if c.from != "" {
			err = os.Rename(at(c.to), at(c.from))
		} else {
			err = os.RemoveAll(at(c.to))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(d.blobs, c.to)
	}
	clear(d.dirty)
	d.changes = nil
	return nil
}

// rot flips a bit of some stored blob below dir, without a trace in the file's times, and returns which; ok is false if there is none.
func (d *simDisk) rot(dir string) (digest artifact.Digest, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []artifact.Digest
	for digest := range d.stored {
		all = append(all, digest)
	}
	if len(all) == 0 {
		return digest, false, nil
	}
	slices.SortFunc(all, func(a, b artifact.Digest) int { return strings.Compare(a.String(), b.String()) })
	digest = all[d.rng.IntN(len(all))]
	file := filepath.Join(dir, filepath.FromSlash(simBlobs), digest.String()[:2], digest.String())
	fi, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() == 0 {
		return digest, false, nil
	}
	if err != nil {
		return digest, false, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return digest, false, err
	}
	b[d.rng.IntN(len(b))] ^= 1 << d.rng.IntN(8)
	delete(d.stored, digest)
	err = os.WriteFile(file, b, 0o600)
	return digest, true, errors.Join(err, os.Chtimes(file, fi.ModTime(), fi.ModTime()))
}

// simMount is a disk in one life of a node.
type simMount struct {
	artifact.Disk
	root *os.Root
	d    *simDisk
	dead bool // guarded by d.mu
}

// die makes everything fail that this life still does.
func (m *simMount) die() {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.dead = true
}

// errPower is what a life of before is told.
var errPower = fmt.Errorf("simulated crash: %w", syscall.EIO)

// do does something under the lock, unless this life is over, or it needs space and there is none.
func (m *simMount) do(space bool, f func() error) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	switch {
	case m.dead:
		return errPower
	case space && m.d.full:
		return syscall.ENOSPC
	}
	return f()
}

func (m *simMount) Create(name string) (f artifact.File, err error) {
	err = m.do(true, func() error {
		if f, err = m.Disk.Create(name); err == nil {
			m.d.dirty[name] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &simFile{File: f, m: m, name: name}, nil
}

func (m *simMount) Rename(from, to string) error {
	return m.do(false, func() error {
		m.leaves(from)
		if err := m.Disk.Rename(from, to); err != nil {
			return err
		}
		if m.d.dirty[from] {
			m.d.dirty[to] = true
		} else {
			delete(m.d.dirty, to)
		}
		delete(m.d.dirty, from)
		m.d.forget(from)
		if _, ok := blobNamed(to); ok {
			m.d.blobs[to] = true
		}
		m.d.changes = append(m.d.changes, nameChange{dir: path.Dir(to), from: from, to: to})
		return nil
	})
}

func (m *simMount) Remove(name string) error {
	return m.do(false, func() error {
		m.leaves(name)
		if err := m.Disk.Remove(name); err != nil {
			return err
		}
		delete(m.d.dirty, name)
		m.d.forget(name)
		m.d.changes = slices.DeleteFunc(m.d.changes, func(c nameChange) bool { return c.to == name })
		return nil
	})
}

func (m *simMount) Mkdir(name string) error {
	return m.do(true, func() error {
		if err := m.Disk.Mkdir(name); err != nil {
			return err
		}
		m.d.changes = append(m.d.changes, nameChange{dir: path.Dir(name), to: name})
		return nil
	})
}

func (m *simMount) SyncDir(name string) error {
	if strings.HasPrefix(name, simBlobs+"/") { // the others are fsynced under the lock of a shard
		m.delay()
	}
	return m.do(false, func() error {
		if err := m.fail(); err != nil {
			return err
		}
		m.d.changes = slices.DeleteFunc(m.d.changes, func(c nameChange) bool { return c.dir == name })
		m.note()
		return nil
	})
}

// delay is how long an fsync takes. It is none where the caller holds a mutex, for which others may wait: synctest cannot tell
// that they wait, and time would stand still.
func (m *simMount) delay() {
	if !calledBy("artifact.(*shelf).", "artifact.(*damagedShelf).", "artifact.(*Store).syncBoth") {
		time.Sleep(m.takes())
	}
}

// takes returns how long an fsync takes.
func (m *simMount) takes() time.Duration {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return time.Millisecond + m.d.slow + time.Duration(m.d.rng.Int64N(int64(4*time.Millisecond)))
}

// fail is the failure of an fsync. The caller holds mu.
func (m *simMount) fail() error {
	err := m.d.failing
	m.d.failing = nil
	return err
}

// note looks which blobs are durable, now that a directory was fsynced. The caller holds mu.
func (m *simMount) note() {
	lost := func(name string) bool {
		return slices.ContainsFunc(m.d.changes, func(c nameChange) bool { return c.to == name })
	}
	for name := range m.d.blobs {
		if digest, ok := blobNamed(name); ok && !m.d.dirty[name] && !lost(name) && !lost(path.Dir(name)) {
			m.d.stored[digest] = true
		}
	}
}

// leaves tells of a blob that is about to go, if it is intact. The caller holds mu.
func (m *simMount) leaves(name string) {
	digest, ok := blobNamed(name)
	if !ok {
		return
	}
	if b, err := fs.ReadFile(m.root.FS(), name); err == nil && sha256.Sum256(b) == digest {
		m.d.removed(digest)
	}
}

// forget is for a name that is there no more. The caller holds mu.
func (d *simDisk) forget(name string) {
	if digest, ok := blobNamed(name); ok {
		delete(d.blobs, name)
		delete(d.stored, digest)
	}
}

// blobNamed returns which blob has this name.
func blobNamed(name string) (artifact.Digest, bool) {
	digest, err := artifact.ParseDigest(path.Base(name))
	return digest, err == nil && strings.HasPrefix(name, simBlobs+"/")
}

// simFile is a file that is being written.
type simFile struct {
	artifact.File
	m    *simMount
	name string
}

func (f *simFile) Write(p []byte) (n int, err error) {
	err = f.m.do(true, func() error {
		f.m.d.dirty[f.name] = true
		n, err = f.File.Write(p)
		return err
	})
	if errors.Is(err, syscall.ENOSPC) {
		n, _ = f.File.Write(p[:len(p)/2]) // a disk that runs full takes some
	}
	return n, err
}

func (f *simFile) Sync() error {
	f.m.delay()
	return f.m.do(false, func() error {
		if err := f.m.fail(); err != nil {
			return err
		}
		delete(f.m.d.dirty, f.name)
		return nil
	})
}

// calledBy reports whether a function whose name has any of the parts in it is on the stack.
func calledBy(parts ...string) bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(f.Function, part) }) {
			return true
		}
		if !more {
			return false
		}
	}
}
