package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// A mutant is this program with one promise broken on purpose, and the tests that must notice. It is a txtar archive in
// testdata/mutants, named after what it does:
//
//	promises: P3 I6 M3
//	package: ./replicate
//	tests: TestAcks TestAckRule
//	-- old replicate/acks.go --
//		if need := len(starts)/2 + 1; len(holders) < need {
//	-- new --
//		if need := 1; len(holders) < need {
//
// Promises are those of docs/proof.md. Each old text stands in its file exactly once, as whole lines. A mutant goes red by an
// assertion of a test; where what it does is rightly stopped by a panic or by the time a test may take, "ends: panic" or "ends:
// timeout" says so. `make mutants` builds and tests them all, see mutants_test.go.
type mutant struct {
	name     string
	promises []string
	pkg      string
	tests    []string
	ends     string // how a test may end but by an assertion
	edits    []edit
}

type edit struct{ file, old, new string }

// parseMutant parses an archive. What it is to change is not looked at.
func parseMutant(name string, archive []byte) (mutant, error) {
	m := mutant{name: name}
	a := txtar.Parse(archive)
	for line := range strings.Lines(string(a.Comment)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case !ok:
			return m, fmt.Errorf("%q: want key: value", line)
		case key == "promises":
			m.promises = strings.Fields(value)
		case key == "package":
			m.pkg = value
		case key == "tests":
			m.tests = strings.Fields(value)
		case key == "ends" && (value == endsPanic || value == endsTimeout):
			m.ends = value
		default:
			return m, fmt.Errorf("%q makes no sense", line)
		}
	}
	if len(m.promises) == 0 || m.pkg == "" || len(m.tests) == 0 {
		return m, fmt.Errorf("promises, package and tests are needed")
	}
	for i := 0; i < len(a.Files); i += 2 {
		file, ok := strings.CutPrefix(a.Files[i].Name, "old ")
		if !ok || i+1 == len(a.Files) || a.Files[i+1].Name != "new" {
			return m, fmt.Errorf("want pairs of files, \"old path\" and \"new\"")
		}
		m.edits = append(m.edits, edit{file, string(a.Files[i].Data), string(a.Files[i+1].Data)})
	}
	if len(m.edits) == 0 {
		return m, fmt.Errorf("it changes nothing")
	}
	return m, nil
}

const (
	endsPanic   = "panic"
	endsTimeout = "timeout"
)

// apply returns the files under root as the mutant has them.
func (m mutant) apply(root string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, e := range m.edits {
		src, ok := out[e.file]
		if !ok {
			var err error
			if src, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(e.file))); err != nil {
				return nil, err
			}
		}
		at, n := wholeLines(string(src), e.old)
		if n != 1 || e.old == e.new {
			return nil, fmt.Errorf("%s has this text %d times, want once, and another in its place:\n%s", e.file, n, e.old)
		}
		out[e.file] = []byte(string(src[:at]) + e.new + string(src[at+len(e.old):]))
	}
	return out, nil
}

// wholeLines returns how many times text, which ends with a line, stands in src as whole lines, and where it does last.
func wholeLines(src, text string) (at, count int) {
	for i := 0; i < len(src); i++ {
		if (i == 0 || src[i-1] == '\n') && text != "" && strings.HasPrefix(src[i:], text) {
			at, count = i, count+1
		}
	}
	return at, count
}

// loadMutants parses all archives in a directory.
func loadMutants(dir string) (all []mutant, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parseMutant(strings.TrimSuffix(filepath.Base(file), ".txtar"), data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, m)
	}
	return all, nil
}

var (
	mutantDir = filepath.Join("testdata", "mutants")
	sourceDir = filepath.Join("..", "..")
)

