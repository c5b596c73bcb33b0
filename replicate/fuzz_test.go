package replicate

import (
	"bytes"
	"encoding/binary"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// FuzzSnapshot receives any bytes as a leader's snapshot: the catalog is refused, or is what the bytes say, and the process
// lives. A flip turns a bit of a real one.
func FuzzSnapshot(f *testing.F) {
	good := branched(f)
	want := committedRows(dumpOf(f, good))
	f.Add([]byte(nil), uint32(0), byte(0))
	f.Add([]byte("text"), uint32(0), byte(0))
	f.Add([]byte(nil), uint32(2*4096+10), byte(1))
	f.Add([]byte(nil), uint32(2*4096+20), byte(0x80))
	f.Add(good[:8192], uint32(0), byte(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, flip byte) {
		flipped := len(data) == 0
		if flipped {
			data = bytes.Clone(good)
			data[int(at)%len(data)] ^= flip
		}
		m := newMachine(t)
		k, err := m.store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Write(sealedStream(data)); err != nil { // or nothing would come further than the seal
			t.Fatal(err)
		}
		if k.Close() != nil {
			if left, _ := filepath.Glob(m.catalog.path + tempMark + "*"); len(left) > 0 {
				t.Errorf("a refused snapshot leaves %q", left)
			}
			return
		}
		_, in, err := m.store.Open(k.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Restore(io.NopCloser(in)); err == nil {
			t.Error("restored from what is not an installed snapshot")
		}
		if err := m.Restore(in); err != nil {
			t.Fatal(err)
		}
		if got := dump(t, m.catalog); flipped && committedRows(got) != want {
			t.Errorf("the catalog differs:\n%s\nwant\n%s", got, want)
		}
	})
}

// committedRows returns the lines of a dump about what vouches for itself: not listings, and not where the catalog ends.
func committedRows(dump string) string {
	var out strings.Builder
	for line := range strings.Lines(dump) {
		if strings.ContainsAny(line[:2], "mbsct") && !strings.HasPrefix(line, "cfg") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// FuzzRows parses any bytes as the rows of each bucket: what is accepted has this one form.
func FuzzRows(f *testing.F) {
	m, _ := fullMachine(f)
	if err := m.catalog.view(func(s state) error {
		for i, name := range buckets {
			if err := s.bucket(name).ForEach(func(k, v []byte) error { f.Add(i, bytes.Clone(k), bytes.Clone(v)); return nil }); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, bucket int, k, v []byte) {
		if bucket < 0 || bucket >= len(buckets) {
			return
		}
		again, ok := rewritten(t, buckets[bucket], k, v)
		if ok && !bytes.Equal(again, v) {
			t.Errorf("row %s %q = %q is accepted, and would be written as %q", buckets[bucket], k, v, again)
		}
	})
}

// rewritten returns what v would be written as, if it is accepted.
func rewritten(t *testing.T, bucket, k, v []byte) (again []byte, ok bool) {
	var err, encErr error
	switch string(bucket) {
	case string(bucketManifests):
		var row manifestRow
		if row, err = parseManifestRow(v); err == nil {
			again, encErr = row.AppendBinary(binary.AppendUvarint(nil, uint64(row.seq)))
		}
	case string(bucketInline):
		var row inlineRow
		if row, err = parseInlineRow(v); err == nil {
			again = append(binary.AppendUvarint([]byte{0}, uint64(row.seq)), row.data...)
		}
	case string(bucketHeads):
		var row headRow
		if row, err = parseHeadRow(k, v); err == nil {
			again = append(row.Hash[:], row.note...)
		}
	case string(bucketForks):
		var row forkRow
		if row, err = parseForkRow(v); err == nil {
			again, encErr = appendFork([]byte{map[bool]byte{true: 1}[row.acked]}, row.Fork)
		}
	case string(bucketListings):
		d := decoder{b: v}
		l := decodeListing(&d)
		if err = d.end(); err == nil {
			again, encErr = appendListing(nil, l)
		}
	case string(bucketConfig):
		err = checkConfigRow(k, v)
		again = v
		if err == nil && bytes.Equal(k, keyMerkle) {
			var c compact
			c, err = parseCompact(v)
			again = c.encode()
		}
	default:
		return nil, false
	}
	if err == nil && encErr != nil {
		t.Errorf("row %s %q = %q is accepted, and cannot be written: %v", bucket, k, v, encErr)
	}
	return again, err == nil
}

// FuzzPages turns bytes of a catalog's file, wherever they are: what passes the walk can be read by bbolt, all of it, and
// by its own check, without a fault.
func FuzzPages(f *testing.F) {
	good := branched(f)
	f.Add(uint32(4096*3), []byte{1})
	f.Add(uint32(4096*4+8), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint32(24), []byte{1})
	f.Fuzz(func(t *testing.T, at uint32, turn []byte) {
		b := bytes.Clone(good)
		for i, c := range turn {
			b[(int(at)+i)%len(b)] ^= c
		}
		path := filepath.Join(t.TempDir(), "catalog.db")
		read := readDamaged(t, path, b)
		if walk := checkPages(path); walk != nil && read == nil {
			t.Errorf("the walk says %v, and all the same everything is well", walk)
		}
	})
}
