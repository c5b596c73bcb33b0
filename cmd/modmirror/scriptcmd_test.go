package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/sumdb/sumdbtest"
)

// cmdMirror starts and ends modmirror processes.
//
//	mirror start [flags]  starts one on $WORK/data, with the script's upstream and database if the flags name none or no
//	                      file; sets MIRROR and GOPROXY
//	mirror stop           SIGTERM; it must end with exit code 0
//	mirror term           SIGTERM, and wait until it drains
//	mirror ended          wait until it has ended, with exit code 0
//	mirror kill           SIGKILL
//	mirror logs text      wait until its log contains the text
//	mirror log pattern    its log must contain the text; with ! it must not
func cmdMirror(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		usageOf(ts, "mirror start|stop|term|ended|kill|log")
	}
	w := worldOf(ts)
	p := w.mirrors["1"]
	switch args[0] {
	case "start":
		startMirror(ts, w, args[1:])
	case "stop":
		ts.Check(p.stop(time.Minute))
		delete(w.mirrors, "1")
	case "term":
		ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
		until(ts, "the mirror to drain", func() bool { return strings.Contains(p.output(), "draining") })
	case "ended":
		<-p.exited
		ts.Check(p.err)
		delete(w.mirrors, "1")
	case "kill":
		p.kill()
		delete(w.mirrors, "1")
	case "logs":
		until(ts, "the mirror to log "+args[1], func() bool { return strings.Contains(p.output(), args[1]) })
	case "log":
		b, err := os.ReadFile(ts.MkAbs("mirror.log"))
		ts.Check(err)
		if strings.Contains(string(b), args[1]) == neg {
			ts.Fatalf("mirror's log, searched for %q:\n%s", args[1], b)
		}
	default:
		usageOf(ts, "mirror start|stop|term|ended|kill|log")
	}
}

func startMirror(ts *testscript.TestScript, w *world, args []string) {
	work := ts.Getenv("WORK")
	env := []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "NO_PROXY=*"}
	given := []string{"--data-dir", filepath.Join(work, "data"), "--drain-delay", "0s"}
	if !slices.Contains(args, "--upstream") {
		given = append(given, "--upstream", ts.Getenv("UPSTREAM"))
	}
	if !slices.Contains(args, "--config") {
		given = append(given, "--log-level", "debug", "--sumdb", ts.Getenv("SUMDB"))
	}
	args = append(given, args...)
	bin := filepath.Join(filepath.SplitList(os.Getenv("PATH"))[0], "modmirror")
	p, err := startProcess(bin, work, filepath.Join(work, "mirror.log"), env, args)
	ts.Check(err)
	w.mirrors["1"] = p
	ts.Setenv("MIRROR", p.url)
	ts.Setenv("ADDR", strings.TrimPrefix(p.url, "http://"))
	ts.Setenv("GOPROXY", p.url)
}

// cmdUpstream tells the upstream how to behave.
//
//	upstream down|up|heal
//	upstream tamper|truncate|stall|html module@version kind
//	upstream forge module@version          a sound zip with other contents
//	upstream release
//	upstream status path-prefix code
//	upstream delete module@version
//	upstream tree dir              writes all its modules as a tree for file://
//	upstream add file           a txtar module, also entered in the checksum database
//	upstream publish file       a txtar module that the checksum database does not know yet
func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	up := worldOf(ts).up
	arg := func(i int) string {
		if i >= len(args) {
			usageOf(ts, "upstream %s needs %d arguments", args[0], i)
		}
		return args[i]
	}
	switch arg(0) {
	case "down", "up":
		up.Down(args[0] == "down")
	case "heal":
		up.Heal()
	case "release":
		up.Release()
	case "tamper":
		up.Tamper(moduleArg(ts, arg(1)), kindArg(ts, arg(2)), tamper)
	case "forge":
		m := moduleArg(ts, arg(1))
		forged := mirrortest.Zip(m, map[string]string{"go.mod": "module " + m.Path + "\n", "evil.go": "package evil\n"})
		up.Tamper(m, artifact.Zip, func([]byte) []byte { return forged })
	case "truncate":
		up.Truncate(moduleArg(ts, arg(1)), kindArg(ts, arg(2)), 10)
	case "stall":
		up.Stall(moduleArg(ts, arg(1)), kindArg(ts, arg(2)), 10)
	case "html":
		up.HTML(moduleArg(ts, arg(1)), kindArg(ts, arg(2)))
	case "status":
		code, err := strconv.Atoi(arg(2))
		ts.Check(err)
		up.Status(arg(1), code, http.StatusText(code))
	case "tree":
		ts.Check(up.WriteTree(arg(1)))
	case "delete":
		up.DeleteVersion(moduleArg(ts, arg(1)))
	case "add", "publish":
		m := up.Add(ts.ReadFile(arg(1)))
		if args[0] == "add" {
			zip, mod := up.Sums(m)
			worldOf(ts).db.Add(m, zip, mod)
		}
	default:
		usageOf(ts, "upstream: unknown %q", args[0])
	}
}

// tamper changes one byte in the middle: of the compressed data of a zip, of the text of a go.mod.
func tamper(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

func moduleArg(ts *testscript.TestScript, s string) module.Version {
	path, v, ok := strings.Cut(s, "@")
	if !ok {
		usageOf(ts, "%q is not module@version", s)
	}
	return module.Version{Path: path, Version: v}
}

func kindArg(ts *testscript.TestScript, s string) artifact.Kind {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		if k.String() == s {
			return k
		}
	}
	usageOf(ts, "%q is not info, mod or zip", s)
	return 0
}

