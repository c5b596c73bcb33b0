package main

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A disk that has no room for one more file in the middle of a backup or a restore, which no look at the free bytes foretells: there is
// no generation and no mirror, what is said is why, and run again with more room, both come to their end.
func TestBackupAndRestoreFillTheDisk(t *testing.T) {
	t.Parallel()
	s, ms := stockedSite(t, rand.New(rand.NewPCG(51, 52)), 30)
	disk := newMemoryDisk(t, filepath.Join(s.dir, "disk"), 64)
	files := func(most int) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", fmt.Sprintf("remount,nr_inodes=%d", most), disk.dir).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v %s", err, out)
		}
	}
	backup, data := filepath.Join(disk.dir, "backup"), filepath.Join(disk.dir, "data")
	files(40)
	s.fails("no space left on device", "backup", backup, "--data-dir", s.data)
	if left, err := os.ReadDir(filepath.Join(backup, generationsDir)); err != nil || len(left) > 0 {
		t.Errorf("a backup that did not come to its end left %v, %v", left, err)
	}
	files(4000)
	if rep := s.backs(backup, "--data-dir", s.data); rep.NewBlobs == rep.Manifest.Blobs.Files {
		t.Errorf("%d blobs were copied again", rep.NewBlobs)
	}

	used, failed := 0, 0
	if err := filepath.WalkDir(disk.dir, func(string, fs.DirEntry, error) error { used++; return nil }); err != nil {
		t.Fatal(err)
	}
	for most := used + 10; ; most += 20 { // each time it comes further
		files(most)
		_, errs, err := s.modmirror(s.restoreArgs(backup, data)...)
		if err == nil {
			break
		}
		if failed++; failed > 100 || !strings.Contains(errs, "no space left on device") {
			t.Fatalf("with %d files on the disk of %d, restore says %v\n%s", used, most, err, errs)
		}
		s.noMirror(data)
	}
	if failed < 3 {
		t.Errorf("the disk was full %d times only", failed)
	}
	files(4000) // for the mirror
	s.works(data, ms)
}
