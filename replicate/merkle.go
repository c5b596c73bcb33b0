package replicate

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// compact is the right edge of an append-only Merkle tree (RFC 6962 §2.1): its size, and the roots of the complete
// subtrees that it is made of, largest first, one for each one-bit of size. It is all that appending needs.
type compact struct {
	size  int64
	nodes []tlog.Hash
}

// add appends a leaf.
func (c *compact) add(leaf tlog.Hash) {
	for n := c.size; n&1 == 1; n >>= 1 {
		last := len(c.nodes) - 1
		leaf = tlog.NodeHash(c.nodes[last], leaf)
		c.nodes = c.nodes[:last]
	}
	c.nodes = append(c.nodes, leaf)
	c.size++
}

// root returns the tree's root hash.
func (c compact) root() tlog.Hash {
	if len(c.nodes) == 0 {
		h, _ := tlog.TreeHash(0, nil)
		return h
	}
	h := c.nodes[len(c.nodes)-1]
	for i := len(c.nodes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(c.nodes[i], h)
	}
	return h
}

// encode returns 8 bytes of size and the hashes.
func (c compact) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	for _, h := range c.nodes {
		b = append(b, h[:]...)
	}
	return b
}

func parseCompact(b []byte) (c compact, err error) {
	if len(b) < 8 || len(b)%tlog.HashSize != 8 {
		return c, errors.New("malformed Merkle state")
	}
	c.size = int64(binary.BigEndian.Uint64(b))
	for b = b[8:]; len(b) > 0; b = b[tlog.HashSize:] {
		c.nodes = append(c.nodes, tlog.Hash(b[:tlog.HashSize]))
	}
	if c.size < 0 || bits.OnesCount64(uint64(c.size)) != len(c.nodes) {
		return c, errors.New("malformed Merkle state")
	}
	return c, nil
}
