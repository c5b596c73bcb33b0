package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// selfStatus is what a node says of itself to the others, every second or two.
type selfStatus struct {
	memberView
	Root     string `json:"root"`     // of the catalog's Merkle tree at Seq
	Proves   int64  `json:"proves"`   // it holds the tiles that prove the records of the leaves below
	Starts   uint64 `json:"starts"`   // how often its data directory was opened
	Fetches  bool   `json:"fetches"`  // it has an upstream that is not silent, and takes new artifacts
	Passes   bool   `json:"passes"`   // it passes questions on as the owner of its zone; earlier versions do not
	Draining bool   `json:"draining"` // it is about to stop
	NoBlobs  string `json:"noBlobs"`  // why it takes no blobs from others; "" if it does
	InOffice bool   `json:"inOffice"` // it leads, and its catalog has all that was committed a lease ago

	Lease      time.Duration `json:"lease,omitempty"`      // for so long it may lead beside another one, in ns; earlier versions do not say
	Priority   int           `json:"priority,omitempty"`   // how much it is to lead: --leader-priority
	KeepLeader time.Duration `json:"keepLeader,omitempty"` // for how much longer the leadership stays where an operator had it put it, in ns

	Follows bool        `json:"follows,omitempty"` // it was started to follow another mirror
	Feed    *feed.Claim `json:"feed,omitempty"`    // how far it has followed that for its cluster
}

// self collects what this node says of itself.
func (n *node) self(ctx context.Context) selfStatus {
	me := n.replica.Self()
	s := selfStatus{Starts: me.Starts}
	s.ID, s.Name, s.Address, s.Zone, s.Role, s.Version = me.ID, me.Name, me.Address, me.Zone, me.Role, me.Version
	s.Alive, s.Seen = true, time.Now()
	s.Priority, s.KeepLeader = n.config.Cluster.Priority, n.keepFor(s.Seen)
	s.Draining = n.mirror.Draining()
	if s.Follows = n.follower != nil; s.Follows {
		s.Feed = n.follower.Claim()
	}
	s.Ready, s.Writes = verdict(n.ready(ctx, false)), verdict(n.ready(ctx, true))
	if err := n.keeps(); err != nil {
		s.NoBlobs = err.Error()
	}
	s.Fetches, s.Passes = n.upstream != nil && s.NoBlobs == "", true
	if err := n.silent(); err != nil && s.Fetches {
		s.Fetches, s.Silent = false, artifact.Truncate(err.Error(), maxPlain)
	}
	if s.Draining {
		s.Ready = "about to stop"
	}
	st, err := n.replica.Status(ctx)
	if err != nil {
		s.Ready = err.Error()
		return s
	}
	s.Profile = st.Profile
	s.Term, s.Applied, s.Seq, s.Root = st.Term, st.Applied, st.Seq, st.Root.String()
	s.InOffice, s.Lease = n.replica.InOffice(), n.replica.Lease()
	s.Proves = n.proves(ctx)
	n.stock(&s.memberView)
	_, changes, _ := n.replica.Leader()
	s.LeaderChanges = &changes
	for _, db := range n.databases {
		if st, err := db.Status(ctx); err == nil {
			s.Heads = append(s.Heads, headView{st.Name, st.Size, st.Checked})
		}
	}
	return s
}

// stock says what this node holds, and how its disk is.
func (n *node) stock(m *memberView) {
	p := n.mirror.Progress()
	m.Blobs, m.Missing, m.Looked, m.MissingBytes = p.Watermark, p.Missing, &p.Looked, &p.Bytes
	m.Unproven = p.Unproven
	since := time.Duration(0)
	if p.Missing > 0 {
		since = time.Since(p.Since)
	}
	m.MissingFor = &since
	scrub := n.mirror.ScrubStatus()
	m.Scrubbed, m.Unhealed = scrub.Oldest, &scrub.Health.Unhealed
	disk := n.disk.status()
	m.Free, m.Total, m.Disk = disk.Free, disk.Total, cmp.Or(disk.State, "ok")
	if n.link == nil {
		return
	}
	for _, t := range n.link.WAN() {
		m.WAN = append(m.WAN, wanView{t.From, m.Zone, t.Raft, t.Control, t.Blobs})
	}
}

