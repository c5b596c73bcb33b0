package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// unknown stands in a table for what nobody has said. It is never 0.
const unknown = "-"

// print writes the table that an operator looks at first.
func (v clusterView) print(w io.Writer) error {
	fmt.Fprintf(w, "cluster %s, term %d, as %s sees it\n", cmp.Or(v.Cluster, "(forming)"), v.Term, v.nameOf(v.From))
	q := v.quorum().String()
	fmt.Fprintf(w, "%s\n", q)
	if l := v.Level; len(l.Waits) > 0 {
		fmt.Fprintf(w, "feature level %d; %d waits for: %s\n", l.Now, l.Newest, strings.Join(l.Waits, ", "))
	}
	for _, p := range v.Problems {
		if p == q { // it stands there
			continue
		}
		fmt.Fprintf(w, "! %s\n", p)
	}
	v.printZones(w)
	return v.printNodes(w)
}

// printZones writes a line for each zone, what came into it, and what is in too few places.
func (v clusterView) printZones(w io.Writer) {
	for _, z := range v.Zones {
		line := fmt.Sprintf("zone %s: %s, %d alive, %s", cmp.Or(z.Zone, unknown), count(z.Nodes, "node"), z.Alive, count(z.Voters, "voter"))
		if z.Leads {
			line += ", leads"
		}
		line += "; complete: " + v.until(z.Complete)
		if z.Nodes > 1 && !v.isNow(z.Least) {
			line += fmt.Sprintf(", %s: %s", z.LeastNode, v.until(z.Least))
		}
		fmt.Fprintf(w, "%s; lacks %s\n", line, z.Lacks)
		for _, t := range z.WAN {
			fmt.Fprintf(w, "  from zone %s: %s of blobs, %s of control, %s of raft\n", cmp.Or(t.From, unknown), size(t.Blobs), size(t.Control), size(t.Raft))
		}
	}
	if u := v.Under; u != nil && u.Members.Most == nil || u != nil && *u.Members.Most > 0 {
		fmt.Fprintf(w, "not on every node: %s; not in every zone: %s\n", u.Members, u.Zones)
	}
}

// printNodes writes a line for each member.
func (v clusterView) printNodes(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ZONE\tNAME\tROLE\tADDRESS\tAPPLIED\tLAG\tMISSING\tCOMPLETE\tROOTS\tFREE\tSCRUBBED\tTREE\tVERSION\tSTATE")
	for _, m := range v.Nodes {
		free := unknown
		if m.Total > 0 || m.Free > 0 {
			free = size(int64(m.Free))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(m.Zone, unknown), m.Name, m.suffrage(), m.Address, m.applied(), m.lag(),
			m.missing(), v.through(m.Complete), cmp.Or(m.Roots, unknown), free, v.age(m.Scrubbed), v.trees(m), cmp.Or(m.Version, unknown), m.state())
	}
	return tw.Flush()
}

// String says what is known of a number of blobs.
func (b bound) String() string {
	switch {
	case b.Most == nil && b.Least == 0:
		return "an unknown number of blobs"
	case b.Most == nil:
		return fmt.Sprintf("at least %s", count(int(b.Least), "blob"))
	case b.Least == *b.Most:
		return count(int(b.Least), "blob")
	case b.Least == 0:
		return fmt.Sprintf("at most %s", count(int(*b.Most), "blob"))
	}
	return fmt.Sprintf("%d to %s", b.Least, count(int(*b.Most), "blob"))
}

// nearNow is how old a time is still now: what is said is some seconds old.
const nearNow = 10 * time.Second

func (v clusterView) isNow(t time.Time) bool { return !t.IsZero() && v.At.Sub(t) < nearNow }

// through says up to when something is complete.
func (v clusterView) through(t time.Time) string {
	switch {
	case t.IsZero():
		return unknown
	case v.isNow(t):
		return "now"
	}
	return t.UTC().Format(time.RFC3339)
}

// until says the same in a sentence.
func (v clusterView) until(t time.Time) string {
	switch s := v.through(t); s {
	case unknown:
		return "not known"
	case "now":
		return s
	default:
		return "through " + s
	}
}

// age says how long ago t was.
func (v clusterView) age(t time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return roughly(v.At.Sub(t))
}

// roughly says how long d is, in its largest unit.
func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", max(d, 0)/time.Second)
}

func (m memberView) applied() string {
	if m.Seen.IsZero() {
		return unknown
	}
	return fmt.Sprint(m.Applied)
}

func (m memberView) lag() string {
	if m.Lag == nil {
		return unknown
	}
	return fmt.Sprint(*m.Lag)
}

// missing says how many blobs a member lacks, how much that is, and since when.
func (m memberView) missing() string {
	if m.Seen.IsZero() {
		return unknown
	}
	out := fmt.Sprint(m.Missing)
	if m.Missing > 0 && m.MissingBytes != nil {
		out += ", " + size(*m.MissingBytes)
	}
	if m.Missing > 0 && m.MissingFor != nil {
		out += ", " + roughly(*m.MissingFor)
	}
	return out
}

// trees says how large the trees are, and how long ago that was confirmed.
func (v clusterView) trees(m memberView) string {
	var out []string
	for _, h := range m.Heads {
		s := fmt.Sprint(h.Size)
		if !h.Checked.IsZero() {
			s += " (" + v.age(h.Checked) + ")"
		}
		out = append(out, s)
	}
	return cmp.Or(strings.Join(out, ", "), unknown)
}
