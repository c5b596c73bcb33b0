package upstream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"modmirror/mirror/artifact"
)

// ErrOffline is the answer to every question to the list of [Offline]. It is an [artifact.ErrUnavailable]: not to be
// asked is not to be absent.
var ErrOffline = fmt.Errorf("this mirror is offline: %w", artifact.ErrUnavailable)

// errOff is what the entry "off" answers, in the go command's words.
var errOff = fmt.Errorf("module lookup disabled by GOPROXY=off: %w", fs.ErrNotExist)

// Error is how an upstream failed. What it matches says what to conclude:
//
//   - [fs.ErrNotExist]: status 404 or 410, the upstream knows that there is no such thing;
//   - [artifact.ErrPolicy]: status 401, 403 or 451, the upstream does not want to;
//   - [artifact.ErrUnavailable]: status 408, 407, 429 or 5xx, no connection, no answer or a broken one; try again later.
//     If it was a time-out, [context.DeadlineExceeded] too;
//   - [artifact.ErrMalformed]: any other status, or something that is no answer.
//
// An error that the caller's own context caused by being canceled matches [context.Canceled] only.
type Error struct {
	Source     string        // the entry's URL, without credentials
	URL        string        // what was asked, without credentials and query
	Status     int           // of the answer; 0 if there was none
	Reason     string        // first line of the answer's text, if it is plain
	RetryAfter time.Duration // as the upstream said; 0 if it did not
	Err        error         // what went wrong, if it is not the status alone

	class  error
	astray bool      // an answer of the kind that a captive portal gives
	asked  time.Time // when it was its turn to be asked; zero: at once
}

// Error returns one line without secrets.
func (e *Error) Error() string {
	s := e.URL
	if e.Status != 0 && e.Status != http.StatusOK {
		s += ": " + strings.TrimSpace(strconv.Itoa(e.Status)+" "+http.StatusText(e.Status))
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// RetryIn returns how long the upstream wants not to be asked; 0 if it did not say.
func (e *Error) RetryIn() time.Duration { return e.RetryAfter }

// OneNodes reports whether the answer may be to this machine alone: it has wrong credentials, or asks from a place where a login
// page, or a firewall, answers for the upstream.
func (e *Error) OneNodes() bool {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return e.astray || classOf(e.Status) == artifact.ErrMalformed
}

// Unwrap returns the cause and what e matches.
func (e *Error) Unwrap() []error {
	var list []error
	if c := cmp.Or(e.class, classOf(e.Status)); c != nil {
		list = append(list, c)
	}
	if e.Err != nil {
		list = append(list, e.Err)
	}
	return list
}

// classOf returns what an error of this status matches.
func classOf(status int) error {
	switch {
	case status == 0 || status == http.StatusOK:
		return nil
	case status == http.StatusNotFound || status == http.StatusGone:
		return fs.ErrNotExist
	case status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusUnavailableForLegalReasons:
		return artifact.ErrPolicy
	case status == http.StatusProxyAuthRequired || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500:
		return artifact.ErrUnavailable
	}
	return artifact.ErrMalformed
}

// foreign is the error of an answer that no module proxy gives.
func foreign(source, url, format string, args ...any) *Error {
	e := malformed(source, url, format, args...)
	e.astray = true
	return e
}

// malformed is the error of an answer that is none.
func malformed(source, url, format string, args ...any) *Error {
	return &Error{Source: source, URL: url, Status: http.StatusOK, Err: fmt.Errorf(format, args...), class: artifact.ErrMalformed}
}

// broken is the error of a question that got no whole answer because of err. ctx is the caller's.
func broken(ctx context.Context, source, url string, err error) *Error {
	e := &Error{Source: source, URL: url, Err: err, class: artifact.ErrUnavailable}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Err, e.class = context.Canceled, nil
	case ctx.Err() != nil:
		e.Err = ctx.Err()
	case isTimeout(err) && !errors.Is(err, context.DeadlineExceeded):
		e.Err = fmt.Errorf("%w: %w", err, context.DeadlineExceeded)
	case errors.Is(err, fs.ErrNotExist):
		e.Err = errors.New(err.Error()) // not about the module: must not be taken for its absence
	}
	return e
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// statusError is the error of an answer whose status is not 200. It reads the beginning of the body.
func statusError(source, url string, resp *http.Response, body io.Reader, secrets []string) *Error {
	e := &Error{Source: source, URL: url, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	b, _ := io.ReadAll(io.LimitReader(body, 4<<10)) // a reason cut short is better than none
	reason := plainReason(resp.Header.Get("Content-Type"), b)
	for _, s := range secrets {
		if strings.Contains(reason, s) {
			return e // an upstream that prints our password back
		}
	}
	e.Reason = reason
	return e
}

// retryAfter parses a Retry-After (RFC 9110, section 10.2.3). What is malformed or over is 0; an hour is the most.
func retryAfter(s string, now time.Time) time.Duration {
	d := time.Duration(0)
	if n, err := strconv.Atoi(s); err == nil {
		d = time.Duration(min(n, 3600)) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = t.Sub(now)
	}
	return max(0, min(d, time.Hour))
}

// plainReason returns the first line of a text/plain body, of at most 600 bytes, if all of it is printable. What follows
// is for whoever asks the upstream directly: another mirror says there what to do, and how its log calls the request.
func plainReason(contentType string, body []byte) string {
	t, params, err := mime.ParseMediaType(contentType)
	charset := strings.ToLower(params["charset"])
	if err != nil || t != "text/plain" || charset != "" && charset != "utf-8" && charset != "us-ascii" {
		return ""
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(body), []byte("\n"))
	line = bytes.TrimSpace(line)
	const maxReason = 600
	if len(line) > maxReason {
		line = line[:maxReason]
		for len(line) > 0 && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
		line = line[:max(0, len(line)-1)]
	}
	for _, r := range string(line) {
		if r == utf8.RuneError || !unicode.IsGraphic(r) && r != '\t' {
			return ""
		}
	}
	return string(line)
}
