package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// ScrubCheck is a part of a scrub that is not about blobs: Run looks at all of it, tells what is damaged to whoever it concerns,
// and returns an error if it could not look. It must end soon after its context, and keep itself from taking a whole processor.
type ScrubCheck struct {
	Name string // kept in scrub.json
	Run  func(ctx context.Context) error
}

// scrubber reads again, within Config.ScrubEvery, every blob that is stored, and looks whether every blob is stored that the
// catalog names. Its work is in parts: one for each of the 256 directories of blobs, one for the names, one for each ScrubCheck.
// The part that was looked at longest ago comes first. A blob that came in since was read when it was written, so that a part's
// time holds for all of its blobs. What is damaged goes the way of all losses (losses.go).
//
// It reads no faster than it has to, so that the whole takes nine tenths of the period, and never faster than
// Config.ScrubLimit; while requests are being answered it waits up to scrubYield before each scrubPiece. A full scrub on request
// (ScrubNow) has a speed of its own.
//
// The times are kept in scrub.json with the place in the part under way. What is true if the process dies: the next one goes on
// from the last save, and reads again what was read in the scrubSave before; a part's time is that of its begin, so no blob is
// older than it says. A scrub.json that cannot be read counts as none: everything is due, which costs one round.
type scrubber struct {
	m      *Mirror
	files  *dataFiles
	read   func(ctx context.Context, ref artifact.Ref, piece int, pace func(context.Context, int) error) error // Store.Rehash
	list   func(shard byte) iter.Seq2[artifact.Ref, error]                                                     // Store.Shard
	wake   chan struct{}                                                                                       // has room for one: a scrub was asked for, or ended
	parts  []string
	limit  *rate.Limiter // of what is read
	saveAt time.Time
	saved  []byte  // what scrub.json has
	owed   float64 // bytes that were read and not waited for
	at     time.Time

	mu     sync.Mutex
	state  scrubState // guarded by mu, as the rest
	hurry  bool       // it is to be saved soon
	blobs  int64      // read since the start
	bytes  int64
	doing  artifact.Digest
	since  time.Time // when it began; zero: nothing
	stuck  bool      // it takes longer than it can
	late   map[string]late
	strays int64
}

const (
	scrubFile  = "scrub.json"
	maxScrub   = 1 << 20 // bytes of it
	scrubNames = "names"
	scrubPiece = 1 << 20
	scrubYield = 100 * time.Millisecond
	scrubSave  = 30 * time.Second
	scrubRetry = 10 * time.Minute // after a part that could not be looked at
	scrubStuck = time.Minute      // for one blob, beyond what the limit allows: the disk does not answer
	scrubNap   = 10 * time.Minute // the longest wait without a look at the speed
	scrubSeek  = 64 << 10         // bytes that opening a file counts like
)

// Scrub scrubs until ctx ends: within Config.ScrubEvery by itself, and when it is asked to. It needs Changes and Dir, and is
// called once. A disk that hangs holds up nothing but the scrub.
func (m *Mirror) Scrub(ctx context.Context) error {
	if m.config.Changes == nil || m.config.Dir == "" {
		return errors.New("scrub: Changes and Dir are needed")
	}
	files, err := openFiles(m.config.Dir, m.config.Store)
	if err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	defer files.root.Close()
	s := m.scrub
	s.files = files
	s.load(time.Now())
	for ctx.Err() == nil {
		part, wait := s.next(time.Now())
		if wait <= 0 {
			if err := s.look(ctx, part); err != nil && ctx.Err() == nil && s.putOff(part, err, time.Now()) {
				m.log.Warn("the scrub cannot look at all of a part; it goes on with the others, and tries again", "part", part, "retry", scrubRetry, "err", err)
			}
			continue
		}
		s.save(false)
		s.sleep(ctx, wait)
	}
	s.save(true)
	return nil
}

