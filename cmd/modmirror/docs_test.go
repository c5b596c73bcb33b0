package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
