package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// garbageConfig is what `modmirror serve` can be told about blobs that no manifest names. How long they are kept before that is
// no setting: other nodes count on it.
type garbageConfig struct {
	Every     time.Duration
	TrashKeep time.Duration
}

func (c *garbageConfig) flags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.Every, "gc-every", 6*time.Hour, "collect blobs that nothing names, such as those of publications that failed, every so `long`; 0: only by modmirror gc")
	fs.DurationVar(&c.TrashKeep, "trash-keep", 7*24*time.Hour, "keep them in the trash for so `long`, less if the disk is low (--low-disk)")
}

func (c *garbageConfig) validate() error {
	if c.Every < 0 || c.TrashKeep < 0 {
		return usageError("--gc-every and --trash-keep must not be negative")
	}
	return nil
}

// diskIsLow reports whether what is in the trash has to leave early.
func (n *node) diskIsLow() bool { return n.disk.state() != "" }

// names is the catalog as the collector of garbage asks it.
type names struct {
	*replicate.Node
	n *node
}

func (x names) Next(context.Context) (int64, error) {
	seq, _ := x.Root()
	return seq, nil
}

// Settle is that of [mirror.Names].
func (x names) Settle(ctx context.Context) error {
	st, err := x.Status(ctx)
	switch {
	case err != nil:
		return err
	case st.Damage != "":
		return fmt.Errorf("the catalog is damaged, see modmirror fsck: %s: %w", st.Damage, artifact.ErrDamaged)
	case st.Diverged != "" || st.Refused != "":
		return fmt.Errorf("%s%s: %w", st.Diverged, st.Refused, artifact.ErrUnavailable)
	case st.Fault != "":
		return fmt.Errorf("%s: %w", st.Fault, artifact.ErrUnavailable)
	}
	if err := errors.Join(x.n.shunned(), x.n.caughtUp.err()); err != nil {
		return fmt.Errorf("%w: %w", err, artifact.ErrUnavailable)
	}
	return x.n.awaitLeaderIndex(ctx, "/v1/settled", (*replicate.Node).SettledIndex)
}

// handleSettled is the leader's end of it.
func (n *node) handleSettled(r *http.Request) (any, error) {
	index, err := n.replica.SettledIndex(r.Context())
	return strconv.AppendUint(nil, index, 10), err
}

// garbageStatus is what a node says of its garbage.
type garbageStatus struct {
	mirror.Garbage
	Restored int64     `json:"restored"` // blobs that were brought back from the trash since the start
	Error    string    `json:"error,omitempty"`
	ErrorAt  time.Time `json:"errorTime,omitzero"`
}

func (n *node) garbageStatus() garbageStatus {
	s := garbageStatus{Garbage: n.mirror.Garbage(), Restored: n.store.Restored()}
	if at, err := n.mirror.GarbageError(); err != nil {
		s.Error, s.ErrorAt = err.Error(), at
	}
	return s
}

func (s garbageStatus) String() string {
	var parts []string
	if s.Time.IsZero() {
		parts = append(parts, "not looked for yet")
	} else {
		parts = append(parts, fmt.Sprintf("%s left over, %s in the trash, as of %s", amount(s.Leftovers), amount(s.Trash), s.Time.Format(time.RFC3339)))
	}
	if s.Restored > 0 {
		parts = append(parts, fmt.Sprintf("%s brought back from the trash", count(int(s.Restored), "blob")))
	}
	if s.Error != "" {
		parts = append(parts, fmt.Sprintf("%s: %s", s.ErrorAt.Format(time.RFC3339), s.Error))
	}
	return strings.Join(parts, "; ")
}

func amount(a mirror.Amount) string {
	return fmt.Sprintf("%s (%s)", count(int(a.Blobs), "blob"), size(a.Bytes))
}

// gcRequest is the body of POST /v1/gc.
type gcRequest struct {
	DryRun bool `json:"dryRun"`
}

func (n *node) handleGC(r *http.Request) (any, error) {
	b, err := readBody(r, 1<<10)
	if err != nil {
		return nil, err
	}
	var q gcRequest
	if err := json.Unmarshal(b, &q); err != nil {
		return nil, fmt.Errorf("%v: %w", err, artifact.ErrMalformed)
	}
	if !q.DryRun {
		n.log.Info("an operator has garbage collected", "from", r.RemoteAddr)
	}
	return n.mirror.Collect(r.Context(), q.DryRun)
}

// gcWait bounds the command: a pass reads the catalog and lists every blob.
const gcWait = time.Hour

func gcCommand() *cobra.Command {
	var asJSON bool
	var q gcRequest
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Collect what no manifest names, now",
		Long: `Gc has a running node collect its garbage now, which it does every --gc-every by itself, or with --dry-run say what it would
collect. Garbage are blobs that nothing names: of a publication that failed or was overtaken, of a crash on the way. What
has been one for 24 hours, in which the node ran, goes to the trash, from where it comes back if something names it after all.
From the trash it is removed after --trash-keep of serve, or when the disk is low. It is refused while the node has no leader,
cannot reach it, or does not trust its own catalog.`,
		Args: cobra.NoArgs,
	}
	c := controlFlags(cmd)
	cmd.Flags().BoolVar(&q.DryRun, "dry-run", false, "move and remove nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), gcWait)
		defer cancel()
		body, err := json.Marshal(q)
		if err != nil {
			return err
		}
		b, err := c.call(ctx, http.MethodPost, "/v1/gc", body)
		if err != nil {
			return err
		}
		var g mirror.Garbage
		if err := json.Unmarshal(b, &g); err != nil {
			return fmt.Errorf("the answer of %s: %w", c.peer, err)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), g)
		}
		return printGarbage(cmd.OutOrStdout(), g)
	}
	return cmd
}

func printGarbage(w io.Writer, g mirror.Garbage) error {
	did := ""
	if g.DryRun {
		did = "would be "
	}
	early := ""
	if g.Early {
		early = ", some before their time, as the disk is low"
	}
	_, err := fmt.Fprintf(w, "looked at:          %s\nleft over, kept:    %s, the oldest for %s\n%-20s%s\n%-20s%s%s\nin the trash:       %s\n",
		count(int(g.Blobs), "blob"), amount(g.Leftovers), time.Duration(g.Oldest)*time.Second,
		did+"collected:", amount(g.Collected), did+"removed:", amount(g.Removed), early, amount(g.Trash))
	return err
}
