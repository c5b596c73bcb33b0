//go:build !linux && !darwin

package main

import (
	"io/fs"
	"syscall"
)

// lookAtDisk cannot tell how much room there is on this system.
func lookAtDisk(string) (r room, ok bool) { return room{}, false }

// maxOpenFiles cannot tell either.
func maxOpenFiles() (files uint64, ok bool) { return 0, false }

// isOwn cannot tell, and says no.
func isOwn(fs.FileInfo) bool { return false }

// privateFiles has no effect here.
func privateFiles() {}

// ownGroup is unknown here.
func ownGroup() *syscall.SysProcAttr { return nil }
