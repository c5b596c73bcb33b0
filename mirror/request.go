package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Op says what a [Request] asks for.
type Op uint8

// What the GOPROXY protocol can be asked (go.dev/ref/mod#goproxy-protocol).
const (
	OpList     Op = iota + 1 // /@v/list: the versions of a module
	OpLatest                 // /@latest: the info of the version to take if none is listed
	OpArtifact               // /@v/V.info, .mod or .zip of a canonical version V: immutable
	OpQuery                  // /@v/Q.info of anything else, a branch say: resolves to the info of a version
)

// Request is what the path of a URL asks for.
type Request struct {
	Op         Op
	Module     module.Version // the version is empty for OpList and OpLatest, a query for OpQuery
	Kind       artifact.Kind  // for OpArtifact
	CachedOnly bool           // the path began with /cached-only: answer from what is held, never fetch
}

// ErrBadRequest means that a path is not one that a client of the protocol sends.
var ErrBadRequest = errors.New("bad request")

// maxPath bounds the path of a request, in bytes.
const maxPath = 2 << 10

const cachedOnly = "/cached-only"

// ParseRequest parses the escaped path of a URL ([net/url.URL.EscapedPath]), such as
//
//	/github.com/!burnt!sushi/toml/@v/v0.3.1.zip
//
// "!" may be written as "%21", as the go command does, and "+" is itself. The module path is what stands before the
// last "/@v/". An error matches [io/fs.ErrNotExist] if the path is well-formed and nothing can exist there, as with the
// zip of a branch, and [ErrBadRequest] if it is not. Neither says anything about any module.
func ParseRequest(escapedPath string) (Request, error) {
	p, err := decodePath(escapedPath)
	if err != nil {
		return Request{}, err
	}
	var req Request
	if rest, ok := strings.CutPrefix(p, cachedOnly+"/"); ok {
		req.CachedOnly = true
		p = p[len(p)-len(rest)-1:]
	}
	if mod, ok := strings.CutSuffix(p, "/@latest"); ok {
		req.Op = OpLatest
		req.Module.Path, err = parseModulePath(mod)
		return req.orZero(err)
	}
	i := strings.LastIndex(p, "/@v/")
	if i < 0 {
		return Request{}, notExist("there is no page %q here, and no module path without /@v/ or /@latest", p)
	}
	if req.Module.Path, err = parseModulePath(p[:i]); err != nil {
		return Request{}, err
	}
	return req.orZero(req.parseFile(p[i+len("/@v/"):]))
}

// parseFile parses what follows "/@v/".
func (r *Request) parseFile(file string) error {
	if file == "list" {
		r.Op = OpList
		return nil
	}
	dot := strings.LastIndexByte(file, '.')
	if dot < 0 {
		return notExist("%q is not list, .info, .mod or .zip", file)
	}
	switch file[dot+1:] {
	case "info":
		r.Kind = artifact.Info
	case "mod":
		r.Kind = artifact.Mod
	case "zip":
		r.Kind = artifact.Zip
	default:
		return notExist("%q is not list, .info, .mod or .zip", file)
	}
	escaped := file[:dot]
	if c := upper(escaped); c != 0 {
		return notExist("version %q is not escaped: write !%c for %c", escaped, c|0x20, c)
	}
	version, err := module.UnescapeVersion(escaped)
	if err != nil || strings.HasPrefix(version, "-") {
		return badRequest("%q is not an escaped version", escaped)
	}
	r.Module.Version = version
	if canonical(r.Module) {
		r.Op = OpArtifact
		return nil
	}
	if r.Kind != artifact.Info {
		return notExist("version %q is not canonical for %s: only its .info can be asked for", version, r.Module.Path)
	}
	switch version {
	case "latest", "upgrade", "patch": // these have a meaning to the go command, which asks for list and @latest
		return notExist("the query %q is resolved by the client", version)
	}
	r.Op, r.Kind = OpQuery, 0
	return nil
}

