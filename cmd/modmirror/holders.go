package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// Which nodes hold a module version, for people who ask. It nearly always follows from what the nodes say of themselves anyway: one
// that has every blob of the changes before a place holds the versions whose last change is before it, and one whose catalog does
// not go that far holds none of it as published. Only a node that lacks a blob of something older is asked (POST /v1/holds), and only
// about what that leaves open.

// holder says whether a member holds a module version: what is published of it, with all its blobs.
type holder struct {
	ID, Name, Zone string
	Holds          bool
	Known          bool // else Holds says nothing: the member does not answer, or its version cannot be asked
}

const (
	maxHolds  = 256             // blobs in a question
	holdsWait = 2 * time.Second // for all answers together
)

// holdsQuestion and holdsAnswer are the bodies of POST /v1/holds.
type holdsQuestion struct {
	Blobs []blobName `json:"blobs"`
}

type blobName struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

type holdsAnswer struct {
	Holds []bool `json:"holds"` // in the order of the blobs
}

// handleHolds says which blobs are here, as far as their names and sizes tell.
func (n *node) handleHolds(r *http.Request) (any, error) {
	b, err := readBody(r, 64<<10)
	if err != nil {
		return nil, err
	}
	var q holdsQuestion
	if err := json.Unmarshal(b, &q); err != nil {
		return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	if len(q.Blobs) > maxHolds {
		return nil, fmt.Errorf("more than %d blobs: %w", maxHolds, artifact.ErrMalformed)
	}
	a := holdsAnswer{Holds: make([]bool, len(q.Blobs))}
	for i, name := range q.Blobs {
		d, err := artifact.ParseDigest(name.Digest)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
		}
		ref := artifact.Ref{Digest: d, Size: name.Size}
		a.Holds[i] = n.store.Has(ref) || n.store.HasUnproven(ref)
	}
	return a, nil
}

// holding is a version whose holders are looked for.
type holding struct {
	place   int64 // of its last change
	blobs   []artifact.Ref
	holders []holder // in the order of the members of the view; nil: it is not published
}

// whoHolds says of each of mods which of the members in v hold it, in their order; none if it is not published. It takes no longer
// than holdsWait, and asks about maxHolds blobs at most; the rest is as far known as the members have said.
func (n *node) whoHolds(ctx context.Context, v clusterView, mods []module.Version) ([][]holder, error) {
	all := make([]holding, len(mods))
	for i, mod := range mods {
		var err error
		if all[i], err = n.published(ctx, mod); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		all[i].judge(v.Nodes, n.replica.ID(), n.store.Has)
	}
	ctx, cancel := context.WithTimeout(ctx, holdsWait)
	defer cancel()
	var asking sync.WaitGroup
	for i, m := range v.Nodes {
		if open := openFor(all, i); len(open) > 0 && m.Alive && n.link != nil {
			asking.Go(func() { n.askHolds(ctx, m, i, open) })
		}
	}
	asking.Wait()
	out := make([][]holder, len(mods))
	for i := range all {
		out[i] = all[i].holders
	}
	return out, nil
}

// published returns where a version stands in the catalog, and its blobs.
func (n *node) published(ctx context.Context, mod module.Version) (h holding, err error) {
	man, err := n.replica.Manifest(ctx, mod)
	if err != nil {
		return h, err
	}
	if h.place, err = n.replica.Place(ctx, mod); err != nil {
		return h, err
	}
	if !man.Zip.IsZero() {
		h.blobs = append(h.blobs, man.Zip)
	}
	if man.Mod.Size > artifact.MaxInline {
		h.blobs = append(h.blobs, man.Mod)
	}
	return h, nil
}

// judge says what follows from what the members said of themselves. What self holds is looked up.
func (h *holding) judge(members []memberView, self string, has func(artifact.Ref) bool) {
	for _, m := range members {
		o := holder{ID: m.ID, Name: m.Name, Zone: m.Zone, Holds: true, Known: true}
		switch {
		case m.ID == self:
			for _, ref := range h.blobs {
				o.Holds = o.Holds && has(ref)
			}
		case m.Seen.IsZero():
			o.Holds, o.Known = false, false
		case m.Seq <= h.place: // it may have got further since it was heard of, if it still runs
			o.Holds, o.Known = false, m.Alive
		case m.Blobs <= h.place && len(h.blobs) > 0:
			o.Holds, o.Known = false, false
		}
		h.holders = append(h.holders, o)
	}
}

// openFor returns what is not known of member i, of which it can be asked all in one question.
func openFor(all []holding, i int) (open []*holding) {
	blobs := 0
	for k := range all {
		h := &all[k]
		if len(h.holders) == 0 || h.holders[i].Known || len(h.blobs) == 0 {
			continue
		}
		if blobs += len(h.blobs); blobs > maxHolds {
			break
		}
		open = append(open, h)
	}
	return open
}

// askHolds asks member i for what is not known of it. Without an answer that stays so.
func (n *node) askHolds(ctx context.Context, m memberView, i int, open []*holding) {
	var q holdsQuestion
	for _, h := range open {
		for _, ref := range h.blobs {
			q.Blobs = append(q.Blobs, blobName{ref.Digest.String(), ref.Size})
		}
	}
	body, err := json.Marshal(q)
	if err != nil {
		return
	}
	b, err := n.link.Call(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: "/v1/holds"}, body, 64<<10)
	var a holdsAnswer
	if err != nil || json.Unmarshal(b, &a) != nil || len(a.Holds) != len(q.Blobs) {
		n.log.Debug("a node does not say which blobs it holds", "node", m.Name, "err", err)
		return
	}
	for _, h := range open {
		o := &h.holders[i]
		o.Holds, o.Known = true, true
		for range h.blobs {
			o.Holds, a.Holds = o.Holds && a.Holds[0], a.Holds[1:]
		}
	}
}
