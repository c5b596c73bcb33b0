package replicate

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// A recovery makes one survivor of a cluster that has lost its majority for ever the only voter of a new cluster, which
// holds what the survivor holds. It is the way out that Raft itself does not have, and it bends a promise: what was
// committed, and never reached the survivor, is lost.
//
// # What becomes of the log's end
//
// Whether the entries behind the catalog's end were committed, nobody is left to say; all of them are applied (as
// raft.RecoverCluster does). Each is a command that a leader has proposed, and Apply checks it again from nothing but itself,
// so none can get anything into the catalog that could not have been committed. What is taken in this way and was never
// acknowledged to a client does no harm. Acks do not vouch for blobs any more, as their nodes are gone: the survivor may lack
// zips that are published. Whoever recovers is told which.
//
// # Why the cluster's id changes
//
// The old members are noted as gone in the catalog, but they do not read it. They may come back from the dead, two of three
// with a majority, elect a leader and commit, at the same indexes, other entries than the survivor. The id of the cluster is
// checked in every handshake, so with another id no vote, entry, ack, proposal or status of theirs is ever taken for one of
// the recovered cluster, and the other way round, whichever versions they run. So the invariant that a cluster has one id for
// ever stays: this is another cluster, which remembers from which it came, and tells its nodes so when they come back.
//
// # If the process dies
//
// All of it is one transaction of the catalog: the entries, the members, the new id, the audit, and the index that it stands
// for, one behind the last of the log. Before it, nothing has happened. After it the rest follows from the catalog, and is
// done by whoever opens the directory next, to start the node or to recover it again: the log notes that the catalog is ahead
// of it, loses its entries (who joins is sent the catalog, as the entries are those of the other cluster), and node.json gets
// the new id last.

// wasPrefix begins the rows of bucket cfg that say from which clusters this one was recovered:
//
//	was/<cluster>  byte 1, uvarint index, uvarint seconds since 1970
const wasPrefix = "was/"

// was is one of them.
type was struct {
	cluster string
	index   uint64 // that the recovery stands for
	at      time.Time
}

func (w was) encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint([]byte{rowFormat}, w.index), uint64(w.at.Unix()))
}

func parseWas(k, v []byte) (was, error) {
	d := decoder{b: v}
	if f := d.byte(); f != rowFormat {
		d.err = cmp.Or(d.err, unknownFormat("a row of an earlier cluster", f, rowFormat))
	}
	w := was{cluster: strings.TrimPrefix(string(k), wasPrefix), index: uint64(d.int()), at: time.Unix(d.int(), 0).UTC()}
	if err := d.end(); err != nil {
		return was{}, err
	}
	if w.cluster == "" || !bytes.Equal(w.encode(), v) {
		return was{}, errors.New("not in canonical form")
	}
	return w, nil
}

// checkWasRow reports whether a row is one about an earlier cluster, and well-formed.
func checkWasRow(k, v []byte) (known bool, err error) {
	if !bytes.HasPrefix(k, []byte(wasPrefix)) {
		return false, nil
	}
	_, err = parseWas(k, v)
	return true, err
}

// was returns what is known of an earlier cluster of this one.
func (s state) was(cluster string) (w was, ok bool, err error) {
	k := []byte(wasPrefix + cluster)
	v := s.bucket(bucketConfig).Get(k)
	if v == nil || cluster == "" {
		return was{}, false, nil
	}
	if w, err = parseWas(k, v); err != nil {
		return was{}, false, damaged(err, "catalog row cfg %q", k)
	}
	return w, true, nil
}

// Was reports whether this node's cluster was recovered from the one with that id, and when.
func (c *catalog) Was(cluster string) (at time.Time, ok bool) {
	_ = c.view(func(s state) error {
		w, found, err := s.was(cluster)
		at, ok = w.at, found
		return err
	})
	return at, ok
}

// Survivor is the data directory of a stopped node, locked, which may be recovered. Close it.
type Survivor struct {
	*catalog
	dir   string
	lock  *os.File
	id    identity
	store *sealedLog
	step  func(string) error // called before each step; set by tests; nil: nothing
}

