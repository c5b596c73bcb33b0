//go:build linux && (amd64 || arm64)

package artifact

import (
	"os"
	"syscall"
)

// forgetPages lets the system forget what it holds of f in memory, so that the next read is one of the disk. Others who read f
// notice nothing but that. It is a hint: where it does no good, memory is read.
func forgetPages(f *os.File) {
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, fd, 0, 0, dontNeed, 0, 0) })
	}
}
