package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// arrivingHeader says, in the answer of a node that lacks a blob, that it is on its way there.
const arrivingHeader = "Modmirror-Arriving"

// How long a node waits for another one that brings a blob here.
const (
	relayHold    = 5 * time.Second // that one holds a question, at most
	relayPatient = 3               // questions in a row between which no byte has come
	relayQuiet   = 24              // the same for what nobody waits for
	relayQueue   = 12              // questions in a row to which the answer is that it has to wait, there
	relayIdle    = 120             // the same for what nobody waits for: clients may need the line for that long
	joinTries    = 4               // pulls of others that are joined before this node makes one of its own
)

// Fetch takes a blob from where [node.routeOf] says. That a node lacks the bytes, or cannot be asked, is a reason to ask the next.
func (p peers) Fetch(ctx context.Context, w mirror.Want, accept func(body io.Reader, size int64, source string) error) error {
	f := &fetching{peers: p, want: w, accept: accept, lacking: true}
	return f.run(ctx, p.n.routeOf(w.Ref.Digest))
}

// fetching is one Fetch.
type fetching struct {
	peers
	want    mirror.Want
	accept  func(body io.Reader, size int64, source string) error
	lacking bool // every node so far said that it does not have the bytes
	errs    []error
}

func (f *fetching) run(ctx context.Context, r route) error {
	steps := []func(context.Context, route) (bool, error){f.fromSiblings, f.fromRelays, f.fromFar}
	for _, step := range steps {
		done, err := step(ctx, r)
		switch {
		case done && err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case done:
			return f.failed()
		}
	}
	return f.failed()
}

// failed is why nobody gave the blob.
func (f *fetching) failed() error {
	if f.lacking {
		return fmt.Errorf("no other node has %v: %w", f.want.Ref, fs.ErrNotExist)
	}
	err := errors.Join(f.errs...)
	if errors.Is(err, fs.ErrNotExist) { // one of several that does not have it is not all
		return fmt.Errorf("fetch %v from other nodes: %v: %w", f.want.Ref, err, artifact.ErrUnavailable)
	}
	return fmt.Errorf("fetch %v from other nodes: %w", f.want.Ref, err)
}

// note remembers why one node did not give the blob.
func (f *fetching) note(err error) {
	f.lacking = f.lacking && errors.Is(err, fs.ErrNotExist)
	f.errs = append(f.errs, err)
}

// fromSiblings asks the nodes of the zone for what they hold. One to which the blob is just coming is waited for.
func (f *fetching) fromSiblings(ctx context.Context, r route) (done bool, err error) {
	siblings := r.siblings
	if f.want.Relayed && len(r.relays) > 0 {
		siblings = append([]peer.Member{r.relays[0]}, siblings...) // this node is asked as the relay, and takes it for another
	}
	for _, m := range siblings {
		arriving, err := f.from(ctx, m, nil)
		if err != nil && arriving && f.await(ctx, m, false) == nil {
			_, err = f.from(ctx, m, nil)
		}
		if err == nil || ctx.Err() != nil {
			return true, err
		}
		f.note(err)
	}
	return false, nil
}

// fromRelays has a node of the zone bring the blob here, and takes it from there.
func (f *fetching) fromRelays(ctx context.Context, r route) (done bool, err error) {
	if f.want.Relayed {
		return false, nil
	}
	for _, m := range r.relays {
		err := f.await(ctx, m, true)
		if said := (*silent)(nil); err == nil || errors.As(err, &said) { // one of an earlier version may have it all the same
			_, ferr := f.from(ctx, m, nil)
			if ferr == nil {
				return true, nil
			}
			err = ferr
		} else if errors.Is(err, fs.ErrNotExist) && f.lacking {
			return true, err
		} else {
			f.note(err)
			f.n.log.Info("the relay of this zone does not bring a blob here; the next is asked", "node", m.Name, "digest", f.want.Ref.Digest, "err", err)
			continue
		}
		if ctx.Err() != nil {
			return true, err
		}
		f.note(err)
	}
	return false, nil
}

