package mirror

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// A question of another node may be passed on to a third one, whose turn it is for the whole cluster. What the node in between
// can say by itself it says without that, and what it is told it remembers; it joins nothing but such questions, so that no two
// nodes wait for each other.

// Held is what a node says first of all to a question like that for [Mirror.Bring]: what is committed, or why nothing will be. ok
// is false if another node has to be asked.
func (m *Mirror) Held(ctx context.Context, mv module.Version, k artifact.Kind) (man artifact.Manifest, ok bool, err error) {
	if err := m.mayAsk(Request{Op: OpArtifact, Module: mv, Kind: k}); err != nil {
		return artifact.Manifest{}, true, err
	}
	man, err = m.manifest(ctx, mv)
	if err != nil || !man.Ref(k).IsZero() {
		return man, true, err
	}
	key := flightKey(k, mv)
	if it := m.pending.get(key); it != nil {
		return man, true, &uncommitted{it, fmt.Errorf("%s %s: %w", mv, k, artifact.ErrNoQuorum)}
	}
	if err := m.knownAbsent(key); err != nil {
		return man, true, fmt.Errorf("%s %s: %w", mv, k, err)
	}
	return man, false, nil
}

// Recall is the same for a question like that for [Mirror.Tell]: what this node remembers that the upstream said.
func (m *Mirror) Recall(op Op, path, query string) (told Told, ok bool, err error) {
	if err := m.mayAsk(Request{Op: op, Module: module.Version{Path: path, Version: query}}); err != nil {
		return Told{}, true, err
	}
	if t := m.topicOf(op); t != nil {
		s, ok := t.memory.get(path)
		if !ok || s.absent != nil || s.counted != upstreamOnly && t.class != classList || time.Since(s.at) >= m.config.ListTTL {
			return Told{}, false, nil
		}
		return t.told(s), true, nil
	}
	q, ok := m.queries.get(queryKey(module.Version{Path: path, Version: query}))
	if !ok {
		return Told{}, false, nil
	}
	return Told{Body: q.body, Age: time.Since(q.at)}, true, nil
}

// Learn remembers what another node told, so that the next who asks for it hears it from here. An error is the other node's
// fault, or says that it cannot be remembered now.
func (m *Mirror) Learn(ctx context.Context, op Op, path, query string, told Told) error {
	if t := m.topicOf(op); t != nil {
		epoch := t.epoch(path).Load()
		s, err := t.understand(told, path)
		if err == nil {
			_, err = t.install(ctx, path, s, epoch)
		}
		return err
	}
	_, err := m.learnQuery(module.Version{Path: path, Version: query}, told)
	return err
}

// topicOf returns what op asks for, nil for a query.
func (m *Mirror) topicOf(op Op) *topic {
	switch op {
	case OpList:
		return m.list
	case OpLatest:
		return m.latest
	}
	return nil
}
