package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Linked in by make: what the go toolchain itself would use as GOPROXY, and which source this was built from.
var (
	defaultUpstream string
	version         = "devel"
)

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "modmirror",
		Short: "A Go module mirror that verifies before it stores",
		Long: `modmirror is a Go module mirror: a GOPROXY whose every go.mod and zip is checked against the checksum database
before it is stored, and a proxy of that database, so that stock go clients keep verifying, also offline.

Every setting of a command can be given as a flag or as a MODMIRROR_… environment variable (--data-dir is
MODMIRROR_DATA_DIR), those of serve also in the YAML file that its --config names. A flag wins over the environment, the
environment over the file.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs, // or cobra answers an unknown command itself, as no wrong call
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usageError("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return usageError("unknown command %q; see modmirror --help", args[0])
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError("%v", err) })
	root.AddCommand(serveCommand(), followCommand(), statusCommand(), clusterCommand(), fsckCommand(), scrubCommand(), gcCommand(), backupCommand(), restoreCommand(), proveCommand(), sumdbCommand(), versionCommand())
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// wrapArgs marks a wrong number of arguments as a wrong call, of c and of the commands below it.
func wrapArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError("%s: %v; usage: %s", cmd.CommandPath(), err, cmd.UseLine())
		}
		return nil
	}
}

func usageError(format string, args ...any) error {
	return usage{fmt.Sprintf(format, args...)}
}

type usage struct{ text string }

func (u usage) Error() string        { return u.text }
func (u usage) Is(target error) bool { return target == errUsage }
