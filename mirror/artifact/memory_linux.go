package artifact

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// memoryFile returns a file in memory that holds b, at its beginning. Its name can be opened as long as it is open.
func memoryFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("blob", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	if _, err := f.WriteAt(b, 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// hasMemoryFiles reports whether memoryFile works here: not without /proc.
var hasMemoryFiles = sync.OnceValue(func() bool {
	f, err := memoryFile([]byte{1})
	if err != nil {
		return false
	}
	defer f.Close()
	again, err := os.Open(f.Name())
	if err != nil {
		return false
	}
	_ = again.Close()
	return true
})
