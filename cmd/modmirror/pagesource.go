package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"modmirror/cmd/modmirror/statuspage"
	"modmirror/mirror"
	"modmirror/mirror/artifact"
)

// pageSource is a node as the pages for people show it. They are open to whoever can use the mirror, so that no addresses
// between nodes stand in them.
type pageSource struct{ n *node }

// maxSaid bounds a text of a node on a page, in bytes.
const maxSaid = 420

// public returns a text of a node as everybody may read it; "" for "ok".
func public(s string) string {
	if s == "ok" || s == "" {
		return ""
	}
	return artifact.PublicText(errors.New(s), maxSaid)
}

// Cluster implements [statuspage.Source].
func (s pageSource) Cluster(ctx context.Context) statuspage.Cluster {
	v := s.n.view(ctx)
	q := v.quorum()
	c := statuspage.Cluster{ID: v.Cluster, Self: v.nameOf(v.From), Voters: q.voters, Alive: q.alive, Offline: s.n.config.Offline}
	if v.Leader != "" {
		c.Leader = v.nameOf(v.Leader)
	}
	if st, err := s.n.replica.Status(ctx); err == nil {
		c.Versions = st.Manifests
	} else {
		c.Ready = public(err.Error())
	}
	for _, p := range v.Problems {
		c.Problems = append(c.Problems, public(p))
	}
	now, complete := time.Now(), make(map[string]time.Time)
	for _, z := range v.Zones {
		complete[z.Zone] = z.Complete
	}
	for _, m := range v.Nodes {
		if m.ID == v.From {
			c.Ready, c.Writes = cmp.Or(c.Ready, public(m.Ready)), public(m.Writes)
		}
		i := slices.IndexFunc(c.Zones, func(z statuspage.Zone) bool { return z.Name == m.Zone })
		if i < 0 {
			i = len(c.Zones)
			z := statuspage.Zone{Name: m.Zone}
			z.Complete, z.Current = current(now, complete[m.Zone])
			c.Zones = append(c.Zones, z)
		}
		c.Zones[i].Nodes = append(c.Zones[i].Nodes, v.card(m))
	}
	slices.SortFunc(c.Zones, func(a, b statuspage.Zone) int { return cmp.Compare(a.Name, b.Name) })
	for _, z := range c.Zones {
		slices.SortFunc(z.Nodes, func(a, b statuspage.Node) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
		})
	}
	return c
}

// card is a member as the map shows it. Numbers are as coarse as they are shown, so that nothing seems to change that nobody sees.
func (v clusterView) card(m memberView) statuspage.Node {
	c := statuspage.Node{ID: m.ID, Name: m.Name, Version: m.Version, Role: m.suffrage(), Self: m.ID == v.From, Silent: !m.Alive,
		Lag: -1, Missing: -1, Free: coarse(m.Free), Total: coarse(m.Total), Low: m.Disk == "low" || m.Disk == "full", Scrubbed: m.Scrubbed}
	if len(v.Nodes) == 1 {
		c.Role = "single node"
	}
	c.Complete, c.Current = current(time.Now(), m.Complete)
	c.State, c.Says, c.Why = m.health()
	if c.Silent {
		c.Seen = m.Seen
		c.Complete, c.Current = m.Complete.Truncate(time.Second), false // it may lack by now what was committed since
	} else {
		c.RTT = m.RTT.Round(max(m.RTT/4, time.Millisecond))
	}
	if m.Lag != nil {
		c.Lag = *m.Lag
	}
	if m.Alive || !m.Seen.IsZero() {
		c.Missing = int64(m.Missing)
	}
	if m.MissingBytes != nil {
		c.Owed = *m.MissingBytes
	}
	for _, h := range m.Heads {
		c.Heads = append(c.Heads, statuspage.Head{Database: h.Database, Size: h.Size, Checked: h.Checked.Truncate(time.Second)})
	}
	return c
}

// justNow is how long ago something may have been that counts as now: longer than it takes until what nodes say of themselves is heard.
const justNow = 15 * time.Second

// current says whether what is complete through t is so now, and if not, through when.
func current(now, t time.Time) (time.Time, bool) {
	if !t.IsZero() && now.Sub(t) < justNow {
		return time.Time{}, true
	}
	return t.Truncate(time.Second), false
}

// behindLong is for how long a node may lack a blob before somebody should look.
const behindLong = 15 * time.Minute

