package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// question is what the owners of a key are asked, and how an answer is understood: one that is none is as good as no answer.
type question[T any] struct {
	key   string
	path  string
	body  request
	limit time.Duration // for asking on behalf of others
	parse func(from peer.Member, answer []byte) (T, error)
}

// reply is what came of a question. It is not said if nobody answered, or nobody could say: then it is the turn of whoever asks,
// and err is why nobody could, if any answered.
type reply[T any] struct {
	value T
	said  bool
	err   error
}

// resolving is the question for an artifact.
func (n *node) resolving(mv module.Version, k artifact.Kind) question[artifact.Manifest] {
	limit := n.config.Limits.Fetch
	if k == artifact.Zip {
		limit = n.config.Limits.Zip
	}
	return question[artifact.Manifest]{mv.String(), "/v1/resolve", request{Module: mv.Path, Version: mv.Version, Kind: uint8(k)}, limit, func(_ peer.Member, b []byte) (m artifact.Manifest, err error) {
		if err := m.UnmarshalBinary(b); err != nil {
			return m, fmt.Errorf("malformed manifest: %w", err)
		}
		if m.Module != mv || m.Ref(k).IsZero() {
			return m, fmt.Errorf("a manifest of %.200q without the %v of %v", m.Module.String(), k, mv)
		}
		return m, nil
	}}
}

// telling is the question for what the upstream says of a path.
func (n *node) telling(op mirror.Op, path, query string) question[mirror.Told] {
	return question[mirror.Told]{path, "/v1/ask", request{Module: path, Op: uint8(op), Query: query}, n.config.Limits.Fetch, func(from peer.Member, b []byte) (t mirror.Told, err error) {
		var said told
		if err := json.Unmarshal(b, &said); err != nil {
			return t, err
		}
		if said.Age < 0 {
			return t, fmt.Errorf("it heard it in %v", -said.Age)
		}
		return mirror.Told{Body: said.Body, Age: said.Age, From: "node " + from.Name}, nil
	}}
}

func (p peers) Resolve(ctx context.Context, mv module.Version, k artifact.Kind) (man artifact.Manifest, ok bool, err error) {
	r := askInTurn(ctx, p, p.n.resolving(mv, k), p.n.turnFor(mv.String()))
	return r.value, r.said, r.err
}

func (p peers) Ask(ctx context.Context, op mirror.Op, path, query string) (t mirror.Told, ok bool, err error) {
	r := askInTurn(ctx, p, p.n.telling(op, path, query), p.n.turnFor(path))
	return r.value, r.said, r.err
}

// askInTurn asks the owner of the zone, or that of the cluster. If the zone's could not say, it has asked all there are: then it
// is the turn of this node, if it ever is.
func askInTurn[T any](ctx context.Context, p peers, q question[T], t turn) reply[T] {
	if len(t.zone) == 0 {
		return askCluster(ctx, p, q, t)
	}
	q.body.Hop = hopZone
	r, last := askEach(ctx, p, q, t.zone)
	switch {
	case r.said:
		return r
	case last != nil && t.mine:
		return reply[T]{err: last}
	}
	return askCluster(ctx, p, q, t)
}

// askCluster asks who fetches for the cluster. Who asks the same at the same time, be it another node of the zone, gets the same
// answer.
func askCluster[T any](ctx context.Context, p peers, q question[T], t turn) reply[T] {
	if len(t.cluster) == 0 {
		return nobody[T](p, nil)
	}
	q.body.Hop = hopCluster
	b, err := json.Marshal(q.body)
	if err != nil {
		return reply[T]{said: true, err: err}
	}
	done := p.n.passing.DoChan(q.path+" "+string(b), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), q.limit)
		defer cancel()
		r, last := askEach(ctx, p, q, t.cluster)
		if !r.said {
			r = nobody[T](p, last)
		}
		return r, nil
	})
	select {
	case r := <-done:
		v, _ := r.Val.(reply[T]) // of a path there is one kind of answer
		return v
	case <-ctx.Done():
		return reply[T]{said: true, err: context.Cause(ctx)}
	}
}

// nobody is the outcome if no other node said anything to the point: it is the turn of this node, unless that never is. last is
// why the last one of them cannot say now.
func nobody[T any](p peers, last error) reply[T] {
	switch {
	case !p.n.config.Cluster.NoUpstream:
		return reply[T]{err: last}
	case last != nil:
		return reply[T]{said: true, err: fmt.Errorf("%w: %w", errNoFetcher, last)}
	}
	return reply[T]{said: true, err: errNoFetcher}
}

