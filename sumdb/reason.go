package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"

	"modmirror/mirror/artifact"
)

// statusError is an error that is about the request.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func badRequest(text string) error { return &statusError{http.StatusBadRequest, text} }

// statusOf returns the HTTP status for err. 404 is for what is known not to exist, and for nothing else.
func statusOf(err error) int {
	var se *statusError
	switch {
	case errors.As(err, &se):
		return se.status
	case errors.Is(err, artifact.ErrPolicy), errors.Is(err, artifact.ErrRefused):
		return http.StatusForbidden
	case errors.Is(err, artifact.ErrMalformed):
		return http.StatusBadGateway
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, artifact.ErrUnavailable), errors.Is(err, artifact.ErrDamaged), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// advice is what a client can do about an error, by status.
var advice = map[int]string{
	http.StatusForbidden:           "; it is not served, ask who runs this mirror",
	http.StatusInternalServerError: "; ask who runs this mirror",
	http.StatusBadGateway:          "; try again, or ask who runs this mirror",
	http.StatusServiceUnavailable:  "; try again later",
	http.StatusGatewayTimeout:      "; try again later",
}

const (
	maxReason = 420     // bytes of the first line of an error, without the advice; the go command shows 648 bytes in all
	maxLogged = 2 << 10 // bytes of an error in the log
)

// writeError answers with err in the form that the go command shows to its user: plain text, the reason in the first line,
// in the second the id that the request has, if the header of w says one. What names the inside of a network or a machine
// stays in the log, and so does all of a 500.
func writeError(w http.ResponseWriter, log *slog.Logger, err error) int {
	status := statusOf(err)
	reason := artifact.PublicText(err, maxReason)
	if status == http.StatusInternalServerError {
		reason = "internal error"
	}
	body := reason + advice[status] + "\n"
	h := w.Header()
	id := h.Get("X-Request-Id")
	if id != "" {
		body += "request id: " + id + "\n"
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h["Cache-Control"] = cacheNever
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout {
		h.Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a client that is gone needs no answer; one that asked with HEAD gets none
	logError(log, status, id, err)
	return status
}

// logError logs why a request was not answered, but for the names of private modules.
func logError(log *slog.Logger, status int, id string, err error) {
	level := slog.LevelDebug
	switch {
	case errors.Is(err, errPrivate):
		err = errPrivate
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case status > http.StatusInternalServerError, status == http.StatusForbidden:
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, "no answer", "id", id, "status", status, "err", fmt.Sprintf("%.*s", maxLogged, err))
}
