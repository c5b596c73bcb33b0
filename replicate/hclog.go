package replicate

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLog gives raft's messages to slog. Its warnings and infos are the normal course of elections and snapshots, so they
// come one level lower; what an operator must know is logged by this package.
//
// What raft cannot do it tries again, many times a second, and says so each time: a line is told once in a while.
type raftLog struct {
	log  *slog.Logger
	name string
	args []any
	told *repeats
}

// repeats counts how often each message came since it was told.
type repeats struct {
	mu   sync.Mutex
	last map[string]*repeat // guarded by mu; raft has a few dozen messages
}

type repeat struct {
	told  time.Time
	since int
}

// due reports whether msg should be told now, and how often it was not since the last time.
func (r *repeats) due(msg string) (missed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.last[msg]
	if m == nil {
		m = &repeat{}
		r.last[msg] = m
	}
	if time.Since(m.told) < tellAgain {
		m.since++
		return 0, false
	}
	missed, m.since, m.told = m.since, 0, time.Now()
	return missed, true
}

var _ hclog.Logger = (*raftLog)(nil)

func newRaftLog(l *slog.Logger) *raftLog {
	return &raftLog{log: l, name: "raft", told: &repeats{last: map[string]*repeat{}}}
}

func level(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (r *raftLog) Log(l hclog.Level, msg string, args ...any) {
	ctx := context.Background()
	if l == hclog.Off || !r.log.Enabled(ctx, level(l)) {
		return
	}
	missed := 0
	if l == hclog.Error {
		var due bool
		if missed, due = r.told.due(msg); !due {
			return
		}
	}
	out := make([]any, 0, len(args)+2)
	for _, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if format, ok := f[0].(string); ok {
				a = fmt.Sprintf(format, f[1:]...)
			}
		}
		out = append(out, a)
	}
	if missed > 0 {
		out = append(out, "missed", missed)
	}
	r.log.Log(ctx, level(l), r.name+": "+msg, out...)
}

func (r *raftLog) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r *raftLog) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r *raftLog) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r *raftLog) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r *raftLog) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r *raftLog) enabled(l hclog.Level) bool {
	return r.log.Enabled(context.Background(), level(l))
}

func (r *raftLog) IsTrace() bool { return r.enabled(hclog.Trace) }
func (r *raftLog) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r *raftLog) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r *raftLog) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r *raftLog) IsError() bool { return r.enabled(hclog.Error) }

func (r *raftLog) ImpliedArgs() []any { return r.args }
func (r *raftLog) Name() string       { return r.name }

func (r *raftLog) With(args ...any) hclog.Logger {
	return &raftLog{r.log.With(args...), r.name, append(r.args[:len(r.args):len(r.args)], args...), r.told}
}

func (r *raftLog) Named(name string) hclog.Logger { return r.ResetNamed(r.name + "." + name) }

func (r *raftLog) ResetNamed(name string) hclog.Logger { return &raftLog{r.log, name, r.args, r.told} }

// SetLevel does nothing: slog's handler has the level.
func (r *raftLog) SetLevel(hclog.Level) {}

func (r *raftLog) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn} {
		if r.enabled(l) {
			return l
		}
	}
	return hclog.Error
}

func (r *raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)
}

func (r *raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return r.StandardLogger(o).Writer()
}
