package sumdb

import (
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// known maps the names that stand for a key to that key, as in the go command (cmd/go/internal/modfetch/key.go).
var known = map[string]string{
	"sum.golang.org": "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
}

// Spec says which checksum database is meant: the value of GOSUMDB.
type Spec struct {
	Name string // "sum.golang.org"; host[/path]
	Key  string // verifier key, name+hash+key
	URL  string // where the database is, if not at https://<name>; proxies are not asked then. Without a slash at the end.
}

// ParseSpec parses the value of GOSUMDB: a well-known name or a verifier key, and an optional URL after a space.
//
//	sum.golang.org
//	sum.golang.org https://sumdb.example.com
//	example.com/db+1a2b3c4d+AaBb… http://localhost:8080/db
//
// "off" is not a database and an error. So is a name with an element "tile" or "lookup" after the host, or one that begins
// with a dot: what such a database is asked, and keeps, would be below what another one is and does.
func ParseSpec(s string) (Spec, error) {
	f := strings.Fields(s)
	if len(f) == 0 || len(f) > 2 {
		return Spec{}, fmt.Errorf("checksum database %q: want a name or key and an optional URL", s)
	}
	key := f[0]
	if k, ok := known[key]; ok {
		key = k
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return Spec{}, fmt.Errorf("checksum database %q: neither a known name nor a verifier key name+hash+key: %v", s, err)
	}
	spec := Spec{Name: v.Name(), Key: key}
	if !validName(spec.Name) {
		return Spec{}, fmt.Errorf("checksum database %q: name %q is not host[/path]", s, spec.Name)
	}
	if len(f) == 2 {
		if spec.URL, err = parseBase(f[1]); err != nil {
			return Spec{}, fmt.Errorf("checksum database %q: %v", s, err)
		}
	}
	return spec, nil
}

// String returns the form that ParseSpec parses.
func (s Spec) String() string {
	out := s.Key
	if known[s.Name] == s.Key {
		out = s.Name
	}
	if s.URL != "" {
		out += " " + s.URL
	}
	return out
}

// Direct returns the URL of the database itself.
func (s Spec) Direct() string {
	if s.URL != "" {
		return s.URL
	}
	return "https://" + s.Name
}

// validName reports whether name can stand in a URL path and a directory name: a host, perhaps with a path, and no more.
// One name may begin with another one, with which it then shares the first part of its URLs and directories; so no element
// of a path is what a database serves at, or keeps in, a directory of its own.
func validName(name string) bool {
	u, err := url.Parse("https://" + name)
	if err != nil || u.Host == "" || *u != (url.URL{Scheme: "https", Host: u.Host, Path: u.Path}) || u.String() != "https://"+name {
		return false
	}
	for i, elem := range strings.Split(name, "/") {
		if elem == "" || elem[0] == '.' || strings.ContainsAny(elem, `\%`) {
			return false
		}
		if i > 0 && (strings.EqualFold(elem, "tile") || strings.EqualFold(elem, "lookup")) {
			return false
		}
	}
	return true
}

// parseBase parses the URL of a database.
func parseBase(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("malformed URL") // the error would repeat a password
	}
	if u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "file" || u.Host == "" && u.Scheme != "file" || u.Opaque != "" {
		return "", fmt.Errorf("want an https, http or file URL")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("URL must have no user, query or fragment")
	}
	return strings.TrimRight(u.String(), "/"), nil
}
