package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

// Source is one place that speaks a checksum database's protocol: a GOPROXY's /sumdb/<name>, or the database itself.
// Nothing that it says is trusted.
type Source interface {
	// Get returns the whole body of the answer to path, which is "/supported", "/latest", "/lookup/…" or "/tile/…" and
	// is escaped as the protocol has it (a raw "!"). An error matches [fs.ErrNotExist] for a 404 or 410 and nothing else,
	// and [artifact.ErrMalformed] for a body longer than limit. It says what was asked of whom. Get returns soon after ctx
	// is done.
	Get(ctx context.Context, path string, limit int64) ([]byte, error)

	// String names the source, for messages and logs. It holds no password.
	String() string
}

// Limits of what a source may say and how long it may take.
const (
	maxLookup = 1 << 20 // bytes of a lookup response

	supportedBudget = 10 * time.Second // for /supported
	latestBudget    = 10 * time.Second // for /latest, if all sources are asked
	fetchBudget     = 30 * time.Second // for a tile, or /latest

	supportedFor   = time.Minute     // how long an answer to /supported is believed
	unsupportedFor = 5 * time.Second // how long no answer to /supported is
	failingFor     = 2 * time.Second // how long a source that did not answer is asked after the others
	hangingFor     = time.Minute     // how long one is that said nothing until patience ended

	maxFetches = 64 // requests to one source at the same time
)

// source is a Source and what is known of it.
type source struct {
	Source
	id      int           // tells apart two of the same name
	proxy   bool          // asked for /supported before anything else
	peer    bool          // another node: see peer.go
	fetches chan struct{} // holds one for each request to it, so that one that hangs takes no place from the others

	mu        sync.Mutex
	usable    bool                // guarded by mu; holds until then
	until     time.Time           // guarded by mu
	late      map[class]time.Time // guarded by mu; until then it is asked after the others; none: it answers
	shunned   bool                // guarded by mu; it showed another history that is known: asked last, and its 404 is no answer
	lastErr   error               // guarded by mu
	lastErrAt time.Time           // guarded by mu
	refused   int64               // guarded by mu; reads of tiles from it that did not lead to the signed root
}

// newSource returns what is known of src before it was ever asked.
func newSource(id int, src Source, proxy bool) *source {
	return &source{Source: src, id: id, proxy: proxy, fetches: make(chan struct{}, maxFetches), late: make(map[class]time.Time)}
}

// failing reports whether s did not answer a request of class c lately, so that asking it is likely to cost time. When it
// may be tried again, one caller is told so; the others go on leaving it for last until it is known what came of that. One
// whose answer did not hold keeps its place: else the next lookup would end with another source's "not found", as if no
// check had failed.
func (s *source) failing(c class, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	late, known := s.late[c]
	if !known || now.Before(late) {
		return known
	}
	s.late[c] = now.Add(c.patience())
	return false
}

// blame remembers why s was of no use, for the status page.
func (s *source) blame(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shunned = s.shunned || errors.Is(err, errOtherHistory)
	s.lastErr, s.lastErrAt = err, time.Now()
}

// hang remembers that a request of class c has no answer yet after d.
func (s *source) hang(c class, d time.Duration) {
	s.delay(c, fmt.Errorf("%s: no answer for %v: %w", s, d, context.DeadlineExceeded), hangingFor)
}

// delay is blame for a request of class c that got no answer. The others are asked before s for d at least.
func (s *source) delay(c class, err error, d time.Duration) {
	s.blame(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if until := time.Now().Add(d); until.After(s.late[c]) {
		s.late[c] = until
	}
}

// answered remembers that s answers requests of class c.
func (s *source) answered(c class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.late, c)
}

func (s *source) isShunned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shunned
}

// order returns whom to ask, best first for a request of class c: peers first, for what they are asked for, and those that
// failed lately last.
func (db *DB) order(c class) []*source {
	now := time.Now()
	all := db.sources
	if c == classTile {
		all = append(db.peers(), all...)
	}
	var order, failing []*source
	for _, s := range all {
		if s.failing(c, now) || s.isShunned() {
			failing = append(failing, s)
		} else {
			order = append(order, s)
		}
	}
	return append(order, failing...)
}