func (r Request) orZero(err error) (Request, error) {
	if err != nil {
		return Request{}, err
	}
	return r, nil
}

// Path returns the escaped path that asks for r, in the one form that this package uses as a key.
func (r Request) Path() string {
	path, err := module.EscapePath(r.Module.Path)
	if err != nil {
		return ""
	}
	if r.CachedOnly {
		path = cachedOnly[1:] + "/" + path
	}
	switch r.Op {
	case OpList:
		return "/" + path + "/@v/list"
	case OpLatest:
		return "/" + path + "/@latest"
	}
	version, err := module.EscapeVersion(r.Module.Version)
	if err != nil {
		return ""
	}
	kind := r.Kind
	if r.Op == OpQuery {
		kind = artifact.Info
	}
	if strings.Contains(version, "%") {
		version = url.PathEscape(version)
	}
	return "/" + path + "/@v/" + version + "." + kind.String()
}

// decodePath undoes percent encoding and refuses the tricks: a path is decoded once, so that what is checked here is
// what is used later, and it never reaches a file system or an upstream in any other form.
func decodePath(escaped string) (string, error) {
	if len(escaped) > maxPath {
		return "", badRequest("path of %d bytes is longer than %d", len(escaped), maxPath)
	}
	p := escaped
	if strings.IndexByte(escaped, '%') >= 0 {
		for _, no := range [...]string{"%2f", "%2F", "%5c", "%5C"} {
			if strings.Contains(escaped, no) {
				return "", badRequest("path %q has an encoded slash", escaped)
			}
		}
		var err error
		if p, err = url.PathUnescape(escaped); err != nil {
			return "", badRequest("path %q is not properly encoded", escaped)
		}
	}
	for i := range len(p) {
		if c := p[i]; c < ' ' || c == 0x7f || c == '\\' {
			return "", badRequest("path %q has a control character or a backslash", p)
		}
	}
	if !utf8.ValidString(p) {
		return "", badRequest("path %q is not UTF-8", p)
	}
	if len(p) == 0 || p[0] != '/' {
		return "", badRequest("path %q does not begin with a slash", p)
	}
	for rest, more := p[1:], true; more; {
		var elem string
		elem, rest, more = strings.Cut(rest, "/")
		if elem == "" || elem == "." || elem == ".." {
			return "", badRequest("path %q is not clean", p)
		}
	}
	return p, nil
}

// parseModulePath parses "/" and an escaped module path. First elements that no public host name can be are refused:
// nothing may make a mirror talk to itself or to its neighbours (SSRF).
func parseModulePath(p string) (string, error) {
	if len(p) < 2 {
		return "", badRequest("path lacks a module path")
	}
	p = p[1:]
	if c := upper(p); c != 0 {
		return "", notExist("module path %q is not escaped: write !%c for %c", p, c|0x20, c)
	}
	path, err := module.UnescapePath(p)
	if err != nil {
		return "", badRequest("%q is not an escaped module path", p)
	}
	if !hasPublicHost(path) {
		return "", badRequest("module path %q does not begin with a public host name", path)
	}
	return path, nil
}

// hasPublicHost reports whether a valid module path begins with what can be the name of a public host.
func hasPublicHost(path string) bool {
	host, _, _ := strings.Cut(path, "/")
	return artifact.IsPublicName(host)
}

// canonical reports whether m's version is the one name of a version that m's path can have: such a version has
// artifacts, which never change. It expects m's path to be checked.
func canonical(m module.Version) bool {
	if module.CanonicalVersion(m.Version) != m.Version {
		return false
	}
	_, major, ok := module.SplitPathVersion(m.Path)
	return ok && module.CheckPathMajor(m.Version, major) == nil
}

// upper returns the first upper-case letter of s, or 0.
func upper(s string) byte {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			return c
		}
	}
	return 0
}

func badRequest(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrBadRequest)...)
}

func notExist(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fs.ErrNotExist)...)
}