// Every mutant still finds what it is to change, in one place, and its tests; docs/proof.md has each in the rows of its promises, and
// names nothing that does not exist.
func TestMutantSeeds(t *testing.T) {
	all, err := loadMutants(mutantDir)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := proofRows(filepath.Join(sourceDir, "docs", "proof.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := testNames(t)
	named := map[string][]string{} // promises by mutant
	for promise, row := range rows {
		for _, name := range row {
			switch {
			case strings.HasPrefix(name, "Test"), strings.HasPrefix(name, "Fuzz"), strings.HasSuffix(name, ".txtar"):
				if !known[name] {
					t.Errorf("docs/proof.md, %s: there is no %s", promise, name)
				}
			default:
				named[name] = append(named[name], promise)
			}
		}
	}
	for _, m := range all {
		files, err := m.apply(sourceDir)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		for name, src := range files {
			if _, err := parser.ParseFile(token.NewFileSet(), name, src, 0); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		for _, test := range m.tests {
			if !known[test] {
				t.Errorf("%s: there is no %s", m.name, test)
			}
		}
		slices.Sort(m.promises)
		slices.Sort(named[m.name])
		if !slices.Equal(m.promises, named[m.name]) {
			t.Errorf("%s is for %v, and docs/proof.md has it in the rows %v", m.name, m.promises, named[m.name])
		}
		delete(named, m.name)
	}
	for name, where := range named {
		t.Errorf("docs/proof.md, %v: there is no mutant %s", where, name)
	}
	for prefix, count := range map[string]int{"P": 8, "I": 11, "M": 12} {
		for i := 1; i <= count; i++ {
			if row, ok := rows[fmt.Sprintf("%s%d", prefix, i)]; !ok || len(row) == 0 {
				t.Errorf("docs/proof.md has no row %s%d, or nothing in it", prefix, i)
			}
		}
	}
}

// proofRows returns what each row of the tables in docs/proof.md names in backquotes, by the row's first cell.
func proofRows(file string) (map[string][]string, error) {
	page, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	rows := map[string][]string{}
	name := regexp.MustCompile("`([^`]+)`")
	for _, m := range regexp.MustCompile(`(?m)^\| ([PIM]\d+) \|(.*)$`).FindAllStringSubmatch(string(page), -1) {
		if _, ok := rows[m[1]]; ok {
			return nil, fmt.Errorf("%s has two rows %s", file, m[1])
		}
		cells := strings.Split(m[2], " | ") // what is promised, tests, mutants
		for _, cell := range cells[1:] {
			for _, n := range name.FindAllStringSubmatch(cell, -1) {
				rows[m[1]] = append(rows[m[1]], n[1])
			}
		}
	}
	return rows, nil
}

// testNames returns the names of all tests and scripts in the source.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	have := make(map[string]bool)
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(sourceDir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasSuffix(path, ".txtar"):
			have[d.Name()] = true
		case strings.HasSuffix(path, "_test.go"):
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range function.FindAllStringSubmatch(string(src), -1) {
				have[m[1]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// An archive that says too little, or something else, is no mutant; a text that stands there twice or not at all is found out.
func TestParseMutant(t *testing.T) {
	const good = "promises: P1\npackage: ./p\ntests: TestA TestB\nends: panic\n-- old p/a.go --\nx := 1\n-- new --\nx := 2\n"
	m, err := parseMutant("some", []byte(good))
	if err != nil || m.name != "some" || m.pkg != "./p" || len(m.tests) != 2 || m.ends != endsPanic || m.edits[0] != (edit{"p/a.go", "x := 1\n", "x := 2\n"}) {
		t.Errorf("%+v, %v", m, err)
	}
	for _, cut := range []string{"promises: P1\n", "package: ./p\n", "tests: TestA TestB\n", "-- new --\nx := 2\n", "-- old p/a.go --\nx := 1\n-- new --\nx := 2\n", "promises: ", ": P1"} {
		if _, err := parseMutant("bad", []byte(strings.Replace(good, cut, "", 1))); err == nil {
			t.Errorf("without %q it is a mutant", cut)
		}
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "p"), 0o700); err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		"x := 1\n":            "x := 2\n",
		"// x := 1\nx := 1\n": "// x := 1\nx := 2\n",
		"x := 1\nx := 1\n":    "",
		"y := 1\n":            "",
		"xx := 1\n":           "",
		"x := 1 // one\n":     "",
	} {
		if err := os.WriteFile(filepath.Join(root, "p", "a.go"), []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		files, err := m.apply(root)
		if (err == nil) != (want != "") || string(files["p/a.go"]) != want {
			t.Errorf("%q becomes %q, %v, want %q", src, files["p/a.go"], err, want)
		}
	}
}
