package mirror

import (
	"errors"
	"io/fs"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

func TestParseRequest(t *testing.T) {
	mv := func(path, version string) module.Version { return module.Version{Path: path, Version: version} }
	ok := map[string]Request{
		"/golang.org/x/text/@v/list":                      {Op: OpList, Module: mv("golang.org/x/text", "")},
		"/golang.org/x/text/@latest":                      {Op: OpLatest, Module: mv("golang.org/x/text", "")},
		"/golang.org/x/text/@v/v0.3.0.info":               {Op: OpArtifact, Module: mv("golang.org/x/text", "v0.3.0"), Kind: artifact.Info},
		"/golang.org/x/text/@v/v0.3.0.mod":                {Op: OpArtifact, Module: mv("golang.org/x/text", "v0.3.0"), Kind: artifact.Mod},
		"/golang.org/x/text/@v/v0.3.0.zip":                {Op: OpArtifact, Module: mv("golang.org/x/text", "v0.3.0"), Kind: artifact.Zip},
		"/github.com/!burnt!sushi/toml/@v/v1.0.0.mod":     {Op: OpArtifact, Module: mv("github.com/BurntSushi/toml", "v1.0.0"), Kind: artifact.Mod},
		"/github.com/%21burnt%21sushi/toml/@v/v1.0.0.mod": {Op: OpArtifact, Module: mv("github.com/BurntSushi/toml", "v1.0.0"), Kind: artifact.Mod},
		"/example.com/m/@v/v1.0.0-!r!c1.zip":              {Op: OpArtifact, Module: mv("example.com/m", "v1.0.0-RC1"), Kind: artifact.Zip},
		"/example.com/m/@v/v2.0.0+incompatible.zip":       {Op: OpArtifact, Module: mv("example.com/m", "v2.0.0+incompatible"), Kind: artifact.Zip},
		"/example.com/m/@v/v2.0.0%2Bincompatible.zip":     {Op: OpArtifact, Module: mv("example.com/m", "v2.0.0+incompatible"), Kind: artifact.Zip},
		"/gopkg.in/yaml.v3/@v/v3.0.1.mod":                 {Op: OpArtifact, Module: mv("gopkg.in/yaml.v3", "v3.0.1"), Kind: artifact.Mod},
		"/golang.org/toolchain/@v/v0.0.1-go1.25.0.linux-amd64.zip": {
			Op: OpArtifact, Module: mv("golang.org/toolchain", "v0.0.1-go1.25.0.linux-amd64"), Kind: artifact.Zip},
		"/example.com/m/@v/master.info":      {Op: OpQuery, Module: mv("example.com/m", "master")},
		"/example.com/m/@v/v1.info":          {Op: OpQuery, Module: mv("example.com/m", "v1")},
		"/example.com/m/@v/v1.2.3+meta.info": {Op: OpQuery, Module: mv("example.com/m", "v1.2.3+meta")},
		"/example.com/m/@v/v2.0.0.info":      {Op: OpQuery, Module: mv("example.com/m", "v2.0.0")}, // may be v2.0.0+incompatible
		"/example.com/m/@v/0123abcd.info":    {Op: OpQuery, Module: mv("example.com/m", "0123abcd")},
		"/example.com/m/@v/100%25.info":      {Op: OpQuery, Module: mv("example.com/m", "100%")},
		"/cached-only/example.com/m/@v/list": {Op: OpList, Module: mv("example.com/m", ""), CachedOnly: true},
		"/cached-only/example.com/m/@latest": {Op: OpLatest, Module: mv("example.com/m", ""), CachedOnly: true},
		"/example.com/list/@v/list":          {Op: OpList, Module: mv("example.com/list", "")},
		"/example.com/m/@v/v1.0.0.info.info": {Op: OpQuery, Module: mv("example.com/m", "v1.0.0.info")},
		"/cached-only.example/m/@v/list":     {Op: OpList, Module: mv("cached-only.example/m", "")},
		"/1.example.com/m/@v/v1.0.0.info":    {Op: OpArtifact, Module: mv("1.example.com/m", "v1.0.0"), Kind: artifact.Info},
		"/example.com/m/@v/v0.0.0-20200101000000-0123456789ab.mod": {
			Op: OpArtifact, Module: mv("example.com/m", "v0.0.0-20200101000000-0123456789ab"), Kind: artifact.Mod},
	}
	for p, want := range ok {
		if got, err := ParseRequest(p); err != nil || got != want {
			t.Errorf("ParseRequest(%q) = %+v, %v, want %+v", p, got, err, want)
		}
	}

	absent := []string{
		"/golang.org/x/text", "/favicon.ico", "/example.com/m/@v/v1.0.0", "/example.com/m/@v/v1.0.0.ziphash",
		"/example.com/m/@v/master.mod", "/example.com/m/@v/master.zip", "/example.com/m/@v/v1.zip", "/example.com/m/@v/v2.0.0.mod",
		"/example.com/m/@v/v1.2.3+meta.zip", "/example.com/m/@v/latest.info", "/example.com/m/@v/upgrade.info",
		"/github.com/BurntSushi/toml/@v/list", "/example.com/m/@v/v1.0.0-RC1.info",
	}
	bad := []string{
		"", "/", "//", "x", "/@v/list", "/@latest", "//@v/list", "/example.com/m/@v/", "/example.com/m/@v/list/", "/example.com//m/@v/list",
		"/example.com/../m/@v/list", "/example.com/./m/@v/list", "/example.com/m/@v/../../x", "/example.com/m%2fn/@v/list", "/example.com/m%2Fn/@v/list",
		"/example.com/m%00/@v/list", "/example.com/m%5c/@v/list", "/example.com\\m/@v/list", "/example.com/m%zz/@v/list", "/example.com/m\n/@v/list",
		"/example.com/m%0a/@v/list", "/example.com/%2e%2e/@v/list", "/example.com/%ff/@v/list", "/example.com/m/@v/br%C3%A4nch.info", "/example.com/m!/@v/list", "/example.com/m/@v/v1!.info",
		"/example.com/!!m/@v/list", "/example.com/m/@v/a/b.info", "/example.com/m/@v/.info", "/example.com/m/@v/-x.info", "/-m/@v/list",
		"/169.254.169.254/latest/@v/list", "/127.0.0.1/x/@v/list", "/127.1/x/@v/list", "/0x7f.0x1/x/@v/list", "/localhost/x/@v/list", "/a.localhost/x/@v/list",
		"/[::1]/x/@v/list", "/cmd/@v/list", "/example.com/m@v1/@v/list", "/example.com/@v/x/@v/list", "/cached-only/@v/list",
		"/example.com/" + strings.Repeat("m", 10<<10) + "/@v/list",
	}
	for _, p := range absent {
		if got, err := ParseRequest(p); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBadRequest) || got != (Request{}) {
			t.Errorf("ParseRequest(%q) = %+v, %v, want fs.ErrNotExist", p, got, err)
		}
	}
	for _, p := range bad {
		if got, err := ParseRequest(p); !errors.Is(err, ErrBadRequest) || errors.Is(err, fs.ErrNotExist) || got != (Request{}) {
			t.Errorf("ParseRequest(%.100q) = %+v, %v, want ErrBadRequest", p, got, err)
		}
	}
}

