package fault_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"modmirror/mirror/artifact/fault"
)

// An ordinary build has nothing of the points: no code, no name. One with the tag has all of them.
func TestOrdinaryBuildHasNoTrace(t *testing.T) {
	build := func(args ...string) []byte {
		t.Helper()
		out := filepath.Join(t.TempDir(), "modmirror")
		cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", out}, args...), "modmirror/cmd/modmirror")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, text)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain, faulty := build(), build("-tags", "faults")
	traces := []string{"MODMIRROR_FAULTS", "MODMIRROR_FAULTS_LIMITS", "mirror/artifact/fault.Point", "mirror/artifact/fault.Error", "snapshot-threshold"}
	for _, p := range fault.Points {
		traces = append(traces, string(p.Name))
	}
	for _, s := range traces {
		if bytes.Contains(plain, []byte(s)) {
			t.Errorf("the ordinary build has %q in it", s)
		}
		if !bytes.Contains(faulty, []byte(s)) {
			t.Errorf("the build with -tags faults lacks %q", s)
		}
	}
}

// Every name is in the table and stands in the product, as what the table says: before an operation that can fail, or not.
// docs/faults.md has it too.
func TestPointsAreUsed(t *testing.T) {
	top := filepath.Join("..", "..", "..")
	names := constants(t)
	page, err := os.ReadFile(filepath.Join(top, "docs", "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	uses := make(map[string]map[string]int) // constant → function → how often
	for _, room := range []string{"cmd", "mirror", "replicate", "sumdb"} {
		err := filepath.WalkDir(filepath.Join(top, room), func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				err = countUses(path, uses)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(fault.Points) != len(names) || len(names) < 30 {
		t.Errorf("%d names, %d points in the table", len(names), len(fault.Points))
	}
	for _, p := range fault.Points {
		constant, ok := names[string(p.Name)]
		if !ok {
			t.Errorf("%s is in the table twice, or has no constant", p.Name)
			continue
		}
		delete(names, string(p.Name))
		want := "Point"
		if p.Errors {
			want = "Error"
		}
		if u := uses[constant]; u[want] == 0 || len(u) != 1 {
			t.Errorf("%s is used as %v, want fault.%s", constant, u, want)
		}
		if !bytes.Contains(page, []byte("`"+string(p.Name)+"`")) || !bytes.Contains(page, []byte(p.Where)) {
			t.Errorf("docs/faults.md does not have %s, or not what the table says of it", p.Name)
		}
	}
}

// constants returns the constants of points.go by their values.
func constants(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "points.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			out[strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`)] = v.Names[0].Name
		}
	}
	return out
}

// countUses counts the calls fault.F(fault.C) in a file.
func countUses(path string, uses map[string]map[string]int) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		return err
	}
	of := func(e ast.Expr) string { // what it names in package fault
		sel, ok := e.(*ast.SelectorExpr)
		if !ok {
			return ""
		}
		if id, ok := sel.X.(*ast.Ident); !ok || id.Name != "fault" {
			return ""
		}
		return sel.Sel.Name
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || of(call.Fun) == "" || len(call.Args) != 1 {
			return true
		}
		c := of(call.Args[0])
		if uses[c] == nil {
			uses[c] = make(map[string]int)
		}
		uses[c][of(call.Fun)]++
		return true
	})
	return nil
}
