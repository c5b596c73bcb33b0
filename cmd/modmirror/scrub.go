package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
)

// defaultScrubLimit reads 46 TB in the default period, and leaves a disk to its clients.
const defaultScrubLimit = 20e6

// scrubOptions adds to the mirror's configuration what a scrub of this node looks at.
func (n *node) scrubOptions(c *mirror.Config) {
	c.ScrubEvery, c.ScrubLimit = n.config.ScrubEvery, int64(n.config.ScrubLimit)
	c.ScrubChecks = []mirror.ScrubCheck{{Name: "catalog", Run: n.replica.Scrub}, {Name: "tiles", Run: n.set.Scrub}}
}

func scrubCommand() *cobra.Command {
	var limit byteRate
	var stop, asJSON bool
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Read everything a running mirror stores again, and heal what is damaged",
		Long: `Scrub has a running node read everything that it stores again, now and as fast as it can (--limit), and shows how far that
is. A mirror does the same by itself, slowly, within --scrub-every; see modmirror status. What is damaged is moved into
quarantine and fetched from another node, else from the upstream. The exit code is 1 if anything is damaged whose right bytes
nobody has given yet.

The scrub belongs to the node and not to this command: Ctrl-C leaves it going on, a restart of the node too, and the same command
shows it again. --stop ends it. In a cluster each node scrubs its own disk: say with --peer which one is meant.`,
		Args: cobra.NoArgs,
	}
	c := controlFlags(cmd)
	cmd.Flags().Var(&limit, "limit", "read at most this many `bytes` a second, for example 200MB; 0: as fast as it can be")
	cmd.Flags().BoolVar(&stop, "stop", false, "end a scrub that this command began")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the outcome as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		asked, err := c.scrub(cmd.Context(), scrubRequest{Speed: int64(limit), Stop: stop})
		if err != nil {
			return err
		}
		if stop {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ended; what was read counts, and the rest is read in its time")
			return err
		}
		st, err := c.watchScrub(cmd.Context(), cmd.ErrOrStderr(), asked)
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), st)
		} else {
			err = printOutcome(cmd.OutOrStdout(), st)
		}
		if err == nil && st.Health.Unhealed > 0 {
			return errReported
		}
		return err
	}
	return cmd
}

// scrubRequest is the body of POST /v1/scrub.
type scrubRequest struct {
	Speed int64 `json:"speed"` // bytes a second; 0: as fast as it can be
	Stop  bool  `json:"stop"`
}

// scrubBegun is the answer.
type scrubBegun struct {
	Asked time.Time `json:"asked"` // how ScrubStatus knows it
}

// handleScrub is the node's end of it.
func (n *node) handleScrub(r *http.Request) (any, error) {
	b, err := readBody(r, 4<<10)
	if err != nil {
		return nil, err
	}
	var q scrubRequest
	if err := json.Unmarshal(b, &q); err != nil || q.Speed < 0 {
		return nil, fmt.Errorf("%d bytes a second: %v: %w", q.Speed, err, artifact.ErrMalformed)
	}
	n.log.Info("an operator asks for a scrub", "speed", q.Speed, "stop", q.Stop, "from", r.RemoteAddr)
	if q.Stop {
		n.mirror.StopScrub()
		return scrubBegun{}, nil
	}
	return scrubBegun{n.mirror.ScrubNow(q.Speed)}, nil
}

// scrub has a running node begin a scrub, or end it.
func (c *control) scrub(ctx context.Context, q scrubRequest) (asked time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlWait)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return asked, err
	}
	b, err := c.call(ctx, http.MethodPost, "/v1/scrub", body)
	if err != nil {
		return asked, fmt.Errorf("%w; of a mirror that is stopped, modmirror fsck reads everything", err)
	}
	var begun scrubBegun
	if err := json.Unmarshal(b, &begun); err != nil {
		return asked, fmt.Errorf("the answer of %s: %w", c.peer, err)
	}
	return begun.Asked, nil
}

func (c *control) scrubStatus(ctx context.Context) (st mirror.ScrubStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlWait)
	defer cancel()
	b, err := c.call(ctx, http.MethodGet, "/v1/scrub", nil)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

// How a scrub is watched.
const (
	scrubLook   = time.Second
	scrubTell   = 10 * time.Second // between two lines
	scrubAbsent = 5 * time.Minute  // that the node may take to come back
	scrubHeal   = 5 * time.Minute  // after the end, for what was found last
)

