package replicate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// sealedStream returns file as it is sent.
func sealedStream(file []byte) []byte {
	var b bytes.Buffer
	if err := sealStream(&b, bytes.NewReader(file)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// receive has m receive what was sent as a snapshot, in parts of some length.
func receive(m *machine, sent io.Reader) (*sink, error) {
	k, err := m.store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 0, nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(k, sent); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	return k.(*sink), k.Close()
}

// FAULTS 35: whichever byte of a snapshot is another one on arrival, or is missing, the snapshot is refused, nothing of it
// stays, and the catalog is the old one. The last bytes of the file are of no page in use: nobody else would notice.
func TestDamagedSnapshot(t *testing.T) {
	full, _ := fullMachine(t)
	sent := snapshotOf(t, full)
	m := newMachine(t)
	m.apply(clusterCommand{"c"})
	before := dump(t, m.catalog)
	refuse := func(what string, sent []byte) {
		t.Helper()
		if _, err := receive(m, bytes.NewReader(sent)); !errors.Is(err, artifact.ErrRefused) && len(sent) > 0 {
			t.Errorf("%s: %v, want ErrRefused", what, err)
		}
		if _, _, err := m.store.Open(installID); err == nil {
			t.Errorf("%s: there is a snapshot to restore", what)
		}
	}
	for at := range sent {
		if at > 100 && at < len(sent)-100 && at%13 != 0 { // 13: each place in a word
			continue
		}
		damaged := bytes.Clone(sent)
		damaged[at] ^= 1 << (at % 8)
		refuse("a bit of a byte", damaged)
	}
	for _, n := range []int{0, 1, 2, streamSealLen - 1, streamSealLen, 4096, len(sent) / 2, len(sent) - streamSealLen, len(sent) - 1} {
		refuse("cut short", sent[:n])
	}
	refuse("a byte too many", append(bytes.Clone(sent), 0))
	refuse("a byte left out", slices.Delete(bytes.Clone(sent), 5000, 5001))
	refuse("twice", append(bytes.Clone(sent), sent...))
	refuse("not sealed", sent[1:len(sent)-streamSealLen+1])
	next := append([]byte{streamFormat + 1}, sent[1:len(sent)-sha256.Size]...)
	sum := sha256.Sum256(next)
	if _, err := receive(m, bytes.NewReader(append(next, sum[:]...))); !errors.Is(err, artifact.ErrRefused) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("of a later version: %v", err)
	}
	if got := dump(t, m.catalog); got != before {
		t.Errorf("the catalog is\n%s\nwant\n%s", got, before)
	}
	if left, _ := filepath.Glob(m.catalog.path + tempMark + "*"); len(left) > 0 {
		t.Errorf("refused snapshots leave %q", left)
	}
	if err := m.latch.fault(); err != nil {
		t.Errorf("what another node sends stops this one's writes: %v", err)
	}
}

// However a snapshot is cut into parts, the file is the one that was sent.
func TestSealInParts(t *testing.T) {
	full, _ := fullMachine(t)
	file := snapshotOf(t, full)
	file = file[1 : len(file)-streamSealLen+1]
	for name, parts := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "single bytes": iotest.OneByteReader,
	} {
		k, err := receive(newMachine(t), struct{ io.Reader }{parts(bytes.NewReader(sealedStream(file)))})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := os.ReadFile(k.file.Name())
		if err != nil || !bytes.Equal(got, file) || k.meta.Size != int64(len(file)) {
			t.Errorf("%s: %d bytes (counted: %d), want %d: %v", name, len(got), k.meta.Size, len(file), err)
		}
	}
}
