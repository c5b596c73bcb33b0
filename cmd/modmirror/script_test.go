package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"modmirror/mirror/mirrortest"
	"modmirror/sumdb/sumdbtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"modmirror": main})
}

// TestScript runs testdata/script: the real go command against real modmirror processes, whose upstream and checksum
// database live in this test and misbehave when told to. The scripts' own commands are in scriptcmd_test.go.
func TestScript(t *testing.T) {
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setupScript(env, strings.TrimSpace(string(cache))) },
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"mirror":   cmdMirror,
			"upstream": cmdUpstream,
			"sumdb":    cmdSumDB,
			"get":      cmdGet,
			"poll":     cmdPoll,
			"asked":    cmdAsked,
			"await":    cmdAwait,
			"damage":   cmdDamage,
			"snapshot": cmdSnapshot,
		},
	})
}

// world is what one script has around it.
type world struct {
	up      *mirrortest.Upstream
	db      *sumdbtest.Database
	other   *sumdbtest.Database // the history that db forked to
	mirrors map[string]*process
}

// loadModules gives up the modules of testdata/modules and a toolchain, and db what they are.
func loadModules(up *mirrortest.Upstream, db *sumdbtest.Database) error {
	if _, err := up.LoadDir(filepath.Join("testdata", "modules")); err != nil {
		return err
	}
	up.AddToolchain("go1.99.0")
	up.Alias("example.com/hello", "main", "v1.1.0")
	up.Alias("example.com/untagged", "latest", "v0.0.0-20240102030405-abcdef012345")
	for _, m := range up.Versions() {
		zip, mod := up.Sums(m)
		db.Add(m, zip, mod)
	}
	up.Mount("/sumdb/"+databaseName, db)
	return nil
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// databaseName is the name of the scripts' checksum database. There is no such host: it is reached through the upstream.
const databaseName = "sum.example.com/scripts"

// setupScript gives a script an upstream with the modules of testdata/modules, a checksum database that knows them, and
// a go command that has nothing cached and is told of nothing but the mirror and the database's key.
func setupScript(env *testscript.Env, goCache string) error {
	w := &world{up: mirrortest.New(), db: sumdbtest.New(databaseName), mirrors: make(map[string]*process)}
	env.Defer(w.up.Close)
	env.Values[worldKey{}] = w
	if err := loadModules(w.up, w.db); err != nil {
		return err
	}

	peer, err := freeAddress()
	if err != nil {
		return err
	}
	modcache := filepath.Join(env.WorkDir, "modcache")
	env.Vars = append(env.Vars,
		"HOME="+filepath.Join(env.WorkDir, "home"),
		"GOCACHE="+goCache,
		"GOPATH="+filepath.Join(env.WorkDir, "gopath"),
		"GOMODCACHE="+modcache,
		"GOENV=off",
		"GOTOOLCHAIN=local",
		"GOFLAGS=-modcacherw -mod=mod",
		"GOSUMDB="+w.db.Key(),
		"GOPROXY=http://not-started.invalid",
		"UPSTREAM="+w.up.URL(),
		"PEER="+peer,
		"SUMDB="+w.db.Key(),
		"NO_PROXY=*",
	)
	env.Defer(func() {
		for _, p := range w.mirrors {
			p.kill()
		}
	})
	return os.MkdirAll(filepath.Join(env.WorkDir, "home"), 0o755)
}

// usageOf ends the script: it called one of its own commands wrongly.
func usageOf(ts *testscript.TestScript, format string, args ...any) {
	ts.Fatalf("usage: %s", fmt.Sprintf(format, args...))
}
