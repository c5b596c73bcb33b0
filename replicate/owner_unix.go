//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A mirror runs as a user of its own, and operators are root: what a command of theirs makes in the mirror's directory belongs to whom
// the directory belongs, or the mirror would not start again, which shows only when it is needed most.

// owner returns whom dir belongs to, if what this process makes there has to be given to them.
func owner(dir string) (uid, gid int, other bool, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, false, nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return 0, 0, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return 0, 0, false, nil
	}
	return int(st.Uid), int(st.Gid), true, nil
}

// giveFile gives the file at path, which this process made, to the owner of its directory.
func giveFile(path string) error {
	uid, gid, other, err := owner(filepath.Dir(path))
	if err != nil || !other {
		return err
	}
	return give(path, uid, gid)
}

// give has path belong to uid and gid. A root who may not do that, as in many a container, runs the mirror too.
func give(path string, uid, gid int) error {
	err := os.Lchown(path, uid, gid)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// giveTree gives what root has made below dir to the owner of dir. A file with several names may have one elsewhere, put here by
// somebody who wants to have it: it stays root's.
func giveTree(dir string) error {
	uid, gid, other, err := owner(dir)
	if err != nil || !other {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 || !d.IsDir() && st.Nlink > 1 {
			return nil
		}
		return give(path, uid, gid)
	})
}
