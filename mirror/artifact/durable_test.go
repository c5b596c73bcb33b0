package artifact

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Hold says yes only to what a power cut cannot take away any more, whoever brought it here.
func TestHoldIsDurable(t *testing.T) {
	dir := t.TempDir()
	s, disk := openUnsafe(t, dir)
	defer s.Close()
	ref := RefOf([]byte("bytes"))
	if err := s.Durable(ref); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Hold of nothing: %v", err)
	}
	d, err := s.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte("bytes")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.shard(ref.Digest); err != nil {
		t.Fatal(err)
	}
	if err := d.settle(ref); err != nil { // and the process dies, or another goroutine comes in between
		t.Fatal(err)
	}
	if err := s.Durable(ref); err != nil {
		t.Fatal(err)
	}
	if n := len(disk.renames); n != 0 {
		t.Errorf("names in %d directories are not durable", n)
	}
	if err := s.DurableIntact(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, blobName(ref.Digest)), []byte("bytez"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.DurableIntact(t.Context(), ref); !errors.Is(err, ErrDamaged) {
		t.Errorf("DurableIntact of damaged bytes: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, blobName(ref.Digest)), []byte("byte"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Durable(ref); !errors.Is(err, ErrDamaged) {
		t.Errorf("Hold of a part: %v", err)
	}
	s.StopWrites(errors.New("rot"))
	if err := s.Durable(ref); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Hold on a disk that does not fsync: %v", err)
	}
}

// Whoever asks about ErrUnavailable is told about a missing quorum too.
func TestNoQuorumIsUnavailable(t *testing.T) {
	if !errors.Is(ErrNoQuorum, ErrUnavailable) || errors.Is(ErrUnavailable, ErrNoQuorum) {
		t.Error("ErrNoQuorum is not a kind of ErrUnavailable")
	}
}
