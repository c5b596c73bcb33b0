package main

import (
	"errors"
	"path"
	"regexp"
	"strings"

	"golang.org/x/mod/module"
)

// checkPatterns trims GOPRIVATE patterns in place. One that could never match is an error: the go command ignores it, but
// here the names of the modules that it was meant for would leave the process.
func checkPatterns(patterns []string) error {
	for i, p := range patterns {
		p = strings.TrimSuffix(strings.TrimSpace(p), "/")
		if err := checkPattern(p); err != nil {
			return usageError("--private: pattern %q: %v", p, err)
		}
		patterns[i] = p
	}
	return nil
}

var (
	globClass = regexp.MustCompile(`\[(\\.|[^\]\\])*\]`) // may have capitals besides what a host has
	capital   = regexp.MustCompile(`[A-Z]`)
)

// checkPattern reports why p cannot be the beginning of a module path. Each element is matched by one of the path's, so
// each must be a glob of its own, or text that a path can have there: a host without capitals comes first.
func checkPattern(p string) error {
	if strings.ContainsAny(p, " \t\r\n,@") {
		return errors.New("want module path prefixes or globs as in GOPRIVATE, separated by commas")
	}
	for i, elem := range strings.Split(p, "/") {
		if _, err := path.Match(elem, ""); err != nil {
			return err
		}
		if strings.ContainsAny(elem, `*?[\`) {
			if i == 0 && capital.MatchString(globClass.ReplaceAllString(elem, "")) {
				return errors.New("no host of a module path has capitals")
			}
			continue
		}
		check := module.CheckImportPath
		if i == 0 {
			check = module.CheckPath
		}
		if err := check(elem); err != nil {
			return errors.New("no module path begins like this: want path prefixes or globs as in GOPRIVATE, separated by commas")
		}
	}
	return nil
}
