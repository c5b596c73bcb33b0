package artifact

import "time"

// Change is what the catalog has at one place of its order: the manifest of a module version as it became there. All nodes
// have the same manifest at the same Seq, and the same time: what has a higher Seq has a later one. It is in UTC, in whole
// microseconds. Changes from before the catalog knew of times have one soon after 1970.
type Change struct {
	Seq      int64
	At       time.Time
	Manifest Manifest
}
