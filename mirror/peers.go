package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Peers are the other nodes of the cluster, as a Mirror needs them. They are trusted as little as an upstream: every byte that
// they hand over passes [Mirror.Admit]. All methods must end soon after their context, and so must the bodies that they pass on.
type Peers interface {
	// Resolve asks the node whose turn it is to bring in an artifact (its [Mirror.Bring]), and the next if it does not answer.
	// It returns the manifest that is committed then. ok is false if it is this node's own turn, at the latest when no other
	// node answers; an error says why none of those that did could say, if any did. With ok, an error is the other node's word
	// and has its class (see [ErrorClass]); that a node cannot be reached is no error but a reason to ask the next.
	Resolve(ctx context.Context, mv module.Version, k artifact.Kind) (man artifact.Manifest, ok bool, err error)
	// Ask asks the node whose turn it is for a path what the upstream says of it (its [Mirror.Tell]): op is OpList, OpLatest or
	// OpQuery, which alone has a query. ok is as in Resolve.
	Ask(ctx context.Context, op Op, path, query string) (told Told, ok bool, err error)
	// Spread begins to copy the bytes of ref to other voters (their [Mirror.Admit]), while the caller goes on checking them. The
	// body can be read until Wait or Cancel has returned; whoever reads it later gets an error.
	Spread(ctx context.Context, man artifact.Manifest, k artifact.Kind, ref artifact.Ref, body io.ReaderAt) Spreading
	// Fetch calls accept with the bytes of w.Ref from the nearest peer that has them, and with those of the next if accept's error
	// matches artifact.ErrRefused, ErrMalformed or ErrUnavailable. It succeeds when accept did, or without a call of it when the
	// same bytes were accepted in another Fetch, or by Admit, at the same time; otherwise its error wraps accept's, and matches
	// [io/fs.ErrNotExist] only if every peer says that it does not have them. size is -1 if not known, source names the peer. A
	// body may be [Slowed]. Over a long way a blob comes once for several nodes: a peer may be had bring it here first, by its
	// [Mirror.Relay], unless w.Relayed says that this is such a call. When somebody joins a pull that nobody waited for, Fetch
	// calls w.Background.Hurry.
	Fetch(ctx context.Context, w Want, accept func(body io.Reader, size int64, source string) error) error
}

// Spreading is bytes on their way to other nodes. Exactly one of its methods is called, once.
type Spreading interface {
	// Wait returns the acks of enough nodes for the bytes to be committed. If too few can be had, the error matches
	// artifact.ErrUnavailable, and the acks there are come along.
	Wait(ctx context.Context) ([]artifact.Ack, error)
	// Cancel ends the copying: the bytes turned out to be wrong, or nobody needs them any more.
	Cancel()
}

// Told is what another node knows of an upstream's answer, and how long ago the upstream said so: a length of time, because
// clocks differ. Of a list, the body is the upstream's and not united with what was published.
type Told struct {
	Body []byte
	Age  time.Duration
	From string // the node, for messages; Tell leaves it empty
}

// Prover checks manifests against the tree heads that the cluster has committed.
type Prover interface {
	// Proven returns nil if the record of man is included in a committed tree head that this node has. If it is not included the
	// error matches artifact.ErrRefused; if this node does not have that head, or not yet, artifact.ErrUnavailable.
	Proven(ctx context.Context, man artifact.Manifest) error
}

// Changes is the catalog in the order in which it came to be.
type Changes interface {
	// Changes yields what the catalog has from place number from on, in order and without gaps, and ends with the last.
	Changes(ctx context.Context, from int64) iter.Seq2[artifact.Change, error]
	// Place returns the place of the change that Changes yields for mv. An error matches [io/fs.ErrNotExist] if there is none.
	Place(ctx context.Context, mv module.Version) (int64, error)
	// Wake returns a channel that is closed, or sent to, when something was applied after the call.
	Wake() <-chan struct{}
}

// checkCluster reports what is missing of what Peers and the like need.
func (c *Config) checkCluster() error {
	switch {
	case c.Peers != nil && c.Proofs == nil:
		return errors.New("with Peers, Proofs are needed")
	case c.OnQuorumLoss != "" && c.OnQuorumLoss != passThrough && c.OnQuorumLoss != "fail":
		return fmt.Errorf("OnQuorumLoss is %q, not %q or %q", c.OnQuorumLoss, passThrough, "fail")
	case c.OnQuorumLoss == passThrough && c.Dir == "":
		return fmt.Errorf("with OnQuorumLoss %q, Dir is needed", passThrough)
	}
	return nil
}

