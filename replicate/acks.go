package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"modmirror/mirror/artifact"
)

// ErrTooFewAcks is an [artifact.ErrUnavailable]: a publication came without the word of a majority of the voters that its
// blobs are on their disks. Ask more of them, or again, and publish then.
var ErrTooFewAcks = fmt.Errorf("too few voters hold the bytes: %w", artifact.ErrUnavailable)

// How old an ack may be, and by how much it may come from the future: nodes promise not to throw away what they acked for
// much longer, and their clocks differ.
const (
	maxAckAge  = time.Hour
	maxAckLead = 10 * time.Minute
)

// blobs returns the parts of a manifest that are not in the catalog as bytes.
func blobs(m artifact.Manifest) (refs []artifact.Ref) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		if r := m.Ref(k); !r.IsZero() && (k == artifact.Zip || r.Size > artifact.MaxInline) {
			refs = append(refs, r)
		}
	}
	return refs
}

// ownAcks returns acks and this node's own, which holds the blobs of p by contract.
func (n *Node) ownAcks(p artifact.Publication) []artifact.Ack {
	acks := slices.Clone(p.Acks)
	for _, ref := range blobs(p.Manifest) {
		acks = append(acks, artifact.Ack{Node: n.id.Node, Starts: n.starts.Load(), Ref: ref, At: time.Now()})
	}
	return acks
}

// checkAcks demands for each blob that p adds that a majority of the present voters have said that it is durable on their
// disks as they are now. The leader asks, when the publication is proposed.
func (n *Node) checkAcks(ctx context.Context, p artifact.Publication, acks []artifact.Ack) error {
	have, err := n.Manifest(ctx, p.Manifest.Module)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known := blobs(have)
	for _, ref := range blobs(p.Manifest) {
		if slices.Contains(known, ref) {
			continue
		}
		starts, err := n.voterStarts()
		if err != nil {
			return err
		}
		if err := checkBlob(ref, acks, starts); err != nil {
			return fmt.Errorf("publish %s: %w", p.Manifest.Module, err)
		}
	}
	return nil
}

// checkBlob demands that a majority of the voters, whose present starts are given, have acked ref.
func checkBlob(ref artifact.Ref, acks []artifact.Ack, starts map[string]uint64) error {
	holders := map[string]bool{}
	var why []string
	for _, a := range acks {
		if a.Ref != ref {
			continue
		}
		if bad := checkAck(a, starts); bad != "" {
			why = append(why, fmt.Sprintf("node %.100s %s", a.Node, bad))
			continue
		}
		holders[a.Node] = true
	}
	if need := len(starts)/2 + 1; len(holders) < need {
		return fmt.Errorf("%v: %d of %d voters hold it, %d must: %s: %w", ref, len(holders), len(starts), need, strings.Join(why, "; "), ErrTooFewAcks)
	}
	return nil
}

// checkAck says why a does not count; "" if it does.
func checkAck(a artifact.Ack, voters map[string]uint64) string {
	starts, ok := voters[a.Node]
	age := time.Since(a.At)
	switch {
	case !ok:
		return "is not a voter"
	case starts != a.Starts:
		return fmt.Sprintf("said so in its start %d, and it is known by its start %d", a.Starts, starts)
	case age > maxAckAge || age < -maxAckLead:
		return fmt.Sprintf("said so at %v", a.At.UTC().Format(time.RFC3339))
	}
	return ""
}

// voterStarts returns the voters of the latest configuration and the start of each that the node table knows. This node
// knows its own.
func (n *Node) voterStarts() (map[string]uint64, error) {
	starts := map[string]uint64{}
	err := n.view(func(s state) error {
		for _, m := range n.Members() {
			if !m.Voter {
				continue
			}
			p, _, err := s.peer(m.ID)
			if err != nil {
				return err
			}
			starts[m.ID] = p.Starts
		}
		return nil
	})
	if _, ok := starts[n.id.Node]; ok {
		starts[n.id.Node] = n.starts.Load()
	}
	return starts, err
}
