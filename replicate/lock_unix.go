//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicate

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockDir locks dir until the file that it returns is closed. bbolt locks the log, but that comes into being only after
// other files: of two first starts at the same time, the slower one would find a directory that is half made.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, nil // a file system without such locks; bbolt will say if it has none at all
		}
		if time.Since(begin) > lockWait {
			f.Close()
			return nil, fmt.Errorf("%s: %w", dir, ErrLocked)
		}
	}
}

const lockPoll = 10 * time.Millisecond