// supported reports whether s speaks for the database. The answer is remembered for a minute at most: a proxy that
// learns to, or that comes back, is used again.
func (db *DB) supported(ctx context.Context, s *source) bool {
	if !s.proxy {
		return true
	}
	s.mu.Lock()
	usable, known := s.usable, time.Now().Before(s.until)
	s.mu.Unlock()
	if known {
		return usable
	}
	_, err := db.once(ctx, fmt.Sprintf("supported %d %s", s.id, s), supportedBudget, func(ctx context.Context) (any, error) {
		_, err := db.get(ctx, s, "/supported", maxLookup)
		keep := supportedFor
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			keep = unsupportedFor
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.usable, s.until = err == nil, time.Now().Add(keep)
		return nil, err
	})
	return err == nil
}

// fetch is get for what many may want at the same time: equal requests are one, and it goes on when a caller goes away.
func (db *DB) fetch(ctx context.Context, s *source, path string, limit int64) ([]byte, error) {
	b, err := db.once(ctx, fmt.Sprintf("get %d %s %s %d", s.id, s, path, limit), s.budget(), func(ctx context.Context) (any, error) {
		return db.get(ctx, s, path, limit)
	})
	if err != nil {
		return nil, err
	}
	return b.([]byte), nil
}

// get asks s. An error matches [fs.ErrNotExist], [artifact.ErrMalformed], [artifact.ErrUnavailable], what else the source
// says of it, or is that of ctx. It names s, which an error of [Source.Get] does by itself.
func (db *DB) get(ctx context.Context, s *source, path string, limit int64) ([]byte, error) {
	select {
	case s.fetches <- struct{}{}:
		defer func() { <-s.fetches }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	start := time.Now()
	b, err := s.Get(ctx, path, limit)
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: %s of more than %d bytes: %w", s, path, limit, artifact.ErrMalformed)
	}
	db.metrics.fetched(s, path, err, time.Since(start))
	if err != nil && !classified(err) {
		err = fmt.Errorf("%w: %w", err, artifact.ErrUnavailable)
	}
	s.note(ctx, classOf(path), err)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// note remembers what came of a request of class c. That whoever asked went away says nothing of s.
func (s *source) note(ctx context.Context, c class, err error) {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
	case err == nil, errors.Is(err, fs.ErrNotExist):
		s.answered(c)
	case noGood(err):
		s.answered(c)
		s.blame(err)
	case s.peer && errors.Is(err, context.DeadlineExceeded):
		s.delay(c, err, hangingFor)
	default:
		s.delay(c, err, failingFor)
	}
}

// classified reports whether err says by itself what to make of it.
func classified(err error) bool {
	return slices.ContainsFunc([]error{
		fs.ErrNotExist, artifact.ErrMalformed, artifact.ErrRefused, artifact.ErrPolicy, artifact.ErrUnavailable, context.DeadlineExceeded, context.Canceled,
	}, func(e error) bool { return errors.Is(err, e) })
}

// worse returns the one of two errors that says more about why a question has no answer: a check that failed before an
// answer that is none, before a source that did not answer. A source that says "no such thing" counts least here, because
// an outage of the others must not look like an absence.
func worse(a, b error) error {
	if a == nil || b != nil && severity(b) > severity(a) {
		return b
	}
	return a
}

func severity(err error) int {
	for i, e := range []error{artifact.ErrRefused, artifact.ErrMalformed, context.DeadlineExceeded, artifact.ErrUnavailable} {
		if errors.Is(err, e) {
			return 10 - i
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 1
	}
	return 2
}

// guard runs f. A panic in it, a bug of ours or of a parser, is an error: it must not take the process along.
func (db *DB) guard(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%.200s: panic: %v", what, p)
			db.Log.Error("panic", "err", err, "stack", fmt.Sprintf("%.8000s", debug.Stack()))
		}
	}()
	return f()
}

// once joins equal work. f runs on a context of its own, that ends with budget or with the DB, so that the first caller
// to go away does not end it for the others. The caller itself waits no longer than its own ctx.
func (db *DB) once(ctx context.Context, key string, budget time.Duration, f func(context.Context) (any, error)) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ch := db.flights.DoChan(key, func() (any, error) {
		if err := db.begin(); err != nil {
			return nil, err
		}
		defer db.end()
		ctx, cancel := context.WithTimeout(db.ctx, budget)
		defer cancel()
		var v any
		err := db.guard(key, func() (err error) {
			v, err = f(ctx)
			return err
		})
		return v, err
	})
	select {
	case r := <-ch:
		if errors.Is(r.Err, context.Canceled) && db.ctx.Err() != nil {
			return nil, fmt.Errorf("%s: shutting down: %w", db.name, artifact.ErrUnavailable)
		}
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
