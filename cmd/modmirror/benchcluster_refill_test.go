//go:build bench && linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// clusterRefill measures how fast a node that is new receives every blob, from the start of its process on, against copying
// their directory and waiting for the disk.
func (b *bench) clusterRefill(t *testing.T) {
	s := b.stockedCluster(t, "refill")
	want, err := filesBelow(blobFilesOf(s.nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	mb := float64(want.bytes) / 1e6
	var copied, refilled samples
	for round := range b.coldRounds() {
		copied = append(copied, mb/b.copyOnce(t, blobFilesOf(s.nodes[0]), fmt.Sprint("copy-", round)).Seconds())
		refilled = append(refilled, mb/b.refillOnce(t, s, want).Seconds())
	}
	b.add(row{fmt.Sprintf("a new node receives %.0f MB in %d blobs, MB/s (compared with cp and sync -f)", mb, want.files), copied, refilled, ratioAtLeast(0.5)})
}

// refillOnce starts a further node, waits until it holds as much as want, and removes it.
func (b *bench) refillOnce(t *testing.T, s *clusterSite, want tally) time.Duration {
	t.Helper()
	n := s.addNode()
	n.extra = s.nodes[0].extra
	begin := time.Now()
	s.launch(n)
	for {
		have, _ := filesBelow(blobFilesOf(n)) // it may not be there yet, and files in it come and go
		if have == want {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("%+v after a minute, want %+v\n%s", have, want, tail(n.output(), 4000))
		}
		b.idle(10 * time.Millisecond)
	}
	took := time.Since(begin)
	s.sees(n, "all blobs at "+n.name, func(v clusterView) bool {
		m, err := v.find(n.name)
		return err == nil && m.Missing == 0 && m.Blobs == v.Seq
	})
	if out, err := s.command(s.nodes[0], "remove", n.name, "--yes"); err != nil {
		t.Fatalf("remove: %v\n%s", err, out)
	}
	n.kill()
	return took
}

// copyOnce copies a directory and waits until the copy is on the disk.
func (b *bench) copyOnce(t *testing.T, from, name string) time.Duration {
	t.Helper()
	to := filepath.Join(b.work, name)
	defer os.RemoveAll(to) // the rest goes with b.work
	if err := exec.CommandContext(b.ctx, "sync", "-f", b.work).Run(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for _, args := range [][]string{{"cp", "-r", from, to}, {"sync", "-f", to}} {
		if out, err := exec.CommandContext(b.ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return time.Since(begin)
}

func blobFilesOf(n *clusterNode) string { return filepath.Join(n.dir, "blobs") }

// tally is how much there is in a directory.
type tally struct {
	files int
	bytes int64
}

func filesBelow(dir string) (n tally, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n.files++
		n.bytes += info.Size()
		return nil
	})
	return n, err
}
