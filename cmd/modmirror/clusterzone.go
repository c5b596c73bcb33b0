package main

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

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
	Lag          *int64    `json:"lag,omitempty"`          // changes that the nearest to the leader of these is behind; nil: not known
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

// underView is how many blobs are in fewer places than they should be. A member that does not answer counts as it was when it did.
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

// join takes the members of each zone together, once they are measured.
func (v *clusterView) join() {
	zones := map[string][]memberView{}
	for _, m := range v.Nodes {
		zones[m.Zone] = append(zones[m.Zone], m)
	}
	v.Under = &underView{Members: v.lacked(v.Nodes), Zones: bound{Most: new(int64)}}
	for _, name := range slices.Sorted(maps.Keys(zones)) {
		z := zoneOf(name, zones[name])
		z.Lacks = v.lackedByAll(zones[name])
		v.Under.Zones.add(z.Lacks)
		v.Zones = append(v.Zones, z)
		v.WAN = append(v.WAN, z.WAN...)
	}
}

// zoneOf takes members together.
func zoneOf(name string, members []memberView) zoneView {
	z := zoneView{Zone: name, Nodes: len(members)}
	var wan []wanView
	for i, m := range members {
		z.Leads = z.Leads || m.Leader
		if m.Voter {
			z.Voters++
		}
		if m.Alive {
			z.Alive++
			if m.Lag != nil && (z.Lag == nil || *m.Lag < *z.Lag) {
				z.Lag = m.Lag
			}
			if m.Complete.After(z.Complete) {
				z.Complete, z.CompleteNode = m.Complete, m.Name
			}
		}
		if i == 0 || m.Complete.Before(z.Least) {
			z.Least, z.LeastNode = m.Complete, m.Name
		}
		wan = append(wan, m.WAN...)
	}
	z.WAN = sumWAN(wan)
	return z
}

// sumWAN adds up what has the same two zones.
func sumWAN(all []wanView) (out []wanView) {
	for _, w := range all {
		i := slices.IndexFunc(out, func(o wanView) bool { return o.From == w.From && o.To == w.To })
		if i < 0 {
			out = append(out, w)
			continue
		}
		out[i].Raft += w.Raft
		out[i].Control += w.Control
		out[i].Blobs += w.Blobs
	}
	slices.SortFunc(out, func(a, b wanView) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return out
}

// blobsOfLeaf is how many blobs one leaf names at most: a zip, and a go.mod too large for the catalog.
const blobsOfLeaf = 2

// unread returns how many blobs there may be in the leaves in which m has not looked for any.
func (v *clusterView) unread(m memberView) int64 {
	looked := m.Blobs // of what older versions say, they have at least looked at this
	if m.Looked != nil {
		looked = *m.Looked
	}
	return blobsOfLeaf * max(v.Far-looked, 0)
}

// lacked returns how many blobs at least one of the members lacks. It is exact where no two lack any and all have looked.
func (v *clusterView) lacked(members []memberView) (b bound) {
	var most, unread int64
	for _, m := range members {
		if m.Seen.IsZero() {
			return bound{Least: b.Least}
		}
		b.Least = max(b.Least, int64(m.Missing))
		most += int64(m.Missing)
		unread = max(unread, v.unread(m))
	}
	most += unread
	b.Most = &most
	return b
}

// lackedByAll returns how many blobs none of the members has. It is exact for a single member that has looked, and where one lacks
// none.
func (v *clusterView) lackedByAll(members []memberView) (b bound) {
	for _, m := range members {
		if m.Seen.IsZero() {
			continue
		}
		if most := int64(m.Missing) + v.unread(m); b.Most == nil || most < *b.Most {
			b.Most = &most
		}
		if len(members) == 1 {
			b.Least = int64(m.Missing)
		}
	}
	return b
}

// add adds what another zone lacks: a blob that two lack is at most counted twice.
func (b *bound) add(o bound) {
	b.Least = max(b.Least, o.Least)
	if b.Most == nil || o.Most == nil {
		b.Most = nil
		return
	}
	most := *b.Most + *o.Most
	b.Most = &most
}
