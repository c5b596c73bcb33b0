package statuspage

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

const modulesPrefix = "/modules/"

// pageVersions is how many versions a page of a module has.
const pageVersions = 20

// versions is the data of a module's page.
type versions struct {
	frame
	Path     string
	Total    int
	From     int // number of the first that is shown, from 1
	Versions []Version
	Next     string // the first version of the next page; "": that was all
}

// modulePage is where the page of a module is.
func modulePage(path string) string {
	p, err := module.EscapePath(path)
	if err != nil {
		return "/search"
	}
	return modulesPrefix + p
}

// fileOf is where the mirror serves a file of m.
func fileOf(m module.Version, ext string) string {
	path, version, ok := strings.Cut(escaped(m), "@")
	if !ok {
		return "/"
	}
	return "/" + path + "/@v/" + version + "." + ext
}

// ModuleOf returns the path of the module whose page has the escaped path of a URL. It says no to what is no such page.
func ModuleOf(escapedPath string) (path string, ok bool) {
	rest, ok := strings.CutPrefix(escapedPath, modulesPrefix)
	if !ok || len(rest) > maxKey {
		return "", false
	}
	p, err := url.PathUnescape(rest)
	if err == nil {
		path, err = module.UnescapePath(p)
	}
	return path, err == nil
}

func (p *Page) serveModule(w http.ResponseWriter, r *http.Request, _ string) error {
	path, ok := ModuleOf(r.URL.EscapedPath())
	if !ok {
		return badRequest("that is not an escaped module path: a capital letter is written as ! and a small one")
	}
	from := r.URL.Query().Get("from")
	if len(from) > maxQuery {
		return badRequest("that is longer than a version")
	}
	if p.config.Private(path) { // as of a module that nobody has heard of
		return notFound("nothing of %s is held here", path)
	}
	ctx, done, err := p.look(r)
	if err != nil {
		return err
	}
	defer done()
	all, err := p.config.Source.Versions(ctx, path)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return notFound("nothing of %s is held here", path)
	}
	data := versions{frame: p.frame(r, path+": modmirror"), Path: path, Total: len(all)}
	data.Query = path
	page, err := data.cut(ctx, all, from)
	if err != nil {
		return err
	}
	if data.Versions, err = p.config.Source.Describe(ctx, path, page); err != nil {
		return err
	}
	return p.send(w, r, http.StatusOK, "module", data)
}

// cut returns the page of all that begins with version from, newest first: that of the oldest if all are newer. There may be
// hundreds of thousands, so that they are not all sorted, and it ends with ctx.
func (d *versions) cut(ctx context.Context, all []string, from string) ([]string, error) {
	var page []string // the newest so far, in order; one more than a page has
	oldest := all[0]
	d.From = 1
	for i, v := range all {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if newest(v, oldest) < 0 {
			oldest = v
		}
		switch {
		case from != "" && newest(v, from) > 0:
			d.From++
			continue
		case len(page) > pageVersions && newest(v, page[pageVersions]) < 0:
			continue
		}
		at, _ := slices.BinarySearchFunc(page, v, func(a, b string) int { return newest(b, a) })
		page = slices.Insert(page, at, v)
		page = page[:min(len(page), pageVersions+1)]
	}
	if len(page) == 0 {
		d.From--
		return []string{oldest}, nil
	}
	if len(page) > pageVersions {
		d.Next = page[pageVersions]
		page = page[:pageVersions]
	}
	return page, nil
}

// newest orders versions; those that differ in their build only, too.
func newest(a, b string) int {
	if c := semver.Compare(a, b); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
