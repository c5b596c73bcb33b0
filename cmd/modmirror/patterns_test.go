package main

import (
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
)

func TestPatterns(t *testing.T) {
	for _, good := range []string{
		"example.com", "example.com/a", "*.corp.example.com", "*", "*/secret", "example.com/MyCo/*", "example.com/[ab]?/v2", `example.com/\*`, "gopkg.in", "example.com/a+b", "[A-Za-z]*.example.com", "*.example.com/MyCo",
	} {
		if err := checkPatterns([]string{good}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	// What is refused matches nothing that a module can be called, so it would protect nothing.
	for _, bad := range []string{
		"", "/", "/example.com", "example.com//", "example.com//a", "example.com/./a", "example.com/../a", "Example.com/a", "example", "corp/a",
		"example.com/[a/b]", `example.com\/a`, "example.com/[a", "example.com/a b", "example.com/!my!co", "example.com/a@v1.0.0", "https://example.com", "example.com:443/a", "*.Corp.example/a", `*.corp.\Example`, "example.com/*@v1.0.0", "example.com/* b", "https://*",
	} {
		if err := checkPatterns([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// FuzzPatterns matches paths against patterns as the go command documents it, element by element, and looks for a path
// that a pattern without classes matches: if there is none, it had to be refused.
func FuzzPatterns(f *testing.F) {
	f.Add("example.com/MyCo/*, *.corp.example.com/", "example.com/MyCo/plans")
	f.Add("*/secret,example.com/[^a-c]?/v2", "a.example/secret/x")
	f.Add("example.com//", "example.com/a")
	f.Add("Example.com,example", "example.com")
	f.Add(`example.com/[a/b],x.y\/z`, "example.com/a")
	f.Fuzz(func(t *testing.T, list, modPath string) {
		patterns := strings.Split(list, ",")
		if checkPatterns(patterns) != nil {
			return
		}
		if again := slices.Clone(patterns); checkPatterns(again) != nil || !slices.Equal(again, patterns) {
			t.Errorf("%q are trimmed to %q", patterns, again)
		}
		n := node{config: config{Private: patterns}}
		if module.CheckPath(modPath) == nil {
			if got, want := n.private(modPath), slices.ContainsFunc(patterns, func(p string) bool { return matches(p, modPath) }); got != want {
				t.Errorf("private(%q) = %v with %q, want %v", modPath, got, patterns, want)
			}
		}
		for _, p := range patterns {
			host, rest, below := strings.Cut(p, "/")
			if strings.ContainsAny(p, `[\`) || strings.Contains(host, "?") {
				continue
			}
			witness := strings.ReplaceAll(host, "*", "x.y")
			if below {
				witness += "/" + strings.NewReplacer("*", "x", "?", "x").Replace(rest)
			}
			if module.CheckImportPath(witness) != nil {
				continue // as of "*.": the glob may stand for what makes it a path
			}
			if !n.private(witness) || !n.private(witness+"/below") {
				t.Errorf("%q does not match %q", p, witness)
			}
		}
	})
}

// matches reports whether each element of pattern matches that of modPath.
func matches(pattern, modPath string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(modPath, "/")
	if len(have) < len(want) {
		return false
	}
	for i, elem := range want {
		if ok, err := path.Match(elem, have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
