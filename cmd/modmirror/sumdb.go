package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/spf13/cobra"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

func sumdbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sumdb",
		Short: "Decide about checksum databases",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ackForkCommand())
	return cmd
}

func ackForkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ack-fork database",
		Short: "Go on after a checksum database has signed two histories",
		Long: `A checksum database that signs two histories, which contradict each other, has been broken into or is lying to
somebody. The mirror then keeps both signed tree heads as evidence (see modmirror status), takes nothing new that this
database vouches for, and serves what it verified before.

Publish the evidence, and find out which history is the true one. Remove the source that shows the other one (the log
names it, where it says that the checksum database forked). Only then let ack-fork unfreeze the database, on any one node of a
cluster: a mirror that runs is told at its internal port, one that is stopped must be the only voter. After that
the mirror goes on with the history that it had committed, and refuses the other one as before. A source
that still shows the acknowledged tree head is passed over; one that adds to that history shows new evidence, and the
database is frozen again. The evidence is printed once more; it stays in the catalog.`,
		Args: cobra.ExactArgs(1),
	}
	c := controlFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		var evidence string
		err := hasCatalog(c.dataDir) // or Open would found a cluster there
		if err == nil && !cmd.Flags().Changed("peer") {
			evidence, err = ackForkIn(cmd.Context(), c.dataDir, args[0])
		}
		if running := errors.Is(err, replicate.ErrLocked); running || cmd.Flags().Changed("peer") {
			if evidence, err = c.ackFork(cmd.Context(), args[0]); err != nil && running {
				err = fmt.Errorf("a mirror is running on %s: stop it first, or say with --peer where its internal port is: %w", c.dataDir, err)
			}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nacknowledged: the mirror goes on with the history that it had committed; a source that still shows the other one must go\n", evidence)
		return err
	}
	return cmd
}

// ackForkIn acknowledges a fork in the data of a stopped mirror.
func ackForkIn(ctx context.Context, dir, database string) (evidence string, err error) {
	n, err := replicate.Open(ctx, replicate.Config{Dir: dir})
	if err != nil {
		return "", fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	evidence, err = ackFork(ctx, n, database)
	if errors.Is(err, artifact.ErrUnavailable) {
		err = fmt.Errorf("%w; this node has a cluster with other voters: start it, and run the command again", err)
	}
	return evidence, errors.Join(err, n.Close())
}

// ackFork has a running node acknowledge a fork.
func (c *control) ackFork(ctx context.Context, database string) (evidence string, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlWait)
	defer cancel()
	body, err := json.Marshal(request{Query: database})
	if err != nil {
		return "", err
	}
	b, err := c.call(ctx, http.MethodPost, "/v1/ack-fork", body)
	return string(b), err
}

// handleAckFork is the node's end of it.
func (n *node) handleAckFork(r *http.Request) (any, error) {
	q, err := readRequest(r)
	if err != nil {
		return nil, err
	}
	n.log.Info("an operator acknowledges a fork", "database", q.Query, "from", r.RemoteAddr)
	evidence, err := ackFork(r.Context(), n.replica, q.Query)
	return []byte(evidence), err
}

// ackFork acknowledges a fork and returns the evidence of it.
func ackFork(ctx context.Context, n *replicate.Node, database string) (evidence string, err error) {
	f, err := n.Fork(ctx, database)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no fork of %s is waiting to be acknowledged", database)
	}
	if err != nil {
		return "", err
	}
	return f.String(), n.AckFork(ctx, database)
}
