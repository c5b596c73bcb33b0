package replicate

import (
	"bytes"
	"errors"

	"modmirror/mirror/artifact"
)

// Evidence of forks is told outside of Apply, which must not wait for whoever keeps it: Apply says that there is some,
// and tellForks reads it back from the catalog. A node that starts, or gets a snapshot, looks as well.

// tellForks tells Config.OnFork of every fork that is committed here, each once in this process.
func (n *Node) tellForks() {
	if n.config.OnFork == nil {
		return
	}
	told := map[string]bool{}
	for {
		for key, f := range n.allForks() {
			if !told[key] {
				told[key] = true
				n.config.OnFork(f)
			}
		}
		select {
		case <-n.forked:
		case <-n.stopping:
			return
		}
	}
}

// allForks returns all forks, those that were acknowledged too, by their keys.
func (n *Node) allForks() map[string]artifact.Fork {
	all := map[string]artifact.Fork{}
	err := n.view(func(s state) error {
		var bad error
		err := s.bucket(bucketForks).ForEach(func(k, v []byte) error {
			row, err := parseForkRow(v)
			if err != nil {
				db, _, _ := bytes.Cut(k, []byte{0})
				bad = damaged(err, "evidence of a fork of %q", db) // the others may be whole
				return nil
			}
			all[string(k)] = row.Fork
			return nil
		})
		return errors.Join(err, bad)
	})
	if err != nil {
		n.log.Error("evidence of a fork cannot be read", "err", err)
	}
	return all
}

// mayHaveForked wakes tellForks.
func (n *Node) mayHaveForked() {
	select {
	case n.forked <- struct{}{}:
	default:
	}
}