// OpenSurvivor opens the data directory of a node that does not run. Nothing is written, unless a recovery was begun there
// before, which it completes. The error matches [ErrLocked] if the node runs.
func OpenSurvivor(dir string) (*Survivor, error) { return openSurvivor(dir, nil) }

func openSurvivor(dir string, step func(string) error) (*Survivor, error) {
	v := &Survivor{catalog: newCatalog(filepath.Join(dir, "catalog.db")), dir: dir, step: step}
	if err := v.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", dir, printable(err)), v.Close())
	}
	return v, nil
}

func (v *Survivor) open() (err error) {
	if v.lock, err = lockDir(v.dir); err != nil {
		return err
	}
	if err := checkRestored(v.dir); err != nil {
		return err
	}
	path := filepath.Join(v.dir, "node.json")
	if v.id, err = readIdentity(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no node.json; %s", restore)
	} else if err != nil {
		return err
	}
	if v.id.State != stateFounded {
		return errors.New("the node in it has never been part of a cluster")
	}
	if v.store, err = openLog(logPath(v.dir)); err != nil {
		return advised(err)
	}
	if v.db, err = openDB(v.path, false); err != nil {
		return advised(err)
	}
	if v.id, err = completeRecovery(v.dir, v.catalog, v.store, v.id, v.at); err != nil {
		return err
	}
	return checkFiles(v.catalog, v.store, v.id)
}

// Close releases the directory.
func (v *Survivor) Close() error {
	err := v.close()
	if v.store != nil {
		err = errors.Join(err, v.store.Close())
	}
	if v.lock != nil {
		err = errors.Join(err, v.lock.Close())
	}
	return err
}

func (v *Survivor) at(step string) error {
	if v.step == nil {
		return nil
	}
	return v.step(step)
}

// Remains is what a survivor holds, for the choice between several and for the decision.
type Remains struct {
	Node    Peer      `json:"node"`
	Cluster string    `json:"cluster"`
	Term    uint64    `json:"term"`    // of the last entry
	Index   uint64    `json:"index"`   // of the last entry: of several survivors, the one with the highest (term, index) has most
	Applied uint64    `json:"applied"` // index at which the catalog ends
	Seq     int64     `json:"seq"`     // leaves of the catalog's Merkle tree
	Root    tlog.Hash `json:"root"`    // its root
	Members []Peer    `json:"members"` // by the newest configuration, this node among them
	Known   []Peer    `json:"known"`   // other nodes that the catalog knows

	// Behind the catalog's end: publications, of which nobody can say any more whether they were committed.
	Tail []artifact.Manifest `json:"tail"`

	Recovered time.Time `json:"recovered,omitzero"` // when the cluster began by a recovery, and nothing was changed since; zero: it did not
}

// Remains returns what the survivor holds.
func (v *Survivor) Remains() (r Remains, err error) {
	var conf raft.Configuration
	if err := v.view(func(s state) (err error) {
		var term uint64
		r.Applied, term = s.applied()
		r.Index, r.Term, r.Cluster = r.Applied, term, s.cluster()
		tree, err := s.merkle()
		if err != nil {
			return err
		}
		r.Seq, r.Root = tree.size, tree.root()
		conf, _ = s.members()
		r.Recovered, err = s.recoveredAt()
		return err
	}); err != nil {
		return r, err
	}
	if err := v.eachBehind(r.Applied, func(l *raft.Log) error {
		r.Index, r.Term = l.Index, l.Term
		if l.Type == raft.LogConfiguration {
			conf = raft.DecodeConfiguration(l.Data)
		}
		if l.Type != raft.LogCommand {
			return nil
		}
		cmds, err := parseEntry(l.Data)
		for _, c := range cmds {
			if p, ok := c.(publishCommand); ok {
				r.Tail = append(r.Tail, p.Manifest)
			}
		}
		return err
	}); err != nil {
		return r, err
	}
	return r, v.view(func(s state) error { return r.name(s, v.id.Node, conf) })
}

