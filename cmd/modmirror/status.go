package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror"
	"modmirror/mirror/feed"
	"modmirror/replicate"
	"modmirror/sumdb"
)

// status is what a running mirror says of itself.
type status struct {
	Version   string           `json:"version"`
	Started   time.Time        `json:"started"`
	Ready     string           `json:"ready"`  // "ok", or why not
	Writes    string           `json:"writes"` // "ok", or why new artifacts are not taken
	Offline   bool             `json:"offline"`
	Upstream  []string         `json:"upstream"`
	Node      replicate.Status `json:"node"`
	Disk      diskStatus       `json:"disk"`
	Garbage   garbageStatus    `json:"garbage"`
	Databases []databaseStatus `json:"databases"`

	Scrub  mirror.ScrubStatus `json:"scrub"`
	Follow *feed.Status       `json:"follow,omitempty"` // nil: no other mirror is followed

	Member *memberView `json:"member,omitempty"` // how far this node is; nil: it is no member of a cluster, or not known
	Zones  []zoneView  `json:"zones"`            // how far each zone is, as this node sees it
}

type diskStatus struct {
	Directory string `json:"directory"`
	Free      uint64 `json:"freeBytes"`
	Total     uint64 `json:"totalBytes"`
	FreeFiles uint64 `json:"freeFiles"`
	Files     uint64 `json:"totalFiles"` // 0: as many as there are bytes for
	State     string `json:"state"`      // "low", "full": no new artifacts are taken; "" if neither
}

type databaseStatus struct {
	Name     string         `json:"name"`
	Key      string         `json:"key"`
	Size     int64          `json:"treeSize"`
	Root     tlog.Hash      `json:"root"`
	Anchors  []int64        `json:"anchors"`          // sizes of the older heads that lookups are answered with
	Checked  time.Time      `json:"checked,omitzero"` // when a source last confirmed the head
	Forked   bool           `json:"forked"`
	Fork     string         `json:"fork,omitempty"` // the evidence
	Evidence []string       `json:"evidence"`       // files with the evidence of all forks so far
	Sources  []sourceStatus `json:"sources"`
}

type sourceStatus struct {
	Name   string    `json:"name"`
	Usable bool      `json:"usable"`
	Error  string    `json:"lastError,omitempty"`
	Time   time.Time `json:"lastErrorTime,omitzero"`
}

func newDatabaseStatus(st sumdb.Status) databaseStatus {
	s := databaseStatus{Name: st.Name, Key: st.Key, Size: st.Size, Root: st.Root, Checked: st.Checked, Forked: st.Forked, Anchors: []int64{}, Sources: []sourceStatus{}}
	for _, n := range []int64{st.Deep, st.Anchor} {
		if n > 0 && !slices.Contains(s.Anchors, n) {
			s.Anchors = append(s.Anchors, n)
		}
	}
	for _, src := range st.Sources {
		out := sourceStatus{Name: src.Name, Usable: src.Usable}
		if src.LastError != nil {
			out.Error, out.Time = src.LastError.Error(), src.LastAt
		}
		s.Sources = append(s.Sources, out)
	}
	return s
}

func statusCommand() *cobra.Command {
	var asJSON, ready bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how a running mirror is",
		Args:  cobra.NoArgs,
	}
	server := serverFlag(cmd)
	cmd.Flags().BoolVar(&ready, "ready", false, "print nothing, and end with 0 only if the mirror takes requests: for health checks where there is no shell")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		if ready {
			_, err := ask(cmd.Context(), *server, "/readyz")
			return err
		}
		data, err := ask(cmd.Context(), *server, "/status")
		if err != nil {
			return err
		}
		if asJSON {
			_, err := cmd.OutOrStdout().Write(data)
			return err
		}
		var s status
		if err := json.Unmarshal(data, &s); err != nil {
			return fmt.Errorf("%s/status: %w", *server, err)
		}
		return s.print(cmd.OutOrStdout())
	}
	return cmd
}

func (s status) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(tw, name+"\t"+format+"\n", args...) }
	row("modmirror", "%s, up %s", s.Version, time.Since(s.Started).Round(time.Second))
	row("ready", "%s", s.Ready)
	row("writes", "%s", s.Writes)
	switch {
	case s.Offline:
		row("upstream", "none: offline")
	case len(s.Upstream) == 0:
		row("upstream", "none: other nodes ask for this one")
	default:
		row("upstream", "%s", strings.Join(s.Upstream, ", "))
	}
	row("node", "%s, %s, term %d, applied %d", s.Node.ID, s.Node.Role, s.Node.Term, s.Node.Applied)
	row("leader", "%s", cmp.Or(s.Node.Leader, "none: nothing new can be committed"))
	row("catalog", "%d module versions, root %d:%s, %d conflicts, %s + log %s", s.Node.Manifests, s.Node.Seq, s.Node.Root, s.Node.Conflicts, size(s.Node.CatalogBytes), size(s.Node.LogBytes))
	s.Disk.print(row)
	row("garbage", "%s", s.Garbage)
	printScrub(s.Scrub, row)
	printFollow(s.Follow, row)
	s.printFar(row)
	for _, db := range s.Databases {
		db.print(row)
	}
	return tw.Flush()
}

// printFar says how far this node and each zone are. Of one that stands alone there is nothing to say.
func (s status) printFar(row func(name, format string, args ...any)) {
	if s.Member == nil || len(s.Zones) == 1 && s.Zones[0].Nodes == 1 {
		return
	}
	v := clusterView{At: s.Member.Seen}
	row("complete", "%s; %s changes behind, %s blobs missing", v.until(s.Member.Complete), s.Member.lag(), s.Member.missing())
	for _, z := range s.Zones {
		row("", "zone %s: %s", cmp.Or(z.Zone, unknown), v.until(z.Complete))
	}
}

func (d diskStatus) print(row func(name, format string, args ...any)) {
	text := fmt.Sprintf("%s, %s of %s free", d.Directory, size(int64(d.Free)), size(int64(d.Total)))
	if d.Files > 0 {
		text += fmt.Sprintf(", %d of %d files", d.FreeFiles, d.Files)
	}
	if d.State != "" {
		text += ": " + strings.ToUpper(d.State)
	}
	row("disk", "%s", text)
}

func (db databaseStatus) print(row func(name, format string, args ...any)) {
	state := "tree of %d records, anchors %v"
	if db.Forked {
		state = "FORKED at a " + state + ": nothing new is taken; see modmirror sumdb ack-fork --help"
	}
	row(db.Name, state, db.Size, db.Anchors)
	for line := range strings.Lines(db.Fork) {
		row("", "%s", strings.TrimRight(line, "\n"))
	}
	for _, file := range db.Evidence {
		row("", "evidence of a fork: %s", file)
	}
	for _, src := range db.Sources {
		use := "not used"
		if src.Usable {
			use = "used"
		}
		row("", "%s: %s", src.Name, use)
		if src.Error != "" {
			row("", "last error, %s: %s", src.Time.Format(time.RFC3339), src.Error)
		}
	}
}

// size prints a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1000
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}
