package artifact

import (
	"errors"
	"fmt"
)

// What can be wrong, by what the person at the other end should conclude from it. Every room wraps these, so that one
// place (mirror's statusOf) can turn any error into an HTTP status. A thing that is known not to exist matches
// [io/fs.ErrNotExist]: that, and nothing else, may become a 404.
var (
	// ErrRefused means that a check failed: the bytes, the record or the tree are not what was promised.
	// The error that wraps it holds the evidence (both hashes, both notes).
	ErrRefused = errors.New("verification failed")

	// ErrConflict means that something else was committed for this module version before. It is an ErrRefused
	// for whoever comes second; what was committed first stays.
	ErrConflict = errors.New("conflicts with what is committed")

	// ErrMalformed means that an upstream or a checksum database answered with something that is not an answer.
	ErrMalformed = errors.New("malformed answer")

	// ErrUnavailable means that the question could not be answered now, and may be answered later:
	// a source is unreachable, there is no quorum, a disk is full, a checksum database is frozen by a fork.
	ErrUnavailable = errors.New("unavailable")

	// ErrNoQuorum is an ErrUnavailable: nothing can be committed now, as no majority of the cluster can be reached. What
	// is committed can be read all the same.
	ErrNoQuorum = fmt.Errorf("no majority of the voters can be reached: %w", ErrUnavailable)

	// ErrNoSpace is an ErrUnavailable: there is no room for it on the disk of this node. Another node may have some.
	ErrNoSpace error = noSpace{}

	// ErrPolicy means that this mirror is configured not to serve the module.
	ErrPolicy = errors.New("refused by policy")

	// ErrDamaged means that bytes which this node stored are no longer what they were: the wrong size or digest, or the
	// disk cannot read them. They exist, so this is never a 404; the right ones are at another node or upstream.
	ErrDamaged = errors.New("stored bytes are damaged")

	// ErrStale means that a compare-and-set lost against another one: read again and retry.
	ErrStale = errors.New("stale")
)

// noSpace has the class of ErrUnavailable and not its text, which would be said twice.
type noSpace struct{}

func (noSpace) Error() string { return "no space" }
func (noSpace) Unwrap() error { return ErrUnavailable }