// seen returns what the table has on a node.
func (n *node) seen(id string) (peer.Seen, bool) {
	t := n.table.Load()
	if t == nil {
		return peer.Seen{}, false
	}
	return t.Get(id)
}

// heard returns what a node said last. ok is false if it never said anything.
func (n *node) heard(id string) (s selfStatus, seen peer.Seen, ok bool) {
	if seen, ok = n.seen(id); !ok {
		return selfStatus{}, seen, false
	}
	said, ok := seen.Parsed.(*selfStatus)
	if !ok || said == nil || said.ID != id {
		return selfStatus{}, seen, false
	}
	return *said, seen, true
}

// parseStatus returns what another node says of itself, as a *selfStatus; nil: it is no status.
func parseStatus(b json.RawMessage) any {
	var s selfStatus
	if json.Unmarshal(b, &s) != nil {
		return nil
	}
	for _, text := range []*string{&s.Version, &s.Profile, &s.Ready, &s.Writes, &s.Disk, &s.Silent} {
		*text = plain(*text)
	}
	for i := range s.WAN {
		s.WAN[i].From = plain(s.WAN[i].From)
	}
	for i := range s.Heads {
		s.Heads[i].Database = plain(s.Heads[i].Database)
	}
	return &s
}

// maxPlain bounds a text of another node, in bytes.
const maxPlain = 1 << 10

// plain returns a text of another node as it may stand in a line at a terminal.
func plain(s string) string {
	return artifact.Truncate(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s), maxPlain)
}

// compareRoots tells the catalog what the others say that theirs holds, until ctx ends.
func (n *node) compareRoots(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n.lookOut(ctx) // also while nobody asks: when the leader is gone it is too late
		for _, m := range n.others() {
			s, seen, ok := n.heard(m.ID)
			if root, err := tlog.ParseHash(s.Root); ok && seen.Healthy && err == nil {
				n.replica.Compare(m.ID, s.Seq, root)
			}
		}
	}
}

// complete says up to which leaf a node holds every blob, and what proves every record, for the leader that wants to promote or
// remove. A node that is just pulling one says so by that, and is no less alive. Tiles that nobody could give it are passed over:
// they must not keep the cluster from ever changing again.
func (n *node) complete(id string) (int64, bool) {
	if id == n.identity.Load().Node {
		m := n.front.mirror.Load()
		if m == nil {
			return 0, false
		}
		return min(m.Progress().Watermark, n.proves(context.Background())), true
	}
	s, entry, ok := n.heard(id)
	return s.holds(), ok && entry.Healthy
}

// holds returns up to which leaf a node holds all that it needs to serve and to prove what is committed.
func (s selfStatus) holds() int64 { return min(s.Blobs, s.Proves) }

// proves returns up to which leaf this node holds the tiles that prove the records.
func (n *node) proves(ctx context.Context) int64 {
	least := int64(math.MaxInt64)
	for _, db := range n.databases {
		st, err := db.Status(ctx)
		if err != nil {
			return 0
		}
		least = min(least, st.Follow.Next)
	}
	return least
}

// view is the cluster as this node sees it.
func (n *node) view(ctx context.Context) clusterView {
	v := clusterView{From: n.replica.ID(), At: time.Now().UTC(), Wanted: n.config.Cluster.Voters, Problems: []string{}, Nodes: []memberView{}, Zones: []zoneView{}, WAN: []wanView{}}
	far := n.lookOut(ctx) // before anybody is looked at: who holds more than that is complete
	st, err := n.replica.Status(ctx)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
	}
	v.Cluster, v.Leader, v.Term, v.Seq = st.Cluster, st.Leader, st.Term, st.Seq
	if v.Level, err = n.replica.Level(ctx); err != nil {
		v.Problems = append(v.Problems, err.Error())
	}
	all, err := n.replica.Peers(ctx)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
	}
	for _, p := range all {
		if p.Member {
			v.Nodes = append(v.Nodes, n.viewOf(ctx, p))
		}
	}
	v.sort()
	v.measure(far, func(seq int64) time.Time { return n.timeAt(ctx, seq) })
	v.join()
	v.Problems = append(v.Problems, v.problems()...)
	if st.Diverged != "" {
		v.Problems = append(v.Problems, st.Diverged)
	}
	if p := clockProblem(st.Clock, time.Now()); p != "" {
		v.Problems = append(v.Problems, p)
	}
	return v
}

