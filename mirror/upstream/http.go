package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// site is a source behind http or https.
type site struct {
	base    *url.URL // without userinfo
	user    *url.Userinfo
	c       Config
	network *network
	slots   *slots
}

func newSite(u *url.URL, c Config, n *network) *site {
	base := *u
	base.User = nil
	return &site{base: &base, user: u.User, c: c, network: n, slots: n.slotsOf(origin(u), c.MaxPerHost)}
}

func (s *site) String() string { return s.base.String() }
func (s *site) close()         { s.network.close() }

// secrets returns what must stand in no message.
func (s *site) secrets() []string {
	if s.user == nil {
		return nil
	}
	if pw, ok := s.user.Password(); ok && pw != "" {
		return []string{pw}
	}
	return []string{s.user.Username()}
}

// url returns the URL of q, escaped as the go command does it: a "!" is %21 in what is asked of a module proxy and raw
// in what is asked of a checksum database.
func (s *site) url(q question) *url.URL {
	escaped := (&url.URL{Path: q.path}).EscapedPath()
	if q.kind == "sumdb" {
		escaped = strings.ReplaceAll(escaped, "%21", "!")
	}
	u := *s.base
	u.Path = strings.TrimSuffix(s.base.Path, "/") + q.path
	u.RawPath = strings.TrimSuffix(s.base.EscapedPath(), "/") + escaped
	u.RawQuery = q.query
	return &u
}

// open asks once, and once more if the first try met a connection that broke or a gateway without a server behind it:
// both are what a restart of the upstream looks like. The go command does not try again; its users do, by hand.
func (s *site) open(ctx context.Context, q question) (*answer, error) {
	leave, err := s.enter(ctx, q)
	if err != nil {
		return nil, err
	}
	turn := time.Now()
	a, err := s.try(ctx, q, leave)
	if e := (*Error)(nil); err != nil && ctx.Err() == nil && errors.As(err, &e) && e.transient() && sleep(ctx, 50*time.Millisecond+rand.N(200*time.Millisecond)) {
		a, err = s.try(ctx, q, leave)
	}
	if err != nil {
		leave()
		if e := (*Error)(nil); errors.As(err, &e) {
			e.asked = turn
		}
		return nil, err
	}
	return a, nil
}

// transient reports whether the same question may well get an answer at once.
func (e *Error) transient() bool {
	switch {
	case e.Status == http.StatusBadGateway || e.Status == http.StatusServiceUnavailable:
		return e.RetryAfter == 0
	case e.Status != 0:
		return false
	}
	return errors.Is(e.Err, syscall.ECONNRESET) || errors.Is(e.Err, io.EOF) || errors.Is(e.Err, io.ErrUnexpectedEOF)
}

// sleep waits for d and reports whether ctx leaves time for more.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < 2*d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// enter waits for the request's turn. The caller leaves when its body is closed.
func (s *site) enter(ctx context.Context, q question) (leave func(), err error) {
	wait, cancel := context.WithTimeout(ctx, s.turnTimeout(ctx, q))
	defer cancel()
	leave, busy := s.slots.enter(wait, q.kind == "zip")
	if busy == nil {
		return leave, nil
	}
	e := broken(ctx, s.String(), s.url(q).String(), wait.Err())
	if !errors.Is(e.Err, context.Canceled) {
		e.Err = fmt.Errorf("%w: %w", busy, e.Err)
	}
	return nil, e
}

// turnTimeout returns how long to wait for the request's turn. It is our own requests that are in the way, which end; so
// a zip, behind which other zips wait for minutes, is as patient as what has nobody else to ask.
func (s *site) turnTimeout(ctx context.Context, q question) time.Duration {
	if q.kind == "zip" && q.share > 0 && !q.patient {
		return time.Until(q.until)
	}
	return s.headerTimeout(ctx, q)
}

