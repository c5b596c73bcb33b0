package artifact

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What is kept at most of damaged bytes whose right ones are back, or that nothing names. The oldest leave first.
const (
	DamagedFiles = 16
	DamagedBytes = 256 << 20
)

const damagedDir = quarantineDir + "/damaged"

// Damage is what is wrong with a stored blob.
type Damage string

// The ways in which a blob can be damaged.
const (
	Intact     Damage = ""
	Missing    Damage = "missing"    // it is not there
	WrongBytes Damage = "bytes"      // other bytes, or another number of them, than its digest is of
	Unreadable Damage = "unreadable" // the disk does not give them back
)

// Damaged describes a blob that was condemned. It stands in JSON next to its bytes, in quarantine/damaged/<digest>.json.
type Damaged struct {
	Time    time.Time `json:"time"`
	Damage  Damage    `json:"damage"`
	Reason  string    `json:"reason"`
	Digest  string    `json:"digest"` // that the bytes had when they were stored; the file of this name has them as they are now
	Size    int64     `json:"size"`   // of the file; -1 if the disk does not say
	Unnamed bool      `json:"unnamed,omitempty"`

	Replaced bool `json:"-"` // the right bytes are back in their place
}

// Condemn looks at the blob d again and, if it is still not what it was, moves it out of the way, into quarantine/damaged. It
// returns what is wrong with it, which is nothing if the first look was a fluke, or if somebody was faster. Whoever has the
// file open reads on. From then on the blob is missing for everybody, so no ack is given for it.
//
// What is damaged takes no more room there than it did before, so it is kept whatever it takes until the right bytes are back:
// they may be all that is left, and a disk may give back later what it does not now. Then the limits hold that DamagedFiles and
// DamagedBytes say. They are no part of those of the quarantine for what others sent: a disk that rots pushes out no evidence
// against an upstream, and the other way round.
//
// What is true if the process dies: before the rename, the damaged bytes are in their place and are found again, as before;
// after it they are missing, and described in Damaged. The description comes first, so that there are no bytes without.
func (s *Store) Condemn(ctx context.Context, d Digest, reason string) (Damage, error) {
	damage, id, err := s.look(ctx, d)
	if err != nil || damage == Intact || damage == Missing {
		return damage, err
	}
	s.damaged.mu.Lock()
	defer s.damaged.mu.Unlock()
	about := Damaged{Time: time.Now().UTC(), Damage: damage, Reason: clip(reason, maxReason), Digest: d.String(), Size: id.size}
	now, err := s.damaged.take(d, id, about)
	if err != nil || now != damage {
		return now, err
	}
	return damage, s.damaged.trim()
}

// look reads the blob d whole and says what is wrong with it, and with which file. An error says that it cannot be told.
func (s *Store) look(ctx context.Context, d Digest) (Damage, fileID, error) {
	fi, err := s.root.Lstat(blobName(d))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Missing, fileID{}, nil
	case errors.Is(err, syscall.EIO):
		return Unreadable, fileID{size: -1}, nil
	case err != nil:
		return Intact, fileID{}, fmt.Errorf("look at blob %s: %v: %w", d, err, ErrUnavailable)
	case !fi.Mode().IsRegular():
		return WrongBytes, fileIDOf(fi), nil
	}
	f, err := s.open(Ref{Digest: d, Size: fi.Size()})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Missing, fileID{}, nil
	case errors.Is(err, ErrDamaged): // it changes while we look
		return WrongBytes, fileIDOf(fi), nil
	case err != nil:
		return Intact, fileID{}, err
	}
	defer f.Close()
	got, err := digestAll(ctx, io.NewSectionReader(s.disk.Blob(f), 0, fi.Size()+1))
	switch {
	case ctx.Err() != nil:
		return Intact, fileID{}, context.Cause(ctx)
	case err != nil:
		return Unreadable, fileIDOf(fi), nil
	case got.Digest == d:
		return Intact, fileIDOf(fi), nil
	}
	return WrongBytes, fileIDOf(fi), nil
}

// Damaged returns the descriptions of what was condemned, oldest first.
func (s *Store) Damaged() ([]Damaged, error) {
	s.damaged.mu.Lock()
	defer s.damaged.mu.Unlock()
	return s.damaged.list()
}

