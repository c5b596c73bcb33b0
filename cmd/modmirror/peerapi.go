package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// What nodes ask of each other, on the internal port. Whoever gets here has the cluster's secret, and is trusted with votes and
// not with bytes: all that is stored passes the mirror's gate, all that is committed is checked by every node.
//
//	GET  /v1/status         what this node says of itself, for the others' tables
//	GET  /v1/cluster        the cluster as this node sees it, for people
//	POST /v1/members        promote, demote, remove, transfer
//	GET  /v1/catalog        the catalog as it is at one moment, sealed, for a backup
//	GET  /v1/audit          which acts of operators are kept in mind
//	GET  /v1/scrub          how the scrub of this node is, for people
//	POST /v1/scrub          begin a full one, or end it
//	POST /v1/ack-fork       go on after a checksum database has signed two histories
//	POST /v1/propose        a command for the log, to the leader
//	GET  /v1/index          how far the log is committed, of the leader
//	GET  /v1/settled        the same, when nothing that is in a log can be committed any more and is not, of the leader
//	POST /v1/gc             collect garbage now, or say what would be collected
//	POST /v1/resolve        bring an artifact in
//	POST /v1/ask            a list, @latest or a query, of the upstream
//	GET  /v1/blob/<sha256>  the bytes
//	POST /v1/blobs          the bytes of many, see mirror/bulk.go
//	PUT  /v1/blob/<sha256>  the same, to be checked and made durable; the answer is an ack
//	POST /v1/sum            a record, tile or tree head, of the checksum database
//	POST /v1/relay          bring a blob into the zone, or say whether it comes
//	POST /v1/holds          which of some blobs this node holds
//	POST /v1/hold           hold the tiles that prove a record
//	GET  /sumdb/<name>/…    tiles
func (n *node) handlePeers() {
	l := n.link
	l.Handle("GET /v1/status", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sendJSON(w, n.self(r.Context())) }))
	l.Handle("GET /v1/cluster", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sendJSON(w, n.view(r.Context())) }))
	l.Handle("POST /v1/members", answering(n.handleMembers))
	l.Handle("GET /v1/catalog", n.sendCatalog())
	l.Handle("GET /v1/audit", answering(n.handleAudit))
	l.Handle("POST /v1/ack-fork", answering(n.handleAckFork))
	l.Handle("GET /v1/scrub", answering(func(*http.Request) (any, error) { return n.mirror.ScrubStatus(), nil }))
	l.Handle("POST /v1/scrub", answering(n.handleScrub))
	l.Handle("POST /v1/resolve", answering(n.unlessDraining(n.handleResolve)))
	l.Handle("POST /v1/ask", answering(n.unlessDraining(n.handleAsk)))
	l.Handle("POST /v1/sum", answering(n.unlessDraining(n.handleSum)))
	l.Handle("POST /v1/relay", answering(n.unlessDraining(n.handleRelay)))
	l.Handle("POST /v1/holds", answering(n.handleHolds))
	l.Handle("POST /v1/hold", answering(n.handleHold))
	l.Handle("POST /v1/gc", answering(n.handleGC))
	l.Handle("GET /v1/blob/{digest}", http.HandlerFunc(n.sendBlob))
	l.Handle("POST "+bulkPath, http.HandlerFunc(n.sendBulk))
	l.Handle("PUT /v1/blob/{digest}", answering(n.takeBlob))
	l.Handle("GET /sumdb/", http.HandlerFunc(n.set.ServePeer))
}

// handleCatalog answers what others need from the first moment: without a leader that takes commands, none of them gets
// any further.
func (n *node) handleCatalog() {
	n.link.HandleJoin(joiner{n})
	n.link.Handle("POST /v1/propose", answering(n.handlePropose))
	n.link.Handle("GET /v1/index", answering(n.handleIndex))
	n.link.Handle("GET /v1/settled", answering(n.handleSettled))
}

// answering makes a handler of a function that returns an answer: bytes as they are, anything else as JSON.
func answering(f func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		switch b, isBytes := v.([]byte); {
		case errors.Is(err, errDraining):
			http.Error(w, err.Error(), http.StatusServiceUnavailable) // no word on what was asked: another node may be
		case err != nil:
			sendError(w, err)
		case isBytes:
			_, _ = w.Write(b)
		default:
			sendJSON(w, v)
		}
		if _, isAck := v.(ack); isAck && fault.Enabled {
			_ = http.NewResponseController(w).Flush() // else it is not said before this returns
			fault.Point(fault.AckGiven)
		}
	})
}

