package replicate

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Keys of the log's bucket conf. The first is raft's own. The second is written before an installed snapshot takes the
// place of the catalog: from then on the catalog may be ahead of the log. It stands in the log, so that an older copy of
// the log does not have it. The third says whose votes these are.
var (
	keyCurrentTerm = []byte("CurrentTerm")
	keyInstalled   = []byte("modmirror/installed")
	keyNode        = []byte("modmirror/node")
)

// facts is what a log says of itself.
type facts struct {
	first, last uint64 // indexes of its entries; 0: it has none
	term        uint64 // the newest that the node knew; 0: none
	installed   uint64 // index of the last snapshot that was installed; 0: none
	node        string // id of the node whose log it is
	entryTerm   uint64 // term of the entry that the catalog ends at; 0: the log does not have that entry
}

// factsOf reads what the log says, for a catalog that ends at index applied.
func factsOf(store *sealedLog, applied uint64) (f facts, err error) {
	number := func(key []byte) (uint64, error) {
		b, err := store.Get(key)
		if errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return 0, nil
		}
		if err == nil && len(b) != 8 {
			err = fmt.Errorf("the raft log has a malformed %s: %x", key, b)
		}
		if err != nil {
			return 0, err
		}
		return store.GetUint64(key)
	}
	err = safely(true, func() (err error) {
		if f.first, err = store.FirstIndex(); err != nil {
			return err
		}
		if f.last, err = store.LastIndex(); err != nil {
			return err
		}
		if f.term, err = number(keyCurrentTerm); err != nil {
			return err
		}
		if f.installed, err = number(keyInstalled); err != nil {
			return err
		}
		node, err := store.Get(keyNode)
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return err
		}
		f.node = string(node)
		var l raft.Log
		err = store.GetLog(applied, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			return nil
		}
		f.entryTerm = l.Term
		return err
	})
	return f, err
}

// agree reports whether the log and a catalog that ends at index and term can be those of one node. A log that was lost,
// or replaced by an older one, has forgotten votes: the node could vote twice in a term, and entries that it helped to
// commit could be lost.
func (f facts) agree(index, term uint64) error {
	switch {
	case index > 0 && f.term == 0:
		return fmt.Errorf("the catalog ends at index %d, but the raft log knows of no term: it is not the log of this catalog; %s", index, restore)
	case f.term < term:
		return fmt.Errorf("the catalog ends in term %d, but the raft log knows of no term after %d: it is older than the catalog; %s", term, f.term, restore)
	case index > max(f.last, f.installed):
		return fmt.Errorf("the catalog ends at index %d, but the raft log at %d: it is older than the catalog; %s", index, f.last, restore)
	case f.first > index+1:
		return fmt.Errorf("the catalog ends at index %d, but the raft log begins at %d: the catalog is older than the log; %s", index, f.first, restore)
	case f.entryTerm != 0 && f.entryTerm != term:
		return fmt.Errorf("entry %d is of term %d in the raft log, and of term %d in the catalog: they are not of one node; %s", index, f.entryTerm, term, restore)
	}
	return nil
}

// wrote reports whether the log is that of this node: with another's votes, or under another id than the cluster knows it
// by, it would wait for a leader for ever.
func (id identity) wrote(f facts) error {
	if f.node != id.Node {
		return fmt.Errorf("node.json is of node %q, the raft log of node %q; %s", id.Node, f.node, restore)
	}
	return nil
}

// agree reports whether node.json and a catalog can be of one node.
func (id identity) agree(cluster string) error {
	if cluster != "" && id.Cluster != "" && cluster != id.Cluster {
		return fmt.Errorf("node.json is of cluster %s, the catalog of cluster %s; %s", id.Cluster, cluster, restore)
	}
	return nil
}
