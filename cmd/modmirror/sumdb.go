package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

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
	var dataDir string
	cmd := &cobra.Command{
		Use:   "ack-fork database",
		Short: "Go on after a checksum database has signed two histories",
		Long: `A checksum database that signs two histories, which contradict each other, has been broken into or is lying to
somebody. The mirror then keeps both signed tree heads as evidence (see modmirror status), takes nothing new that this
database vouches for, and serves what it verified before.

Publish the evidence, and find out which history is the true one. Remove the source that shows the other one (the log
names it, where it says that the checksum database forked). Only then, and with the mirror stopped, let ack-fork unfreeze
the database: the mirror goes on with the history that it had committed, and refuses the other one as before. A source
that still shows the acknowledged tree head is passed over; one that adds to that history shows new evidence, and the
database is frozen again. The evidence is printed once more; it stays in the catalog.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := loadSettings(cmd); err != nil {
				return err
			}
			if err := hasCatalog(dataDir); err != nil { // or Open would found a cluster there
				return err
			}
			n, err := replicate.Open(cmd.Context(), replicate.Config{Dir: dataDir})
			if errors.Is(err, replicate.ErrLocked) {
				return fmt.Errorf("a mirror is running on %s: stop it first", dataDir)
			}
			if err != nil {
				return fmt.Errorf("--data-dir %s: %w", dataDir, err)
			}
			err = ackFork(cmd, n, args[0])
			return errors.Join(err, n.Close())
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir, "the mirror's `directory`")
	return cmd
}

func ackFork(cmd *cobra.Command, n *replicate.Node, database string) error {
	f, err := n.Fork(cmd.Context(), database)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no fork of %s is waiting to be acknowledged", database)
	}
	if err != nil {
		return err
	}
	if err := n.AckFork(cmd.Context(), database); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nacknowledged: the mirror goes on with the history that it had committed; a source that still shows the other one must go\n", f)
	return err
}
