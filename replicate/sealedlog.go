package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"modmirror/mirror/artifact"
)

// sealedLog is the log's file with a checksum on every entry. Neither bbolt nor raft has one, and an entry with a bit
// turned is as good as any other to a parser: this node would apply something else than the others, or send it to them.
//
// The seal stands in front of the entry's extensions, which raft leaves to us. It is taken off when the entry is read:
//
//	byte    1
//	uint32  CRC-32C of index, term (both uint64), type (byte), the length of the extensions (uint64), these, and the data
//
// Numbers are big endian. An entry without a seal, or with another one, is damage. A page that is damaged as a whole makes
// bbolt panic; that is an error here too.
type sealedLog struct {
	*raftboltdb.BoltStore
}

const (
	sealFormat = 1
	sealSize   = 1 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(l *raft.Log, extensions []byte) uint32 {
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(extensions)))
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, extensions)
	return crc32.Update(sum, castagnoli, l.Data)
}

// errEntry means that an entry of the log is not what was written.
var errEntry = fmt.Errorf("its checksum is wrong: %w", artifact.ErrDamaged)

// unseal takes the seal off l, and reports whether l is entry index as it was written.
func unseal(l *raft.Log, index uint64) error {
	if len(l.Extensions) < sealSize || l.Extensions[0] != sealFormat {
		return fmt.Errorf("it has no checksum: %w", artifact.ErrDamaged)
	}
	rest := l.Extensions[sealSize:]
	if binary.BigEndian.Uint32(l.Extensions[1:]) != checksum(l, rest) {
		return errEntry
	}
	if l.Index != index {
		return fmt.Errorf("it is entry %d: %w", l.Index, artifact.ErrDamaged)
	}
	l.Extensions = rest
	if len(rest) == 0 {
		l.Extensions = nil
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (s *sealedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes copies of entries with a seal; what it is given belongs to raft.
func (s *sealedLog) StoreLogs(logs []*raft.Log) error {
	sealed, out := make([]raft.Log, len(logs)), make([]*raft.Log, len(logs))
	for i, l := range logs {
		seal := make([]byte, sealSize, sealSize+len(l.Extensions))
		seal[0] = sealFormat
		binary.BigEndian.PutUint32(seal[1:], checksum(l, l.Extensions))
		sealed[i] = *l
		sealed[i].Extensions = append(seal, l.Extensions...)
		out[i] = &sealed[i]
	}
	return safely(true, func() error { return s.BoltStore.StoreLogs(out) })
}

// GetLog implements raft.LogStore. An error is [raft.ErrLogNotFound] or matches [artifact.ErrDamaged].
func (s *sealedLog) GetLog(index uint64, l *raft.Log) error {
	var read raft.Log
	err := safely(true, func() error { return s.BoltStore.GetLog(index, &read) })
	if err == nil {
		err = unseal(&read, index)
	} else if errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	if err != nil {
		return damagedEntry(index, err)
	}
	*l = read
	return nil
}

// readable reports whether raft can read what it reads when it starts: the last entry, and all behind applied.
func (s *sealedLog) readable(f facts, applied uint64) error {
	var l raft.Log
	for index := max(f.first, min(applied+1, f.last)); index > 0 && index <= f.last; index++ {
		if err := s.GetLog(index, &l); errors.Is(err, artifact.ErrDamaged) {
			return err
		}
	}
	return nil
}

// damagedEntry says that an entry cannot be read.
func damagedEntry(index uint64, err error) error {
	if !errors.Is(err, artifact.ErrDamaged) {
		err = fmt.Errorf("%v: %w", err, artifact.ErrDamaged)
	}
	return fmt.Errorf("raft log: entry %d: %w", index, err)
}

// FirstIndex implements raft.LogStore.
func (s *sealedLog) FirstIndex() (index uint64, err error) {
	err = safely(true, func() (err error) { index, err = s.BoltStore.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (s *sealedLog) LastIndex() (index uint64, err error) {
	err = safely(true, func() (err error) { index, err = s.BoltStore.LastIndex(); return err })
	return index, err
}

// DeleteRange implements raft.LogStore.
func (s *sealedLog) DeleteRange(min, max uint64) error {
	return safely(true, func() error { return s.BoltStore.DeleteRange(min, max) })
}

// Set implements raft.StableStore.
func (s *sealedLog) Set(k, v []byte) error {
	return safely(true, func() error { return s.BoltStore.Set(k, v) })
}

// Get implements raft.StableStore.
func (s *sealedLog) Get(k []byte) (v []byte, err error) {
	err = safely(true, func() (err error) { v, err = s.BoltStore.Get(k); return err })
	return v, err
}

// SetUint64 implements raft.StableStore.
func (s *sealedLog) SetUint64(k []byte, v uint64) error {
	return s.Set(k, bigEndian(int64(v)))
}

// GetUint64 implements raft.StableStore.
func (s *sealedLog) GetUint64(k []byte) (v uint64, err error) {
	err = safely(true, func() (err error) { v, err = s.BoltStore.GetUint64(k); return err })
	return v, err
}