// Unnamed notes that nothing names a blob that was condemned: nobody will replace it, and it is kept as if it were.
func (s *Store) Unnamed(d Digest) error {
	s.damaged.mu.Lock()
	defer s.damaged.mu.Unlock()
	about, err := s.damaged.read(d.String())
	if err != nil || about.Unnamed {
		return err
	}
	about.Unnamed = true
	if err := s.damaged.describe(about); err != nil {
		return err
	}
	return s.damaged.trim()
}

// damagedShelf is quarantine/damaged of a store.
type damagedShelf struct {
	s        *Store
	maxFiles int
	maxBytes int64
	mu       sync.Mutex // held while the directory changes
}

// take moves the file id that stands in the place of d here, unless another one has taken its place. It returns what is wrong
// with the blob if it was not moved, and else what is wrong with what was moved.
func (q *damagedShelf) take(d Digest, id fileID, about Damaged) (Damage, error) {
	if err := q.s.Err(); err != nil {
		return about.Damage, err
	}
	if err := q.makeDir(); err != nil {
		return about.Damage, err
	}
	if err := q.describe(about); err != nil {
		return about.Damage, err
	}
	q.s.renaming.Lock()
	defer q.s.renaming.Unlock()
	name := blobName(d)
	fi, err := q.s.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Missing, nil
	case err == nil && fileIDOf(fi) != id:
		return Intact, nil // whoever put it there had read it
	}
	q.s.verified.forget(d)
	if err := q.s.disk.Rename(name, damagedDir+"/"+about.Digest); err != nil {
		return about.Damage, q.s.fault("move a damaged blob out of the way", err)
	}
	for _, dir := range []string{damagedDir, path.Dir(name)} { // in this order: rather twice than nowhere
		if err := q.s.disk.SyncDir(dir); err != nil {
			return about.Damage, q.s.latch("fsync the directory of a damaged blob", err)
		}
	}
	return about.Damage, nil
}

// makeDir makes the directory when it is needed for the first time.
func (q *damagedShelf) makeDir() error {
	if _, err := q.s.root.Lstat(damagedDir); err == nil {
		return nil
	}
	if err := q.s.disk.Mkdir(damagedDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return q.s.fault("make the directory of damaged blobs", err)
	}
	if err := q.s.disk.SyncDir(quarantineDir); err != nil {
		return q.s.latch("fsync the quarantine", err)
	}
	return nil
}

// describe writes a description, or replaces one.
func (q *damagedShelf) describe(about Damaged) error {
	return q.s.describe(damagedDir+"/"+about.Digest+".json", about)
}

// list returns the descriptions of the bytes that are there, oldest first. What does not parse counts as the oldest.
func (q *damagedShelf) list() ([]Damaged, error) {
	names, err := q.s.names(damagedDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var held []Damaged
	for _, name := range names {
		d, err := ParseDigest(name)
		if err != nil {
			continue
		}
		about, _ := q.read(name)
		about.Digest = name
		_, err = q.s.root.Lstat(blobName(d))
		about.Replaced = err == nil
		held = append(held, about)
	}
	slices.SortStableFunc(held, func(a, b Damaged) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Digest, b.Digest))
	})
	return held, nil
}

func (q *damagedShelf) read(name string) (about Damaged, err error) {
	f, err := q.s.root.Open(damagedDir + "/" + name + ".json")
	if err != nil {
		return about, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 8*maxReason))
	if err == nil {
		err = json.Unmarshal(b, &about)
	}
	if err != nil {
		return Damaged{}, err
	}
	return about, nil
}

// trim removes the oldest of what nobody will ask for any more.
func (q *damagedShelf) trim() error {
	held, err := q.list()
	if err != nil {
		return fmt.Errorf("list what is damaged: %v: %w", err, ErrUnavailable)
	}
	held = slices.DeleteFunc(held, func(d Damaged) bool { return !d.Replaced && !d.Unnamed })
	size := int64(0)
	for _, d := range held {
		size += max(d.Size, 0)
	}
	for ; len(held) > q.maxFiles || len(held) > 0 && size > q.maxBytes; held = held[1:] {
		size -= max(held[0].Size, 0)
		for _, name := range []string{held[0].Digest, held[0].Digest + ".json"} {
			if err := q.s.disk.Remove(damagedDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("make room for what is damaged: %v: %w", err, ErrUnavailable)
			}
		}
	}
	return nil
}

// sweep removes the descriptions whose bytes never came.
func (q *damagedShelf) sweep() error {
	names, err := q.s.names(damagedDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if digest, ok := strings.CutSuffix(name, ".json"); ok && !slices.Contains(names, digest) {
			if err := q.s.disk.Remove(damagedDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
