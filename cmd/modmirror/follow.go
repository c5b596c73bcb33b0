package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
	"modmirror/mirror/upstream"
)

// followConfig says which other mirror this one is kept up to date with.
type followConfig struct {
	URL      string
	Parallel int
	Limit    byteRate

	once func(feed.Status, error) // told how it ended, when all is here; nil: it never ends
}

const maxFollowParallel = 256

func (c *followConfig) flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.URL, "follow", "", "bring here whatever the mirror at this `URL` has, and gets: see modmirror follow --help; it is also the default of --upstream")
	fs.IntVar(&c.Parallel, "follow-parallel", 16, "bring in so many `versions` at a time of the mirror that is followed")
	fs.Var(&c.Limit, "follow-limit", "how many `bytes` a second are fetched for that at most, for example 5MB; 0: no limit")
}

func (c *followConfig) validate(offline, noUpstream bool) error {
	switch {
	case c.URL != "" && noUpstream:
		return usageError("--follow and --no-upstream: leave --follow out on nodes without a way out; the others of the cluster follow for them")
	case c.URL != "" && offline:
		return usageError("--follow and --offline: whoever follows another mirror has to ask it")
	case c.Parallel < 1 || c.Parallel > maxFollowParallel:
		return usageError("--follow-parallel: want 1 to %d", maxFollowParallel)
	case c.Limit > 0 && c.Limit < mirror.MinAcquireLimit:
		return usageError("--follow-limit: at least 64KiB, or the other mirror takes this one for one that does not read")
	}
	return nil
}

