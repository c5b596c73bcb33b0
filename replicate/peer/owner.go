package peer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// Owner returns the candidates in the order in which they are to be asked for key. All nodes that know the same candidates
// get the same order; when one comes or goes, only the keys that it is first for move (rendezvous hashing, Thaler and
// Ravishankar 1998).
func Owner(key string, candidates []Member) []Member {
	type scored struct {
		score uint64
		Member
	}
	all := make([]scored, len(candidates))
	for i, m := range candidates {
		sum := sha256.Sum256([]byte(m.ID + "\x00" + key)) // no id has a zero byte in it
		all[i] = scored{binary.BigEndian.Uint64(sum[:]), m}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), strings.Compare(a.ID, b.ID))
	})
	out := make([]Member, len(all))
	for i, s := range all {
		out[i] = s.Member
	}
	return out
}
