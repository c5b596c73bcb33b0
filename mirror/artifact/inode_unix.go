//go:build unix

package artifact

import (
	"io/fs"
	"syscall"
)

// inode returns the number of a file on its file system.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}