// fromFar takes the blob from another zone, unless that is under way here already.
func (f *fetching) fromFar(ctx context.Context, r route) (done bool, err error) {
	if len(r.far) == 0 {
		return false, nil
	}
	for range joinTries {
		a, mine := f.n.arrivals.begin(f.want.Ref.Digest, f.want.Background)
		if mine {
			defer a.end()
			if f.n.holds(ctx, f.want.Ref) { // it came while others were asked
				return true, nil
			}
			return f.fromEach(ctx, r.far, a)
		}
		if err := f.join(ctx, a); err != nil {
			return true, err
		}
	}
	return f.fromEach(ctx, r.far, nil)
}

// join waits for a pull of the same blob. If somebody waits for this one, so does somebody for that.
func (f *fetching) join(ctx context.Context, a *arrival) error {
	hurried := f.want.Background.Hurried()
	for {
		select {
		case <-a.done:
			return nil
		case <-hurried:
			a.background.Hurry()
			hurried = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fromEach asks one node after the other for what it holds.
func (f *fetching) fromEach(ctx context.Context, from []peer.Member, a *arrival) (done bool, err error) {
	for _, m := range from {
		_, err := f.from(ctx, m, a)
		if err == nil || ctx.Err() != nil {
			return true, err
		}
		f.note(err)
	}
	return false, nil
}

// from asks one node for what it holds. arriving is true if it lacks the blob, and receives it.
func (f *fetching) from(ctx context.Context, m peer.Member, a *arrival) (arriving bool, err error) {
	resp, err := f.n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Path: blobPath(f.want.Ref), Bulk: true})
	if err != nil {
		return false, fmt.Errorf("node %s: %w: %w", m.Name, err, artifact.ErrUnavailable)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(classHeader) != "" {
		_, _, err := answerOf(resp)
		return resp.Header.Get(arrivingHeader) != "", fmt.Errorf("node %s: %w", m.Name, err)
	}
	body := io.Reader(resp.Body)
	if a != nil {
		body = a.reading(body)
	}
	if m.Zone != f.n.config.Cluster.Zone {
		body = f.n.wan.body(body, f.want.Background, a)
	}
	err = f.accept(body, resp.ContentLength, "node "+m.Name)
	if err == nil && m.Zone != f.n.config.Cluster.Zone {
		f.n.fromAfar.pulled.Add(1)
	}
	return false, err
}

// relayRequest is what a node asks of another of its zone: whether a blob has come there, and with Bring, to bring it.
type relayRequest struct {
	Module     string `json:"module"`
	Version    string `json:"version"`
	Kind       uint8  `json:"kind"`
	Digest     string `json:"digest"`
	Size       int64  `json:"size"`
	Bring      bool   `json:"bring,omitempty"`
	Background bool   `json:"background,omitempty"` // nobody waits for it
}

// relayAnswer says how far a blob is on its way.
type relayAnswer struct {
	Here     bool  `json:"here"`
	Received int64 `json:"received,omitempty"` // bytes; the question may be asked again
	Waits    bool  `json:"waits,omitempty"`    // it has to wait there, for other pulls to end or until the line is free
}

// silent is the error for a node that does not know the question.
type silent struct{ error }

func (s *silent) Unwrap() error { return s.error }

// await returns nil when a node has the blob. It asks again and again, as long as bytes arrive there; and for a while also if
// none do because the node has to wait itself: whoever takes the blob from afar meanwhile takes it a second time.
func (f *fetching) await(ctx context.Context, m peer.Member, bring bool) error {
	var last int64
	for still, waits := 0, 0; ; {
		background := f.isBackground()
		a, err := f.ask(ctx, m, bring, background)
		if err != nil || a.Here {
			return err
		}
		switch {
		case a.Received > last:
			last, still, waits = a.Received, 0, 0
		case a.Waits:
			waits++
		default:
			still++
		}
		if still >= relayQuiet || waits >= relayIdle || !background && (still >= relayPatient || waits >= relayQueue) {
			return fmt.Errorf("node %s: the blob does not arrive there: %w", m.Name, artifact.ErrUnavailable)
		}
	}
}

// isBackground reports whether nobody waits for the blob yet.
func (f *fetching) isBackground() bool {
	select {
	case <-f.want.Background.Hurried():
		return false
	default:
		return true
	}
}

// ask asks once.
func (f *fetching) ask(ctx context.Context, m peer.Member, bring, background bool) (a relayAnswer, err error) {
	q := relayRequest{Module: f.want.Module.Path, Version: f.want.Module.Version, Kind: uint8(f.want.Kind),
		Digest: f.want.Ref.Digest.String(), Size: f.want.Ref.Size, Bring: bring, Background: background}
	b, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	header, err := f.n.appliedSoFar(ctx)
	if err != nil {
		return a, err
	}
	ctx, cancel := f.n.whileAlive(ctx, m)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, maxBehind+2*relayHold) // else 30 s pass until one that hangs is given up
	defer stop()
	resp, err := f.n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: "/v1/relay", Header: header, Body: bytes.NewReader(b)})
	if err != nil {
		return a, fmt.Errorf("node %s: %w: %w", m.Name, err, artifact.ErrUnavailable)
	}
	unknown := resp.StatusCode == http.StatusNotFound
	body, said, err := answerOf(resp)
	if err != nil {
		err = fmt.Errorf("node %s: %w", m.Name, err)
		if !said && unknown {
			err = &silent{err}
		}
		return a, err
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("node %s: malformed answer of a relay: %v: %w", m.Name, err, artifact.ErrUnavailable)
	}
	return a, nil
}