// maxAstray is how many nodes are asked for what the upstream may have answered to one of them alone: two that are told the same
// are believed. Else a cluster of many nodes would ask an upstream again and again for what that forbids.
const maxAstray = 2

// astray is what so many nodes say.
func astray(errs []error) error {
	class := artifact.ErrPolicy
	if last := errs[len(errs)-1]; !errors.Is(last, class) {
		class = artifact.ErrMalformed
	}
	return fmt.Errorf("%v: %w", strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; "), class)
}

// askEach asks one node after the other. last is why the last one that said something cannot say more now.
func askEach[T any](ctx context.Context, p peers, q question[T], list []peer.Member) (r reply[T], last error) {
	b, err := json.Marshal(q.body)
	if err != nil {
		return reply[T]{said: true, err: err}, nil
	}
	var strange []error
	for _, m := range list {
		answer, said, err := p.askOne(ctx, m, q.path, b)
		if said && err == nil {
			v, err := q.parse(m, answer)
			if err == nil {
				return reply[T]{value: v, said: true}, nil
			}
			p.n.badAnswers.Add(1)
			p.n.log.Error("a node answers with what is no answer; the next is asked", "node", m.Name, "id", m.ID, "address", m.Address, "key", q.key, "err", err)
			continue
		}
		if said && mirror.OneNodes(err) {
			last = fmt.Errorf("node %s: %w", m.Name, err)
			if strange = append(strange, last); len(strange) == maxAstray {
				return reply[T]{said: true, err: astray(strange)}, nil
			}
			p.n.log.Warn("the upstream answers a node as if that had lost its way; the next is asked", "node", m.Name, "key", q.key, "err", err)
			continue
		}
		if said && mayDiffer(err) {
			last = fmt.Errorf("node %s: %w", m.Name, err)
			p.n.log.Info("a node whose turn it is cannot say now; the next is asked", "node", m.Name, "key", q.key, "err", err)
			continue
		}
		if said {
			return reply[T]{said: true, err: mirror.SaidBy("node "+m.Name, err)}, nil
		}
		if ctx.Err() != nil {
			return reply[T]{said: true, err: context.Cause(ctx)}, nil
		}
		p.n.table.Load().Missed(m.ID, err)
		p.n.log.Warn("a node whose turn it is does not answer; the next is asked", "node", m.Name, "key", q.key, "err", err)
	}
	return reply[T]{}, last
}

// handleResolve is the other end of Resolve.
func (n *node) handleResolve(r *http.Request) (any, error) {
	q, err := readRequest(r)
	if err != nil {
		return nil, err
	}
	mv, k := module.Version{Path: q.Module, Version: q.Version}, artifact.Kind(q.Kind)
	var before error
	if q.Hop == hopZone {
		man, ok, err := n.mirror.Held(r.Context(), mv, k)
		if !ok {
			passed := askCluster(r.Context(), peers{n}, n.resolving(mv, k), n.turnFor(mv.String()))
			man, ok, err = passed.value, passed.said, passed.err
		}
		if ok && err == nil {
			return man.AppendBinary(nil)
		}
		if ok {
			return nil, err
		}
		before = err
	}
	man, err := n.mirror.Bring(r.Context(), mv, k)
	if err != nil {
		return nil, mirror.After(err, before)
	}
	return man.AppendBinary(nil)
}

// handleAsk is the other end of Ask.
func (n *node) handleAsk(r *http.Request) (any, error) {
	q, err := readRequest(r)
	if err != nil {
		return nil, err
	}
	ctx, op := r.Context(), mirror.Op(q.Op)
	var before error
	if q.Hop == hopZone {
		t, ok, err := n.mirror.Recall(op, q.Module, q.Query)
		if !ok {
			passed := askCluster(ctx, peers{n}, n.telling(op, q.Module, q.Query), n.turnFor(q.Module))
			t, ok, err = passed.value, passed.said, passed.err
			if ok && err == nil {
				if lerr := n.mirror.Learn(ctx, op, q.Module, q.Query, t); errors.Is(lerr, artifact.ErrMalformed) {
					return nil, lerr
				}
			}
		}
		if ok {
			return told{t.Body, t.Age}, err
		}
		before = err
	}
	t, err := n.mirror.Tell(ctx, op, q.Module, q.Query)
	if err != nil {
		return nil, mirror.After(err, before)
	}
	return told{t.Body, t.Age}, nil
}
