package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"time"

	"modmirror/mirror/artifact"
)

// errMethod is for a method other than GET and HEAD.
var errMethod = errors.New("method not allowed")

// statusOf is the one place that turns an error into an HTTP status. A failed check comes first and a missing thing
// last: the go command goes on to its next source after a 404 (and only then, with commas in GOPROXY), so an error that
// holds anything besides "there is no such version" must not become one.
func statusOf(err error) int {
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, errMethod):
		return http.StatusMethodNotAllowed
	case errors.Is(err, errUnmet):
		return http.StatusPreconditionFailed
	case errors.Is(err, ErrBadRequest):
		return http.StatusBadRequest
	case errors.Is(err, artifact.ErrPolicy), errors.Is(err, artifact.ErrRefused), errors.Is(err, artifact.ErrConflict):
		return http.StatusForbidden
	case errors.Is(err, artifact.ErrMalformed):
		return http.StatusBadGateway
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, artifact.ErrUnavailable), errors.Is(err, artifact.ErrStale), errors.Is(err, artifact.ErrDamaged), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// isAbsent reports whether err says that something is known not to exist, and nothing else.
func isAbsent(err error) bool { return statusOf(err) == http.StatusNotFound }

// outcomeOf returns what the metrics call an error.
func outcomeOf(err error) outcome {
	switch status := statusOf(err); {
	case errors.Is(err, errGone):
		return outcomeGone
	case status == http.StatusNotFound:
		return outcomeMiss
	case status < http.StatusInternalServerError:
		return outcomeRefused
	}
	return outcomeError
}

// What a client can do about it, by status.
var advice = map[int]string{
	http.StatusForbidden:           "it is not served, ask who runs this mirror\n",
	http.StatusInternalServerError: "ask who runs this mirror\n",
	http.StatusBadGateway:          "try again, or ask who runs this mirror\n",
	http.StatusServiceUnavailable:  "try again later\n",
	http.StatusGatewayTimeout:      "try again later\n",
}

// errPrivate is for a module that a client should not have asked for here. What to do stands in the reason.
var errPrivate = fmt.Errorf("put it in the client's GOPRIVATE: %w", artifact.ErrPolicy)

const maxReason = 420 // bytes of the first line of an error; the go command shows 648 bytes in all

// retryAfter returns how many seconds a client should wait after err: as long as the upstream said, within reason.
func retryAfter(err error) string {
	var said interface{ RetryIn() time.Duration }
	if !errors.As(err, &said) || said.RetryIn() <= 0 {
		return "5"
	}
	return strconv.Itoa(int(min(max(said.RetryIn()+time.Second-1, time.Second), time.Hour) / time.Second))
}

// writeError answers with the status of err and the reason as plain text: the reason in the first line, what to do in
// the second, if there is anything, and the id of the request in the last. The go command shows it to the developer
// (8 lines, 648 bytes, plain text only), and a mirror behind this one takes the first line. What is inside a 500 stays
// inside: it is in the log under the id.
func writeError(w http.ResponseWriter, r *http.Request, id string, err error) {
	status := statusOf(err)
	reason := artifact.PublicText(err, maxReason)
	if status == http.StatusInternalServerError {
		reason = "internal error"
	}
	what := advice[status]
	if errors.Is(err, errPrivate) {
		what = ""
	}
	h := w.Header()
	body := reason + "\n" + what + "request id: " + id + "\n"
	h["Content-Type"] = typeText
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	var absent *believedError
	switch {
	case errors.As(err, &absent) && status == http.StatusNotFound:
		h["Cache-Control"] = absent.cacheFor
	case status == http.StatusMethodNotAllowed:
		h["Allow"] = allowGet
	case status >= http.StatusBadGateway:
		h["Retry-After"] = []string{retryAfter(err)}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(body)) // a client that is gone needs no answer
	}
}
