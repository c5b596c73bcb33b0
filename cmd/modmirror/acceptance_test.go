package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that docs/acceptance.md names exists.
func TestAcceptance(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(sourceDir, "docs", "acceptance.md"))
	if err != nil {
		t.Fatal(err)
	}
	have := testNames(t)
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+|\\w+\\.txtar)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 100 {
		t.Errorf("the page names %d tests only", len(named))
	}
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/acceptance.md names %s, which does not exist", m[1])
		}
	}
}

// docs/formats.md names every route of the internal port.
func TestFormatsPageHasTheRoutes(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	routes := regexp.MustCompile(`"((?:GET|POST|PUT|DELETE) (?:/v1|/sumdb)/[a-z/-]*)`)
	found := 0
	for _, dir := range []string{".", filepath.Join("..", "..", "replicate", "peer")} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range routes.FindAllSubmatch(src, -1) {
				found++
				if !bytes.Contains(page, m[1]) {
					t.Errorf("docs/formats.md does not name %s", m[1])
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("there are %d routes", found)
	}
}
