package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

const (
	// justPublished is how old a version may be, by its own word, for the checksum database not to know it yet. Databases
	// lag behind proxies by seconds to minutes (go.dev/issue/70042).
	justPublished = 24 * time.Hour

	firstRetry, lastRetry = 3 * time.Second, 20 * time.Second // between questions to a database that lags
)

// recorded is step 1. It returns a manifest that has the record of mv and no parts.
func (m *Mirror) recorded(ctx context.Context, mv module.Version, have artifact.Manifest, ahead *early, id string) (artifact.Manifest, error) {
	start := time.Now()
	if have.Record.IsZero() {
		r, err := m.config.Checksums.Record(ctx, mv)
		if isAbsent(err) && !ahead.absent() && m.justPublished(ctx, mv) {
			r, err = m.awaitRecord(ctx, mv)
		}
		if err == nil {
			have, err = artifact.NewManifest(mv, r)
		}
		if err != nil {
			if err = m.flights.inTime(ctx, "the checksum database", err); !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				err = fmt.Errorf("checksum database: %w", err)
			}
			if isRefusal(err) {
				m.alarm(id, failRecord, err, Event{Module: mv})
			}
			return artifact.Manifest{}, err
		}
	}
	m.metrics.stageDone(stageRecord, start)
	m.reached("record")
	have.Info, have.Mod, have.Zip = artifact.Ref{}, artifact.Ref{}, artifact.Ref{}
	return have, nil
}

// justPublished reports whether the upstream has mv, and says that it is new. This is a hint for how to wait and nothing
// else; if there is no telling, the database's word is the answer.
func (m *Mirror) justPublished(ctx context.Context, mv module.Version) bool {
	body, err := m.config.Upstream.Query(ctx, mv.Path, mv.Version)
	if err != nil {
		return false
	}
	info, err := artifact.ParseInfo(body)
	age := time.Since(info.Time)
	return err == nil && info.Version == mv.Version && age < justPublished && age > -justPublished
}

// awaitRecord asks for a record until it is there or the time of ctx is over. That it is not there yet is an outage of
// the database and no absence: the version exists, and a client with another proxy behind this one must not go around the
// check.
func (m *Mirror) awaitRecord(ctx context.Context, mv module.Version) (artifact.Record, error) {
	m.log.Info("the checksum database does not know a new version yet, waiting", "module", mv.Path, "version", mv.Version)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return artifact.Record{}, ctx.Err()
			}
			return artifact.Record{}, fmt.Errorf("%s was published moments ago and is not in the checksum database yet: %w", mv, artifact.ErrUnavailable)
		case <-time.After(wait):
		}
		r, err := m.config.Checksums.Record(ctx, mv)
		if !isAbsent(err) && ctx.Err() == nil {
			return r, err
		}
	}
}
