package replicate

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// maxReports is how many reports of one node are kept: nodes tell where they are at different times, and only equal numbers
// of leaves can be compared.
const maxReports = 64

// rivals is what other nodes say of their catalogs.
type rivals struct {
	mu      sync.Mutex
	reports map[string][]report // guarded by mu; by node, oldest first
}

type report struct {
	seq  int64
	root tlog.Hash
}

// Compare notes that a node says that its catalog has seq leaves and this root. A node that finds another root than a
// majority of the voters has, at an equal number of leaves, holds something else than what was committed: it stops taking
// part, and nothing of its catalog is served any more.
func (n *Node) Compare(id string, seq int64, root tlog.Hash) {
	if id == n.id.Node {
		return
	}
	r := &n.rivals
	r.mu.Lock()
	if r.reports == nil {
		r.reports = map[string][]report{}
	}
	list := r.reports[id]
	if len(list) == 0 || list[len(list)-1] != (report{seq, root}) {
		list = append(list, report{seq, root})
		r.reports[id] = list[max(0, len(list)-maxReports):]
	}
	r.mu.Unlock()
	n.compareAll()
}

// compareAll looks for a number of leaves at which a majority of the voters agrees on another root than this node's.
func (n *Node) compareAll() {
	votes, voters := map[report]int{}, 0
	n.rivals.mu.Lock()
	if len(n.rivals.reports) == 0 {
		n.rivals.mu.Unlock()
		return
	}
	for _, m := range n.Members() {
		if !m.Voter {
			continue
		}
		voters++
		said := map[report]bool{}
		for _, rep := range n.rivals.reports[m.ID] {
			if !said[rep] {
				votes[rep]++
			}
			said[rep] = true
		}
	}
	n.rivals.mu.Unlock()
	n.followRoots()
	for rep, count := range votes { // often a hundred, at each entry that is applied
		if count <= voters/2 {
			continue
		}
		if own, ok := n.roots.at(rep.seq); ok && own != rep.root {
			n.diverge(fmt.Errorf("at %d leaves the root of this node's catalog is %v, and that of %d of %d voters %v: move the data directory away and start as a new node: %w",
				rep.seq, own, count, voters, rep.root, artifact.ErrDamaged))
			return
		}
	}
}

// Agrees says whether the catalog of another node was the same as this one's at the newest of the places that it told of and
// this node still knows the root of. known is false if there is none, as long as one of the two is far behind.
func (n *Node) Agrees(id string) (same, known bool) {
	n.followRoots()
	n.rivals.mu.Lock()
	reports := slices.Clone(n.rivals.reports[id])
	n.rivals.mu.Unlock()
	for _, rep := range slices.Backward(reports) {
		if own, ok := n.roots.at(rep.seq); ok {
			return own == rep.root, true
		}
	}
	return false, false
}

// diverge ends the service of a catalog that is not what was committed.
func (n *Node) diverge(err error) {
	if !n.catalog.diverged.CompareAndSwap(nil, &err) {
		return
	}
	n.log.Error("this node holds something else than its cluster: it serves nothing any more", "err", err)
	n.Refuse(err)
}