// health says how a member is, in a word or two and in more.
func (m memberView) health() (statuspage.State, string, string) {
	switch {
	case !m.Alive:
		return statuspage.Bad, "does not answer", public(lastCause(m.Error))
	case m.Ready != "ok" && m.Ready != "":
		return statuspage.Bad, "not ready", public(m.Ready)
	case m.Roots == "no":
		return statuspage.Bad, "differs", "its catalog is not the same as that of the node that shows this"
	case m.Writes != "ok" && m.Writes != "":
		return statuspage.Warn, "takes in nothing", public(m.Writes)
	case m.Disk == "low":
		return statuspage.Warn, "disk low", ""
	case m.Unhealed != nil && *m.Unhealed > 0:
		return statuspage.Warn, "damaged", count(*m.Unhealed, "blob") + " that it held cannot be read, and no right copy has come yet"
	case m.MissingFor != nil && *m.MissingFor > behindLong:
		return statuspage.Warn, "behind", "it has waited for blobs for " + count(int(m.MissingFor.Minutes()), "minute")
	}
	return statuspage.OK, "healthy", ""
}

// beforeTimes is after the times of changes from before the catalog knew of any.
var beforeTimes = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// lastCause is the end of an error's text, which says what happened; what is before says to whom.
func lastCause(s string) string {
	if i := strings.LastIndex(s, ": "); i >= 0 {
		return s[i+2:]
	}
	return s
}

// coarse rounds a number to three digits.
func coarse(n uint64) uint64 {
	unit := uint64(1)
	for n/unit >= 1000 {
		unit *= 10
	}
	return n / unit * unit
}

// Events implements [statuspage.Source].
func (s pageSource) Events() ([]statuspage.Event, <-chan struct{}) {
	all, more := s.n.activity.recent()
	out := make([]statuspage.Event, 0, len(all))
	for _, h := range all {
		out = append(out, h.event())
	}
	return out, more
}

// event is what happened as the page tells it.
func (h happening) event() statuspage.Event {
	e := statuspage.Event{ID: fmt.Sprint(h.Seq), At: h.At, What: h.What, Module: h.Module, Version: h.Version, Kind: h.Kind, Bytes: h.Bytes,
		From: public(h.Source), Reason: public(h.Text)}
	switch h.What {
	case string(mirror.Refused), happenedAlarm:
		e.State = statuspage.Bad
	case string(mirror.Damaged):
		e.State = statuspage.Warn
	case happenedLeader:
		e.State = statuspage.Note
	}
	return e
}

// Modules implements [statuspage.Source].
func (s pageSource) Modules(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	return s.n.replica.Modules(ctx, prefix, after, limit)
}

// Versions implements [statuspage.Source].
func (s pageSource) Versions(ctx context.Context, path string) ([]string, error) {
	return s.n.replica.Versions(ctx, path)
}

// Describe implements [statuspage.Source].
func (s pageSource) Describe(ctx context.Context, path string, versions []string) (out []statuspage.Version, err error) {
	mods := make([]module.Version, len(versions))
	for i, version := range versions {
		mods[i] = module.Version{Path: path, Version: version}
	}
	holders, err := s.n.whoHolds(ctx, s.n.view(ctx), mods)
	if err != nil {
		return nil, err
	}
	for i, m := range mods {
		d, err := s.describe(ctx, m)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, h := range holders[i] {
			d.Holders = append(d.Holders, statuspage.Holder{Node: h.Name, Zone: h.Zone, Holds: h.Holds, Known: h.Known})
		}
		out = append(out, d)
	}
	return out, nil
}

// describe returns what the catalog has of a version.
func (s pageSource) describe(ctx context.Context, m module.Version) (statuspage.Version, error) {
	man, err := s.n.replica.Manifest(ctx, m)
	if err != nil {
		return statuspage.Version{}, err
	}
	held := func(r artifact.Ref) (a statuspage.Artifact) {
		if !r.IsZero() {
			a = statuspage.Artifact{SHA256: r.Digest.String(), Size: r.Size}
		}
		return a
	}
	d := statuspage.Version{Module: m, ModSum: man.ModSum, ZipSum: man.ZipSum, Mod: held(man.Mod), Zip: held(man.Zip),
		Database: man.Record.Database, Record: man.Record.ID}
	if !man.Info.IsZero() {
		if b, err := s.n.replica.Inline(ctx, man.Info.Digest); err == nil {
			if info, err := artifact.ParseInfo(b); err == nil {
				d.Released = info.Time
			}
		}
	}
	place, err := s.n.replica.Place(ctx, m)
	if err != nil {
		return statuspage.Version{}, err
	}
	if at, err := s.n.replica.TimeAt(ctx, place); err == nil && at.After(beforeTimes) {
		d.Committed = at
	}
	return d, nil
}