// cmdGet asks the mirror for a path, which must answer with the status code; the body is the command's output.
//
//	get 200 /example.com/hello/@v/list
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		usageOf(ts, "get code path")
	}
	code, body, err := fetch(ts.Getenv("MIRROR") + args[1])
	ts.Check(err)
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("GET %s: %d, want %s\n%s", args[1], code, args[0], body)
	}
}

// cmdPoll is get for an answer that becomes true after a moment: it asks until the status code comes.
func cmdPoll(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		usageOf(ts, "poll code path")
	}
	until(ts, "GET "+args[1]+" to say "+args[0], func() bool {
		code, _, err := fetch(ts.Getenv("MIRROR") + args[1])
		ts.Check(err)
		return strconv.Itoa(code) == args[0]
	})
}

func fetch(url string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// until waits for a condition, at most half a minute.
func until(ts *testscript.TestScript, what string, ok func() bool) {
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit.C:
			ts.Fatalf("waited 30 s for %s", what)
		case <-tick.C:
		}
	}
}

// cmdAsked looks at what the upstream was asked, with the text in the path, since the last look.
//
//	asked text     at least once
//	asked text n   exactly n times
//	! asked text   never
//	asked reset    forgets
func cmdAsked(ts *testscript.TestScript, neg bool, args []string) {
	up := worldOf(ts).up
	if len(args) == 0 {
		usageOf(ts, "asked text [n] | reset")
	}
	if args[0] == "reset" {
		up.Reset()
		return
	}
	n, paths := countAsked(up, args[0])
	want := n > 0
	if len(args) == 2 {
		want = strconv.Itoa(n) == args[1]
	}
	if want == neg {
		ts.Fatalf("the upstream was asked %d times for %q:\n%s", n, args[0], strings.Join(paths, "\n"))
	}
}

// cmdAwait waits until the upstream has been asked for a path with the text in it.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		usageOf(ts, "await text")
	}
	until(ts, "the upstream to be asked for "+args[0], func() bool {
		n, _ := countAsked(worldOf(ts).up, args[0])
		return n > 0
	})
}

func countAsked(up *mirrortest.Upstream, text string) (n int, paths []string) {
	for _, r := range up.Requests() {
		paths = append(paths, r.Path)
		if strings.Contains(r.Path, text) {
			n++
		}
	}
	return n, paths
}

// cmdDamage damages what a stopped mirror holds.
//
//	damage blob   flips a bit in the middle of every blob
//	damage tiles  removes the tiles of the checksum database
func cmdDamage(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		usageOf(ts, "damage blob|tiles")
	}
	data := filepath.Join(ts.Getenv("WORK"), "data")
	switch args[0] {
	case "blob":
		ts.Check(filepath.WalkDir(filepath.Join(data, "blobs"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600))
		}))
	case "tiles":
		ts.Check(os.RemoveAll(filepath.Join(data, "sumdb")))
	default:
		usageOf(ts, "damage blob|tiles")
	}
}

// cmdSumDB tells the checksum database how to behave.
//
//	sumdb down|up
//	sumdb rollback n             answer as if there were only n records
//	sumdb fork                   from now on answer with another history, which has every module of the upstream
//	sumdb honest                 end that
//	sumdb liar                   from now on the upstream's /liar answers with the other history as it is now, the rest honestly
//	sumdb learn module@version   of the upstream
func cmdSumDB(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if len(args) == 0 || neg {
		usageOf(ts, "sumdb down|up|rollback|fork|learn")
	}
	switch args[0] {
	case "down", "up":
		w.db.Lie(sumdbtest.Lies{Down: args[0] == "down"})
	case "rollback":
		n, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		w.db.Lie(sumdbtest.Lies{RollBack: n})
	case "fork":
		other := w.db.Fork(1)
		other.Grow(int(w.db.Size())) // what is looked up there needs a larger tree than anybody has seen
		for _, m := range w.up.Versions() {
			zip, mod := w.up.Sums(m)
			other.Add(m, zip, mod)
		}
		w.other = other
		w.db.AnswerAs(other)
	case "honest":
		w.db.AnswerAs(nil)
	case "liar":
		w.up.Mount("/liar/sumdb/"+databaseName, w.other)
		w.db.AnswerAs(nil)
	case "learn":
		m := moduleArg(ts, args[1])
		zip, mod := w.up.Sums(m)
		w.db.Add(m, zip, mod)
	default:
		usageOf(ts, "sumdb: unknown %q", args[0])
	}
}

// cmdSnapshot notes the names, sizes and times of all files below a directory.
//
//	snapshot dir         notes them
//	snapshot -same dir   they must be as they were noted last
func cmdSnapshot(ts *testscript.TestScript, neg bool, args []string) {
	same := len(args) == 2 && args[0] == "-same"
	if len(args) == 0 || len(args) == 2 && !same || neg {
		usageOf(ts, "snapshot [-same] dir")
	}
	var all strings.Builder
	ts.Check(filepath.WalkDir(args[len(args)-1], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			fmt.Fprintln(&all, path, fi.Mode(), fi.Size(), fi.ModTime())
		}
		return err
	}))
	noted := ts.MkAbs("snapshot.noted")
	if !same {
		ts.Check(os.WriteFile(noted, []byte(all.String()), 0o600))
		return
	}
	if before := ts.ReadFile(noted); before != all.String() {
		ts.Fatalf("before:\n%s\nnow:\n%s", before, &all)
	}
}
