//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What root makes in the directory of a mirror that runs as a user of its own is that user's: a recovery and a restore, by root,
// leave nothing that the mirror cannot read.
func TestRootLeavesNothingOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: only root can give files to others")
	}
	const uid, gid = 12345, 12346
	strangers := func(dir string) (names []string) {
		t.Helper()
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
				names = append(names, path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return names
	}

	c, i, _, _ := lost(t)
	dir := c.dirs[i]
	for _, name := range append(strangers(dir), dir) {
		if err := os.Lchown(name, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	recoverIn(t, dir)
	if left := strangers(dir); len(left) > 0 {
		t.Errorf("after a recovery by root, %q are not the mirror's", left)
	}

	m, _ := fullMachine(t)
	restored, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	linked := filepath.Join(restored, "linked")
	if err := errors.Join(os.Lchown(restored, uid, gid), NoteRestore(restored, nil), os.MkdirAll(filepath.Join(restored, "blobs", "ab"), 0o700),
		os.WriteFile(filepath.Join(restored, "blobs", "ab", "x"), nil, 0o600), os.WriteFile(outside, nil, 0o600), os.Link(outside, linked)); err != nil {
		t.Fatal(err)
	}
	if _, err := Refound(restored, saved(t, m.catalog, restored)); err != nil {
		t.Fatal(err)
	}
	if left := strangers(restored); len(left) != 1 || left[0] != linked {
		t.Errorf("after a restore by root, %q are not the mirror's, want %s alone, which has a name elsewhere", left, linked)
	}
}
