package replicate

import (
	"context"
	"fmt"

	"modmirror/mirror/artifact"
)

// Proven returns nil if the record of man is included in a committed tree head that this node has. An error matches
// [artifact.ErrRefused] if it is not, or if its database is not trusted, and [artifact.ErrUnavailable] if this node does not
// have that head, or not yet.
func (c *catalog) Proven(ctx context.Context, man artifact.Manifest) error {
	r := man.Record
	return c.read(ctx, func(s state) error {
		v, err := s.verifier(r.Database)
		if err != nil {
			return err
		}
		if v == nil {
			return refused("%q is not a trusted checksum database", r.Database).err
		}
		head, ok, err := s.head(r.Database, r.TreeSize)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("the head of %s with %d records is not committed here: %w", r.Database, r.TreeSize, artifact.ErrUnavailable)
		}
		return r.Check(head.Hash)
	})
}