// What is parsed can be written again and means the same, and is what module.Check allows.
func FuzzParseRequest(f *testing.F) {
	for _, p := range []string{
		"/github.com/!burnt!sushi/toml/@v/v0.3.1.zip", "/a.b/@latest", "/cached-only/a.b/@v/list", "/a.b/@v/br%C3%A4nch.info", "/a.b/@v/50%25.info",
		"/a.b/@v/v2.0.0%2Bincompatible.mod", "/127.0.0.1/@v/list", "/a.b/@v/x y.info", "/a.b/@v/x%3fy.info", "/a.b/@v/x;y.info",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		req, err := ParseRequest(p)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) == errors.Is(err, ErrBadRequest) {
				t.Fatalf("ParseRequest(%q): error %v is not of exactly one kind", p, err)
			}
			return
		}
		if err := module.CheckPath(req.Module.Path); err != nil {
			t.Fatalf("ParseRequest(%q) let a path through: %v", p, err)
		}
		if req.Op == OpArtifact && module.Check(req.Module.Path, req.Module.Version) != nil {
			t.Fatalf("ParseRequest(%q) = %+v, not a valid version", p, req)
		}
		if strings.ContainsAny(req.Module.Version, "/\\\n\x00") {
			t.Fatalf("ParseRequest(%q) = %+v", p, req)
		}
		again, err := ParseRequest(req.Path())
		if err != nil || again != req {
			t.Fatalf("ParseRequest(%q) = %+v, again by %q: %+v, %v", p, req, req.Path(), again, err)
		}
		// The go command writes "%21" where the lookup of the same module has "!".
		u := url.URL{Path: "/x"}
		if u.Path = strings.ReplaceAll(req.Path(), "!", "%21"); u.Path != req.Path() {
			if again, err := ParseRequest(u.Path); err != nil || again != req {
				t.Fatalf("ParseRequest(%q) = %+v, %v, want %+v", u.Path, again, err, req)
			}
		}
	})
}