// eachBehind calls f for the entries behind index.
func (v *Survivor) eachBehind(index uint64, f func(l *raft.Log) error) error {
	last, err := v.store.LastIndex()
	if err != nil {
		return err
	}
	for index++; index <= last; index++ {
		var l raft.Log
		if err := v.store.GetLog(index, &l); err != nil {
			return err
		}
		if err := safely(true, func() error { return f(&l) }); err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
	}
	return nil
}

// name sets who the members and the others are.
func (r *Remains) name(s state, self string, conf raft.Configuration) error {
	rows, err := s.peers()
	if err != nil {
		return err
	}
	byID := map[string]Peer{}
	for _, p := range rows {
		byID[p.ID] = p
	}
	for _, m := range conf.Servers {
		p := byID[string(m.ID)]
		delete(byID, string(m.ID))
		p.ID, p.Member, p.Voter = string(m.ID), true, m.Suffrage == raft.Voter
		p.Name, p.Address = cmp.Or(p.Name, p.ID[:min(8, len(p.ID))]), cmp.Or(p.Address, string(m.Address))
		r.Members = append(r.Members, p)
		if p.ID == self {
			r.Node = p
		}
	}
	slices.SortFunc(r.Members, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	for _, p := range rows {
		if _, other := byID[p.ID]; other {
			r.Known = append(r.Known, p)
		}
	}
	return nil
}

// recoveredAt returns when the cluster began by a recovery, as long as no other node has joined since.
func (s state) recoveredAt() (at time.Time, err error) {
	_, index := s.members()
	w, _, err := s.recoveredTo(index)
	return w.at, err
}

// recoveredTo returns the recovery that stands for an index, if one does.
func (s state) recoveredTo(index uint64) (w was, ok bool, err error) {
	prefix := []byte(wasPrefix)
	c := s.bucket(bucketConfig).Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		w, err := parseWas(k, v)
		if err != nil {
			return was{}, false, damaged(err, "catalog row cfg %q", k)
		}
		if w.index == index {
			return w, true, nil
		}
	}
	return was{}, false, nil
}

// Others returns the members without the survivor.
func (r Remains) Others() []Peer {
	return slices.DeleteFunc(slices.Clone(r.Members), func(p Peer) bool { return p.ID == r.Node.ID })
}

// Recover makes the survivor the only voter of a new cluster, whose id it returns. a says who does
// that, when and why, for the audit.
func (v *Survivor) Recover(a Audit) (cluster string, err error) {
	r, err := v.Remains()
	if err != nil {
		return "", err
	}
	if r.Node.ID == "" {
		return "", errors.New("this node is no member of its cluster: it was removed, or was about to join; it cannot be recovered")
	}
	if len(r.Others()) == 0 {
		return "", errors.New("this node is the only member of its cluster: it needs nobody, and nothing is to be recovered")
	}
	cluster = rand.Text()
	a.Number, a.Time, a.Reason = 0, a.Time.UTC().Round(0), r.account(a.Reason, cluster)
	if err := a.Check(); err != nil {
		return "", err
	}
	if err := v.at("begin"); err != nil {
		return "", err
	}
	w := was{cluster: r.Cluster, index: r.Index + 1, at: a.Time}
	if err := v.update(func(s state) error {
		if err := v.applyRest(s, r.Applied); err != nil {
			return err
		}
		return errors.Join(s.recover(r, w, cluster, a), v.at("commit"))
	}); err != nil {
		return "", err
	}
	if v.id, err = completeRecovery(v.dir, v.catalog, v.store, v.id, v.at); err != nil {
		return cluster, err
	}
	return cluster, checkFiles(v.catalog, v.store, v.id)
}

// account is the reason for the audit, and what was done.
func (r Remains) account(why, cluster string) string {
	var names []string
	for _, p := range r.Others() {
		names = append(names, fmt.Sprintf("%s (%s at %s)", p.Name, p.ID, p.Address))
	}
	text := fmt.Sprintf("%s [cluster %s became %s on %s (%s) at index %d, after term %d, without %s",
		why, r.Cluster, cluster, r.Node.Name, r.Node.ID, r.Index+1, r.Term, strings.Join(names, ", "))
	return artifact.Truncate(text, maxAuditReason-8) + "]"
}

