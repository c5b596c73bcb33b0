package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// question is one thing to ask of a source.
type question struct {
	kind    string       // for metrics: list, latest, query, info, mod, zip, sumdb, index
	path    string       // below the source's base; begins with a slash, is not percent-encoded
	query   string       // of the URL, encoded
	limit   int64        // bytes
	text    bool         // an answer of HTML is none
	header  *http.Header // what is set to that of a good answer; may be nil
	patient bool         // nobody else is asked if this takes long: wait as long as ctx

	share time.Duration // unless patient: of the time that ctx had left, what the source may take to begin; 0: ctx has no end
	until time.Time     // when the share is over
}

// answer is the beginning of a good answer. The body is not read yet.
type answer struct {
	url         string // what was asked, without secrets
	contentType string
	header      http.Header // nil of a file
	size        int64       // -1 if unknown
	body        io.ReadCloser
}

// source is one place that can be asked.
type source interface {
	// open asks. The caller closes the answer's body; ctx must not end before. An error is an *Error.
	open(ctx context.Context, q question) (*answer, error)
	String() string // the URL without secrets
	close()
}

// ask asks src and hands the answer to use, which need not read it all. If use fails because the body does, that is an
// error of the source's, and an *Error. Else it is use's own error, inside of a *useError.
func ask(ctx context.Context, src source, m *metrics, q question, use func(body io.Reader, size int64) error) (err error) {
	done := m.start(q.kind)
	var b body
	defer func() { done(b.n, err) }()

	a, err := src.open(ctx, q)
	if err != nil {
		return err
	}
	defer a.body.Close()
	if t, _, _ := mime.ParseMediaType(a.contentType); q.text && t == "text/html" {
		return foreign(src.String(), a.url, "the answer is a page of HTML")
	}
	if a.size > q.limit {
		return malformed(src.String(), a.url, "the answer has %d bytes, more than %d", a.size, q.limit)
	}
	if q.header != nil {
		*q.header = a.header
	}
	b = body{ctx: ctx, src: a.body, source: src.String(), url: a.url, size: a.size, limit: q.limit}
	err = use(&b, a.size)
	switch {
	case err == nil:
		return nil
	case b.err != nil:
		return b.err
	}
	return &useError{err}
}

// useError is an error of whoever uses an answer.
type useError struct{ error }

func (e *useError) Unwrap() error { return e.error }

// body holds an answer's body to its limits. It remembers the error, so that a read error is told apart from an error of
// the reader's own.
type body struct {
	ctx         context.Context
	src         io.Reader
	source, url string
	size, limit int64
	n           int64
	err         *Error
}

// Read reads from the body. Every error but io.EOF is an *Error.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.src.Read(p)
	b.n += int64(n)
	switch {
	case b.n > b.limit:
		b.err = malformed(b.source, b.url, "the answer has more than %d bytes", b.limit)
	case b.size >= 0 && b.n > b.size:
		b.err = broken(b.ctx, b.source, b.url, fmt.Errorf("the answer has more than the %d bytes it declares", b.size))
	case err == io.EOF && b.size >= 0 && b.n < b.size:
		b.err = broken(b.ctx, b.source, b.url, fmt.Errorf("the answer ends after %d of %d bytes: %w", b.n, b.size, io.ErrUnexpectedEOF))
	case err != nil && err != io.EOF:
		b.err = broken(b.ctx, b.source, b.url, fmt.Errorf("after %d bytes: %w", b.n, err))
	default:
		return n, err
	}
	return 0, b.err
}

// newSource returns the source of a URL. Its errors do not print the URL: it may hold a password.
func newSource(raw string, c Config, n *network) (source, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	switch {
	case u.Scheme == "file":
		if *u != (url.URL{Scheme: u.Scheme, Path: u.Path, RawPath: u.RawPath}) || u.Path == "" {
			return nil, fmt.Errorf("is a file:// URL with more than a path, such as file:///srv/modules")
		}
		return files{dir: filepath.FromSlash(u.Path), name: u.String()}, nil
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("has not the scheme https, http or file")
	case u.Hostname() == "":
		return nil, errors.New("has no host")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, errors.New("has a query or a fragment")
	case u.User != nil && u.Scheme == "http" && !isLoopbackHost(u.Hostname()):
		return nil, fmt.Errorf("has credentials for http://%s, which would send them unencrypted: use https", u.Host)
	}
	if addr, ok := isSelf(u, c.Self); ok {
		return nil, fmt.Errorf("is this mirror itself, which listens at %s", addr)
	}
	return newSite(u, c, n), nil
}

// files is a GOPROXY tree in a directory. The directory is opened for every question: it may be a mount that comes and goes.
type files struct{ dir, name string }

func (f files) String() string { return f.name }
func (files) close()           {}

func (f files) open(ctx context.Context, q question) (*answer, error) {
	name := strings.TrimSuffix(f.name, "/") + q.path
	if ctx.Err() != nil {
		return nil, broken(ctx, f.name, name, ctx.Err())
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, broken(ctx, f.name, name, err) // also if it does not exist: an empty mount point proves no absence
	}
	defer root.Close()
	rel := filepath.FromSlash(strings.TrimPrefix(q.path, "/"))
	info, err := root.Stat(rel)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENAMETOOLONG) {
		return nil, &Error{Source: f.name, URL: name, Status: http.StatusNotFound}
	}
	if err != nil {
		return nil, broken(ctx, f.name, name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, malformed(f.name, name, "is not a regular file")
	}
	file, err := root.Open(rel)
	if err != nil {
		return nil, broken(ctx, f.name, name, err)
	}
	if info, err = file.Stat(); err != nil {
		file.Close()
		return nil, broken(ctx, f.name, name, err)
	}
	return &answer{url: name, size: info.Size(), body: file}, nil
}

// idleBody ends a read that gets no byte for d, and a body that comes more slowly than minRate. The time that the reader
// needs for itself does not count.
type idleBody struct {
	io.ReadCloser
	d     time.Duration
	timer *time.Timer // calls cancel
	ctx   context.Context
	done  func()

	waited time.Duration // for n bytes, since the rate was last looked at
	n      int
}

func (b *idleBody) Read(p []byte) (int, error) {
	begin := time.Now()
	b.timer.Reset(b.d)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	if err == nil {
		err = b.account(n, time.Since(begin))
	}
	return n, err
}

// account notes that n bytes took so long. A sender that drips holds a slot as one that is silent does.
func (b *idleBody) account(n int, took time.Duration) error {
	b.n += n
	b.waited += took
	if b.waited < rateTime {
		return nil
	}
	if float64(b.n) < minRate*b.waited.Seconds() {
		return fmt.Errorf("too slow: %d bytes in %v: %w", b.n, b.waited.Round(time.Second), context.DeadlineExceeded)
	}
	b.n, b.waited = 0, 0
	return nil
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.done()
	return err
}
