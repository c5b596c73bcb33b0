// Command modmirror runs a Go module mirror: a GOPROXY whose every byte is checked against the checksum database before it
// is stored, and a proxy of that database. See the README for what it promises and docs in the packages for how.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the process's exit code: 0 if all is well, 1 if the command found something
// wrong or could not do its work, 2 if it was called wrongly. A first SIGINT or SIGTERM ends the command in order, a
// second one at once.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signalContext()
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintf(stderr, "modmirror: %v\n", err)
	}
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

// errReported is returned by a command that has said all there is to say.
var errReported = errors.New("already reported")

// errUsage marks what is wrong with the command line, the environment or the configuration file.
var errUsage = errors.New("see modmirror --help")

// signalContext is cancelled, with the signal as its cause, by the first SIGINT or SIGTERM. From then on signals have
// their default effect, so that a second one ends the process.
func signalContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			signal.Stop(ch)
			cancel(signalError{s})
		case <-ctx.Done():
			signal.Stop(ch)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// signalError is why a command's context ended.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return "received " + e.String() }