// watchScrub shows the scrub that was asked for until it ends, and everything that was found was tried to be healed. A node that is
// restarted meanwhile goes on with it.
func (c *control) watchScrub(ctx context.Context, w io.Writer, asked time.Time) (mirror.ScrubStatus, error) {
	tick := time.NewTicker(scrubLook)
	defer tick.Stop()
	seen, told, ended := time.Now(), time.Time{}, time.Time{}
	for {
		st, err := c.scrubStatus(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && time.Since(seen) > scrubAbsent:
			return st, fmt.Errorf("the scrub goes on when the node is back: %w", err)
		case err != nil:
		case st.Done.Equal(asked):
			if ended.IsZero() {
				ended = time.Now()
			}
			if st.Health.Untried == 0 || time.Since(ended) > scrubHeal {
				return st, nil
			}
		case st.Asked.Equal(asked) && st.Part == "" && st.Broken != "":
			return st, fmt.Errorf("everything else is read; the node tries again: %s", st.Broken)
		case !st.Asked.Equal(asked):
			return st, errors.New("somebody ended the scrub; what was read counts, and the rest is read in its time")
		}
		if err == nil {
			seen = time.Now()
		}
		if time.Since(told) >= scrubTell && ctx.Err() == nil {
			told = time.Now()
			if err != nil {
				fmt.Fprintf(w, "the node does not answer now: %v\n", err)
			} else {
				fmt.Fprintln(w, scrubLine(st))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, errors.New("the scrub goes on at the node: run the same command to see it, or with --stop to end it")
		}
	}
}

// scrubLine says how far a scrub is.
func scrubLine(st mirror.ScrubStatus) string {
	s := fmt.Sprintf("%d of %d blobs, %s of %s read", st.Blobs-st.Left, st.Blobs, size(st.Bytes-st.LeftFor), size(st.Bytes))
	if st.Speed > 0 {
		s += fmt.Sprintf(", %s/s", size(st.Speed))
	}
	if !st.ETA.IsZero() {
		s += ", done at " + st.ETA.Local().Format(time.DateTime)
	}
	if h := st.Health; h.Bad > 0 || h.Unhealed > 0 {
		s += fmt.Sprintf("; %d damaged, %d healed, %d not healed", h.Bad, h.Healed, h.Unhealed)
	}
	if !st.Stuck.IsZero() {
		s += "; THE DISK DOES NOT ANSWER since " + st.Stuck.Local().Format(time.DateTime)
	}
	if st.Broken != "" {
		s += "; cannot look for now at " + st.Broken
	}
	return s
}

// printOutcome prints what came of a scrub.
func printOutcome(w io.Writer, st mirror.ScrubStatus) error {
	var err error
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(w, format+"\n", args...)
		}
	}
	say("%s, %s read; %s damaged in this scrub, %d not healed", count(int(st.Blobs), "blob"), size(st.Bytes), count(int(st.Found), "blob"), st.Health.Unhealed)
	printUnhealed(st.Health, func(_, format string, args ...any) { say(format, args...) })
	return err
}

// printScrub is the part of the status about the scrub.
func printScrub(st mirror.ScrubStatus, row func(name, format string, args ...any)) {
	switch {
	case !st.Asked.IsZero():
		row("scrub", "on request since %s: %s", st.Asked.Local().Format(time.DateTime), scrubLine(st))
	case st.Every == 0:
		row("scrub", "only on request (--scrub-every 0); %s", scrubLine(st))
	default:
		row("scrub", "each %s: %s", st.Every, scrubLine(st))
	}
	switch {
	case !st.Oldest.IsZero():
		row("", "everything was read since %s", st.Oldest.Local().Format(time.DateTime))
	case st.Every > 0 || !st.Asked.IsZero():
		row("", "the first round is not done yet")
	}
	if st.Late {
		row("", "TOO SLOW: something will not be read again within %s; raise --scrub-limit, or run modmirror scrub", st.Every)
	}
	printUnhealed(st.Health, row)
}

// printUnhealed lists damaged blobs whose right bytes are not back.
func printUnhealed(h mirror.Health, row func(name, format string, args ...any)) {
	for _, u := range h.List {
		what := u.Digest
		if u.Module != "" {
			what = fmt.Sprintf("%s@%s %s (sha256:%s)", u.Module, u.Version, u.Kind, u.Digest)
		}
		row("", "NOT HEALED: %s: %s, found %s, tried %s: %s", what, u.Damage, u.Found.Local().Format(time.DateTime), times(u.Tries), u.Error)
	}
	if more := h.Unhealed - len(h.List); more > 0 {
		row("", "and %d more", more)
	}
}

func times(n int) string { return count(n, "time") }
