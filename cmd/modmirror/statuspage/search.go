package statuspage

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/mod/module"
)

const (
	maxQuery   = 200   // bytes
	pageRows   = 50    // modules on a page of results
	scanPage   = 1000  // module paths that are read from the catalog at a time
	maxScanned = 20000 // module paths that are looked at for one page, which takes 0.1 to 0.3 s where two processors have other things to do
)

// found is a page of results. Paths that begin with the text come first, in order; they are found by a seek, however many modules
// there are. Then come those that have it elsewhere, in either case, for which the paths have to be looked at one by one: so many
// of them for one page, and from where that ended for the next.
type found struct {
	Prefix, Within []string
	Scanned        int64  // paths that were looked at
	Next           string // from where the next page goes on; "": that was all
}

// Where a page of results begins: "p" and "w" say in which half, and what follows is the last path of the page before.
const (
	inPrefix = "p"
	inWithin = "w"
)

// search looks for q, from where from says.
func (p *Page) search(ctx context.Context, q, from string) (f found, err error) {
	after, within := strings.CutPrefix(from, inWithin)
	if !within {
		var more bool
		f.Prefix, more, err = p.beginning(ctx, q, strings.TrimPrefix(from, inPrefix))
		if err != nil {
			return f, err
		}
		if more {
			f.Next = inPrefix + f.Prefix[len(f.Prefix)-1]
			return f, nil
		}
		after = ""
	}
	return f, p.having(ctx, q, after, &f)
}

// beginning returns a page of paths that begin with q, and whether there are more. Those that are private are passed over without
// a word, so a page may have fewer than there is room for.
func (p *Page) beginning(ctx context.Context, q, after string) (out []string, more bool, err error) {
	for range maxScanned / scanPage {
		paths, err := p.config.Source.Modules(ctx, q, after, scanPage)
		if err != nil {
			return nil, false, err
		}
		for _, path := range paths {
			if after = path; p.config.Private(path) {
				continue
			}
			if len(out) == pageRows {
				return out, true, nil
			}
			out = append(out, path)
		}
		if len(paths) < scanPage {
			return out, false, nil
		}
	}
	return out, len(out) > 0, nil
}

// having adds to f paths that have q in them, but not at the beginning. Where it stops is named to whoever asked, so it stops only
// at a path that may be.
func (p *Page) having(ctx context.Context, q, after string, f *found) error {
	low := strings.ToLower(q)
	for {
		paths, err := p.config.Source.Modules(ctx, "", after, scanPage)
		if err != nil {
			return err
		}
		for _, path := range paths {
			after = path
			f.Scanned++
			if strings.HasPrefix(path, q) || !strings.Contains(strings.ToLower(path), low) || p.config.Private(path) {
				continue
			}
			f.Within = append(f.Within, path)
			if len(f.Prefix)+len(f.Within) >= pageRows {
				f.Next = inWithin + after
				return nil
			}
		}
		if len(paths) < scanPage {
			return nil
		}
		if f.Scanned < maxScanned {
			continue
		}
		for _, path := range slices.Backward(paths) {
			if !p.config.Private(path) {
				f.Next = inWithin + path
				return nil
			}
		}
	}
}

// results is the data of the page of results.
type results struct {
	frame
	found
	Stopped bool // it ends because enough was looked at, not because enough was found
}

func (p *Page) serveSearch(w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	q, from := wanted(v.Get("q")), v.Get("from")
	if len(q) > maxQuery || len(from) > maxKey {
		return badRequest("that is longer than the path of a module: at most %d bytes are looked for", maxQuery)
	}
	data := results{frame: p.frame(r, "Search: modmirror")}
	data.Query = q
	if q == "" {
		return p.send(w, r, http.StatusOK, "search", data)
	}
	ctx, done, err := p.look(r)
	if err != nil {
		return err
	}
	defer done()
	if data.found, err = p.search(ctx, q, from); err != nil {
		return err
	}
	data.Title = q + ": modmirror"
	data.Stopped = data.Next != "" && len(data.Prefix)+len(data.Within) < pageRows
	return p.send(w, r, http.StatusOK, "search", data)
}

// maxKey bounds where a page begins: a letter and a module path.
const maxKey = 2 << 10

// wanted is what somebody looks for who pastes path@version, a URL, or a line of a go.mod.
func wanted(q string) string {
	q = strings.TrimSpace(q)
	q = strings.TrimPrefix(strings.TrimPrefix(q, "https://"), "http://")
	q, _, _ = strings.Cut(q, " ")
	q, _, _ = strings.Cut(q, "@")
	return q
}

// escaped is how paths of URLs have m.
func escaped(m module.Version) string {
	path, err1 := module.EscapePath(m.Path)
	version, err2 := module.EscapeVersion(m.Version)
	if err1 != nil || err2 != nil {
		return ""
	}
	return path + "@" + version
}
