package feed

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Source is a mirror, or the public index, whose feed is followed.
type Source interface {
	// Ask returns the body of the answer to a GET of a path with a query, of at most limit bytes, and its header. An error
	// means that there is no good answer.
	Ask(ctx context.Context, path, query string, limit int64) ([]byte, http.Header, error)
	// String returns the URL, without credentials.
	String() string
}

// path is where a mirror, or the public index, has its feed.
const path = "/index"

// page is an answer of a feed.
type page struct {
	entries []Entry
	id      string    // of the cluster whose feed it is; "": the source does not say, and is no mirror
	through time.Time // it is complete up to then; zero: the source does not say
	behind  int64     // changes that come after it; -1: the source does not say
	full    bool      // there may be more
}

// read asks for a page.
func read(ctx context.Context, src Source, q Query) (p page, err error) {
	body, h, err := src.Ask(ctx, path, q.Encode(), maxPage)
	if err != nil {
		return p, err
	}
	if p.entries, err = parsePage(bytes.NewReader(body), q); err != nil {
		return p, err
	}
	p.id, p.behind, p.full = h.Get(HeaderID), -1, len(p.entries) == q.limit()
	if len(p.id) > maxID {
		return p, malformed("the feed is of %.100q", p.id)
	}
	if s := h.Get(HeaderThrough); s != "" {
		if p.through, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return p, malformed("the feed is complete through %.100q", s)
		}
	}
	if s := h.Get(HeaderBehind); s != "" {
		if p.behind, err = strconv.ParseInt(s, 10, 64); err != nil || p.behind < 0 {
			return p, malformed("%.100q changes are behind the answer of the feed", s)
		}
	}
	return p, nil
}

const maxID = 256

// atEnd reports whether there was nothing after the page when it was made.
func (p page) atEnd() bool { return p.behind == 0 || p.behind < 0 && !p.full }

// end returns the time from which to ask for the next page. Times of a mirror are in whole microseconds and never equal, so
// that is behind the last entry. Of another source it is the last entry's, which then comes again, as others may have the same
// time; only if a whole page has none other, behind it.
func (p page) end(since time.Time) time.Time {
	if len(p.entries) == 0 {
		return since
	}
	last := p.entries[len(p.entries)-1].Timestamp
	if p.id != "" || p.full && !last.After(since) {
		return last.Add(time.Microsecond)
	}
	return last
}

func (p page) String() string {
	return fmt.Sprintf("%d entries, %d behind, through %s", len(p.entries), p.behind, Format(p.through))
}
