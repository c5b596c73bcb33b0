package mirror

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// graph adds modules a to e of example.com, each with the go version and the requirements given as "a 1.16: b c".
func (g *rig) graph(lines ...string) {
	for _, line := range lines {
		head, requires, _ := strings.Cut(line, ":")
		name, version, _ := strings.Cut(head, " ")
		mod := fmt.Sprintf("module example.com/%s\n", name)
		if version != "" {
			mod += "\ngo " + version + "\n"
		}
		for r := range strings.FieldsSeq(requires) {
			mod += "\nrequire example.com/" + r + " v1.0.0\n"
		}
		g.add(fmt.Sprintf("example.com/%s@v1.0.0\n-- go.mod --\n%s-- x.go --\npackage x\n", name, mod))
	}
}

func modPath(name string) string { return "/example.com/" + name + "/@v/v1.0.0.mod" }

// await waits until the upstream has been asked for the go.mod files of names, and none of the mirror's fetches runs.
func (g *rig) await(names ...string) {
	g.t.Helper()
	for _, name := range names {
		if err := g.up.Await(g.t.Context(), modPath(name), 1); err != nil {
			g.t.Fatalf("%s was not looked ahead for: %v", name, err)
		}
	}
	g.settle()
}

// settle waits until nothing is looked ahead for any more.
func (g *rig) settle() { g.ahead.running.Wait() }

func TestLookAheadFollowsVersionSelection(t *testing.T) {
	g := newRig(t)
	g.graph("old 1.16: b", "b 1.16: c", "c: d", "d 1.21: x", "x:", "new 1.17: e", "e 1.16: f", "f:")
	g.want(modPath("old"), 200, "")
	g.await("b", "c", "d") // as far as older ones reach
	g.want(modPath("new"), 200, "")
	g.settle()
	for _, name := range []string{"e", "f", "x"} {
		if n := g.up.Count(modPath(name)); n != 0 {
			t.Errorf("%s was fetched %d times; the go command does not read it", name, n)
		}
	}
	g.want(modPath("b"), 200, "example.com/b")
	g.want(modPath("c"), 200, "example.com/c")
	for _, name := range []string{"old", "b", "c", "d", "new"} {
		if n := g.up.Count(modPath(name)); n != 1 {
			t.Errorf("%s was fetched %d times, want once", name, n)
		}
	}
	for end, want := range map[string]float64{"fetched": 3, "useful": 2, "useless": 0, "failed": 0, "dropped": 0} {
		if got := g.metric("look_ahead_total", end); got != want {
			t.Errorf("look-aheads that were %s: %v, want %v", end, got, want)
		}
	}
}

func TestLookAheadNeverFetchesMoreThanGoMods(t *testing.T) {
	g := newRig(t)
	g.graph("old 1.16: b", "b 1.21:")
	g.want(modPath("old"), 200, "")
	g.await("b")
	for _, r := range g.up.Requests() {
		if strings.Contains(r.Path, "/b/") && !strings.HasSuffix(r.Path, ".mod") {
			t.Errorf("looked ahead for %s", r.Path)
		}
	}
}

func TestLookAheadPassesTheGate(t *testing.T) {
	g := newRig(t)
	g.graph("old 1.16: bad gone")
	bad := g.add("example.com/bad@v1.0.0\n-- go.mod --\nmodule example.com/bad\n-- x.go --\npackage x\n")
	g.up.Tamper(bad, artifact.Mod, func(b []byte) []byte { return append(b, "\nrequire example.com/b v1.0.0\n"...) })
	g.want(modPath("old"), 200, "")
	g.await("bad")
	if got := g.metric("look_ahead_total", "failed"); got != 2 {
		t.Errorf("failed look-aheads: %v, want 2", got)
	}
	if n := g.up.Count(modPath("b")); n != 0 {
		t.Errorf("a requirement of a refused go.mod was fetched %d times", n)
	}
	g.up.Heal()
	g.want(modPath("bad"), 200, "module example.com/bad") // an error of a look-ahead is not remembered
}

func TestLookAheadKeepsPrivateNames(t *testing.T) {
	g := newRig(t, func(c *Config) { c.Private = "example.com/Secret" })
	g.graph("old 1.16: Secret/b", "Secret/b 1.16:")
	g.want(modPath("old"), 200, "")
	g.settle()
	for _, r := range g.up.Requests() {
		if strings.Contains(strings.ToLower(r.Path), "secret") {
			t.Errorf("the upstream was asked for %s", r.Path)
		}
	}
}

