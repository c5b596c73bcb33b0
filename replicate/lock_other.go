//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package replicate

import "os"

// lockDir does nothing: the lock of the log must do.
func lockDir(string) (*os.File, error) { return nil, nil }