// try sends one request and follows redirects. On success the answer's body calls leave when it is closed; on failure
// the caller does.
func (s *site) try(ctx context.Context, q question, leave func()) (*answer, error) {
	target := s.url(q)
	asked := target.String()
	reqCtx, cancel := context.WithCancelCause(ctx)
	most := s.headerTimeout(ctx, q)
	timer := time.AfterFunc(most, func() {
		cancel(fmt.Errorf("no answer for %v: %w", most.Round(time.Millisecond), context.DeadlineExceeded))
	})
	resp, err := s.follow(reqCtx, target)
	timer.Stop()
	if err != nil {
		if cause := context.Cause(reqCtx); cause != nil {
			err = cause
		}
		cancel(nil)
		if r := (*redirectError)(nil); errors.As(err, &r) {
			return nil, &Error{Source: s.String(), URL: asked, Status: r.status, Err: r.err}
		}
		if err == io.EOF {
			err = fmt.Errorf("closed the connection without an answer: %w", err)
		}
		return nil, broken(ctx, s.String(), asked, err)
	}
	b := &idleBody{ReadCloser: resp.Body, d: s.idleTimeout(q), ctx: reqCtx, done: func() { cancel(nil) }}
	b.timer = time.AfterFunc(b.d, func() {
		cancel(fmt.Errorf("no byte for %v: %w", b.d.Round(time.Millisecond), context.DeadlineExceeded))
	})
	b.timer.Stop() // until the first Read
	if resp.StatusCode != http.StatusOK {
		defer b.Close()
		return nil, statusError(s.String(), asked, resp, b, s.secrets())
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		b.Close()
		return nil, foreign(s.String(), asked, "the answer is encoded as %.20q, which was not asked for", enc)
	}
	b.done = func() { cancel(nil); leave() }
	return &answer{url: asked, contentType: resp.Header.Get("Content-Type"), header: resp.Header, size: resp.ContentLength, body: b}, nil
}

// idleTimeout returns how long to wait for the next byte.
func (s *site) idleTimeout(q question) time.Duration {
	if q.patient || q.share <= 0 {
		return s.c.IdleTimeout
	}
	return min(s.c.IdleTimeout, q.share)
}

// headerTimeout returns how long to wait for the header.
func (s *site) headerTimeout(ctx context.Context, q question) time.Duration {
	if end, ok := ctx.Deadline(); ok && q.patient {
		return time.Until(end) + time.Second // ctx ends first
	}
	if q.patient || q.share <= 0 {
		return s.c.HeaderTimeout
	}
	return min(s.c.HeaderTimeout, time.Until(q.until))
}

// redirectError is a redirect, with this status, that is not followed.
type redirectError struct {
	status int
	err    error
}

func (e *redirectError) Error() string { return e.err.Error() }

// follow sends the request to target and to where redirects lead. Every request is built from nothing. Once a redirect
// has led away from the site's origin, no credentials are sent any more, not even if a later one leads back.
func (s *site) follow(ctx context.Context, target *url.URL) (*http.Response, error) {
	ceiling, away, status := public, false, 0
	for hop := 0; ; hop++ {
		away = away || origin(target) != origin(s.base)
		req := &http.Request{Method: http.MethodGet, URL: target, Header: make(http.Header)}
		req.Header.Set("User-Agent", s.c.UserAgent)
		req.Header.Set("Accept-Encoding", "identity")
		var resp *http.Response
		var err error
		if away {
			resp, err = s.network.roundTripBelow(req.WithContext(ctx), ceiling)
		} else {
			if s.user != nil {
				pw, _ := s.user.Password()
				req.SetBasicAuth(s.user.Username(), pw)
			}
			resp, ceiling, err = s.network.roundTrip(req.WithContext(ctx))
		}
		if errors.Is(err, errInside) {
			return nil, &redirectError{status, fmt.Errorf("a redirect to %s://%s %w", target.Scheme, target.Host, errInside)}
		}
		if err != nil || !isRedirect(resp.StatusCode) {
			return resp, err
		}
		resp.Body.Close()
		status = resp.StatusCode
		next, err := redirectTarget(target, resp.Header.Get("Location"))
		if err == nil && hop == maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			return nil, &redirectError{status, err}
		}
		target = next
	}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirectTarget returns where a Location leads: by https, or on the host and port that an operator gave with http, if
// nothing has led away from there yet. Credentials in it are dropped: nobody but the operator gives us any.
// Its errors name the host only: a Location often holds a signature that is as good as a password.
func redirectTarget(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	switch {
	case err != nil || location == "":
		return nil, errors.New("a redirect without a usable location")
	case to.Scheme != "https" && to.Scheme != "http" || to.Hostname() == "":
		return nil, errors.New("a redirect to something that is not https or http")
	case to.Scheme == "http" && origin(to) != origin(from):
		return nil, fmt.Errorf("a redirect from %s to http://%s: unencrypted, only the upstream's own host and port may follow", from.Scheme, to.Host)
	}
	to.User = nil
	to.Fragment = ""
	return to, nil
}

// origin returns scheme, host and port of u: what a credential is bound to.
func origin(u *url.URL) string {
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port(u)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
