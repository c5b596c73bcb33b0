package artifact

import "time"

// Ack is a node's word that the bytes of Ref were durable on its disk at a time. It counts for one start of that node only:
// Starts says how often its data directory had been opened, so that the word of a disk that was wiped or put back since is
// worth nothing.
type Ack struct {
	Node   string
	Starts uint64
	Ref    Ref
	At     time.Time
}
