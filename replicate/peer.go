package replicate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// Peer is a node as the cluster knows it. The node table has one for each node that has registered.
type Peer struct {
	ID      string `json:"id"`   // born with its data directory, for ever
	Name    string `json:"name"` // what people call it; no two nodes have the same
	Address string `json:"address"`
	Zone    string `json:"zone"`
	Role    string `json:"role"` // RoleVoter or RoleReplica: what it may become
	Version string `json:"version"`
	Boot    string `json:"boot"`            // random text of its present life
	Starts  uint64 `json:"starts"`          // how often its data directory was opened
	Held    bool   `json:"held"`            // an operator demoted it: it becomes a voter only when an operator says so
	Level   int    `json:"level,omitempty"` // the highest feature level that it supports; 0: 1

	Member bool `json:"member"` // raft replicates to it
	Voter  bool `json:"voter"`
	Leader bool `json:"leader"` // as far as this node knows
}

// Roles of a node.
const (
	RoleVoter   = "voter"   // it becomes a voter when one is wanted and it holds every blob
	RoleReplica = "replica" // it never becomes a voter by itself
)

// Why a node is not taken. Each is for good, and matches [artifact.ErrRefused].
var (
	ErrRemoved   error = notTaken("the node was removed from the cluster")
	ErrClone     error = notTaken("the data directory is a copy or an old image of one that started later")
	ErrNameTaken error = notTaken("the name belongs to another data directory")
	// and ErrTooOld
)

// notTaken has the class of artifact.ErrRefused and not its text, which is about artifacts.
type notTaken string

func (e notTaken) Error() string { return string(e) }
func (e notTaken) Unwrap() error { return artifact.ErrRefused }

// Rows of the node table in bucket cfg:
//
//	node/<id>  byte 1, uvarint starts, byte held, strings name, address, zone, role, version (see levelMark), boot
//	gone/<id>  byte 1: the node was removed, and its id never comes back
const (
	nodePrefix = "node/"
	gonePrefix = "gone/"
	rowFormat  = 1
	maxField   = 255
)

func appendPeer(b []byte, p Peer) []byte {
	b = binary.AppendUvarint(append(b, rowFormat), p.Starts)
	held := byte(0)
	if p.Held {
		held = 1
	}
	b = append(b, held)
	for _, f := range []string{p.Name, p.Address, p.Zone, p.Role, p.markedVersion(), p.Boot} {
		b = appendString(b, f)
	}
	return b
}

func decodePeer(d *decoder, id string) (p Peer) {
	if f := d.byte(); f != rowFormat {
		d.err = cmp.Or(d.err, unknownFormat("a row of the node table", f, rowFormat))
	}
	p.ID, p.Starts = id, uint64(d.int())
	p.Held = d.flag()
	for _, f := range []*string{&p.Name, &p.Address, &p.Zone, &p.Role, &p.Version, &p.Boot} {
		*f = d.string()
	}
	p.setMarkedVersion(p.Version)
	return p
}

func parsePeer(k, v []byte) (Peer, error) {
	d := decoder{b: v}
	p := decodePeer(&d, strings.TrimPrefix(string(k), nodePrefix))
	if err := d.end(); err != nil {
		return Peer{}, err
	}
	if !bytes.Equal(appendPeer(nil, p), v) {
		return Peer{}, errors.New("not in canonical form")
	}
	return p, p.check()
}

// check holds p to the form of a row.
func (p Peer) check() error {
	if !validName(p.ID) || strings.ContainsAny(p.ID, "@/") {
		return fmt.Errorf("malformed id %.100q of a node: %w", p.ID, artifact.ErrRefused)
	}
	if !validName(p.Name) || !validName(p.Boot) || p.Starts == 0 || p.Starts > 1<<62 {
		return fmt.Errorf("node %s has the malformed name %.100q, boot %.100q or starts %d: %w", p.ID, p.Name, p.Boot, p.Starts, artifact.ErrRefused)
	}
	if p.Role != RoleVoter && p.Role != RoleReplica {
		return fmt.Errorf("node %s has the unknown role %.100q: %w", p.ID, p.Role, artifact.ErrRefused)
	}
	for _, f := range []string{p.Address, p.Zone, p.markedVersion()} {
		if f != "" && !validName(f) || strings.Contains(p.Version, levelMark) {
			return fmt.Errorf("node %s has the malformed address, zone or version %.100q: %w", p.ID, f, artifact.ErrRefused)
		}
	}
	return nil
}

// checkNodeRow reports whether a row is one of the node table, and well-formed.
func checkNodeRow(k, v []byte) (known bool, err error) {
	if bytes.HasPrefix(k, []byte(nodePrefix)) {
		_, err := parsePeer(k, v)
		return true, err
	}
	if id, ok := bytes.CutPrefix(k, []byte(gonePrefix)); ok {
		if !validName(string(id)) || len(v) != 1 || v[0] != rowFormat {
			return true, errors.New("malformed")
		}
		return true, nil
	}
	return false, nil
}

// peer returns the row of a node.
func (s state) peer(id string) (p Peer, ok bool, err error) {
	k := []byte(nodePrefix + id)
	v := s.bucket(bucketConfig).Get(k)
	if v == nil {
		return p, false, nil
	}
	if p, err = parsePeer(k, v); err != nil {
		return p, false, damaged(err, "catalog row cfg %q", k)
	}
	return p, true, nil
}

