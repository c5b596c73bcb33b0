package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"modmirror/mirror/artifact/fault"
)

func serveCommand() *cobra.Command {
	var c config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the mirror",
		Long: `Serve runs the mirror until it is told to stop. Without any flag it keeps its data in ` + defaultDataDir + ` and serves on
localhost:3000; set GOPROXY=http://localhost:3000 and nothing else.

SIGTERM drains: /readyz says 503 for --drain-delay so that balancers go elsewhere, then the port closes, answers in flight
finish, and the exit code is 0. SIGINT does the same without the delay. A second signal ends the process at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runServe(cmd.Context(), cmd, &c) },
	}
	c.flags(cmd.Flags())
	return cmd
}

// runServe serves with what the flags of cmd, which fill c, and the environment and the file say.
func runServe(ctx context.Context, cmd *cobra.Command, c *config) error {
	if err := loadSettings(cmd); err != nil {
		return err
	}
	if err := c.validate(); err != nil {
		return err
	}
	log, err := newLogger(cmd.ErrOrStderr(), c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	if fault.Enabled {
		log.Warn("this build is for tests: a file can tell it to die, to hang and to fail", "file", os.Getenv("MODMIRROR_FAULTS"))
	}
	for _, name := range unknownVariables(cmd.Root(), os.Environ()) {
		if fault.Enabled && strings.HasPrefix(name, "MODMIRROR_FAULTS") {
			continue
		}
		log.Warn("an environment variable is not a setting of any command, it has no effect", "variable", name)
	}
	return serve(ctx, *c, log)
}

// serve opens every part, serves until ctx ends, and closes them in reverse.
func serve(ctx context.Context, c config, log *slog.Logger) (err error) {
	ln, err := listen(ctx, c.Listen) // first, so that a wrong address leaves nothing behind
	if err != nil {
		return err
	}
	defer ln.Close()
	n := newNode(c, log)
	defer func() { err = errors.Join(err, n.end()) }()

	bounded := newConns(ln, maxConnections(c.Limits.Connections, log), c.Limits.PerClient, n.metrics)
	srv := &http.Server{
		Handler:           &n.front,
		ConnState:         bounded.state,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	g, work := errgroup.WithContext(work)
	opened := make(chan struct{})
	g.Go(func() error {
		select { // whoever connects meanwhile waits, and is answered
		case <-opened:
		case <-time.After(patience):
		}
		if err := srv.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", c.Listen, err)
		}
		return nil
	})
	err = n.open(ctx)
	close(opened)
	if err != nil {
		errs := errors.Join(srv.Close(), g.Wait())
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) { // told to stop before it had begun
			return errs
		}
		return errors.Join(err, errs)
	}
	if c.ScrubEvery == 0 {
		log.Warn("what is stored is not read again by itself (--scrub-every 0): bytes that rot on the disk are found when somebody asks for them, or by modmirror scrub")
	}
	if n.link != nil {
		log.Info("other nodes can join", "peers", n.link.Self().Address)
	}
	log.Info("serving", "url", "http://"+ln.Addr().String(), "data", c.DataDir, "offline", c.Offline, "version", buildVersion())
	g.Go(func() error { return n.run(work) })
	if c.ExitOnFault {
		g.Go(func() error { return n.awaitFault(work) })
	}
	g.Go(func() error { tuneGC(work); return nil })
	g.Go(func() error {
		defer stopWork()
		select {
		case <-ctx.Done():
		case <-work.Done():
		}
		return drain(ctx, c, n, srv, log)
	})
	if err := n.unlessHung(work, c.DrainDelay+c.DrainTime+hungWait, "what this mirror was doing", g.Wait); err != nil {
		return err
	}
	if err := n.fault(); err != nil { // whoever restarts the process must hear that the disk wants to be looked at first
		return fmt.Errorf("the disk failed while this process ran: %w", err)
	}
	return nil
}

// drain ends the server in order, within --drain-delay and --drain-timeout. Fetches that do not end in time are cut a
// moment before the answers are, so that whoever waits for them is told to ask again. Answers that do not finish are cut,
// and that is no error: the clients see a short body, never a wrong one.
func drain(ctx context.Context, c config, n *node, srv *http.Server, log *slog.Logger) error {
	log.Info("draining", "cause", context.Cause(ctx))
	n.mirror.Drain()
	n.pages.Close() // whoever follows this node goes on at another one; a stream would never end by itself
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) && sig.Signal == syscall.SIGTERM {
		time.Sleep(c.DrainDelay)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.DrainTime)
	defer cancel()
	fetches, cancelFetches := context.WithTimeout(ctx, c.DrainTime*9/10)
	defer cancelFetches()
	var g errgroup.Group
	g.Go(func() error {
		if err := n.mirror.Close(fetches); err != nil {
			log.Warn("fetches in flight were cut", "after", c.DrainTime*9/10)
		}
		return nil
	})
	g.Go(func() error {
		if err := srv.Shutdown(ctx); err != nil {
			log.Warn("answers in flight were cut", "after", c.DrainTime)
			return srv.Close()
		}
		return nil
	})
	err := g.Wait()
	n.handOver(context.WithoutCancel(ctx))
	return err
}

// listen opens the public port.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--listen %s: another process uses this address; stop it or choose another one", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", addr, err)
	}
	return ln, nil
}

// maxConnections returns how many connections can be had of the wanted: a quarter of the files that the process may have
// open is left for those that it reads, and for connections to upstreams.
func maxConnections(wanted int, log *slog.Logger) int {
	files, ok := maxOpenFiles()
	if !ok || uint64(wanted) <= files/4*3 {
		return wanted
	}
	most := int(files / 4 * 3)
	log.Warn("fewer connections than --max-connections: the limit of open files (ulimit -n) is too low", "wanted", wanted, "connections", most, "files", files)
	return most
}
