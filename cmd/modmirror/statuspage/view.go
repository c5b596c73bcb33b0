package statuspage

import (
	"context"
	"time"

	"golang.org/x/mod/module"
)

// Source is what the pages show. Its methods are called from several goroutines, and return soon. None but Describe asks other nodes.
type Source interface {
	// Cluster returns the cluster as this node sees it now.
	Cluster(ctx context.Context) Cluster
	// Events returns the newest events, newest first, and a channel that is closed when there is another one.
	Events() ([]Event, <-chan struct{})

	// Modules returns module paths of which something is held, that begin with prefix and follow after, in the order of bytes; at
	// most limit.
	Modules(ctx context.Context, prefix, after string, limit int) ([]string, error)
	// Versions returns the versions of path of which something is held, in any order. None is no error.
	Versions(ctx context.Context, path string) ([]string, error)
	// Describe returns what is known of some versions of path, without those of which nothing is held.
	Describe(ctx context.Context, path string, versions []string) ([]Version, error)
}

// State says how something is. Each page says it in words, too: colour alone tells nothing to many people.
type State uint8

// From good to bad.
const (
	OK   State = iota // all is well
	Warn              // it works, and somebody should look at it
	Bad               // it does not do what it is there for

	Note // neither good nor bad; for an Event only
)

var stateNames = [...]string{"ok", "warn", "bad", "note"}

// String returns the name that the style has for s.
func (s State) String() string { return stateNames[s] }

// Cluster is a mirror of one or more nodes.
type Cluster struct {
	ID       string // "": not known yet
	Self     string // the name of the node that says all this
	Leader   string // the name of the node that leads; "": there is none
	Voters   int
	Alive    int // of the voters
	Versions int64
	Offline  bool   // it fetches nothing, by the operator's will
	Ready    string // why this node should get no requests; "": it should
	Writes   string // why this node takes no new artifacts; "": it does
	Problems []string
	Zones    []Zone
}

// Zone is the nodes of one datacenter or rack.
type Zone struct {
	Name     string    // "": the nodes have none
	Complete time.Time // all that was committed until then is there; zero: not known
	Current  bool      // all that is committed is there
	Nodes    []Node
}

// Node is one node. What only it can say is what it said last.
type Node struct {
	ID, Name string
	Version  string // of the program
	Role     string // leader, voter, replica, …
	Self     bool
	Silent   bool // it does not answer
	State    State
	Says     string // the state in a word or two
	Why      string // more of it; "": there is no more to say

	Seen     time.Time     // when it was heard of last
	RTT      time.Duration // 0: not known
	Lag      int64         // changes that are committed and not in its catalog; -1: not known
	Missing  int64         // blobs that it knows to lack; -1: not known
	Owed     int64         // bytes of these; 0: not known
	Complete time.Time     // it holds all that was committed until then; zero: not known
	Current  bool          // it holds all that is committed
	Free     uint64        // on its disk
	Total    uint64        // 0: not known
	Low      bool          // its disk is nearly full
	Scrubbed time.Time     // every blob was read since; zero: not known, or not all were ever
	Heads    []Head
}

// Head is a tree head of a checksum database.
type Head struct {
	Database string
	Size     int64
	Checked  time.Time // when a source confirmed that there is none newer; zero: not known
}

// Event is something that happened. What cannot be said is empty.
type Event struct {
	ID      string // no two events have the same
	At      time.Time
	State   State
	What    string // stored, refused, leader, …
	Module  string // what it is about; "": no module, or none whose name may be shown
	Version string
	Kind    string // info, mod or zip
	Bytes   int64
	From    string // who sent it
	Reason  string // why, or what
}

// Version is one version of a module, as far as it is held.
type Version struct {
	Module         module.Version
	Released       time.Time // what its info says; zero: not known
	Committed      time.Time // the last part of it; zero: not known
	ModSum, ZipSum string    // as in go.sum
	Mod, Zip       Artifact
	Database       string
	Record         int64
	Holders        []Holder // who holds the zip; of all nodes
}

// Artifact is bytes that are held.
type Artifact struct {
	SHA256 string // "": they are not
	Size   int64
}

// Holder is a node that may hold something.
type Holder struct {
	Node, Zone string
	Holds      bool
	Known      bool // else Holds says nothing: the node does not answer, or cannot say
}