func TestLookAheadCanBeTurnedOff(t *testing.T) {
	g := newRig(t, func(c *Config) { c.NoLookAhead = true })
	g.graph("old 1.16: b", "b 1.21:")
	g.want(modPath("old"), 200, "")
	if g.ahead != nil || g.up.Count(modPath("b")) != 0 {
		t.Error("looked ahead although it is turned off")
	}
}

// A client never waits for a place of look-ahead: with all of them stalled, its own fetch goes on at once.
func TestLookAheadIsInNobodysWay(t *testing.T) {
	g := newRig(t)
	var names []string
	for i := range 3 * aheadPlaces {
		names = append(names, fmt.Sprintf("slow%d", i))
	}
	for _, name := range names {
		g.graph(name + " 1.21:")
	}
	g.graph("old 1.16: "+strings.Join(names, " "), "other 1.16:")
	for _, m := range g.up.Versions() {
		if strings.Contains(m.Path, "slow") && m.Path != "example.com/"+names[len(names)-1] {
			g.up.Stall(m, artifact.Mod, -1)
		}
	}
	g.want(modPath("old"), 200, "")
	for _, name := range names[:aheadPlaces] {
		if err := g.up.Await(t.Context(), modPath(name), 1); err != nil {
			t.Fatal(err)
		}
	}
	g.want(modPath("other"), 200, "")
	last := names[len(names)-1] // it waits for a place; a client that asks for it does not
	g.want(modPath(last), 200, "example.com/"+last)
	asked := 0
	for _, name := range names {
		asked += g.up.Count(modPath(name))
	}
	if asked != aheadPlaces+1 {
		t.Errorf("%d were asked for at a time, want %d and the client's own", asked, aheadPlaces)
	}
	g.up.Release()
	g.settle()
}

// When no client has asked for a while, what waits is forgotten.
func TestLookAheadEndsWithTheBurst(t *testing.T) {
	g := newRig(t)
	g.graph("old 1.16: b c", "b:", "c:")
	a := g.ahead
	a.mu.Lock()
	a.asked = time.Now().Add(-2 * aheadIdle)
	a.mu.Unlock()
	data := g.up.Artifact(g.up.Versions()[len(g.up.Versions())-1], artifact.Mod)
	a.require(g.up.Versions()[len(g.up.Versions())-1], data)
	a.dispatch()
	g.settle()
	if n := g.up.Count(modPath("b")) + g.up.Count(modPath("c")); n != 0 {
		t.Errorf("%d look-aheads without a client", n)
	}
	if got := g.metric("look_ahead_total", "dropped"); got != 2 {
		t.Errorf("dropped look-aheads: %v, want 2", got)
	}
}

// A client waits neither for its go.mod to be parsed for look-ahead, nor for that of another.
func TestLookAheadParsesBesideTheClient(t *testing.T) {
	g := newRig(t)
	g.graph("old 1.16: b", "b 1.21:")
	g.ahead.parsing.Lock() // as for a go.mod that takes long
	g.want(modPath("old"), 200, "")
	g.want(modPath("old"), 200, "")
	for range aheadParses {
		g.ahead.admitted(helloV, nil)
	}
	if n, dropped := len(g.ahead.parses), g.metric("look_ahead_total", "dropped"); n != aheadParses || dropped != 1 {
		t.Errorf("%d wait, %v were dropped", n, dropped)
	}
	g.ahead.parsing.Unlock()
	g.await("b")
}

// requiring returns a go.mod of so many requirements.
func requiring(n int) []byte {
	b := []byte("module example.com/old\n\nrequire (\n")
	for i := range n {
		b = fmt.Appendf(b, "\texample.com/m%d v1.0.0\n", i)
	}
	return append(b, ")\n"...)
}

func TestLookAheadIsBounded(t *testing.T) {
	g := newRig(t)
	a := g.ahead
	a.require(helloV, append(requiring(10), "//"+strings.Repeat("x", aheadMaxMod)...))
	if len(a.pending) != 0 {
		t.Errorf("%d requirements of a huge go.mod are pending", len(a.pending))
	}
	a.require(helloV, requiring(aheadPending-10))
	a.require(helloV, requiring(aheadPending+100)) // of which ten have a place
	if dropped := g.metric("look_ahead_total", "dropped"); len(a.pending) != aheadPending || dropped != 100 {
		t.Errorf("%d are pending, %v were dropped; want %d, 100", len(a.pending), dropped, aheadPending)
	}
	a.pending = nil
	a.require(helloV, requiring(aheadPending-9))
	if len(a.pending) != 0 {
		t.Errorf("%d are pending that were looked ahead for already", len(a.pending))
	}
	a.require(helloV, []byte(strings.ReplaceAll(string(requiring(3*aheadPending)), "/m", "/n")))
	if len(a.pending) != aheadPending {
		t.Errorf("%d are pending", len(a.pending))
	}
	a.pending = nil
}

