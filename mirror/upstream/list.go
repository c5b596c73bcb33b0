package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	pathpkg "path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// List is a GOPROXY list. It may be used by many goroutines.
type List struct {
	entries []*Entry
	off     bool  // after the entries, "off"
	offline error // what everything answers, if not nil
	log     *slog.Logger
	metrics *metrics
	network *network
}

// Entry is one proxy of a list.
type Entry struct {
	src      *watched
	fallback bool // followed by "|": any error leads to the next
	metrics  *metrics
}

// Parse returns the list that goproxy describes, in the syntax and with the meaning of the go command's GOPROXY.
// Its errors print no entry's URL, which may hold a password.
func Parse(goproxy string, c Config) (*List, error) {
	c = c.withDefaults()
	l := &List{log: c.Log, metrics: newMetrics(c.Metrics), network: newNetwork(c)}
	direct := false
	for i, rest := 1, goproxy; rest != "" && !direct && !l.off; i++ {
		var raw string
		e := &Entry{metrics: l.metrics}
		if at := strings.IndexAny(rest, ",|"); at >= 0 {
			raw, e.fallback, rest = rest[:at], rest[at] == '|', rest[at+1:]
		} else {
			raw, rest = rest, ""
		}
		switch raw = strings.TrimSpace(raw); raw {
		case "":
			continue
		case "off":
			l.off = true
			continue
		case "direct":
			direct = true
			continue
		}
		src, err := newSource(withScheme(raw), c, l.network)
		if err != nil {
			return nil, fmt.Errorf("entry %d of the upstream list %w", i, err)
		}
		e.src = &watched{source: src}
		l.entries = append(l.entries, e)
	}
	switch {
	case len(l.entries) > 0 || l.off:
	case direct:
		return nil, errors.New(`the upstream list has nothing in front of "direct", but this mirror does not fetch from version control: put the URL of a module proxy there`)
	default:
		return nil, errors.New("the upstream list is empty: name a module proxy as in GOPROXY, such as https://proxy.example.com, or run offline")
	}
	if direct {
		c.Log.Info(`"direct" in the upstream list is skipped: this mirror fetches from module proxies only`, "upstream", l.String())
	}
	return l, nil
}

// withScheme adds the https:// that a bare host lacks, as the go command does.
func withScheme(raw string) string {
	if strings.ContainsAny(raw, ".:/") && !strings.Contains(raw, ":/") && !filepath.IsAbs(raw) && !pathpkg.IsAbs(raw) {
		return "https://" + raw
	}
	return raw
}

// Offline returns a list that asks nobody: everything fails with [ErrOffline].
func Offline() *List { return &List{offline: ErrOffline} }

// Close ends the idle connections. The list may still be used.
func (l *List) Close() {
	if l.network != nil {
		l.network.close()
	}
}

// String returns the list without credentials.
func (l *List) String() string {
	if l.offline != nil {
		return "offline"
	}
	var b strings.Builder
	for i, e := range l.entries {
		b.WriteString(e.String())
		if i+1 < len(l.entries) || l.off {
			b.WriteByte(map[bool]byte{false: ',', true: '|'}[e.fallback])
		}
	}
	if l.off {
		b.WriteString("off")
	}
	return b.String()
}

// Entries returns the proxies, in order.
func (l *List) Entries() []*Entry { return append([]*Entry(nil), l.entries...) }

// Fetch hands artifact k of m to accept, from the first source whose bytes accept takes.
//
// Accept reads the body and checks it; size is what the source declares, or -1; source names it, without secrets. If
// accept returns an error that matches [artifact.ErrRefused] or [artifact.ErrMalformed], the source has the wrong bytes
// and the next one is asked, whatever the list says; if none is better, that error is the result. If reading the body
// fails, the source was unavailable, whatever accept returns. Any other error of accept's is its own and the result.
func (l *List) Fetch(ctx context.Context, m module.Version, k artifact.Kind, accept func(body io.Reader, size int64, source string) error) error {
	path, err := escape(m.Path, m.Version, "."+k.String())
	if err != nil {
		return err
	}
	q := question{kind: k.String(), path: path, limit: k.Limit(), text: k == artifact.Info}
	return l.walk(ctx, q, true, func(e *Entry, body io.Reader, size int64) error { return accept(body, size, e.String()) })
}

