package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Proposal is a cluster that does not exist yet.
type Proposal struct {
	Cluster string   `json:"cluster"` // random: the cluster's id, and the proposal's
	Expect  int      `json:"expect"`  // how many nodes found it
	Servers []Member `json:"servers"` // sorted by id; the first has proposed it
}

const maxServers = 99

func (p Proposal) check() error {
	if !isID(p.Cluster) {
		return fmt.Errorf("%.80q is not the id of a cluster", p.Cluster)
	}
	if p.Expect < 1 || p.Expect > maxServers || len(p.Servers) != p.Expect {
		return fmt.Errorf("it names %d nodes and expects %d", len(p.Servers), p.Expect)
	}
	for i, m := range p.Servers {
		if err := m.check(); err != nil {
			return err
		}
		if i > 0 && p.Servers[i-1].ID >= m.ID {
			return errors.New("its nodes are not in the order of their ids")
		}
	}
	return nil
}

func (p Proposal) has(node string) bool {
	return slices.ContainsFunc(p.Servers, func(m Member) bool { return m.ID == node })
}

func (p Proposal) equal(q Proposal) bool {
	return p.Cluster == q.Cluster && p.Expect == q.Expect && slices.Equal(p.Servers, q.Servers)
}

// record is the file of a node that has accepted a proposal. There is no file before.
type record struct {
	Format   int      `json:"format"` // 1
	Node     string   `json:"node"`   // whose file it is
	State    string   `json:"state"`
	Proposal Proposal `json:"proposal"`
}

const (
	stateAccepted = "accepted" // no other is accepted until who proposed it takes it back
	stateFormed   = "formed"   // all have accepted it: for ever
)

func (r record) encode() []byte {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		panic(err) // strings and numbers
	}
	return append(b, '\n')
}

// parseRecord parses the form that encode makes and nothing else.
func parseRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Format != 1 {
		return record{}, fmt.Errorf("its format is %d, and this version of modmirror knows format 1: a later version may have written it", r.Format)
	}
	if !isID(r.Node) || r.State != stateAccepted && r.State != stateFormed {
		return record{}, fmt.Errorf("node %.80q, state %.80q make no sense", r.Node, r.State)
	}
	if err := r.Proposal.check(); err != nil {
		return record{}, err
	}
	if !r.Proposal.has(r.Node) {
		return record{}, errors.New("the proposal is not for the node whose file it is")
	}
	if !bytes.Equal(r.encode(), b) {
		return record{}, errors.New("it was changed by hand")
	}
	return r, nil
}

// readRecord returns nil if there is no file.
func readRecord(path, node string) (*record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	const advice = "it says which cluster this node agreed to found, and without it the node could found two: if none of the nodes belongs to a cluster yet, stop them all, remove that file on each, and start them again; otherwise move this node's data directory away and start it as a new one"
	r, err := parseRecord(b)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w; %s", path, err, advice)
	}
	if r.Node != node {
		return nil, fmt.Errorf("%s belongs to node %s, this is node %s; %s", path, r.Node, node, advice)
	}
	return &r, nil
}

// writeRecord makes r durable under path; a crash leaves what was there or r.
func writeRecord(path string, r record) error {
	tmp := path + ".tmp-new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(r.encode())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// names lists members for people.
func names(members []Member) string {
	var b strings.Builder
	for i, m := range members {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(short(m.ID) + " at " + m.Address)
	}
	return b.String()
}