// classesOfOne name the errors of [OneNodes]. To nodes of earlier versions they are "unavailable".
var classesOfOne = map[string]error{"denied": errDenied, "astray": errAstray}

// classes name the errors that travel from node to node, in the order in which statusOf looks at them.
var classes = []struct {
	name string
	err  error
}{
	{"bad request", ErrBadRequest},
	{"policy", artifact.ErrPolicy},
	{"conflict", artifact.ErrConflict},
	{"refused", artifact.ErrRefused},
	{"malformed", artifact.ErrMalformed},
	{"no quorum", artifact.ErrNoQuorum},
	{"no space", artifact.ErrNoSpace},
	{silentClass, errSilent},
	{"late", context.DeadlineExceeded},
	{"late", os.ErrDeadlineExceeded},
	{"stale", artifact.ErrStale},
	{"unavailable", artifact.ErrUnavailable},
	{"unavailable", artifact.ErrDamaged},
	{"unavailable", context.Canceled},
	{"absent", fs.ErrNotExist},
}

// silentClass is what did not answer a node in time, as an upstream to which its packets get lost. Unlike "late", which is a node's
// own time that is over, it may be otherwise for another node. To nodes of earlier versions it is "unavailable".
const silentClass = "silent"

// What an upstream may have answered to one node alone is told apart from what it, or this mirror, says to all.
var (
	errDenied = fmt.Errorf("%w, of one node perhaps", artifact.ErrPolicy)
	errAstray = fmt.Errorf("%w, to one node perhaps", artifact.ErrMalformed)
)

// OneNodes reports whether err is an answer of an upstream that another node may not get: one that is for want of credentials, or
// that no module proxy gives, as a captive portal does. Bytes that did not pass a check are no such answer.
func OneNodes(err error) bool {
	of := (interface{ OneNodes() bool })(nil)
	switch {
	case errors.Is(err, artifact.ErrRefused), errors.Is(err, artifact.ErrConflict):
		return false
	case errors.Is(err, errDenied), errors.Is(err, errAstray):
		return true
	}
	return errors.As(err, &of) && of.OneNodes()
}

// After adds to err, for which this node has nothing to serve, why another node had nothing before that. What is known to be
// absent needs no more words.
func After(err, before error) error {
	if err == nil || before == nil || isAbsent(err) {
		return err
	}
	return fmt.Errorf("%w; before that, %v", err, before)
}

var errSilent = fmt.Errorf("%w: %w", artifact.ErrUnavailable, context.DeadlineExceeded)

// maxTold bounds the text of an error that travels from node to node, in bytes.
const maxTold = 2 << 10

// ErrorClass returns what travels to another node in place of err: the name of its class, and its text.
func ErrorClass(err error) (class, text string) {
	text = artifact.Truncate(err.Error(), maxTold)
	switch ofOne := OneNodes(err); {
	case ofOne && errors.Is(err, artifact.ErrPolicy):
		return "denied", text
	case ofOne && errors.Is(err, artifact.ErrMalformed):
		return "astray", text
	}
	for _, c := range classes {
		switch {
		case !errors.Is(err, c.err):
		case c.name == "late" && errors.Is(err, artifact.ErrUnavailable):
			return silentClass, text
		default:
			return c.name, text
		}
	}
	return "internal", text
}

// ClassError is the inverse of ErrorClass: an error of that class and text, which has no other class. It never says that
// something is absent unless the class does.
func ClassError(class, text string) error {
	if err := classesOfOne[class]; err != nil {
		return &toldError{artifact.Truncate(text, maxTold), err}
	}
	for _, c := range classes {
		if c.name == class {
			return &toldError{artifact.Truncate(text, maxTold), c.err}
		}
	}
	return &toldError{artifact.Truncate(text, maxTold), artifact.ErrUnavailable} // of a node that is newer than this one
}

// toldError is an error of another node.
type toldError struct {
	text  string
	class error
}

func (e *toldError) Error() string { return e.text }
func (e *toldError) Unwrap() error { return e.class }

// SaidBy returns err, which a node said, with its name; nil if there is none. The text stays what it is: it is for clients.
func SaidBy(node string, err error) error {
	if err == nil {
		return nil
	}
	return &saidError{err, node}
}

type saidError struct {
	error
	node string
}

func (e *saidError) Unwrap() error { return e.error }

// fromPeer says whose bytes were not taken.
func fromPeer(source string, err error) error { return fmt.Errorf("from peer %s: %w", source, err) }
