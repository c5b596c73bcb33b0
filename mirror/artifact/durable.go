package artifact

import "context"

// Durable returns nil if the bytes of r are here and their name is durable, also if another commit is about to make it so, or a
// process that died before it could. It looks at the size only, and brings back what is in the trash. The error matches [fs.ErrNotExist], [ErrDamaged], or
// [ErrUnavailable] if the store has stopped writing.
func (s *Store) Durable(r Ref) error {
	if err := s.Err(); err != nil {
		return err
	}
	defer s.Reserve(r.Digest)()
	f, err := s.openRestored(context.Background(), r)
	if err != nil {
		return err
	}
	_ = f.Close() // nothing was read
	dir, err := s.shard(r.Digest)
	if err != nil {
		return err
	}
	if err := s.disk.SyncDir(dir); err != nil {
		return s.latch("fsync the directory of a blob", err)
	}
	return nil
}

// DurableIntact is Durable for bytes that have been read, by this process, and found to be right.
func (s *Store) DurableIntact(ctx context.Context, r Ref) error {
	defer s.Reserve(r.Digest)()
	f, err := s.OpenContext(ctx, r)
	if err != nil {
		return err
	}
	_ = f.Close() // it was only read
	return s.Durable(r)
}
