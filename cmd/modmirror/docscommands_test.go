package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Each command that a page shows exists, with the flags that it is shown with; and so does each flag that is named alone.
func TestCommandsInDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	root := rootCommand()
	root.InitDefaultCompletionCmd()
	root.AddCommand(&cobra.Command{Use: "tiles"}) // "modmirror tiles 1" is how a file begins
	flags := flagsOf(root)
	shown := 0
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range codeIn(string(b)) {
			if strings.HasPrefix(line, "--") && !strings.Contains(line, " -- ") {
				for _, name := range shownFlag.FindAllStringSubmatch(line, -1) {
					if !flags[name[1]] {
						t.Errorf("%s names the flag --%s, which no command has", page, name[1])
					}
				}
				continue
			}
			for _, m := range shownCommand.FindAllStringSubmatch(line, -1) {
				shown++
				if err := checkCommand(root, m[1]); err != "" {
					t.Errorf("%s shows %q: %s", page, m[0], err)
				}
			}
		}
	}
	if shown < 50 {
		t.Errorf("only %d commands are shown", shown)
	}
}

var (
	codeFence    = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```$")
	codeSpan     = regexp.MustCompile("`([^`\n]+(?:\n[^`\n]+)?)`")
	shownCommand = regexp.MustCompile(`(?:^|[/(]|\|\s|\s\s)modmirror ([a-z][^|;&#)]*)`) // not in the middle of a sentence
	shownFlag    = regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
)

// codeIn returns the lines of code on a page: those of its blocks, and its spans.
func codeIn(page string) (lines []string) {
	rest := codeFence.ReplaceAllStringFunc(page, func(block string) string {
		text := codeFence.FindStringSubmatch(block)[1]
		lines = append(lines, strings.Split(strings.ReplaceAll(text, "\\\n", " "), "\n")...)
		return ""
	})
	for _, m := range codeSpan.FindAllStringSubmatch(rest, -1) {
		lines = append(lines, strings.ReplaceAll(m[1], "\n", " "))
	}
	return lines
}

// checkCommand says what is wrong with a command line, without the program's name.
func checkCommand(root *cobra.Command, line string) string {
	args := strings.Fields(line)
	cmd := root
	for len(args) > 0 && cmd.HasSubCommands() {
		var next *cobra.Command
		for _, c := range cmd.Commands() {
			if c.Name() == args[0] {
				next = c
			}
		}
		if next == nil {
			if cmd == root || cmd.Runnable() == false && !strings.HasPrefix(args[0], "-") && args[0] == strings.ToLower(args[0]) {
				return "there is no command " + args[0]
			}
			break
		}
		cmd, args = next, args[1:]
	}
	for _, a := range args {
		if a == "--" {
			break
		}
		if m := shownFlag.FindStringSubmatch(a); m != nil && m[1] != "help" && cmd.Flags().Lookup(m[1]) == nil && cmd.InheritedFlags().Lookup(m[1]) == nil {
			return cmd.CommandPath() + " has no flag --" + m[1]
		}
	}
	return ""
}

// flagsOf returns the flags of a command and of all below it.
func flagsOf(cmd *cobra.Command) map[string]bool {
	all := map[string]bool{"help": true}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { all[f.Name] = true })
	for _, c := range cmd.Commands() {
		for name := range flagsOf(c) {
			all[name] = true
		}
	}
	return all
}
