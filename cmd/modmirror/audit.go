package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"modmirror/replicate"
)

func clusterAuditCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show which acts of operators the cluster keeps in mind",
		Long: `Audit shows the acts that bend a promise on purpose, such as a restore, or going back to an older tree head: who did what, when
and why. The last 1000 are kept, on every node. A node that is stopped is read in its --data-dir.`,
		Args: cobra.NoArgs,
	}
	c := controlFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		all, err := c.audits(cmd)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), all)
		}
		return printAudits(cmd.OutOrStdout(), all)
	}
	return cmd
}

// audits asks the node, or the directory of one that is stopped.
func (c *control) audits(cmd *cobra.Command) (all []replicate.Audit, err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), controlWait)
	defer cancel()
	cat, _, err := c.stopped(cmd)
	if err != nil {
		return nil, err
	}
	if cat != nil {
		defer cat.Close()
		return cat.Audits(ctx)
	}
	b, err := c.call(ctx, http.MethodGet, "/v1/audit", nil)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", c.peer, err)
	}
	return all, nil
}

// handleAudit is the node's end of it.
func (n *node) handleAudit(r *http.Request) (any, error) {
	all, err := n.replica.Audits(r.Context())
	if all == nil {
		all = []replicate.Audit{}
	}
	return all, err
}

func printAudits(w io.Writer, all []replicate.Audit) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing was done that is to be accounted for")
		return err
	}
	for _, a := range all {
		if _, err := fmt.Fprintf(w, "%d  %s  %s  %s: %s\n", a.Number, a.Time.UTC().Format(time.RFC3339), plain(a.Actor), plain(a.Action), plain(a.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// auditNow is an act of whoever runs this process.
func auditNow(action, reason string) replicate.Audit {
	name := "uid " + strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return replicate.Audit{Time: time.Now(), Actor: plain(name), Action: action, Reason: reason}
}
