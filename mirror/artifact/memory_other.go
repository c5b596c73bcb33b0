//go:build !linux

package artifact

import (
	"errors"
	"os"
)

func memoryFile([]byte) (*os.File, error) { return nil, errors.ErrUnsupported }

func hasMemoryFiles() bool { return false }
