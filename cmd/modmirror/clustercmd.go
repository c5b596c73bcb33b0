package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Look at the cluster and change who belongs to it",
		Long: `The commands of cluster speak with a running node at its internal port, on which only who has the cluster's secret is
heard. Any member will do: what must be done by the leader is passed on to it. Recover works on the data of a stopped node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(clusterStatusCommand(), clusterMembersCommand(), clusterTokenCommand(), clusterTransferCommand(), clusterAuditCommand(), clusterLocalCommand(), clusterResetCommand(), clusterRecoverCommand(),
		clusterChangeCommand("promote", "Give a member a vote", `Promote gives a vote to a member that holds everything which is committed. The leader does the same by itself until the
cluster has as many voters as --voters says; promote is for going beyond that, or for choosing.`),
		clusterChangeCommand("demote", "Take a member's vote away", `Demote takes a member's vote away; it goes on to receive everything. It does not get the vote back before somebody promotes
it. If fewer voters are left than --voters says, the leader gives a vote to another member that holds everything.`),
		clusterChangeCommand("remove", "Remove a member for good", `Remove takes a member out of the cluster for good: its data directory can never come back, because what it voted for and
promised is forgotten. Use it for a node whose disk is lost, or that is not needed any more. It is refused while a voter
that would remain lacks something which is committed: the removed node might hold the only copy.`))
	return cmd
}

func clusterStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show every zone and member: role, how far it is, disk, tree head, version",
		Long: `Status shows the cluster as one of its nodes sees it. What nobody has said is a dash, and never 0. The exit code is 1 if there is something that an operator should look
at, such as a member that does not answer.`,
		Args: cobra.NoArgs,
	}
	c := controlFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := c.view(cmd)
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), v)
		} else {
			err = v.print(cmd.OutOrStdout())
		}
		if err == nil && len(v.Problems) > 0 {
			return fmt.Errorf("the cluster has %s", count(len(v.Problems), "problem"))
		}
		return err
	}
	return cmd
}

func clusterMembersCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "members", Short: "List the members with their ids and addresses", Args: cobra.NoArgs}
	c := controlFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := c.view(cmd)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), v.Nodes)
		}
		return v.printMembers(cmd.OutOrStdout())
	}
	return cmd
}

// clusterChangeCommand makes a command that changes what a member is.
func clusterChangeCommand(verb, short, long string) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{Use: verb + " node", Short: short, Long: long + `

What it means for the majority is printed first, and asked about. A node is named by its name, its id, or the beginning of
its id.`, Args: cobra.ExactArgs(1)}
	c := controlFlags(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask: for scripts")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v, err := c.view(cmd)
		if err != nil {
			return err
		}
		m, err := v.find(args[0])
		if err != nil {
			return err
		}
		ch := changeOf(v, verb, m)
		ch.print(cmd.OutOrStdout())
		if err := ch.refusal(); err != nil {
			return err
		}
		if !yes {
			if err := confirm(cmd.InOrStdin(), cmd.OutOrStdout(), verb); err != nil {
				return err
			}
		}
		if err := c.change(cmd.Context(), verb, m.ID); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "done: %s\n", ch.after)
		return err
	}
	return cmd
}

func clusterTransferCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer [node]",
		Short: "Hand the leadership to another voter",
		Long: `Transfer hands the leadership to the voter that is named, or to the one that is furthest. Clients notice nothing. For half an hour
it is not moved because of --leader-priority.`,
		Args: cobra.MaximumNArgs(1),
	}
	c := controlFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v, err := c.view(cmd)
		if err != nil {
			return err
		}
		id := ""
		if len(args) == 1 {
			m, err := v.find(args[0])
			if err != nil {
				return err
			}
			if !m.Voter {
				return usageError("%s has no vote, so it cannot lead", m.Name)
			}
			id = m.ID
		}
		if err := c.change(cmd.Context(), "transfer", id); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "done: the leadership is handed over")
		return err
	}
	return cmd
}

// confirm asks a person. Only the verb itself is a yes: a habit of typing y has removed the wrong node before.
func confirm(in io.Reader, out io.Writer, verb string) error {
	fmt.Fprintf(out, "type %q to go on: ", verb)
	line, err := bufio.NewReader(io.LimitReader(in, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != verb {
		return errors.New("nothing is changed")
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// controlWait bounds one command: a change of members waits for a majority.
const controlWait = time.Minute

// view asks the node for the cluster as it sees it.
func (c *control) view(cmd *cobra.Command) (v clusterView, err error) {
	if err := loadSettings(cmd); err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), controlWait)
	defer cancel()
	b, err := c.call(ctx, "GET", "/v1/cluster", nil)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("the answer of %s: %w", c.peer, err)
	}
	return v, nil
}

// memberChange is the body of POST /v1/members.
type memberChange struct {
	Verb string `json:"verb"` // promote, demote, remove, transfer
	ID   string `json:"id"`
}

func (c *control) change(ctx context.Context, verb, id string) error {
	ctx, cancel := context.WithTimeout(ctx, controlWait)
	defer cancel()
	body, err := json.Marshal(memberChange{verb, id})
	if err != nil {
		return err
	}
	_, err = c.call(ctx, "POST", "/v1/members", body)
	return err
}
