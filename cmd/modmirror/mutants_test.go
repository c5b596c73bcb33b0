//go:build mutants

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMutants proves that the tests hold what they promise: each mutant (see mutantseed_test.go) is built, by an overlay, so that
// the tree is never changed, and a test that is to notice it must go red. Before that all these tests are green without it. Run
// it as `make mutants`; -run '^TestMutants$/name' tries those whose names match only.
func TestMutants(t *testing.T) {
	all, err := loadMutants(mutantDir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(sourceDir)
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{root: root, dir: t.TempDir(), limit: time.Minute}
	if pattern := mutantPattern(); pattern != "" {
		all = slices.DeleteFunc(all, func(m mutant) bool { return !regexp.MustCompile(pattern).MatchString(m.name) })
	} else if len(all) < 12 {
		t.Errorf("%d mutants, want at least the 12 of the design", len(all))
	}
	h.report(t, all)
}

// mutantPattern is what stands behind the slash of -run.
func mutantPattern() string {
	for i, arg := range os.Args {
		value, ok := strings.CutPrefix(arg, "-test.run=")
		if arg == "-test.run" && i+1 < len(os.Args) {
			value, ok = os.Args[i+1], true
		}
		if _, name, cut := strings.Cut(value, "/"); ok && cut {
			return name
		}
	}
	return ""
}

// report tries all mutants, two at a time, and fails t for each that does not end as it should.
func (h *harness) report(t *testing.T, all []mutant) {
	begin := time.Now()
	var mu sync.Mutex // guards what follows, and t's order
	broken := map[string]error{}
	packages := map[string][]string{}
	for _, m := range all {
		packages[m.pkg] = append(packages[m.pkg], m.tests...)
	}
	each(slices.Sorted(maps.Keys(packages)), func(pkg string) {
		err := h.green(t.Context(), pkg, packages[pkg])
		mu.Lock()
		defer mu.Unlock()
		broken[pkg] = err
		if err != nil {
			t.Errorf("without any mutant: %v", err)
		}
	})
	t.Logf("%d packages green without any mutant, after %v", len(packages), time.Since(begin).Round(time.Second))
	each(all, func(m mutant) {
		if broken[m.pkg] != nil {
			return
		}
		start := time.Now()
		red, err := h.try(t.Context(), m)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Errorf("%-28s %v", m.name, err)
			return
		}
		t.Logf("%-28s %-14s caught by %s (%.1f s)", m.name, strings.Join(m.promises, " "), red, time.Since(start).Seconds())
	})
	t.Logf("%d mutants after %v", len(all), time.Since(begin).Round(time.Second))
}

// each calls f for every item, as many at a time as there are processors.
func each[T any](items []T, f func(T)) {
	var wg sync.WaitGroup
	next := make(chan T)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for item := range next {
				f(item)
			}
		})
	}
	for _, item := range items {
		next <- item
	}
	close(next)
	wg.Wait()
}

// harness builds and tests mutants of the module in root.
type harness struct {
	root  string
	dir   string        // for overlays
	limit time.Duration // for the tests of one mutant
}

// green runs tests without any mutant: each must be there, run and pass.
func (h *harness) green(ctx context.Context, pkg string, tests []string) error {
	out, err := h.test(ctx, pkg, tests)
	if err != nil {
		return err
	}
	for _, test := range tests {
		if out.ended[test] != "pass" {
			return fmt.Errorf("%s of %s: %q, want pass\n%s", test, pkg, out.ended[test], out.tail())
		}
	}
	return nil
}

// try returns the test that goes red for m. An error says what is wrong with the mutant, or with the tests: it survives.
func (h *harness) try(ctx context.Context, m mutant) (red string, err error) {
	overlay, err := h.overlay(m)
	if err != nil {
		return "", err
	}
	out, err := h.test(ctx, m.pkg, m.tests, "-overlay", overlay, "-failfast")
	switch {
	case err != nil:
		return "", err
	case out.unbuilt:
		return "", fmt.Errorf("does not build\n%s", out.tail())
	case out.red == "":
		return "", fmt.Errorf("SURVIVES: %s stay green; a test is missing", strings.Join(m.tests, ", "))
	case out.ends != m.ends:
		return "", fmt.Errorf("%s ends by %q, want %q (\"\" is an assertion)\n%s", out.red, out.ends, m.ends, out.tail())
	}
	return out.red, nil
}

