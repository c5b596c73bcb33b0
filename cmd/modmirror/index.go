package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// index is the catalog as the mirror publishes into it. What is published can be verified by a client of any node that is
// left when this one is lost right after: before a record is published, as many voters as make a majority hold the tiles
// that prove it, as they hold the blobs.
type index struct {
	*replicate.Node
	n *node
}

func (x index) Publish(ctx context.Context, p artifact.Publication) (artifact.Manifest, error) {
	if x.n.link == nil {
		return x.Node.Publish(ctx, p)
	}
	r, err := x.n.set.Commit(ctx, p.Manifest.Record) // it may have been verified while no head could be committed
	if err != nil {
		return artifact.Manifest{}, fmt.Errorf("record of %s: %w", p.Manifest.Module, err)
	}
	p.Manifest.Record = r
	if err := x.n.proven.spread(ctx, x.n, p.Manifest); err != nil {
		return artifact.Manifest{}, err
	}
	fault.Point(fault.TilesSpread)
	return x.Node.Publish(ctx, p)
}

// proven remembers of which module versions enough voters hold the tiles: the parts of one come soon after each other.
type proven struct {
	mu    sync.Mutex
	known map[module.Version]bool // guarded by mu
}

const maxHeld = 4096

func (h *proven) spread(ctx context.Context, n *node, man artifact.Manifest) error {
	h.mu.Lock()
	known := h.known[man.Module]
	h.mu.Unlock()
	if known {
		return nil
	}
	if err := n.spreadTiles(ctx, man); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil || len(h.known) >= maxHeld {
		h.known = make(map[module.Version]bool)
	}
	h.known[man.Module] = true
	return nil
}

// spreadTiles returns when enough other voters hold what proves the record of man.
func (n *node) spreadTiles(ctx context.Context, man artifact.Manifest) error {
	targets, need := n.spreadTo()
	if need == 0 {
		return nil
	}
	enc, err := man.AppendBinary(nil)
	if err != nil {
		return err
	}
	header, err := n.appliedSoFar(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan error, len(targets))
	for _, m := range targets { // small, and the quickest win
		go func() { outcomes <- n.holdAt(ctx, m, header, enc) }()
	}
	var errs []error
	for held := 0; held < need; {
		if len(targets)-len(errs) < need {
			return fmt.Errorf("the proof of %s is on the disks of too few voters: %w: %w", man.Module, errors.Join(errs...), artifact.ErrNoQuorum)
		}
		select {
		case err := <-outcomes:
			if err != nil {
				errs = append(errs, err)
			} else {
				held++
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// holdAt has one voter hold what proves a record.
func (n *node) holdAt(ctx context.Context, m peer.Member, header http.Header, man []byte) error {
	ctx, cancel := n.whileAlive(ctx, m)
	defer cancel()
	resp, err := n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: "/v1/hold", Header: header, Body: bytes.NewReader(man)})
	if err == nil {
		_, _, err = answerOf(resp)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", m.Name, err)
	}
	return nil
}

// handleHold is the voter's end of holdAt.
func (n *node) handleHold(r *http.Request) (any, error) {
	b, err := readBody(r, maxManifest)
	if err != nil {
		return nil, err
	}
	var man artifact.Manifest
	if err := man.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("%w: %w", err, artifact.ErrMalformed)
	}
	if err := n.awaitEntry(r.Context(), r.Header.Get(appliedHeader)); err != nil {
		return nil, err
	}
	if err := n.set.Hold(r.Context(), man.Record); err != nil {
		return nil, err
	}
	fault.Point(fault.TilesHeld)
	return []byte("held\n"), nil
}
