//go:build linux || darwin

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// lookAtDisk returns how much room there is for this process on the file system of dir. It is not ok if that cannot be
// told.
func lookAtDisk(dir string) (r room, ok bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return room{}, false
	}
	block := uint64(st.Bsize)
	return room{Free: uint64(st.Bavail) * block, Total: uint64(st.Blocks) * block, FreeFiles: st.Ffree, Files: st.Files}, true
}

// maxOpenFiles returns how many files this process may have open. It is not ok if that cannot be told.
func maxOpenFiles() (files uint64, ok bool) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, false
	}
	return l.Cur, true
}

// isOwn reports whether the file belongs to the user of this process.
func isOwn(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// privateFiles has files that this process makes be readable by its user alone.
func privateFiles() { syscall.Umask(0o077) }

// ownGroup has a process not get the signals that the terminal sends to this one.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
