package replicate

import (
	"bytes"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// An entry is read as it was written, whatever raft keeps beside it, or it is damage: no bit of it can turn unseen. (The
// time of its making is for metrics of raft only.)
func TestSealedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s, err := newLog(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	want := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("members")},
		{Index: 2, Term: 1, Type: raft.LogNoop},
		{Index: 3, Term: 2, Type: raft.LogCommand, Data: []byte("command"), Extensions: []byte("of raft")},
	}
	if err := s.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	if string(want[2].Extensions) != "of raft" {
		t.Errorf("what was stored is changed: %+v", want[2])
	}
	for _, l := range want {
		var got raft.Log
		if err := s.GetLog(l.Index, &got); err != nil || got.Index != l.Index || got.Term != l.Term || got.Type != l.Type || !bytes.Equal(got.Data, l.Data) || !bytes.Equal(got.Extensions, l.Extensions) {
			t.Errorf("GetLog(%d) = %+v, %v, want %+v", l.Index, got, err, l)
		}
	}
	if err := s.GetLog(4, new(raft.Log)); err != raft.ErrLogNotFound {
		t.Errorf("GetLog(4) = %v", err)
	}
	s.Close()
	var row []byte
	if err := changeDB(path, func(tx *bbolt.Tx) error { row = bytes.Clone(tx.Bucket([]byte("logs")).Get(bigEndian(3))); return nil }); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for at := range row {
		for bit := range 8 {
			turned := bytes.Clone(row)
			turned[at] ^= 1 << bit
			if err := db.Update(func(tx *bbolt.Tx) error {
				return tx.Bucket([]byte("logs")).Put(bigEndian(int64(10+8*at+bit)), turned)
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	db.Close()
	if s, err = newLog(path, false); err != nil {
		t.Fatal(err)
	}
	unseen := 0
	for i := range 8 * len(row) {
		var got raft.Log
		err := s.BoltStore.GetLog(uint64(10+i), &got)
		if err == nil {
			err = unseal(&got, 3)
		}
		got.AppendedAt = time.Time{}
		if err == nil && !reflect.DeepEqual(&got, want[2]) {
			t.Errorf("bit %d of byte %d: %+v", i%8, i/8, got)
		} else if err == nil {
			unseen++
		}
	}
	if unseen > 8*40 { // names of fields, and the time
		t.Errorf("%d of %d bits turn unseen", unseen, 8*len(row))
	}
	if err := s.BoltStore.StoreLog(&raft.Log{Index: 5}); err != nil {
		t.Fatal(err)
	}
	if err := s.GetLog(5, new(raft.Log)); !errors.Is(err, artifact.ErrDamaged) || !strings.Contains(err.Error(), "entry 5: it has no checksum") {
		t.Errorf("GetLog of an entry without a seal: %v", err)
	}
}

// turnEntry turns a bit in the data of an entry.
func turnEntry(dir string, index uint64) error {
	return changeDB(logPath(dir), func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("logs"))
		v := bytes.Clone(b.Get(bigEndian(int64(index))))
		at := bytes.Index(v, []byte("example.com/"))
		if at < 0 {
			return errors.New("not an entry with a module")
		}
		v[at+8] ^= 1
		return b.Put(bigEndian(int64(index)), v)
	})
}

// An entry that is still to be applied, and is not what was written, is not applied: the start says so in one line.
func TestStartAtDamagedEntry(t *testing.T) {
	dir, early := lived(t)
	last := lastIndex(t, dir)
	for index := last; ; index-- {
		if err := turnEntry(dir, index); err == nil {
			break
		}
	}
	checkSays(t, dir, "its checksum is wrong")
	if err := copyFile(filepath.Join(early, "catalog.db"), filepath.Join(dir, "catalog.db")); err != nil {
		t.Fatal(err)
	}
	n, err := Open(t.Context(), Config{Dir: dir})
	if err == nil {
		n.Close()
		t.Fatal("the node starts")
	}
	if !strings.Contains(err.Error(), "checksum is wrong") || !strings.Contains(err.Error(), restore) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Open: %v", err)
	}
}

func lastIndex(t *testing.T, dir string) uint64 {
	t.Helper()
	s, err := openLog(logPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// damagedLog is a log whose entries are all damaged.
type damagedLog struct{ logBackend }

func (damagedLog) GetLog(index uint64, _ *raft.Log) error { return damagedEntry(index, errEntry) }

// raft panics at an entry that it cannot read. The goroutine that wanted it ends instead, and with it the node's writes.
func TestDamagedEntryWhileRunning(t *testing.T) {
	s := &logStore{logBackend: damagedLog{raft.NewInmemStore()}, latch: newLatch("", nil), limit: time.Minute}
	if err := s.GetLog(7, new(raft.Log)); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("GetLog before raft runs = %v", err)
	}
	s.running.Store(true)
	returned := make(chan bool)
	go func() {
		ok := false
		defer func() { returned <- ok || recover() != nil }()
		_ = s.GetLog(7, new(raft.Log))
		ok = true
	}()
	if <-returned {
		t.Error("GetLog returns to raft")
	}
	if err := s.latch.fault(); err == nil || !strings.Contains(err.Error(), "raft log: entry 7") || !strings.Contains(err.Error(), restore) {
		t.Errorf("fault = %v", err)
	}
}