// overlay writes what the mutant has in the place of files, and the file that tells the go command.
func (h *harness) overlay(m mutant) (string, error) {
	files, err := m.apply(h.root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, src := range files {
		to := filepath.Join(h.dir, m.name+"-"+strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(to, src, 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(h.root, filepath.FromSlash(name))] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(h.dir, m.name+".json")
	return file, os.WriteFile(file, b, 0o600)
}

// outcome is what came of a run of tests.
type outcome struct {
	ended   map[string]string // pass, fail or skip, by test
	red     string            // the first test that failed, with its subtest
	unbuilt bool
	ends    string // "" unless the red one ended by a panic or by its time
	output  bytes.Buffer
}

func (o *outcome) tail() string { b := o.output.String(); return b[max(0, len(b)-3000):] }

// test runs tests of a package.
func (h *harness) test(ctx context.Context, pkg string, tests []string, flags ...string) (*outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit+2*time.Minute) // and the time to build
	defer cancel()
	args := slices.Concat([]string{"test", "-json", "-count=1", "-vet=off", "-timeout", h.limit.String(), "-run", "^(" + strings.Join(tests, "|") + ")$"}, flags, []string{pkg})
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = h.root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, runErr := cmd.Output() // it fails if a test does
	if ctx.Err() != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), ctx.Err())
	}
	out, err := parseOutcome(stdout)
	if err == nil && len(out.ended) == 0 && out.red == "" && !out.unbuilt {
		err = fmt.Errorf("go %s ran no test: %v", strings.Join(args, " "), runErr)
	}
	if err != nil {
		return nil, fmt.Errorf("%w\n%s\n%s", err, stdout, stderr.Bytes())
	}
	return out, nil
}

var (
	panicLine   = regexp.MustCompile(`^(panic: |fatal error: |unexpected fault address)`)
	timeoutLine = regexp.MustCompile(`^panic: test timed out after`)
)

func parseOutcome(stdout []byte) (*outcome, error) {
	out := &outcome{ended: map[string]string{}}
	lines := bufio.NewScanner(bytes.NewReader(stdout))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("the go command says %.200q: %w", lines.Bytes(), err)
		}
		out.output.WriteString(e.Output)
		switch e.Action {
		case "build-fail":
			out.unbuilt = true
		case "pass", "fail", "skip":
			if e.Test != "" {
				out.ended[e.Test] = e.Action
			}
			if e.Action == "fail" && out.red == "" {
				out.red = e.Test
			}
		case "output":
			if timeoutLine.MatchString(e.Output) {
				out.ends = endsTimeout
			} else if out.ends == "" && panicLine.MatchString(e.Output) {
				out.ends = endsPanic
			} else {
				continue
			}
			if out.red == "" { // of a test that ran out of time it is not said that it failed
				out.red = e.Test
			}
		}
	}
	return out, lines.Err()
}

// The harness tells a mutant that is caught from one that survives, does not build, is nowhere to be found, hangs or panics; and a test
// that is red without any.
func TestMutantsAreJudged(t *testing.T) {
	root := t.TempDir()
	for name, src := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"a.go":   "package m\n\nfunc one() int { return 1 }\n\nfunc two() int { return 2 }\n",
		"a_test.go": `package m

import "testing"

func TestOne(t *testing.T) {
	t.Run("of one", func(t *testing.T) {
		if one() != 1 {
			t.Error("one")
		}
	})
}

func TestRed(t *testing.T)  { t.Error("always") }
func TestSkip(t *testing.T) { t.Skip() }
`,
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := &harness{root: root, dir: t.TempDir(), limit: 2 * time.Second}
	for _, tt := range []struct{ name, old, new, ends, want string }{
		{"caught", "one() int { return 1 }", "one() int { return 3 }", "", ""},
		{"survivor", "two() int { return 2 }", "two() int { return 3 }", "", "SURVIVES"},
		{"unbuilt", "one() int { return 1 }", "one() int { return x }", "", "does not build"},
		{"nowhere", "three() int { return 3 }", "three() int { return 4 }", "", "0 times"},
		{"panics", "one() int { return 1 }", `one() int { panic("no") }`, "", `ends by "panic"`},
		{"may panic", "one() int { return 1 }", `one() int { panic("no") }`, endsPanic, ""},
		{"hangs", "one() int { return 1 }", "one() int { select {} }", "", "ends by"},
		{"ends in time", "one() int { return 1 }", "one() int { for {} }", endsTimeout, ""},
		{"should panic", "one() int { return 1 }", "one() int { return 3 }", endsPanic, `ends by ""`},
	} {
		m := mutant{name: tt.name, pkg: ".", tests: []string{"TestOne"}, ends: tt.ends, edits: []edit{{"a.go", "func " + tt.old + "\n", "func " + tt.new + "\n"}}}
		red, err := h.try(t.Context(), m)
		if tt.want == "" && (err != nil || red != "TestOne/of_one" && tt.ends == "") {
			t.Errorf("%s: %q, %v", tt.name, red, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %q, %v, want %q", tt.name, red, err, tt.want)
		}
	}
	for _, tests := range [][]string{{"TestOne", "TestRed"}, {"TestOne", "TestSkip"}, {"TestOne", "TestNone"}, {"TestNone"}} {
		if err := h.green(t.Context(), ".", tests); err == nil {
			t.Errorf("%v are called green", tests)
		}
	}
	if err := h.green(t.Context(), ".", []string{"TestOne"}); err != nil {
		t.Error(err)
	}
}
