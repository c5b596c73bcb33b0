//go:build !linux && !darwin

package main

import "io/fs"

// freeBytes cannot tell how much room there is on this system.
func freeBytes(string) (free uint64, ok bool) { return 0, false }

// maxOpenFiles cannot tell either.
func maxOpenFiles() (files uint64, ok bool) { return 0, false }

// isOwn cannot tell, and says no.
func isOwn(fs.FileInfo) bool { return false }
