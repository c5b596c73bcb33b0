package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// peers asks the other nodes what the mirror wants of them ([mirror.Peers]).
type peers struct{ n *node }

// What a node says that it has not done what it was asked for: the class of the error in a header, its text in the body.
const classHeader = "Modmirror-Error"

// maxAnswer bounds what one node tells another, apart from blobs.
const maxAnswer = 16 << 20

func sendError(w http.ResponseWriter, err error) {
	class, text := mirror.ErrorClass(err)
	w.Header().Set(classHeader, class)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	status := http.StatusUnprocessableEntity // no status of HTTP's own: what is between nodes must not be taken for an answer
	if errors.Is(err, artifact.ErrNoSpace) {
		status = http.StatusInsufficientStorage // but for this, which can be nothing else
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

func sendJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // whoever reads it sees if it is cut short
}

// answerOf returns the body of resp, or the error that it carries. said is false if it is no answer of a node that did what it
// was asked for or says why not: another one may be asked.
func answerOf(resp *http.Response) (body []byte, said bool, err error) {
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		return nil, false, fmt.Errorf("%w: its answer breaks off or is too long: %v", artifact.ErrUnavailable, err)
	}
	if class := resp.Header.Get(classHeader); class != "" {
		return nil, true, mirror.ClassError(class, string(body))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, false, fmt.Errorf("it answers %s: %.300s: %w", resp.Status, body, artifact.ErrUnavailable)
	}
	return body, true, nil
}

// request is what one node asks of another, in JSON.
type request struct {
	Module  string `json:"module,omitempty"`
	Version string `json:"version,omitempty"`
	Kind    uint8  `json:"kind,omitempty"` // of artifact.Kind
	Op      uint8  `json:"op,omitempty"`   // of mirror.Op
	Query   string `json:"query,omitempty"`
}

// told is mirror.Told in JSON.
type told struct {
	Body []byte        `json:"body"`
	Age  time.Duration `json:"age"`
}

// owners returns the nodes that may fetch, in the order in which it is their turn for key. The first that is this node
// ends the list: it does it itself.
func (p peers) owners(key string) []peer.Member {
	order := peer.Owner(key, p.n.fetchers())
	for i, m := range order {
		if m.ID == p.n.replica.ID() {
			return order[:i]
		}
	}
	return order
}

// ask asks the owners of key in turn, until take has no error for an answer: one that is none is as good as no answer, but
// counted. ok is false if it is this node's turn.
func (p peers) ask(ctx context.Context, key, path string, body request, take func(from peer.Member, answer []byte) error) (ok bool, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return false, err
	}
	for _, m := range p.owners(key) {
		answer, said, err := p.askOne(ctx, m, path, b)
		if said && err == nil {
			if err = take(m, answer); err == nil {
				return true, nil
			}
			p.n.badAnswers.Add(1)
			p.n.log.Error("a node answers with what is no answer; the next is asked", "node", m.Name, "id", m.ID, "address", m.Address, "key", key, "err", err)
			continue
		}
		if said && mayDiffer(err) {
			p.n.log.Info("a node whose turn it is cannot say now; the next is asked", "node", m.Name, "key", key, "err", err)
			continue
		}
		if said {
			return true, err
		}
		if ctx.Err() != nil {
			return true, context.Cause(ctx)
		}
		p.n.table.Load().Missed(m.ID, err)
		p.n.log.Warn("a node whose turn it is does not answer; the next is asked", "node", m.Name, "key", key, "err", err)
	}
	return false, nil
}

// mayDiffer reports whether another node may have more luck: the way to the upstream may be closed to one of them alone. What
// is for want of a quorum is the same for all.
func mayDiffer(err error) bool {
	return errors.Is(err, artifact.ErrUnavailable) && !errors.Is(err, artifact.ErrNoQuorum)
}

// askOne asks one node. said is false if it did not answer.
func (p peers) askOne(ctx context.Context, m peer.Member, path string, body []byte) (answer []byte, said bool, err error) {
	ctx, cancel := p.n.whileAlive(ctx, m)
	defer cancel()
	resp, err := p.n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: path, Body: bytes.NewReader(body)})
	if err != nil {
		return nil, false, err
	}
	return answerOf(resp)
}

func (p peers) Resolve(ctx context.Context, mv module.Version, k artifact.Kind) (man artifact.Manifest, ok bool, err error) {
	ok, err = p.ask(ctx, mv.String(), "/v1/resolve", request{Module: mv.Path, Version: mv.Version, Kind: uint8(k)}, func(_ peer.Member, b []byte) error {
		var m artifact.Manifest
		if err := m.UnmarshalBinary(b); err != nil {
			return fmt.Errorf("malformed manifest: %w", err)
		}
		if m.Module != mv || m.Ref(k).IsZero() {
			return fmt.Errorf("a manifest of %.200q without the %v of %v", m.Module.String(), k, mv)
		}
		man = m
		return nil
	})
	return man, ok, err
}

func (p peers) Ask(ctx context.Context, op mirror.Op, path, query string) (t mirror.Told, ok bool, err error) {
	ok, err = p.ask(ctx, path, "/v1/ask", request{Module: path, Op: uint8(op), Query: query}, func(from peer.Member, b []byte) error {
		var said told
		if err := json.Unmarshal(b, &said); err != nil {
			return err
		}
		if said.Age < 0 {
			return fmt.Errorf("it heard it in %v", -said.Age)
		}
		t = mirror.Told{Body: said.Body, Age: said.Age, From: "node " + from.Name}
		return nil
	})
	return t, ok, err
}

// blobPath names a blob between nodes.
func blobPath(ref artifact.Ref) string {
	return fmt.Sprintf("/v1/blob/%s?size=%d", ref.Digest, ref.Size)
}
