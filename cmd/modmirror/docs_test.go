package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What the pages say the product prints, it can print: each quoted message, between its dots, stands in the source.
func TestQuotedMessages(t *testing.T) {
	source := productSource(t)
	quoted := 0
	for line := range strings.Lines(readDoc(t, "troubleshooting.md")) {
		message, ok := strings.CutPrefix(line, "> ")
		if !ok {
			continue
		}
		quoted++
		for part := range strings.SplitSeq(strings.TrimSpace(message), "…") {
			if part = strings.Trim(part, " (),:"); part != "" && !strings.Contains(source, part) {
				t.Errorf("nothing prints %q of\n%s", part, message)
			}
		}
	}
	if quoted < 20 {
		t.Errorf("only %d messages are quoted", quoted)
	}
}

// productSource is all Go code but the tests'.
func productSource(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"../../cmd", "../../mirror", "../../replicate", "../../sumdb"} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			all.Write(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// The page about settings has a row for each flag of serve, with its variable and its default, and for nothing else.
func TestConfigurePage(t *testing.T) {
	rows := map[string][2]string{} // variable, default; by flag
	for _, m := range settingRow.FindAllStringSubmatch(readDoc(t, "configure.md"), -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("--%s has two rows", m[1])
		}
		rows[m[1]] = [2]string{m[2], m[3]}
	}
	cmd := &cobra.Command{Use: "serve"}
	new(config).flags(cmd.Flags())
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		row, ok := rows[f.Name]
		delete(rows, f.Name)
		if !ok {
			t.Errorf("docs/configure.md has no row for --%s; it is: | `--%[1]s` | `%s` | `%s` | what it means |", f.Name, envName(f.Name), f.DefValue)
			return
		}
		if row[0] != envName(f.Name) {
			t.Errorf("--%s: the page says %s, its variable is %s", f.Name, row[0], envName(f.Name))
		}
		if !saysDefault(row[1], f) {
			t.Errorf("--%s: the page says that its default is %q, and it is %q", f.Name, row[1], f.DefValue)
		}
	})
	for name := range rows {
		t.Errorf("docs/configure.md has a row for --%s, which is no flag of serve", name)
	}
}

var settingRow = regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\| `(\\w+)` \\| (.*?) ?\\| .* \\|$")

// saysDefault reports whether text, of a table, is the default of f. What has none may be explained in words.
func saysDefault(text string, f *pflag.Flag) bool {
	if f.DefValue == "" || f.DefValue == "[]" {
		return !strings.HasPrefix(text, "`") || strings.Contains(f.Usage, "(default "+strings.Trim(strings.Split(text, ",")[0], "`"))
	}
	same := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(config).flags(same)
	return same.Set(f.Name, strings.Trim(text, "`")) == nil && same.Lookup(f.Name).Value.String() == f.DefValue
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each link between the pages leads to a file, and to a section of it.
func TestLinksOfPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range pageLink.FindAllStringSubmatch(string(b), -1) {
			file, section, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if section != "" && !slices.Contains(anchors(t, strings.TrimPrefix(target, "../../")), section) {
				t.Errorf("%s links to %s: there is no such section", page, m[1])
			}
		}
	}
}

var pageLink = regexp.MustCompile(`\]\(([^):\s]+)\)`)
