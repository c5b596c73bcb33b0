package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// Blobs between nodes in bulk: the form of request and answer is in mirror/bulk.go.
const (
	bulkPath   = "/v1/blobs"
	bulkRounds = 3               // nodes that are asked for what the ones before do not have
	bulkLater  = 5 * time.Minute // after which a node is asked again that does not know the question
)

// holds reports whether a blob is durable here, also if it has to be proven before anybody gets it.
func (n *node) holds(ctx context.Context, ref artifact.Ref) bool {
	return n.store.HasUnproven(ref) || n.store.DurableIntact(ctx, ref) == nil
}

// sendBulk answers a node that pulls in bulk.
func (n *node) sendBulk(w http.ResponseWriter, r *http.Request) {
	b, err := readBody(r, 1<<20)
	if err != nil {
		sendError(w, err)
		return
	}
	refs, err := mirror.ParseBulk(b)
	if err != nil {
		sendError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	out := &begun{w: w}
	switch err := n.mirror.GiveBulk(r.Context(), refs, out); {
	case err == nil:
	case !out.any:
		sendError(w, err)
	default: // whoever reads must not take it for the end
		n.log.Info("a node is not handed over all that it asked for in bulk", "node", peer.From(r).Name, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// begun notes whether anything of an answer was written.
type begun struct {
	w   io.Writer
	any bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.any = true
	return b.w.Write(p)
}

// bulkNodes are the nodes that do not know the question, and until when they are not asked again.
type bulkNodes struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu; by id
}

func (k *bulkNodes) knows(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !time.Now().Before(k.until[id])
}

func (k *bulkNodes) doesNotKnow(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.until == nil {
		k.until = map[string]time.Time{}
	}
	k.until[id] = time.Now().Add(bulkLater)
}

// FetchBulk asks the nodes of the zone, spread over those that answer; what they lack, and this node may take out of another zone
// by itself, is asked of the nearest there.
func (p peers) FetchBulk(ctx context.Context, refs []artifact.Ref, take func([]int, io.Reader, string) mirror.BulkTaken) error {
	b := &bulkFetch{peers: p, refs: refs, take: take, sources: p.bulkSources(refs)}
	left := make([]int, len(refs))
	for i := range left {
		left[i] = i
	}
	for round := 0; round < bulkRounds && len(left) > 0 && ctx.Err() == nil; round++ {
		left = b.round(ctx, left, round)
	}
	if !b.asked {
		return fmt.Errorf("no node hands over blobs in bulk: %w", errors.ErrUnsupported)
	}
	return context.Cause(ctx)
}

// bulkSources returns, for each of refs, the nodes that may be asked for it, in order.
func (p peers) bulkSources(refs []artifact.Ref) [][]peer.Member {
	self := neighbour{Member: peer.Member{ID: p.n.replica.ID(), Zone: p.n.config.Cluster.Zone}, takes: p.n.keeps() == nil}
	others := p.n.neighbours()
	lead, _ := p.n.leader()
	out := make([][]peer.Member, len(refs))
	for i, ref := range refs {
		for _, m := range bulkOrder(ref.Digest, routeAmong(ref.Digest, self, others), lead.ID) {
			if p.n.bulkNodes.knows(m.ID) {
				out[i] = append(out[i], m)
			}
		}
	}
	return out
}

// bulkOrder returns from where a blob is taken in bulk: from the nodes of the zone, of which each gives a part of what is asked for,
// the leader as the last; and from afar only if no other node of the zone is to bring it here.
func bulkOrder(d artifact.Digest, r route, leader string) (order []peer.Member) {
	var last []peer.Member
	near := append(r.siblings[:len(r.siblings):len(r.siblings)], r.relays[:min(1, len(r.relays))]...)
	for _, m := range peer.Owner(d.String(), near) {
		if m.ID == leader {
			last = append(last, m)
		} else {
			order = append(order, m)
		}
	}
	order = append(order, last...)
	if len(r.relays) == 0 {
		order = append(order, r.far...)
	}
	return order
}

// bulkFetch is one FetchBulk.
type bulkFetch struct {
	peers
	refs    []artifact.Ref
	take    func([]int, io.Reader, string) mirror.BulkTaken
	sources [][]peer.Member

	mu    sync.Mutex
	asked bool  // guarded by mu; a node was that knows the question
	left  []int // guarded by mu; for the next round
}

// round asks each node for its part of places in refs, and returns which of them are to be asked of another one.
func (b *bulkFetch) round(ctx context.Context, places []int, round int) []int {
	parts, members := map[string][]int{}, map[string]peer.Member{}
	for _, i := range places {
		if round < len(b.sources[i]) {
			m := b.sources[i][round]
			parts[m.ID], members[m.ID] = append(parts[m.ID], i), m
		}
	}
	b.left = nil
	var wg sync.WaitGroup
	for id, part := range parts {
		wg.Go(func() { b.from(ctx, members[id], part) })
	}
	wg.Wait()
	return b.left
}

// from asks one node.
func (b *bulkFetch) from(ctx context.Context, m peer.Member, part []int) {
	far, background := m.Zone != b.n.config.Cluster.Zone, mirror.NewBackground()
	if far {
		b.later(true, nil)
		var done func()
		part, done = b.arriving(part, background)
		defer done()
	}
	if len(part) == 0 {
		return
	}
	refs := make([]artifact.Ref, len(part))
	for k, i := range part {
		refs[k] = b.refs[i]
	}
	resp, err := b.n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: bulkPath, Body: bytes.NewReader(mirror.AppendBulk(nil, refs)), Bulk: true})
	if err != nil {
		b.later(true, part)
		b.n.log.Info("a node cannot be asked for blobs in bulk", "node", m.Name, "err", err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(classHeader) != "" {
		known := resp.StatusCode != http.StatusNotFound || resp.Header.Get(classHeader) != ""
		if !known { // it runs an earlier version
			b.n.bulkNodes.doesNotKnow(m.ID)
		}
		_, _, err := answerOf(resp)
		b.later(known, part)
		b.n.log.Info("a node hands over no blobs in bulk", "node", m.Name, "known", known, "err", err)
		return
	}
	body := io.Reader(resp.Body)
	if far {
		body = b.n.wan.body(body, background, nil)
	}
	t := b.take(part, body, "node "+m.Name)
	b.later(true, t.Absent)
	if far {
		b.n.fromAfar.pulled.Add(int64(t.Came))
	}
}

// later has another node asked for part.
func (b *bulkFetch) later(known bool, part []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = b.asked || known
	b.left = append(b.left, part...)
}

// arriving notes that blobs are about to come from afar, and returns those that do not come already. Who waits for one of them has
// all of them hurry.
func (b *bulkFetch) arriving(part []int, background *mirror.Background) (mine []int, done func()) {
	var all []*arrival
	for _, i := range part {
		if a, ok := b.n.arrivals.begin(b.refs[i].Digest, background); ok {
			all, mine = append(all, a), append(mine, i)
		}
	}
	return mine, func() {
		for _, a := range all {
			a.end()
		}
	}
}
