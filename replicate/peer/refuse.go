package peer

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Class is the kind of a refusal, for metrics and programs.
type Class string

// The classes of refusals.
const (
	WrongToken         Class = "wrong-token"         // the other end has another cluster token
	ForeignCertificate Class = "foreign-certificate" // no authority that this end knows signed it
	ExpiredCertificate Class = "expired-certificate" // or not valid yet, by the clock of who refuses
	NoCertificate      Class = "no-certificate"      // the dialer showed none
	OldTLS             Class = "old-tls"             // older than TLS 1.3, or no TLS at all
	WrongProtocol      Class = "wrong-protocol"      // none of the protocols spoken here, or spoken wrongly
	ForeignCluster     Class = "foreign-cluster"     // of another cluster
	Fresh              Class = "no-cluster-yet"      // one of the two has no cluster yet
	Clone              Class = "clone"               // runs on a copy or an old image of a data directory
	Twice              Class = "same-id-twice"       // another process with that id runs right now
	NameTaken          Class = "name-taken"          // the name belongs to another data directory
	Removed            Class = "removed"             // was removed from the cluster
	TooOld             Class = "too-old"             // does not support the feature level of the cluster
	OtherNode          Class = "other-node"          // not the node that the dialer wants
	Starting           Class = "starting"            // has not written its start down yet: it opens its data directory, or its disk is full
	Busy               Class = "busy"                // too many connections
	Refused            Class = "refused"             // another reason
)

var classes = []Class{WrongToken, ForeignCertificate, ExpiredCertificate, NoCertificate, OldTLS, WrongProtocol, ForeignCluster, Fresh, Clone, Twice, NameTaken, Removed, TooOld, OtherNode, Starting, Busy, Refused}

// Refusal says why two nodes do not speak to each other, and what to do. Both ends have it.
type Refusal struct {
	Class Class  `json:"class"`
	Text  string `json:"text"`
	By    string `json:"-"` // the address of who refused; empty: this node did
}

const maxText = 2 << 10

// Refuse returns a refusal.
func Refuse(c Class, format string, args ...any) *Refusal {
	text := strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")
	for len(text) > maxText {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return &Refusal{Class: c, Text: text}
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.By == "" {
		return "refused: " + r.Text
	}
	return "refused by the node at " + r.By + ": " + r.Text
}

// ClassOf returns the class of the refusal in err, and "" if it is another error.
func ClassOf(err error) Class {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Class
	}
	return ""
}

// Permanent reports whether trying again cannot help before somebody does something about it.
func (r *Refusal) Permanent() bool {
	switch r.Class {
	case Starting, Busy, Fresh, OtherNode, Twice, ExpiredCertificate:
		return false // these pass by themselves: a node starts, stops, or gets the right time
	}
	return true
}

func (r *Refusal) check() error {
	known := false
	for _, c := range classes {
		known = known || c == r.Class
	}
	if !known {
		r.Class = Refused // of a later version; its text says it all
	}
	if r.Text == "" || len(r.Text) > maxText || !utf8.ValidString(r.Text) {
		return errors.New("a refusal without a reason")
	}
	return nil
}

// asRefusal returns the refusal in err, or makes one of it.
func asRefusal(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return &Refusal{Class: r.Class, Text: r.Text}
	}
	return Refuse(Refused, "%v", err)
}

// RefuseRemoved says that h was removed from the cluster.
func RefuseRemoved(h Hello) *Refusal {
	return Refuse(Removed, "%v was removed from cluster %s: to use that machine again, stop it, move its data directory away, and start it as a new node with --join", h, short(h.Cluster))
}

// RefuseClone says that h runs on a copy or an old image of the data directory of known.
func RefuseClone(h, known Hello) *Refusal {
	return Refuse(Clone, "%v runs on a copy or an old image of a data directory that was started later (start %d, known is start %d, last at %s): it has forgotten what that one promised. Stop it, move its data directory away, and start it as a new node with --join",
		h, h.Starts, known.Starts, known.Address)
}

// RefuseStarting says that h cannot say yet which start of its data directory this is, so that it is not known whether it runs on
// a copy of one.
func RefuseStarting(h Hello) *Refusal {
	return Refuse(Starting, "%v cannot say yet which start of its data directory this is: it works once it has written that down, which a full disk keeps it from", h)
}

// RefuseName says that the name of h is taken.
func RefuseName(h, owner Hello) *Refusal {
	return Refuse(NameTaken, "the name %s belongs to another data directory (node %s, last at %s): give this node another --node-id; if that disk is lost: modmirror cluster remove %s", h.Name, owner.Node, owner.Address, h.Name)
}

func refuseTwice(h, running Hello) *Refusal {
	return Refuse(Twice, "%v has the id of another process that runs right now, at %s: one of them runs on a copy of the other's data directory. Stop the one that is the copy, move its data directory away, and start it as a new node with --join", h, running.Address)
}

func refuseForeign(h, self Hello) *Refusal {
	return Refuse(ForeignCluster, "%v belongs to cluster %s, and %v to cluster %s: if the addresses in --join are right, one of them has an old data directory: stop it, move that away, and start it again", h, short(h.Cluster), self, short(self.Cluster))
}

// refuseLeftBehind says to h that its cluster goes on without it, as another one.
func refuseLeftBehind(h, self Hello, at time.Time) *Refusal {
	return Refuse(ForeignCluster, "%v belongs to cluster %s, which had lost its majority and was recovered without it on %s, as cluster %s, of which %v is: what it may have committed meanwhile is not part of that. Stop it, make a new node of it with modmirror cluster reset --keep-blobs, and start it with --join (docs/recover.md)",
		h, short(h.Cluster), at.UTC().Format(time.DateOnly), short(self.Cluster), self)
}

func refuseFresh(fresh, other Hello) *Refusal {
	return Refuse(Fresh, "%v has no cluster yet, %v asks of it what only a member can do, or is asked for it: it works once the first has joined", fresh, other)
}

func refuseOther(want string, self Hello, at string) *Refusal {
	return Refuse(OtherNode, "node %s was expected at %s, but %v answers there: an address was given to another node, or a data directory was replaced; if the disk of the expected one is lost: modmirror cluster remove %s", short(want), at, self, short(want))
}