func followCommand() *cobra.Command {
	var c config
	once := false
	cmd := &cobra.Command{
		Use:   "follow URL",
		Short: "Run a mirror that is kept up to date with another one",
		Long: `Follow is serve for a mirror of its own, with its own data directory and, if wanted, its own cluster, that brings in
whatever the mirror at URL has, as soon as that has it: it reads the feed of the other, /index, and lets each info, go.mod and
zip that is listed there through its own gate, verified against the checksum database, whose records it reads through the
other by default. It believes nothing that it has not checked. It takes the flags of serve; URL is the default of --upstream.

How far it is stands in feed.json of the data directory; it goes on there after a restart. What does not pass the gate, or
cannot be had, is noted, shown by modmirror status, and tried again; the others go on.

With --once it ends when all that the other had is here, with a summary: 0 if it is, 1 if something is missing.
docs/follow.md has the guide, and how to carry a copy to a network without any way out.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Follow.URL = args[0]
			if once {
				return followOnce(cmd, &c)
			}
			return runServe(cmd.Context(), cmd, &c)
		},
	}
	c.flags(cmd.Flags())
	_ = cmd.Flags().MarkHidden("follow") // the argument is it
	cmd.Flags().BoolVar(&once, "once", false, "end when all that the other mirror has is here")
	return cmd
}

// followOnce serves until all is here, and says what is.
func followOnce(cmd *cobra.Command, c *config) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var mu sync.Mutex
	var last feed.Status
	var failed error
	ended := false
	c.Follow.once = func(st feed.Status, err error) {
		mu.Lock()
		defer mu.Unlock()
		last, failed, ended = st, err, true
		cancel()
	}
	if err := runServe(ctx, cmd, c); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if !ended || cmd.Context().Err() != nil {
		return errors.New("stopped before all was here; run it again, and it goes on from here")
	}
	printFollowed(cmd.OutOrStdout(), last)
	return failed
}

func printFollowed(w io.Writer, st feed.Status) {
	fmt.Fprintf(w, "followed %s: complete through %s; %d entries, %d of them not wanted here; %d versions refused, %d could not be had\n",
		st.Source, feed.FormatSet(st.Through), st.Entries, st.Skipped, st.Refused, st.Failed)
	printOwed(st, func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) })
}

func printOwed(st feed.Status, line func(format string, args ...any)) {
	for _, o := range st.Owed {
		what := "could not be had"
		if o.Refused {
			what = "REFUSED"
		}
		line("%s@%s: %s, %d tries: %s", plain(o.Path), plain(o.Version), what, o.Tries, plain(o.Reason))
	}
	if more := st.Refused + st.Failed - len(st.Owed); more > 0 {
		line("and %d more, see feed.json in the data directory", more)
	}
}

// openFollower opens what follows another mirror, if one is to be followed.
func (n *node) openFollower() error {
	c := n.config.Follow
	if c.URL == "" {
		return nil
	}
	site, err := upstream.NewSite(c.URL, n.upstreamConfig())
	if err != nil {
		return usageError("--follow: %v", err)
	}
	n.onClose(site.Close)
	n.follower, err = feed.New(feed.Config{
		Source: site, Target: acquirer{n.mirror}, Dir: n.config.DataDir, Cluster: n.replica.Cluster, Lead: n.follows, Heard: n.heardClaims,
		Parallel: c.Parallel, Zips: n.mirror.AcquireZips(c.Parallel), Once: c.once != nil, Log: n.log, Metrics: n.metrics,
	})
	return err
}

// follows reports whether it is this node's turn to follow the other mirror for its cluster: if it leads, or the one that does
// was not started to follow, as in a zone without a way out, and it is the first of those that were and answer. Two that
// believe so at the same time do the same twice, and no harm.
func (n *node) follows() bool {
	st, err := n.replica.Status(context.Background())
	if err != nil || st.Leader == "" || st.Leader == st.ID {
		return err == nil && st.Leader != ""
	}
	for _, m := range n.others() {
		if s, seen, ok := n.heard(m.ID); ok && seen.Healthy && s.Follows && !s.Draining && (m.ID == st.Leader || m.ID < st.ID) {
			return false
		}
	}
	return true
}

// heardClaims returns what the other nodes said last of how far another mirror was followed, also those that do not answer now.
func (n *node) heardClaims() (all []feed.Claim) {
	for _, m := range n.others() {
		if s, _, ok := n.heard(m.ID); ok && s.Feed != nil {
			all = append(all, *s.Feed)
		}
	}
	return all
}

// follow follows another mirror until ctx ends, or all is here and that was what was asked for.
func (n *node) follow(ctx context.Context) error {
	err := n.follower.Run(ctx)
	if once := n.config.Follow.once; once != nil && ctx.Err() == nil {
		once(n.follower.Status(), err)
		return nil
	}
	return err
}

// acquirer is this mirror as what is kept up to date.
type acquirer struct{ *mirror.Mirror }

// Acquire has the class of what is not wanted also for what no client could ask for, and not for what the other mirror, or the
// checksum database, does not hand over to this one: it is wanted, and missing.
func (a acquirer) Acquire(ctx context.Context, mv module.Version, k artifact.Kind) error {
	err := a.Mirror.Acquire(ctx, mv, k)
	said := (*upstream.Error)(nil)
	switch {
	case errors.Is(err, mirror.ErrBadRequest):
		return fmt.Errorf("%w: %w", err, artifact.ErrPolicy)
	case errors.Is(err, artifact.ErrPolicy) && errors.As(err, &said):
		return fmt.Errorf("%v: %w", err, artifact.ErrUnavailable)
	}
	return err
}

// printFollow prints what of modmirror status is about the mirror that is followed.
func printFollow(st *feed.Status, row func(name, format string, args ...any)) {
	if st == nil {
		return
	}
	text := fmt.Sprintf("%s: %s, complete through %s", plain(st.Source), plain(st.State), feed.FormatSet(st.Through))
	if st.Behind >= 0 {
		text += fmt.Sprintf(", %s behind", count(int(st.Behind), "change"))
	}
	if !st.LastRead.IsZero() {
		text += fmt.Sprintf(", read %s ago", time.Since(st.LastRead).Round(time.Second))
	}
	row("follows", "%s", text)
	if st.Error != "" {
		row("", "%s", plain(st.Error))
	}
	if st.Changed != "" {
		row("", "! %s", plain(st.Changed))
	}
	printOwed(*st, func(format string, args ...any) { row("", format, args...) })
}