// peers returns the node table, by id.
func (s state) peers() (all []Peer, err error) {
	prefix := []byte(nodePrefix)
	c := s.bucket(bucketConfig).Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		p, err := parsePeer(k, v)
		if err != nil {
			return nil, damaged(err, "catalog row cfg %q", k)
		}
		all = append(all, p)
	}
	return all, nil
}

func (s state) gone(id string) bool {
	return s.bucket(bucketConfig).Get([]byte(gonePrefix+id)) != nil
}

// judge says whether p may be a node of this cluster, by what the table knows: bad is why not.
func (s state) judge(p Peer) (bad, err error) {
	if bad := p.check(); bad != nil {
		return bad, nil
	}
	if s.gone(p.ID) {
		return fmt.Errorf("node %s (%s): %w; to use its machine again, move its data directory away and start as a new node", p.Name, p.ID, ErrRemoved), nil
	}
	if level := s.level(); p.supports() < level {
		return fmt.Errorf("node %s (%s, %s) supports level %d, and the cluster is at level %d: %w; start the version that ran there before, or a later one (docs/upgrade.md)",
			p.Name, p.ID, cmp.Or(p.Version, "of unknown version"), p.supports(), level, ErrTooOld), nil
	}
	old, ok, err := s.peer(p.ID)
	if err != nil {
		return nil, err
	}
	if ok && (p.Starts < old.Starts || p.Starts == old.Starts && p.Boot != old.Boot) {
		return fmt.Errorf("node %s (%s), start %d: %w (start %d, last at %s); stop the copy, or if its disk was restored from a backup: modmirror cluster remove %s, then start with an empty data directory",
			p.Name, p.ID, p.Starts, ErrClone, old.Starts, old.Address, old.Name), nil
	}
	all, err := s.peers()
	if err != nil {
		return nil, err
	}
	for _, other := range all {
		if other.Name == p.Name && other.ID != p.ID {
			return fmt.Errorf("the name %s: %w (node %s, last at %s); choose another name, or if its disk is lost: modmirror cluster remove %s",
				p.Name, ErrNameTaken, other.ID, other.Address, p.Name), nil
		}
	}
	return nil, nil
}

// applyRegister writes the row of a node that has started: of two lives of one data directory the later one counts.
func (s state) applyRegister(p Peer) (result, error) {
	bad, err := s.judge(p)
	if bad != nil || err != nil {
		return result{err: bad}, err
	}
	old, _, err := s.peer(p.ID)
	if err != nil {
		return result{}, err
	}
	p.Held = old.Held
	return result{peers: true}, s.bucket(bucketConfig).Put([]byte(nodePrefix+p.ID), appendPeer(nil, p))
}

// applyForget frees a node's name, and keeps its id from ever coming back.
func (s state) applyForget(id string) (result, error) {
	if !validName(id) {
		return refused("malformed id %.100q of a node", id), nil
	}
	b := s.bucket(bucketConfig)
	return result{peers: true}, errors.Join(b.Delete([]byte(nodePrefix+id)), b.Put([]byte(gonePrefix+id), []byte{rowFormat}))
}

// applyHold notes whether a node is to stay a nonvoter until an operator promotes it.
func (s state) applyHold(c holdCommand) (result, error) {
	p, ok, err := s.peer(c.ID)
	if err != nil || !ok || p.Held == c.Held {
		return result{}, err // who has not registered is not promoted anyway
	}
	p.Held = c.Held
	return result{peers: true}, s.bucket(bucketConfig).Put([]byte(nodePrefix+c.ID), appendPeer(nil, p))
}

// Check says what this node's catalog has against p, a node that wants to speak to it: an error matches [ErrRemoved],
// [ErrClone] or [ErrNameTaken].
func (c *catalog) Check(p Peer) error {
	var bad error
	err := c.view(func(s state) (err error) { bad, err = s.judge(p); return err })
	return errors.Join(bad, err)
}

// nodeTable is the rows of the node table, by id, as of a generation of it.
type nodeTable struct {
	generation uint64
	rows       []Peer
}

// table returns the rows of the node table. They are asked for at each request of a client, and change when a node starts.
func (n *Node) table(ctx context.Context) ([]Peer, error) {
	generation := n.tables.Load() // first: the rows are of it, or newer
	if t := n.rows.Load(); t != nil && t.generation == generation && ctx.Err() == nil && n.catalog.diverged.Load() == nil {
		return t.rows, nil
	}
	t := &nodeTable{generation: generation}
	err := n.read(ctx, func(s state) (err error) { t.rows, err = s.peers(); return err })
	if err != nil {
		return nil, err
	}
	n.rows.Store(t)
	return t.rows, nil
}

// Peers returns all nodes that have registered or are members, by id, as far as this node knows.
func (n *Node) Peers(ctx context.Context) ([]Peer, error) {
	rows, err := n.table(ctx)
	if err != nil {
		return nil, err
	}
	all := slices.Clone(rows)
	at := map[string]int{}
	for i, p := range all {
		at[p.ID] = i
	}
	_, leader := n.raft.LeaderWithID()
	for _, m := range n.Members() {
		i, ok := at[m.ID]
		if !ok {
			i = len(all)
			all = append(all, Peer{ID: m.ID, Address: m.Address})
		}
		all[i].Member, all[i].Voter, all[i].Leader = true, m.Voter, raft.ServerID(m.ID) == leader
	}
	return all, nil
}