// Versions returns the body of path's /@v/list.
func (l *List) Versions(ctx context.Context, path string) ([]byte, error) {
	p, err := module.EscapePath(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return l.small(ctx, question{kind: "list", path: "/" + p + "/@v/list", limit: maxList, text: true})
}

// Latest returns the body of path's /@latest.
func (l *List) Latest(ctx context.Context, path string) ([]byte, error) {
	p, err := module.EscapePath(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return l.small(ctx, question{kind: "latest", path: "/" + p + "/@latest", limit: artifact.MaxInfo, text: true})
}

// Query returns the info of what a branch, tag, commit or version prefix means now.
func (l *List) Query(ctx context.Context, path, query string) ([]byte, error) {
	p, err := escape(path, query, ".info")
	if err != nil {
		return nil, err
	}
	return l.small(ctx, question{kind: "query", path: p, limit: artifact.MaxInfo, text: true})
}

// escape returns the URL path of a file of a version. What has no such path cannot exist at any proxy.
func escape(path, version, ext string) (string, error) {
	p, err := module.EscapePath(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	v, err := module.EscapeVersion(version)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return "/" + p + "/@v/" + v + ext, nil
}

func (l *List) small(ctx context.Context, q question) (b []byte, err error) {
	err = l.walk(ctx, q, false, func(_ *Entry, body io.Reader, _ int64) (err error) {
		b, err = io.ReadAll(body)
		return err
	})
	return b, err
}

// How telling an error is; the most telling of a walk is its result. Of two equally telling ones the later counts, as
// in the go command, but the first refusal.
const (
	absent = iota
	failed
	rubbish
	refused
)

// walk asks the entries in turn. With verified, an answer that is not what was asked for condemns its source, and the
// next is asked whatever the list says: what is checked later cannot come from the wrong one.
func (l *List) walk(ctx context.Context, q question, verified bool, use func(e *Entry, body io.Reader, size int64) error) error {
	if l.offline != nil {
		return l.offline
	}
	best, bestRank := error(nil), absent
	for i, e := range l.entries {
		left := len(l.entries) - i
		if q.patient = !e.fallback || left == 1; !q.patient {
			q.share = shareOf(ctx, left)
			q.until = time.Now().Add(q.share)
		}
		err := ask(ctx, e.src, l.metrics, q, func(body io.Reader, size int64) error { return use(e, body, size) })
		if err == nil {
			return nil
		}
		rank, own := rankOf(err)
		if own != nil {
			return own
		}
		if rank >= rubbish {
			l.log.Warn("upstream answered wrongly", "upstream", e.String(), "kind", q.kind, "err", unwrapUse(err))
		}
		if rank > bestRank || best == nil || rank == bestRank && rank <= failed {
			best, bestRank = unwrapUse(err), rank
		}
		goOn := rank == absent || e.fallback || rank >= rubbish && verified
		if !goOn || ctx.Err() != nil {
			return best
		}
	}
	if best == nil {
		return errOff // nothing but "off"
	}
	return best
}

// shareOf returns the part of the time left for the next of so many entries; 0 if there is no end to it.
func shareOf(ctx context.Context, entries int) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return time.Until(end) / time.Duration(entries)
	}
	return 0
}

// rankOf returns how telling err is. If it is an error of the caller's own, not of the source's, it returns it as own.
func rankOf(err error) (rank int, own error) {
	var u *useError
	isUse := errors.As(err, &u)
	var e *Error
	switch {
	case errors.Is(err, artifact.ErrRefused):
		return refused, nil
	case errors.Is(err, artifact.ErrMalformed) && (isUse || errors.As(err, &e) && e.Status == 200):
		return rubbish, nil
	case isUse && errors.Is(u.error, fs.ErrNotExist):
		return 0, fmt.Errorf("%v: %w", u.error, artifact.ErrUnavailable) // a missing directory of ours is no missing module
	case isUse:
		return 0, u.error
	case errors.Is(err, fs.ErrNotExist):
		return absent, nil
	}
	return failed, nil
}

func unwrapUse(err error) error {
	if u := (*useError)(nil); errors.As(err, &u) {
		return u.error
	}
	return err
}

// String returns the entry's URL without credentials.
func (e *Entry) String() string { return e.src.String() }

// Get returns the answer to a GET of a path below the proxy's URL, such as "/sumdb/sum.golang.org/latest", of at most
// limit bytes. The path is as in [url.URL.Path]. Without an error the status was 200.
func (e *Entry) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	return e.Below("").Get(ctx, path, limit)
}

// Below returns what lies below a path of the proxy, such as "/sumdb/sum.golang.org".
func (e *Entry) Below(prefix string) *Site {
	return &Site{src: e.src, prefix: strings.TrimSuffix(prefix, "/"), metrics: e.metrics}
}

// Site is a place below a base URL that can be asked for paths. It serves a checksum database as its source.
type Site struct {
	src     source
	prefix  string
	metrics *metrics
}

// NewSite returns the site at a base URL of scheme https, http or file, with optional credentials.
func NewSite(rawURL string, c Config) (*Site, error) {
	c = c.withDefaults()
	src, err := newSource(withScheme(strings.TrimSpace(rawURL)), c, newNetwork(c))
	if err != nil {
		return nil, fmt.Errorf("the given address %w", err)
	}
	return &Site{src: src, metrics: newMetrics(c.Metrics)}, nil
}

// Close ends the idle connections. The site may still be used.
func (s *Site) Close() { s.src.close() }

// String returns the site's URL without credentials.
func (s *Site) String() string { return strings.TrimSuffix(s.src.String(), "/") + s.prefix }

// Get returns the answer to a GET of a path below the site, of at most limit bytes. See [Entry.Get].
func (s *Site) Get(ctx context.Context, path string, limit int64) (b []byte, err error) {
	return s.get(ctx, question{kind: "sumdb", path: path, limit: limit})
}

// Ask is Get with the encoded query of a URL, and returns the header of the answer, which a file does not have.
func (s *Site) Ask(ctx context.Context, path, query string, limit int64) (b []byte, h http.Header, err error) {
	b, err = s.get(ctx, question{kind: "index", path: path, query: query, limit: limit, header: &h})
	return b, h, err
}

func (s *Site) get(ctx context.Context, q question) (b []byte, err error) {
	full := s.prefix + q.path
	if !strings.HasPrefix(q.path, "/") || pathpkg.Clean(full) != full {
		return nil, fmt.Errorf("%s: malformed path %.100q: %w", s, q.path, artifact.ErrMalformed)
	}
	q.path, q.text, q.patient = full, true, true
	err = ask(ctx, s.src, s.metrics, q, func(body io.Reader, _ int64) (err error) {
		b, err = io.ReadAll(body)
		return err
	})
	return b, err
}
