package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/http"
	"strconv"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
	"modmirror/sumdb"
)

// sumPeer is another node as a source of tiles of one checksum database.
type sumPeer struct {
	link     *peer.Link
	member   peer.Member
	database string
}

func (s sumPeer) String() string { return "node " + s.member.Name + " at " + s.member.Address }

func (s sumPeer) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	b, err := s.link.Call(ctx, peer.Request{Node: s.member.ID, Addr: s.member.Address, Path: "/sumdb/" + s.database + path}, nil, limit)
	var status *peer.StatusError
	switch {
	case err == nil:
		return b, nil
	case errors.As(err, &status) && status.Code == http.StatusNotFound:
		return nil, fmt.Errorf("%s does not hold it: %w", s, fs.ErrNotExist)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", s, ctx.Err())
	}
	return nil, fmt.Errorf("%s: %w: %w", s, err, artifact.ErrUnavailable)
}

// sumPeers returns the other nodes that answer, the nearest first.
func (n *node) sumPeers(database string) []sumdb.Source {
	var out []sumdb.Source
	for _, m := range n.nearest() {
		if s, ok := n.seen(m.ID); ok && s.Healthy {
			out = append(out, sumPeer{n.link, m, database})
		}
	}
	return out
}

// sumChanges is the catalog's order for the checksum databases.
type sumChanges struct{ *replicate.Node }

func (c sumChanges) Records(ctx context.Context, _ string, from int64) iter.Seq2[artifact.Change, error] {
	return c.Changes(ctx, from)
}

func (c sumChanges) Next(context.Context) (int64, error) {
	seq, _ := c.Root()
	return seq, nil
}

// sync returns when all that was committed before the call is in this node's catalog. It asks the leader how far that is.
func (n *node) sync(ctx context.Context) error {
	return n.awaitLeaderIndex(ctx, "/v1/index", (*replicate.Node).CommittedIndex)
}

// awaitLeaderIndex asks the leader for an entry of the log, at path, or this node if it leads, and returns when the entry is in
// this node's catalog.
func (n *node) awaitLeaderIndex(ctx context.Context, path string, own func(*replicate.Node, context.Context) (uint64, error)) error {
	lead, ok := n.leader()
	if !ok && n.link != nil {
		return fmt.Errorf("there is no leader: %w", artifact.ErrNoQuorum)
	}
	if n.link == nil || lead.ID == n.replica.ID() {
		index, err := own(n.replica, ctx)
		if err != nil {
			return err
		}
		return n.replica.AwaitApplied(ctx, index)
	}
	resp, err := n.link.Do(ctx, peer.Request{Node: lead.ID, Addr: lead.Address, Path: path})
	if err != nil {
		return fmt.Errorf("ask the leader how far the log is: %w: %w", err, artifact.ErrUnavailable)
	}
	b, _, err := answerOf(resp)
	if err != nil {
		return fmt.Errorf("ask the leader how far the log is: %w", err)
	}
	index, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("ask the leader how far the log is: %q: %w", b, artifact.ErrUnavailable)
	}
	return n.replica.AwaitApplied(ctx, index)
}

// handleIndex is the leader's end of sync.
func (n *node) handleIndex(r *http.Request) (any, error) {
	index, err := n.replica.CommittedIndex(r.Context())
	return strconv.AppendUint(nil, index, 10), err
}