func newScrubber(m *Mirror) *scrubber {
	s := &scrubber{m: m, read: m.config.Store.Rehash, list: m.config.Store.Shard, wake: make(chan struct{}, 1), limit: rate.NewLimiter(rate.Inf, scrubPiece)}
	for i := range artifact.Shards {
		s.parts = append(s.parts, fmt.Sprintf("%02x", i))
	}
	s.parts = append(s.parts, scrubNames)
	for _, c := range m.config.ScrubChecks {
		s.parts = append(s.parts, c.Name)
	}
	s.state.Parts, s.late = map[string]scrubPart{}, map[string]late{}
	return s
}

// late is a part that could not be looked at, and why.
type late struct {
	until time.Time // not to be looked at before
	err   error
}

// putOff lets the other parts go first, because of err, and reports whether that is new.
func (s *scrubber) putOff(part string, err error, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.late[part]
	s.late[part] = late{now.Add(scrubRetry), err}
	s.state.Part, s.state.After, s.state.Since = "", "", time.Time{}
	return !known || was.err.Error() != err.Error()
}

// sleep waits for d, or until something is asked for.
func (s *scrubber) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	case <-ctx.Done():
	}
}

// look looks at one part, from where an earlier look ended, and notes that it is done.
func (s *scrubber) look(ctx context.Context, part string) (err error) {
	defer func() {
		if p := recover(); p != nil { // a bug must not stop what serves
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	after, done := s.begin(part, time.Now())
	s.save(false)
	switch i := s.number(part); {
	case i < artifact.Shards:
		done, err = s.shard(ctx, byte(i), after)
	case part == scrubNames:
		err = s.names(ctx, after)
	default:
		err = s.m.config.ScrubChecks[i-artifact.Shards-1].Run(ctx)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	s.end(part, done)
	s.save(false)
	return nil
}

func (s *scrubber) number(part string) int {
	for i, p := range s.parts {
		if p == part {
			return i
		}
	}
	return -1
}

// shard reads the blobs of one directory whose names are behind after. One that cannot be told how it is does not keep it from the
// others.
func (s *scrubber) shard(ctx context.Context, i byte, after string) (done scrubPart, err error) {
	var rest []artifact.Ref
	var bad error
	for ref, err := range s.list(i) {
		switch {
		case errors.Is(err, artifact.ErrDamaged): // of something that is no blob
			s.stray(err)
		case err != nil:
			bad = err
		case ref.Digest.String() > after:
			rest = append(rest, ref)
			fallthrough
		default:
			done.Blobs++
			done.Bytes += ref.Size
		}
	}
	s.plan(s.parts[i], done)
	for _, ref := range rest {
		if err := s.blob(ctx, ref); ctx.Err() != nil {
			return done, context.Cause(ctx)
		} else if err != nil {
			bad = err
		}
		s.passed(ref)
		s.m.reached("scrub " + ref.Digest.String())
		s.save(false)
		if err := s.rest(ctx); err != nil {
			return done, err
		}
	}
	return done, bad
}

// blob reads one blob. An error means that it could not be told how it is.
func (s *scrubber) blob(ctx context.Context, ref artifact.Ref) error {
	err := s.rehash(ctx, ref)
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist): // nobody needs it any more, or it was lost meanwhile
		return nil
	case !errors.Is(err, artifact.ErrDamaged):
		return err
	}
	_, err = s.m.condemn(ctx, ref.Digest, byScrub, err)
	if s.m.config.Store.Err() != nil { // what is found is said, and stays where it is
		return nil
	}
	return err
}

// rehash reads a blob on a goroutine of its own: a disk that hangs must not keep the process from ending.
func (s *scrubber) rehash(ctx context.Context, ref artifact.Ref) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.doing, s.since = ref.Digest, time.Now()
	speed := s.allowed()
	s.mu.Unlock()
	s.limit.SetLimit(rate.Limit(speed))
	ended := make(chan error, 1)
	go func() { ended <- s.read(ctx, ref, scrubPiece, s.pace) }()
	stuck := time.NewTimer(scrubStuck + 2*time.Duration(float64(ref.Size)/speed*float64(time.Second)) + time.Duration(ref.Size/scrubPiece)*scrubYield)
	defer stuck.Stop()
	for {
		select {
		case err := <-ended:
			s.mu.Lock()
			s.since, s.stuck = time.Time{}, false
			s.mu.Unlock()
			return err
		case <-stuck.C:
			s.mu.Lock()
			s.stuck = true
			s.mu.Unlock()
			s.m.log.Error("the disk does not answer: the scrub waits for a blob, and goes on if it comes", "digest", ref.Digest, "bytes", ref.Size)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pace lets n more bytes be read: not at once while requests are being answered.
func (s *scrubber) pace(ctx context.Context, n int) error {
	const look = scrubYield / 10
	for waited := time.Duration(0); s.m.serving.Load() > 0 && waited < scrubYield; waited += look {
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.limit.WaitN(ctx, min(n, scrubPiece))
}

// rest waits as long as what was read should have taken. The limiter spreads what is read over the time at the highest speed that
// is allowed; this is for the speed that is needed, at which a large file would stay open for hours.
func (s *scrubber) rest(ctx context.Context) error {
	for {
		now := time.Now()
		s.mu.Lock()
		speed, _ := s.needed(now)
		s.mu.Unlock()
		s.owed = max(s.owed-speed*now.Sub(s.at).Seconds(), 0)
		s.at = now
		wait := time.Duration(min(s.owed/speed, scrubNap.Seconds()) * float64(time.Second))
		if wait < time.Millisecond {
			return ctx.Err()
		}
		s.sleep(ctx, wait)
		s.save(false)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// names looks whether every blob is here that the catalog names, and was here before.
func (s *scrubber) names(ctx context.Context, after string) error {
	from, _ := strconv.ParseInt(after, 10, 64) // "" is 0
	begin, n := time.Now(), 0
	var bad error
	for c, err := range s.m.config.Changes.Changes(ctx, from) {
		if err != nil {
			bad = err // the check of the catalog says more
			continue
		}
		for k, ref := range blobsOf(c.Manifest) {
			if err := s.named(ctx, c, k, ref); err != nil {
				return err
			}
		}
		if n++; n%512 == 0 {
			s.reached(strconv.FormatInt(c.Seq+1, 10))
			s.save(false)
			if err := s.ease(ctx, 3*time.Since(begin)); err != nil {
				return err
			}
			begin = time.Now()
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(bad, artifact.ErrUnavailable) {
		return bad
	}
	return nil
}

// ease waits for d, so that the walk takes a quarter of a processor at most.
func (s *scrubber) ease(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// named looks for one blob that the catalog names.
func (s *scrubber) named(ctx context.Context, c artifact.Change, k artifact.Kind, ref artifact.Ref) error {
	err := s.m.config.Store.Named(ref)
	if err == nil {
		err = s.m.genuine(ctx, c.Manifest, k)
	}
	switch {
	case err == nil || s.m.config.Store.HasUnproven(ref): // the latter is read when it is proven
		return nil
	case errors.Is(err, artifact.ErrDamaged):
		if _, err := s.m.condemn(ctx, ref.Digest, byScrub, err); err != nil && s.m.config.Store.Err() == nil {
			return err
		}
	case errors.Is(err, fs.ErrNotExist):
		if c.Seq < s.m.followed.seen() && !s.m.followed.lacking(ref.Digest) { // and not just late
			return s.m.lostAt(ctx, c, k, ref, byScrub)
		}
	}
	return nil
}

// foundBad counts a damaged blob that this round found.
func (s *scrubber) foundBad() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Bad++
}

func (s *scrubber) stray(err error) {
	s.mu.Lock()
	s.strays++
	s.mu.Unlock()
	s.m.log.Warn("the store holds something that is no blob; it is left alone", "err", err)
}
