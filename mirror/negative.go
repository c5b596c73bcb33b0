package mirror

import (
	"fmt"
	"io/fs"
	"time"

	"modmirror/mirror/artifact"
)

// negativeBytes bounds what is remembered not to exist, of artifacts, lists, @latest and queries together. Anybody can ask
// for names that nobody has; that must not push out what is there, so it has a small memory of its own.
const negativeBytes = 4 << 20

// maxNegative bounds how long "no such version" is believed, by us and by caches in between together.
const maxNegative = time.Minute

// absence says that something does not exist, and why. It is no more than its text: an error of an upstream, which has it all,
// takes several times as much memory.
type absence string

func (a absence) Error() string { return string(a) }
func (a absence) Unwrap() error { return fs.ErrNotExist }

// believedError is "no such thing" that is believed for a while, by us and by caches in between.
type believedError struct {
	err      error
	cacheFor []string // Cache-Control
}

func (e *believedError) Error() string { return e.err.Error() }
func (e *believedError) Unwrap() error { return e.err }

func (m *Mirror) believed(err error) error { return &believedError{err, m.absentFor} }

// forget remembers for a while that something does not exist, if err says so, and returns err for the client.
func (m *Mirror) forget(key string, err error) error {
	if !isAbsent(err) {
		return err
	}
	m.rememberAbsent(key, err)
	return m.believed(err)
}

// rememberAbsent remembers for a while that what key names does not exist, because of why.
func (m *Mirror) rememberAbsent(key string, why error) {
	text := absence(artifact.Truncate(why.Error(), maxReason))
	m.negative.put(key, text, int64(len(text)), m.config.NegativeTTL)
}

// knownAbsent returns why what key names is known not to exist, nil if it is not.
func (m *Mirror) knownAbsent(key string) error {
	if why, ok := m.negative.get(key); ok {
		return m.believed(why)
	}
	return nil
}

// absentCached lets others believe for what is left of a minute, when we may have believed it for ttl, that something does
// not exist, and for half a minute at most: whoever publishes a version sees it within a minute.
func absentCached(ttl time.Duration) []string {
	switch left := (maxNegative - ttl).Truncate(time.Second); {
	case left >= 30*time.Second:
		return brieflyCached
	case left > 0:
		return []string{fmt.Sprintf("public, max-age=%d", left/time.Second)}
	}
	return noStore
}