// errDraining is for what a node that is about to stop did not do.
var errDraining = errors.New("this node is about to stop")

// unlessDraining keeps a node that is about to stop from being the one that fails a request.
func (n *node) unlessDraining(f func(r *http.Request) (any, error)) func(r *http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		v, err := f(r)
		if err != nil && n.mirror.Draining() {
			return nil, fmt.Errorf("%w: %v", errDraining, err)
		}
		return v, err
	}
}

// maxProposal bounds a command on its way to the leader.
const maxProposal = 1 << 20

func readBody(r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w: %w", err, artifact.ErrUnavailable)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, artifact.ErrMalformed)
	}
	return b, nil
}

func readRequest(r *http.Request) (q request, err error) {
	b, err := readBody(r, 64<<10)
	if err != nil {
		return q, err
	}
	if err := json.Unmarshal(b, &q); err != nil {
		return q, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	return q, nil
}

func (n *node) handlePropose(r *http.Request) (any, error) {
	b, err := readBody(r, maxProposal)
	if err != nil {
		return nil, err
	}
	return n.replica.Accept(r.Context(), b)
}

// blobRef returns which blob a request is about.
func blobRef(r *http.Request) (ref artifact.Ref, err error) {
	ref.Digest, err = artifact.ParseDigest(r.PathValue("digest"))
	if err == nil {
		ref.Size, err = strconv.ParseInt(r.URL.Query().Get("size"), 10, 64)
	}
	if err != nil || ref.Size < 0 || ref.Size > artifact.MaxZip {
		return ref, fmt.Errorf("%q is no blob: %v: %w", r.URL.RequestURI(), err, artifact.ErrMalformed)
	}
	return ref, nil
}

// sendBlob sends bytes that this node holds. They are read and found right before the first is sent, once in a process; whoever
// gets them checks them again.
func (n *node) sendBlob(w http.ResponseWriter, r *http.Request) {
	ref, err := blobRef(r)
	if err != nil {
		sendError(w, err)
		return
	}
	f, err := n.mirror.Hand(r.Context(), ref)
	if err != nil {
		if n.arrivals.get(ref.Digest) != nil {
			w.Header().Set(arrivingHeader, "1")
		}
		sendError(w, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// ack is this node's word that a blob is durable here.
type ack struct {
	Node   string `json:"node"`
	Starts uint64 `json:"starts"`
}

// takeBlob takes bytes that another node is about to publish. What they are checked with, a committed tree head, may be on its
// way here: the sender says which entry of the log it had seen.
func (n *node) takeBlob(r *http.Request) (any, error) {
	ref, err := blobRef(r)
	if err != nil {
		return nil, err
	}
	if r.ProtoMajor != 1 { // where a connection is one blob at a time, and connections are counted
		return nil, fmt.Errorf("blobs are sent over HTTP/1.1 between nodes, not %s: %w", r.Proto, artifact.ErrMalformed)
	}
	if err := n.keeps(); err != nil { // before anything is read: the sender asks another node
		return nil, err
	}
	body := bufio.NewReaderSize(r.Body, 64<<10)
	man, k, err := readSpreadHead(body)
	if err != nil {
		return nil, err
	}
	if err := n.awaitEntry(r.Context(), r.Header.Get(appliedHeader)); err != nil {
		return nil, err
	}
	if err := n.admit(r, man, k, ref, body); err != nil {
		return nil, err
	}
	fault.Point(fault.AckDurable)
	ctx, cancel := context.WithTimeout(r.Context(), maxBehind)
	defer cancel()
	if err := n.replica.AwaitRegistered(ctx); err != nil { // the ack would not count
		return nil, err
	}
	self := n.replica.Self()
	return ack{self.ID, self.Starts}, nil
}

// admit takes bytes that are spread to this node. Who wants the blob meanwhile waits for them.
func (n *node) admit(r *http.Request, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.Reader) error {
	from := peer.From(r)
	if a, mine := n.arrivals.begin(ref.Digest, nil); mine {
		defer a.end()
		body = a.reading(body)
	}
	if from.Zone != n.config.Cluster.Zone {
		body = n.wan.counted(body)
	}
	before := n.store.Durable(ref)
	err := n.mirror.Admit(r.Context(), man, k, ref, body, "node "+from.Name)
	if err == nil && before != nil && from.Zone != n.config.Cluster.Zone {
		n.fromAfar.spread.Add(1)
	}
	return err
}

// appliedHeader says which entry of the log the sender had applied.
const appliedHeader = "Modmirror-Applied"

// maxBehind bounds how long a blob waits for the log.
const maxBehind = 10 * time.Second

func (n *node) awaitEntry(ctx context.Context, s string) error {
	index, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %q: %w", appliedHeader, s, artifact.ErrMalformed)
	}
	ctx, cancel := context.WithTimeout(ctx, maxBehind)
	defer cancel()
	return n.replica.AwaitApplied(ctx, index)
}

// joiner adds nodes that ask for it.
type joiner struct{ n *node }

func (j joiner) Join(ctx context.Context, h peer.Hello) error {
	if err := j.n.isLeader(); err != nil {
		return err
	}
	if err := j.n.checkPeer(h); err != nil {
		return err
	}
	j.n.log.Info("a node joins", "node", h.Node, "name", h.Name, "address", h.Address)
	return j.n.replica.Join(ctx, replicate.Member{ID: h.Node, Address: h.Address})
}

// isLeader returns a *peer.NotLeader if this node does not lead.
func (n *node) isLeader() error {
	lead, ok := n.leader()
	if ok && lead.ID == n.replica.ID() {
		return nil
	}
	return &peer.NotLeader{Leader: lead}
}

// handleMembers changes who belongs to the cluster, at the leader, to which any other node passes it on.
func (n *node) handleMembers(r *http.Request) (any, error) {
	b, err := readBody(r, 4<<10)
	if err != nil {
		return nil, err
	}
	var c memberChange
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	ctx := r.Context()
	if answer, done, err := n.passOn(r, b); done {
		return answer, err
	}
	n.log.Info("an operator changes the members", "change", c.Verb, "node", c.ID, "from", r.RemoteAddr)
	switch c.Verb {
	case "promote":
		err = n.replica.Promote(ctx, c.ID)
	case "demote":
		err = n.replica.Demote(ctx, c.ID)
	case "remove":
		if err = n.replica.Remove(ctx, c.ID); err == nil {
			n.link.Drop(c.ID)
		}
	case "transfer":
		if c.ID == "" {
			err = n.replica.TransferLeadership(ctx)
		} else {
			err = n.replica.TransferLeadershipTo(ctx, c.ID)
		}
		if err == nil {
			n.placed()
		}
	default:
		err = fmt.Errorf("%q is no change of members: %w", c.Verb, artifact.ErrMalformed)
	}
	return []byte("done\n"), err
}

// passOn hands a change over to the leader. It is not done if that is this node. While there is no leader, or the one that
// was known does not answer, it waits as long as an election may take.
func (n *node) passOn(r *http.Request, body []byte) (answer any, done bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), controlWait/2)
	defer cancel()
	for {
		why := n.isLeader()
		if why == nil {
			return nil, false, nil
		}
		var not *peer.NotLeader
		errors.As(why, &not)
		switch passed := r.Header.Get(passedHeader) != ""; {
		case not.Leader.Address == "" || passed:
			err = fmt.Errorf("%w: %w", why, artifact.ErrNoQuorum)
		default:
			var said bool
			if answer, said, err = n.passTo(ctx, not.Leader, body); said {
				return answer, true, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, true, err
		case <-time.After(watchEvery):
		}
	}
}

// passedHeader marks a change that was passed on: it is not passed on again.
const passedHeader = "Modmirror-Passed"

// passTo hands a change over to one node. said is false if that did not answer.
func (n *node) passTo(ctx context.Context, m peer.Member, body []byte) (answer any, said bool, err error) {
	ctx, cancel := n.whileLeader(ctx, m.ID)
	defer cancel()
	resp, err := n.link.Do(ctx, peer.Request{Node: m.ID, Addr: m.Address, Method: http.MethodPost, Path: "/v1/members",
		Header: http.Header{passedHeader: {"1"}}, Body: bytes.NewReader(body), Size: int64(len(body))})
	if err != nil {
		return nil, false, fmt.Errorf("the leader: %w: %w", err, artifact.ErrUnavailable)
	}
	return answerOf(resp)
}
