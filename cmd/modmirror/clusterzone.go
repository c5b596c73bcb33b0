package main

import "time"

// zoneView is the members of one zone taken together.
type zoneView struct {
	Zone   string `json:"zone"` // "": of the members that were started without --zone
	Nodes  int    `json:"nodes"`
	Alive  int    `json:"alive"`
	Voters int    `json:"voters"`
	Leads  bool   `json:"leads"` // one of them is the leader

	// A zone is as complete as the most complete of its members that answer: its clients are served by them, and the others of
	// the zone pull from them.
	Complete     time.Time `json:"complete,omitzero"`      // every artifact that was committed until then is there; zero: not known
	CompleteNode string    `json:"completeNode"`           // that member's name; "": none is known to be
	Lag          *int64    `json:"lag,omitempty"`          // changes that this one is behind; nil: not known
	Least        time.Time `json:"leastComplete,omitzero"` // the same of the member that is the least complete, whether it answers or not; zero: not known
	LeastNode    string    `json:"leastNode"`

	Lacks bound     `json:"lacks"`         // blobs that no member of the zone holds
	WAN   []wanView `json:"wan,omitempty"` // what its members were sent by other zones, since each of them started
}

// bound is a number that is not known exactly: nobody tells the others which blobs it lacks, only how many.
type bound struct {
	Least int64  `json:"least"`
	Most  *int64 `json:"most,omitempty"` // nil: not known
}

// underView is how many blobs are in fewer places than they should be.
type underView struct {
	Members bound `json:"members"` // that a member lacks
	Zones   bound `json:"zones"`   // that no member of some zone holds
}

// wanView is what arrived in a zone from another one at the internal ports, in bytes, with what TLS adds. Only who receives
// counts, so that the sum over all members has each byte once.
type wanView struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Raft    int64  `json:"raft"`    // the log, snapshots, elections
	Control int64  `json:"control"` // questions and answers, proposals, tiles
	Blobs   int64  `json:"blobs"`   // bulk transfers
}

// What memberView.Roots says.
const (
	rootsAgree  = "yes"
	rootsDiffer = "no"
)
