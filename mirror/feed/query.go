package feed

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"modmirror/mirror/artifact"
)

// Bounds of a query.
const (
	MaxLimit = 2000
	MaxWait  = time.Minute
)

// Query is what a feed is asked for.
type Query struct {
	Since time.Time     // entries of this time or later; zero: all
	Limit int           // how many at most; 0: MaxLimit
	Wait  time.Duration // how long to wait for one if there is none
	Parts bool          // entries have their parts
}

// ParseQuery parses the query of a URL. An error says what is wrong, and matches [artifact.ErrMalformed].
func ParseQuery(raw string) (q Query, err error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return q, malformed("the query is not properly encoded")
	}
	for name, set := range map[string]func(string) error{"since": q.setSince, "limit": q.setLimit, "wait": q.setWait, "parts": q.setParts} {
		switch all := values[name]; {
		case len(all) > 1:
			return Query{}, malformed("%s is given %d times", name, len(all))
		case len(all) == 1 && all[0] != "":
			if err := set(all[0]); err != nil {
				return Query{}, err
			}
		}
	}
	return q, nil
}

func (q *Query) setSince(s string) (err error) {
	if q.Since, err = time.Parse(time.RFC3339Nano, s); err != nil || q.Since.IsZero() {
		return malformed("since is %.100q; want a time as in RFC 3339, such as 2019-04-10T19:08:52.997264Z", s)
	}
	q.Since = q.Since.UTC()
	return nil
}

func (q *Query) setLimit(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxLimit {
		return malformed("limit is %.100q; want a number from 1 to %d", s, MaxLimit)
	}
	q.Limit = n
	return nil
}

func (q *Query) setWait(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > MaxWait {
		return malformed("wait is %.100q; want a time of at most %v, such as 30s", s, MaxWait)
	}
	q.Wait = d
	return nil
}

func (q *Query) setParts(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return malformed("parts is %.100q; want 1 or 0", s)
	}
	q.Parts = b
	return nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, artifact.ErrMalformed)...)
}

// Encode returns the query as it stands in a URL.
func (q Query) Encode() string {
	v := url.Values{}
	if !q.Since.IsZero() {
		v.Set("since", Format(q.Since))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Wait > 0 {
		v.Set("wait", q.Wait.String())
	}
	if q.Parts {
		v.Set("parts", "1")
	}
	return v.Encode()
}

func (q Query) limit() int {
	if q.Limit == 0 {
		return MaxLimit
	}
	return q.Limit
}