// clockSlack is by how much the clocks of nodes may differ before it is a problem.
const clockSlack = time.Minute

// clockProblem says that the catalog's newest time is one that this node's clock has not come to; "" if it has.
func clockProblem(catalog, now time.Time) string {
	ahead := catalog.Sub(now).Round(time.Second)
	if ahead <= clockSlack {
		return ""
	}
	return fmt.Sprintf("the newest time of the catalog, %s, is %s ahead of this node's clock: set the clocks of all nodes", catalog.Format(time.RFC3339), ahead)
}

// viewOf joins what the catalog says of a member with what it said of itself.
func (n *node) viewOf(ctx context.Context, p replicate.Peer) memberView {
	var m memberView
	if p.ID == n.replica.ID() {
		m = n.self(ctx).memberView
		m.Roots = rootsAgree
	} else if s, entry, ok := n.heard(p.ID); ok {
		m = s.memberView
		m.Alive, m.Seen, m.RTT = entry.Healthy, entry.At, entry.RTT
		m.Lag, m.Complete, m.Roots = nil, time.Time{}, "" // which are for this node to say
		if same, known := n.replica.Agrees(p.ID); known {
			m.Roots = map[bool]string{true: rootsAgree, false: rootsDiffer}[same]
		}
		if entry.Err != nil {
			m.Error = plain(entry.Err.Error())
		}
	} else if entry.Err != nil {
		m.Error = plain(entry.Err.Error())
	}
	m.ID, m.Name, m.Address, m.Zone, m.Role, m.Voter, m.Held, m.Leader = p.ID, nameOf(p), p.Address, p.Zone, p.Role, p.Voter, p.Held, p.Leader
	for i := range m.WAN {
		m.WAN[i].To = m.Zone
	}
	return m
}

// problems are what an operator should look at.
func (v clusterView) problems() (out []string) {
	if v.Leader == "" {
		out = append(out, "there is no leader: nothing new is committed")
	}
	q := v.quorum()
	if q.voters > 0 && q.alive < q.voters {
		out = append(out, q.String())
	}
	out = append(out, v.zoneRisks()...)
	for _, m := range v.Nodes {
		switch {
		case !m.Alive:
			out = append(out, fmt.Sprintf("%s does not answer: %s", m.Name, m.Error))
		case m.Roots == rootsDiffer:
			out = append(out, fmt.Sprintf("%s holds something else than %s: their roots differ at the same place", m.Name, v.nameOf(v.From)))
		case m.Ready != "ok":
			out = append(out, fmt.Sprintf("%s: %s", m.Name, m.Ready))
		case m.Writes != "ok":
			out = append(out, fmt.Sprintf("%s takes no new artifacts: %s", m.Name, m.Writes))
		}
		if m.Alive && m.Silent != "" {
			out = append(out, fmt.Sprintf("%s does not fetch, its upstream is silent: %s", m.Name, m.Silent))
		}
		if m.Alive && m.MissingFor != nil && *m.MissingFor > longBehind {
			out = append(out, fmt.Sprintf("%s lacks %s since %s", m.Name, count(m.Missing, "blob"), roughly(*m.MissingFor)))
		}
	}
	for _, z := range v.Zones {
		if behind := v.At.Sub(z.Complete); v.Leader != "" && z.Alive > 0 && !z.Complete.IsZero() && behind > longBehind {
			out = append(out, fmt.Sprintf("zone %s is complete only through %s", cmp.Or(z.Zone, "-"), z.Complete.Format(time.RFC3339)))
		}
	}
	return out
}

// longBehind is when it is a problem that something has not arrived: large zips on a slow line take minutes.
const longBehind = 30 * time.Minute
