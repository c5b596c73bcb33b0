package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// forming is a node's part in the founding of a cluster: what it has promised, and what it tells others.
type forming struct {
	link   *Link
	file   string
	expect int

	mu sync.Mutex // held across the fsync of a promise: no two can be made at once
	// guarded by mu
	have   *record  // as it is on disk; nil: nothing is promised
	joined string   // the cluster that it goes to instead
	sees   []string // ids of the nodes that answered last
}

// formState is what a node tells of itself.
type formState struct {
	Hello    Hello     `json:"hello"`
	Ready    bool      `json:"ready"` // it has read its file: what it does not say is not so
	Expect   int       `json:"expect,omitempty"`
	Sees     []string  `json:"sees,omitempty"`
	Proposal *Proposal `json:"proposal,omitempty"` // accepted
	Formed   bool      `json:"formed,omitempty"`   // by all
	Leader   *Member   `json:"leader,omitempty"`   // of the cluster that it is in
}

func parseFormState(b []byte) (st formState, err error) {
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("malformed state: %w", err)
	}
	if st.Proposal != nil {
		if err := st.Proposal.check(); err != nil {
			return st, fmt.Errorf("malformed state: %w", err)
		}
	}
	if st.Leader != nil {
		if err := st.Leader.check(); err != nil {
			return st, fmt.Errorf("malformed state: %w", err)
		}
	}
	if st.Formed && st.Proposal == nil {
		return st, errors.New("malformed state: formed, and nothing proposed")
	}
	return st, st.Hello.check()
}

const maxForm = 256 << 10

func (l *Link) handleForming() {
	l.handleOpen("GET /v1/form", http.HandlerFunc(l.serveFormState))
	l.handleOpen("POST /v1/form/propose", http.HandlerFunc(l.servePropose))
	l.handleOpen("POST /v1/form/abort", http.HandlerFunc(l.serveAbort))
}

func (l *Link) former() *forming {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.forming
}

func (l *Link) serveFormState(w http.ResponseWriter, r *http.Request) {
	st := formState{Hello: l.Self()}
	if st.Hello.Cluster != "" && l.config.Leader != nil {
		if m, ok := l.config.Leader(); ok {
			st.Leader = &m
		}
	}
	if f := l.former(); f != nil {
		f.describe(&st)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(st)
}

func (f *forming) describe(st *formState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st.Ready, st.Sees = true, f.sees
	if f.have != nil {
		p := f.have.Proposal
		st.Proposal, st.Formed = &p, f.have.State == stateFormed
	}
	if f.joined == "" && st.Hello.Cluster == "" {
		st.Expect = f.expect
	}
}

func (l *Link) servePropose(w http.ResponseWriter, r *http.Request) {
	var p Proposal
	if err := readJSON(r, &p); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f := l.former()
	if f == nil {
		http.Error(w, "this node does not take part in founding a cluster now: it is starting, or has one", http.StatusServiceUnavailable)
		return
	}
	if err := f.accept(p, From(r).Node); err != nil {
		code := http.StatusInternalServerError
		if ClassOf(err) != "" {
			code = http.StatusConflict
		}
		http.Error(w, err.Error(), code)
	}
}

// accept promises to found p, durably, and nothing else until its proposer takes p back. An error with a Refusal inside is
// a no; any other says that nobody knows.
func (f *forming) accept(p Proposal, from string) error {
	if err := p.check(); err != nil {
		return Refuse(Refused, "the proposal makes no sense: %v", err)
	}
	self := f.link.Self()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case p.Servers[0].ID != from:
		return Refuse(Refused, "only the lowest of the nodes proposes, that is %s and not %s", short(p.Servers[0].ID), short(from))
	case f.have != nil && f.have.Proposal.equal(p):
		return nil // also when it is formed already
	case self.Cluster != "":
		return Refuse(Refused, "%v is in cluster %s already: join that", self, short(self.Cluster))
	case f.joined != "":
		return Refuse(Refused, "%v is about to join cluster %s", self, short(f.joined))
	case f.have != nil:
		return Refuse(Refused, "%v has accepted another proposal, of node %s for %s, and only that node can take it back", self, short(f.have.Proposal.Servers[0].ID), names(f.have.Proposal.Servers))
	case p.Expect != f.expect:
		return Refuse(Refused, "%v expects %d nodes, the proposal is for %d: start all with the same --bootstrap-expect", self, f.expect, p.Expect)
	case !p.has(self.Node):
		return Refuse(Refused, "the proposal is for %s, and this is %v", names(p.Servers), self)
	}
	return f.promise(record{1, self.Node, stateAccepted, p}, "accepted")
}

// promise writes r. The caller holds mu.
func (f *forming) promise(r record, step string) error {
	if err := writeRecord(f.file, r); err != nil {
		return fmt.Errorf("note what this node agrees to found: %w", err)
	}
	f.have = &r
	return f.after(step)
}

// after lets tests end the process here.
func (f *forming) after(step string) error {
	if f.link.config.step == nil {
		return nil
	}
	return f.link.config.step(step)
}

func (l *Link) serveAbort(w http.ResponseWriter, r *http.Request) {
	var p Proposal
	if err := readJSON(r, &p); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if f := l.former(); f != nil {
		if err := f.release(p.Cluster, From(r).Node, "released"); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// release frees the node from the proposal with that id, if by has proposed it. It is the only way out of a promise but
// to keep it.
func (f *forming) release(cluster, by, step string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil || f.have.State != stateAccepted || f.have.Proposal.Cluster != cluster || f.have.Proposal.Servers[0].ID != by {
		return nil
	}
	if err := removeRecord(f.file); err != nil {
		return fmt.Errorf("note that a proposal was taken back: %w", err)
	}
	f.have = nil
	return f.after(step)
}

// propose makes this node's own promise, before anybody hears of p. False: there is another one.
func (f *forming) propose(p Proposal) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have != nil || f.joined != "" {
		return false, nil
	}
	return true, f.promise(record{1, p.Servers[0].ID, stateAccepted, p}, "proposed")
}

// form notes that all have accepted p. False: it was taken back.
func (f *forming) form(p Proposal) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil || !f.have.Proposal.equal(p) {
		return false, nil
	}
	if f.have.State == stateFormed {
		return true, nil
	}
	return true, f.promise(record{1, f.have.Node, stateFormed, p}, "formed")
}

// join turns to a cluster that exists. False: there is a promise.
func (f *forming) join(cluster string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have != nil {
		return false
	}
	f.joined = cluster
	return true
}

func (f *forming) current() *record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have // records are never changed
}

func readJSON(r *http.Request, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	if err != nil {
		return err
	}
	if len(b) > maxForm {
		return fmt.Errorf("more than %d bytes", maxForm)
	}
	return json.Unmarshal(b, v)
}
