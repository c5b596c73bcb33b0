package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"modmirror/mirror/artifact"
)

// compare holds the tree heads of the backup, and what it knows of forks, against those of the mirror that it replaces.
func (r *restore) compare(ctx context.Context, c *heldCatalog, note restoreNote) error {
	var older []string
	if note.Blind != "" {
		older = append(older, fmt.Sprintf("it is not known which tree heads the mirror that was here has seen: %s", note.Blind))
	}
	for _, old := range note.Heads {
		why, err := c.isBehind(ctx, old)
		if err != nil {
			return err
		}
		if why != "" {
			older = append(older, why)
		}
	}
	forgotten, err := c.lacksForks(ctx, note.Forks)
	if err != nil {
		return err
	}
	older = append(older, forgotten...)
	if len(older) == 0 {
		return nil
	}
	if !r.force {
		return fmt.Errorf("a tree head would go back (%s), and with it what is known to be signed: take a newer backup, or say --force-older-head and --reason: %w", strings.Join(older, "; "), artifact.ErrRefused)
	}
	r.report.Older = older
	r.report.audit = append(r.report.audit, auditNow("restore an older tree head", plain(r.reason+" ("+strings.Join(older, "; ")+")")))
	return nil
}

// isBehind says why the head of c may not take the place of old; "" if it may: it is old, or c was at old on its way, each step of
// which was proven. A larger tree alone is not known to be of the same history.
func (c *heldCatalog) isBehind(ctx context.Context, old backupDatabase) (why string, err error) {
	if old.Size == 0 {
		return "", nil
	}
	now, err := headOf(ctx, c.Catalog, old.Name, math.MaxInt64)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%s from %d records to none", old.Name, old.Size), nil
	}
	if err != nil {
		return "", err
	}
	if now.N < old.Size {
		return fmt.Sprintf("%s from %d records to %d", old.Name, old.Size, now.N), nil
	}
	same, err := headOf(ctx, c.Catalog, old.Name, old.Size+1)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && same.N != old.Size:
		return fmt.Sprintf("%s from %d records to %d, which the backup does not show to go on from those", old.Name, old.Size, now.N), nil
	case err != nil:
		return "", err
	case same.Hash.String() != old.Root:
		return "", fmt.Errorf("%s has signed two trees of %d records, one with the root %s, which the mirror that is to be replaced has, and one with %s, which the backup has: one of the two is of a forked history: %w",
			old.Name, old.Size, old.Root, same.Hash, artifact.ErrRefused)
	}
	return "", nil
}

// lacksForks says of which of forks c does not know.
func (c *heldCatalog) lacksForks(ctx context.Context, forks []artifact.Fork) (lacks []string, err error) {
	var known []artifact.Fork
	for _, acked := range []bool{false, true} {
		some, err := c.Forks(ctx, acked)
		if err != nil {
			return nil, err
		}
		known = append(known, some...)
	}
	for _, f := range forks {
		same := func(k artifact.Fork) bool {
			return k.Database == f.Database && bytes.Equal(k.A, f.A) && bytes.Equal(k.B, f.B)
		}
		if !slices.ContainsFunc(known, same) {
			lacks = append(lacks, fmt.Sprintf("%s is frozen, as it has signed two histories, and the backup does not know that", f.Database))
		}
	}
	return lacks, nil
}

// headsIn returns the newest tree heads of a stopped mirror, and the forks that nobody acknowledged there.
func headsIn(ctx context.Context, dir string) (heads []backupDatabase, forks []artifact.Fork, err error) {
	c, err := openCatalog(dir)
	if err != nil {
		return nil, nil, err
	}
	heads, err = databasesOf(ctx, c)
	if err == nil {
		forks, err = c.Forks(ctx, false)
	}
	return heads, forks, errors.Join(err, c.Close())
}
