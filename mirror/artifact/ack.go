package artifact

import "time"

// Ack is a node's word that the bytes of Ref are durable on its disk. It is about the disk as it was in one life of the
// node: after a restart on an older image of that disk the bytes may be gone, and Starts tells the two apart.
type Ack struct {
	Node   string    // the node's id
	Starts uint64    // how often its data directory had been opened then
	Ref    Ref       // the bytes
	At     time.Time // when it said so, by its own clock
}
