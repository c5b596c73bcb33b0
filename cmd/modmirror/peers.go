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
	Module   string `json:"module,omitempty"`
	Version  string `json:"version,omitempty"`
	Kind     uint8  `json:"kind,omitempty"` // of artifact.Kind
	Op       uint8  `json:"op,omitempty"`   // of mirror.Op
	Query    string `json:"query,omitempty"`
	Database string `json:"database,omitempty"` // a checksum database; the query is the path there
	Hop      string `json:"hop,omitempty"`      // hopZone or hopCluster; nodes of earlier versions send none
}

// told is mirror.Told in JSON.
type told struct {
	Body []byte        `json:"body"`
	Age  time.Duration `json:"age"`
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

// blobPath names a blob between nodes.
func blobPath(ref artifact.Ref) string {
	return fmt.Sprintf("/v1/blob/%s?size=%d", ref.Digest, ref.Size)
}
