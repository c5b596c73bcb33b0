package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"modmirror/replicate"
)

// clusterView is the cluster as one node sees it: what it knows itself, and what the others answered when it asked them last.
type clusterView struct {
	Cluster  string          `json:"cluster"`
	From     string          `json:"from"`        // the node that says all this
	At       time.Time       `json:"at,omitzero"` // when, by its clock
	Leader   string          `json:"leader"`      // its id; "": there is none
	Term     uint64          `json:"term"`
	Seq      int64           `json:"seq"`      // leaves of the catalog's Merkle tree here
	Wanted   int             `json:"voters"`   // how many voters the cluster grows to: --voters
	Level    replicate.Level `json:"level"`    // the feature level
	Problems []string        `json:"problems"` // what an operator should look at
	Nodes    []memberView    `json:"nodes"`

	Far   int64      `json:"committed"`       // leaves that are committed, as far as this node knows
	Zones []zoneView `json:"zones"`           // by name
	Under *underView `json:"underReplicated"` // nil: said by a version that does not know
	WAN   []wanView  `json:"wan"`             // by pair of zones, since each member started
}

// memberView is one member. What only it can say is of its last answer, which may be old.
type memberView struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Zone    string `json:"zone"`
	Role    string `json:"role"`  // what it was started for: voter or replica
	Voter   bool   `json:"voter"` // whether it votes now
	Held    bool   `json:"held"`  // it was demoted, and gets no vote before it is promoted
	Leader  bool   `json:"leader"`

	Alive    bool          `json:"alive"`              // it answered lately, or is the node that says this
	Seen     time.Time     `json:"seen,omitzero"`      // its last answer
	RTT      time.Duration `json:"rtt,omitempty"`      // how long that took, in ns
	Version  string        `json:"version"`            // of the program
	Term     uint64        `json:"term"`               // of raft
	Applied  uint64        `json:"applied"`            // index of the last entry in its catalog
	Seq      int64         `json:"seq"`                // leaves of its catalog's Merkle tree
	Blobs    int64         `json:"blobs"`              // it holds all blobs of the leaves below
	Missing  int           `json:"missing"`            // blobs that it knows to lack
	Unproven int           `json:"unproven,omitempty"` // of those that it holds, how many it has yet to check before it serves them
	Free     uint64        `json:"freeBytes"`          // on its disk
	Heads    []headView    `json:"heads,omitempty"`    // of the checksum databases
	Ready    string        `json:"ready"`              // "ok", or why it should get no requests
	Writes   string        `json:"writes,omitempty"`   // "ok", or why it takes no new artifacts
	Error    string        `json:"error,omitempty"`    // why it does not answer

	// What older versions do not say of themselves: nil, "" and the zero time mean that it is not known, never that there is none.
	MissingBytes  *int64         `json:"missingBytes,omitempty"`  // of the blobs that it lacks
	MissingFor    *time.Duration `json:"missingFor,omitempty"`    // since when it lacks the oldest of them, in ns; 0: it lacks none
	Looked        *int64         `json:"looked,omitempty"`        // it looked for the blobs of the leaves below: Missing is of these
	Unhealed      *int           `json:"unhealed,omitempty"`      // of the blobs that it lacks, those that it held and lost
	Total         uint64         `json:"totalBytes,omitempty"`    // of its disk; 0: not known
	Disk          string         `json:"disk,omitempty"`          // "ok", "low" or "full"
	Silent        string         `json:"silent,omitempty"`        // it would fetch, but its upstream does not answer: why; "": it does
	Scrubbed      time.Time      `json:"scrubbed,omitzero"`       // it has read every blob again since then
	Profile       string         `json:"raftProfile,omitempty"`   // how patient its Raft is: lan or wan
	LeaderChanges *int64         `json:"leaderChanges,omitempty"` // that it has seen since it started
	WAN           []wanView      `json:"wan,omitempty"`           // what it was sent by other zones since it started

	// What the node works out that shows the view.
	Lag      *int64    `json:"lag,omitempty"`     // leaves that it is behind the leader, as far as that is known; nil: nothing is known of it
	Complete time.Time `json:"complete,omitzero"` // it holds every artifact that was committed until then; zero: not known
	Roots    string    `json:"roots,omitempty"`   // whether its catalog has the same root at the same leaf as that of the node that shows the view: "yes" or "no"; "": not known
}

type headView struct {
	Database string    `json:"database"`
	Size     int64     `json:"treeSize"`
	Checked  time.Time `json:"checked,omitzero"` // when a source last confirmed that it is the newest; zero: not known
}

// quorum is the arithmetic of a majority.
type quorum struct {
	voters, alive int
}

// needed is how many voters make a majority.
func (q quorum) needed() int { return q.voters/2 + 1 }

// spare is how many more voters may fail before nothing new can be committed; below zero nothing can be already.
func (q quorum) spare() int { return q.alive - q.needed() }

func (q quorum) String() string {
	s := fmt.Sprintf("%s, %d alive; a majority is %d", count(q.voters, "voter"), q.alive, q.needed())
	switch spare := q.spare(); {
	case q.voters == 0:
		return "no voters"
	case spare < 0:
		return s + ": NO QUORUM, nothing new is committed"
	case spare == 0:
		return s + ": no further one may fail"
	default:
		return s + fmt.Sprintf(": %d more may fail", spare)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// quorum counts the voters.
func (v clusterView) quorum() (q quorum) {
	for _, m := range v.Nodes {
		if m.Voter {
			q.voters++
			if m.Alive {
				q.alive++
			}
		}
	}
	return q
}

// find returns the member that an operator means by its name, its id, or the beginning of an id that no other one has.
func (v clusterView) find(who string) (memberView, error) {
	var found []memberView
	for _, m := range v.Nodes {
		if m.ID == who || m.Name == who {
			return m, nil
		}
		if len(who) >= 4 && strings.HasPrefix(m.ID, who) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return memberView{}, usageError("no member is called %q; see modmirror cluster members", who)
	}
	return memberView{}, usageError("%q is the beginning of %d ids; see modmirror cluster members", who, len(found))
}

func (m memberView) suffrage() string {
	switch {
	case m.Leader:
		return "leader"
	case m.Voter:
		return "voter"
	case m.Role == roleReplica:
		return "replica"
	case m.Held:
		return "demoted"
	}
	return "catching up"
}

// printMembers writes who belongs to the cluster, with ids.
func (v clusterView) printMembers(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tID\tROLE\tZONE\tADDRESS")
	for _, m := range v.Nodes {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.ID, m.suffrage(), cmp.Or(m.Zone, "-"), m.Address)
	}
	return tw.Flush()
}

func (v clusterView) nameOf(id string) string {
	for _, m := range v.Nodes {
		if m.ID == id {
			return m.Name
		}
	}
	return cmp.Or(id, "none")
}

func (m memberView) state() string {
	switch {
	case !m.Alive && m.Seen.IsZero():
		return "does not answer"
	case !m.Alive:
		return "does not answer since " + m.Seen.UTC().Format(time.RFC3339)
	case m.Ready != "ok" && m.Ready != "":
		return m.Ready
	case m.Writes != "ok" && m.Writes != "":
		return "serves; no new artifacts: " + m.Writes
	case m.Silent != "":
		return "serves; does not fetch, its upstream is silent"
	}
	return "ok"
}

// sort puts the members of a zone together, its voters first.
func (v *clusterView) sort() {
	votes := func(m memberView) int {
		if m.Voter {
			return 0
		}
		return 1
	}
	slices.SortFunc(v.Nodes, func(a, b memberView) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(votes(a), votes(b)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}