// applyRest applies the entries behind index.
func (v *Survivor) applyRest(s state, index uint64) error {
	return v.eachBehind(index, func(l *raft.Log) error {
		err := applyLogs(s, []*raft.Log{l}, make([]any, 1))
		if errors.Is(err, errNothing) {
			return nil
		}
		return err
	})
}

// recover changes the catalog.
func (s state) recover(r Remains, w was, cluster string, a Audit) error {
	b := s.bucket(bucketConfig)
	if s.gone(r.Node.ID) {
		return errors.New("this node was removed from its cluster: it cannot be recovered")
	}
	all, err := s.peers() // also those of the entries that were just applied
	if err != nil {
		return err
	}
	for _, p := range slices.Concat(r.Others(), all) {
		if p.ID == r.Node.ID {
			continue
		}
		if _, err := s.applyForget(p.ID); err != nil {
			return err
		}
	}
	if self, ok, err := s.peer(r.Node.ID); err != nil {
		return err
	} else if ok { // it registers again when it starts
		self.Held, self.Level = false, newestLevel
		if err := b.Put([]byte(nodePrefix+self.ID), appendPeer(nil, self)); err != nil {
			return err
		}
	}
	conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(r.Node.ID), Address: raft.ServerAddress(r.Node.Address)}}}
	if _, err := s.applyAudit(a); err != nil {
		return err
	}
	return errors.Join(
		s.setLevel(max(s.level(), newestLevel)), // the only node supports it
		b.Put([]byte(wasPrefix+w.cluster), w.encode()),
		b.Put(keyCluster, []byte(cluster)),
		s.setMembers(w.index, raft.EncodeConfiguration(conf)),
		s.setApplied(w.index, r.Term),
	)
}

// completeRecovery does what follows from a recovery in the catalog that node.json does not know of, and returns the identity as
// it is then. There is none as soon as anything was added to the log: a node.json that is older than that was brought from
// elsewhere, and must not cost the log its entries.
func completeRecovery(dir string, c *catalog, store *sealedLog, id identity, at func(string) error) (identity, error) {
	begun, cluster := false, ""
	var applied uint64
	err := c.view(func(s state) (err error) {
		applied, _ = s.applied()
		cluster = s.cluster()
		begun, err = s.unfinished(id)
		return err
	})
	if err != nil || !begun {
		return id, err
	}
	f, err := factsOf(store, applied)
	if err != nil {
		return id, err
	}
	if err := id.wrote(f); err != nil {
		return id, err
	}
	if f.last > applied {
		return id, nil
	}
	id.Cluster = cluster
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"log", func() error { return store.SetUint64(keyInstalled, applied) }},
		{"cut", func() error {
			if f.last == 0 {
				return nil
			}
			return store.DeleteRange(f.first, f.last)
		}},
		{"node.json", func() error { return replaceFile(filepath.Join(dir, "node.json"), id.write) }},
		{"done", func() error { return nil }},
	} {
		if err := at(step.name); err != nil {
			return id, err
		}
		if err := step.do(); err != nil {
			return id, err
		}
	}
	return id, nil
}

// unfinished reports whether a recovery is the last in the catalog, and node.json does not know of it.
func (s state) unfinished(id identity) (bool, error) {
	applied, _ := s.applied()
	_, begun, err := s.recoveredTo(applied)
	return begun && s.cluster() != id.Cluster, err
}

// All calls f for each manifest that is committed, or will be by a recovery, until it returns an error.
func (v *Survivor) All(ctx context.Context, f func(artifact.Manifest) error) error {
	r, err := v.Remains()
	if err != nil {
		return err
	}
	for m, err := range v.Manifests(ctx) {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		if err := f(m); err != nil {
			return err
		}
	}
	for _, m := range r.Tail {
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}