// handleRelay is the other end of ask.
func (n *node) handleRelay(r *http.Request) (any, error) {
	b, err := readBody(r, 64<<10)
	if err != nil {
		return nil, err
	}
	var q relayRequest
	if err := json.Unmarshal(b, &q); err != nil {
		return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	w := mirror.Want{Module: module.Version{Path: q.Module, Version: q.Version}, Kind: artifact.Kind(q.Kind), Ref: artifact.Ref{Size: q.Size}}
	if w.Ref.Digest, err = artifact.ParseDigest(q.Digest); err != nil {
		return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	switch {
	case n.holds(r.Context(), w.Ref):
		return relayAnswer{Here: true}, nil
	case q.Bring:
		if q.Background {
			w.Background = mirror.NewBackground()
		}
		return n.relay(r, w)
	}
	a := n.arrivals.get(w.Ref.Digest)
	if a == nil {
		return nil, fmt.Errorf("%v is not here and not on its way: %w", w.Ref, fs.ErrNotExist)
	}
	if !q.Background {
		a.background.Hurry()
	}
	hold := time.NewTimer(relayHold)
	defer hold.Stop()
	select {
	case <-a.done:
		return relayAnswer{Here: n.holds(r.Context(), w.Ref)}, nil
	case <-hold.C:
	case <-r.Context().Done():
	}
	return a.answer(), nil
}

// answer says how far a blob is on its way here.
func (a *arrival) answer() relayAnswer {
	return relayAnswer{Received: a.received.Load(), Waits: a.held.Load()}
}

// relay brings a blob here for another node of the zone.
func (n *node) relay(r *http.Request, w mirror.Want) (any, error) {
	if err := n.keeps(); err != nil { // the next in the ring has room, perhaps
		return nil, err
	}
	if err := n.awaitEntry(r.Context(), r.Header.Get(appliedHeader)); err != nil {
		return nil, err
	}
	if w.Background == nil {
		if a := n.arrivals.get(w.Ref.Digest); a != nil {
			a.background.Hurry()
		}
	}
	how, err := n.mirror.Relay(r.Context(), w, relayHold)
	if err != nil || how == mirror.RelayHere {
		return relayAnswer{Here: err == nil}, err
	}
	if a := n.arrivals.get(w.Ref.Digest); a != nil {
		return a.answer(), nil
	}
	return relayAnswer{Waits: how == mirror.RelayQueued}, nil
}