// What no request can name is not asked for because a go.mod names it.
func TestLookAheadAsksForPublicHostsOnly(t *testing.T) {
	g := newRig(t)
	g.add("example.com/old@v1.0.0\n-- go.mod --\nmodule example.com/old\n\nrequire 169.254.169.254/latest v1.0.0\nrequire 127.0.0.1/x v1.0.0\nrequire a.localhost/x v1.0.0\nrequire 0x7f.1/x v1.0.0\n-- x.go --\npackage x\n")
	g.want(modPath("old"), 200, "")
	g.settle()
	for _, m := range g.sums.asked {
		if m.Path != "example.com/old" {
			t.Errorf("the checksum database was asked for %s", m)
		}
	}
}

// A go.mod that is held as a file is read and closed.
func TestLookAheadClosesWhatIsHeld(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("this system does not list open files")
		}
		return len(list)
	}
	g := newRig(t)
	g.graph("b 1.21:")
	filler := "//" + strings.Repeat("x", artifact.MaxInline)
	big := g.add("example.com/big@v1.0.0\n-- go.mod --\nmodule example.com/big\n\nrequire example.com/b v1.0.0\n\n" + filler + "\n-- x.go --\npackage x\n")
	huge := g.add("example.com/huge@v1.0.0\n-- go.mod --\nmodule example.com/huge\n\n" + strings.Repeat(filler+"\n", 17) + "\n-- x.go --\npackage x\n")
	g.want(modPath("huge"), 200, "")
	g.ahead.stop() // so that nothing is looked ahead for yet
	g.want(modPath("big"), 200, "")
	g.settle()
	g.ahead.closed = false
	g.srv.CloseClientConnections()
	before := files()
	for range 20 {
		g.ahead.bring(big)
		g.ahead.bring(huge)
	}
	if n := files(); n > before+10 {
		t.Errorf("%d files were open, %d are", before, n)
	}
	if list := g.ahead.pending; len(list) != 1 || list[0].Path != "example.com/b" {
		t.Errorf("pending: %v", list)
	}
}

func TestPruned(t *testing.T) {
	for goVersion, want := range map[string]bool{"": false, "1.9": false, "1.16": false, "1.17": true, "1.21rc1": true, "1.21.0": true, "1.100": true} {
		f := new(modfile.File)
		if goVersion != "" {
			f.Go = &modfile.Go{Version: goVersion}
		}
		if got := pruned(f); got != want {
			t.Errorf("pruned(go %s) = %v, want %v", goVersion, got, want)
		}
	}
}

// Look-ahead gives way when clients have more than half of the places.
func TestLookAheadGivesWay(t *testing.T) {
	g := newRig(t, func(c *Config) { c.MaxFetches = 4 })
	g.graph("b:")
	a := g.ahead
	a.wanted(helloV)
	a.enqueue([]module.Version{{Path: "example.com/b", Version: "v1.0.0"}})
	for range 3 {
		g.small <- struct{}{}
	}
	a.dispatch()
	g.settle()
	if n := g.up.Count(modPath("b")); n != 0 || len(a.pending) != 1 {
		t.Errorf("asked %d times with most places taken, %d pending", n, len(a.pending))
	}
	for range 3 {
		<-g.small
	}
	g.want(helloPath+"v1.0.0.mod", 200, "") // which goes on with what waits
	g.await("b")
}

// What nobody has asked for within ten minutes was of no use.
func TestLookAheadIsUseless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		b := newBench(t, &lister{}, newMemIndex(), func(c *Config) { c.Metrics = reg })
		g := &rig{t: t, reg: reg}
		at := func(name string) module.Version {
			return module.Version{Path: "example.com/" + name, Version: "v1.0.0"}
		}
		b.ahead.remember(at("a"))
		b.ahead.remember(at("b"))
		b.ahead.wanted(at("b"))
		time.Sleep(aheadUseless)
		b.ahead.remember(at("c"))
		if n := g.metric("look_ahead_total", "useless"); n != 0 {
			t.Errorf("useless after just %v: %v", aheadUseless, n)
		}
		time.Sleep(time.Nanosecond)
		b.ahead.remember(at("d"))
		for end, want := range map[string]float64{"useless": 1, "useful": 1} {
			if n := g.metric("look_ahead_total", end); n != want {
				t.Errorf("%s: %v, want %v", end, n, want)
			}
		}
	})
}
