package feed

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Headers of an answer.
const (
	HeaderID      = "Modmirror-Feed-Id"
	HeaderThrough = "Modmirror-Feed-Through"
	HeaderBehind  = "Modmirror-Feed-Behind"
)

// Entry is one line of a feed.
type Entry struct {
	Path      string
	Version   string
	Timestamp time.Time
	Parts     []string `json:",omitempty"` // info, mod, zip; nil: the feed does not say
}

// EntryOf returns the entry of a change, with its parts if they were asked for.
func EntryOf(c artifact.Change, parts bool) Entry {
	e := Entry{Path: c.Manifest.Module.Path, Version: c.Manifest.Module.Version, Timestamp: c.At.UTC()}
	for _, k := range kinds {
		if parts && !c.Manifest.Ref(k).IsZero() {
			e.Parts = append(e.Parts, k.String())
		}
	}
	return e
}

var kinds = []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip}

// AppendTo appends the line of e.
func (e Entry) AppendTo(b []byte) ([]byte, error) {
	line, err := json.Marshal(e)
	if err != nil {
		return b, err
	}
	return append(append(b, line...), '\n'), nil
}

// Module returns which version it is about.
func (e Entry) Module() module.Version { return module.Version{Path: e.Path, Version: e.Version} }

// Kinds returns what is published of the version; all, if the feed does not say.
func (e Entry) Kinds() (list []artifact.Kind) {
	if e.Parts == nil {
		return kinds
	}
	for _, k := range kinds {
		if slices.Contains(e.Parts, k.String()) {
			list = append(list, k)
		}
	}
	return list
}

const (
	maxLine = 8 << 10
	maxPage = MaxLimit * 4 << 10 // bytes of an answer; a path has at most 2 KiB, most have 50 bytes
)

// parsePage parses the body of an answer to q. What a feed may not send, such as entries out of order, is an error that
// matches [artifact.ErrMalformed]: to go on from there might pass over something.
func parsePage(body io.Reader, q Query) (list []Entry, err error) {
	s := bufio.NewScanner(body)
	s.Buffer(make([]byte, 0, 4<<10), maxLine)
	last := q.Since
	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) == 0 {
			continue
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("line %d of the feed, %.100q, is not an entry: %w", len(list)+1, line, artifact.ErrMalformed)
		}
		e.Timestamp = e.Timestamp.UTC()
		if e.Timestamp.Before(last) {
			return nil, fmt.Errorf("line %d of the feed is of %s, after %s: it is out of order: %w", len(list)+1, Format(e.Timestamp), Format(last), artifact.ErrMalformed)
		}
		if last = e.Timestamp; len(list) == q.limit() {
			return nil, fmt.Errorf("the feed has more than the %d entries that were asked for: %w", q.limit(), artifact.ErrMalformed)
		}
		list = append(list, e)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read the feed: %w", err)
	}
	return list, nil
}

// Format prints a time as feeds do.
func Format(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// FormatSet returns a time for people; "the beginning" if it is none.
func FormatSet(t time.Time) string {
	if t.IsZero() {
		return "the beginning"
	}
	return Format(t.Truncate(time.Second))
}
