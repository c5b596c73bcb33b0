package sumdb

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// cursor says how far a store holds the tiles of what is committed:
//
//	modmirror tiles 1
//	8841                                           every change before this one is covered
//	71909756                                       in the shape that tiles have in the tree of this many records
//	dRgqg6bNjCv/HjgbQbR4FTQxb01x93qAiafZ4wW6HNI=   and with this root
//	5f70bf18a08660e5…                              SHA-256 of these lines
//
// The file is replaced as a whole. One that is missing or damaged means that nothing is known to be held.
type cursor struct {
	next int64
	tree tlog.Tree
}

const (
	cursorFile  = ".cursor" // in the store's directory; no element of a database's name begins with a dot
	cursorTitle = "modmirror tiles 1"
)

func (c cursor) String() string {
	lines := fmt.Sprintf("%s\n%d\n%d\n%s\n", cursorTitle, c.next, c.tree.N, c.tree.Hash)
	return lines + fmt.Sprintf("%x\n", sha256.Sum256([]byte(lines)))
}

// parseCursor parses the form that String has, and nothing else. An error matches [artifact.ErrDamaged].
func parseCursor(s string) (c cursor, err error) {
	lines := strings.Split(s, "\n")
	if len(lines) == 6 {
		c.next, _ = strconv.ParseInt(lines[1], 10, 64)
		c.tree.N, _ = strconv.ParseInt(lines[2], 10, 64)
		hash, _ := base64.StdEncoding.DecodeString(lines[3])
		copy(c.tree.Hash[:], hash)
	}
	if c.next < 0 || c.tree.N < 0 || c.tree.N > maxTree || c.String() != s {
		return cursor{}, fmt.Errorf("cursor %.200q: %w", s, artifact.ErrDamaged)
	}
	return c, nil
}

// cursor reads the cursor. There is none: zero.
func (s *TileStore) cursor() (cursor, error) {
	if s.root == nil {
		return cursor{}, nil
	}
	b, err := s.root.ReadFile(cursorFile)
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}, nil
	}
	if err != nil {
		return cursor{}, fmt.Errorf("cursor: %w: %w", err, artifact.ErrDamaged)
	}
	return parseCursor(string(b))
}

// setCursor replaces the cursor, durably. The tiles that it speaks of are durable already.
func (s *TileStore) setCursor(c cursor) error {
	if err := s.Err(); err != nil || s.fixed {
		return fmt.Errorf("store cursor: writing stopped: %w: %w", err, artifact.ErrUnavailable)
	}
	if err := s.replaceFile(cursorFile, []byte(c.String()), func() {}); err != nil {
		return fmt.Errorf("store cursor: %w", err)
	}
	return s.syncDir(".")
}
