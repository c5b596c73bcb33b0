package artifact

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// What the quarantine holds at most. The oldest leave first.
const (
	QuarantineFiles = 64
	QuarantineBytes = 1 << 30
)

// Quarantined describes bytes in quarantine. It stands in JSON next to them, in <digest>.json.
type Quarantined struct {
	Time   time.Time `json:"time"` // when they failed first
	Reason string    `json:"reason"`
	Digest string    `json:"digest"` // of the bytes, which stand in the file of this name
	Size   int64     `json:"size"`
}

// maxReason bounds the reason that is kept, in bytes.
const maxReason = 4 << 10

// Quarantine ends the draft and keeps its bytes, with the reason, for whoever wants to know what an upstream sent.
// They are never served. The same bytes are kept once, with the first reason. The bytes of a draft that exceeded its
// limit are kept as far as they came. The description is written first, so that there are no bytes without a reason;
// one whose bytes are missing is swept when the store is opened.
func (d *Draft) Quarantine(reason string) error {
	defer d.Discard()
	if d.f == nil {
		return d.closed("quarantine")
	}
	if err := d.s.Err(); err != nil {
		return err
	}
	if err := d.spill(); err != nil {
		return err
	}
	if err := d.sync(); err != nil { // before others have to wait for it
		return err
	}
	return d.s.quarantine.take(d, reason)
}

// Quarantined returns the descriptions of what is in quarantine, oldest first.
func (s *Store) Quarantined() ([]Quarantined, error) {
	s.quarantine.mu.Lock()
	defer s.quarantine.mu.Unlock()
	return s.quarantine.list()
}

// shelf is the quarantine of a store.
type shelf struct {
	s        *Store
	maxFiles int
	maxBytes int64
	mu       sync.Mutex // held while the directory changes
}

func (q *shelf) take(d *Draft, reason string) error { return q.takeFile(&d.name, d.Ref(), reason) }

// takeFile moves the file called *file, which holds ref, here, and makes *file "". It does not if the same bytes are here already.
func (q *shelf) takeFile(file *string, ref Ref, reason string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ref.Size > q.maxBytes {
		return fmt.Errorf("quarantine %v: more than the limit of %d bytes: %w", ref, q.maxBytes, ErrUnavailable)
	}
	held, err := q.list()
	if err != nil {
		return fmt.Errorf("list quarantine: %v: %w", err, ErrUnavailable)
	}
	about := Quarantined{Time: time.Now().UTC(), Reason: clip(reason, maxReason), Digest: ref.Digest.String(), Size: ref.Size}
	if slices.ContainsFunc(held, func(h Quarantined) bool { return h.Digest == about.Digest }) {
		return nil
	}
	for size := total(held); len(held) > 0 && (len(held) >= q.maxFiles || size+ref.Size > q.maxBytes); held = held[1:] {
		if err := q.drop(held[0].Digest); err != nil {
			return fmt.Errorf("make room in quarantine: %v: %w", err, ErrUnavailable)
		}
		size -= held[0].Size
	}
	if err := q.describe(about); err != nil {
		return err
	}
	name := quarantineDir + "/" + about.Digest
	if err := q.s.disk.Rename(*file, name); err != nil {
		return q.s.fault("rename a draft", err)
	}
	*file = ""
	if err := q.s.disk.SyncDir(quarantineDir); err != nil {
		return q.s.fault("fsync the quarantine", err)
	}
	return nil
}

// describe writes the description of bytes that are about to come.
func (q *shelf) describe(about Quarantined) error {
	return q.s.describe(quarantineDir+"/"+about.Digest+".json", about)
}

// describe writes about as JSON to the file called name, or replaces it. Its name is durable with the next fsync of the directory.
func (s *Store) describe(name string, about any) error {
	b, err := json.MarshalIndent(about, "", "\t")
	if err != nil {
		return err
	}
	d, err := s.Create(int64(len(b)))
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(b); err != nil {
		return err
	}
	if err := d.sync(); err != nil {
		return err
	}
	if err := s.disk.Rename(d.name, name); err != nil {
		return s.fault("rename a description", err)
	}
	d.name = ""
	return nil
}

// list returns the descriptions of the bytes that are there, oldest first. What does not parse counts as the oldest.
func (q *shelf) list() ([]Quarantined, error) {
	names, err := q.s.names(quarantineDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a store that is open for reading only may have none
		return nil, err
	}
	var held []Quarantined
	for _, name := range names {
		if _, err := ParseDigest(name); err != nil {
			continue
		}
		fi, err := q.s.root.Lstat(quarantineDir + "/" + name)
		if err != nil {
			return nil, err
		}
		about := q.read(name)
		about.Digest, about.Size = name, fi.Size()
		held = append(held, about)
	}
	slices.SortStableFunc(held, func(a, b Quarantined) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Digest, b.Digest))
	})
	return held, nil
}

func (q *shelf) read(name string) (about Quarantined) {
	f, err := q.s.root.Open(quarantineDir + "/" + name + ".json")
	if err != nil {
		return about
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 8*maxReason))
	if err != nil || json.Unmarshal(b, &about) != nil {
		return Quarantined{}
	}
	return about
}

// drop removes bytes, then their description.
func (q *shelf) drop(name string) error {
	for _, name := range []string{name, name + ".json"} {
		if err := q.s.disk.Remove(quarantineDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweep removes the descriptions whose bytes never came.
func (q *shelf) sweep() error {
	names, err := q.s.names(quarantineDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if digest, ok := strings.CutSuffix(name, ".json"); ok && !slices.Contains(names, digest) {
			if err := q.drop(digest); err != nil {
				return err
			}
		}
	}
	return nil
}

func total(held []Quarantined) (n int64) {
	for _, h := range held {
		n += h.Size
	}
	return n
}
