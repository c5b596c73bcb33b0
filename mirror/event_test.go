package mirror

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// watcher keeps what happened.
type watcher struct {
	mu  sync.Mutex
	all []Event
}

func (w *watcher) watch(c *Config) {
	c.OnEvent = func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all = append(w.all, e)
	}
}

// seen returns what happened since it was asked last.
func (w *watcher) seen() (all []Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, w.all = w.all, nil
	return all
}

// What comes in from an upstream is told once, with all that people want to know; what is only sent is not.
func TestEventsOfAnIngest(t *testing.T) {
	var w watcher
	g := newRig(t, w.watch)
	for range 2 {
		for _, ext := range []string{"info", "mod", "zip"} {
			g.want("/example.com/hello/@v/v1.0.0."+ext, 200, "")
		}
	}
	all := w.seen()
	if len(all) != 3 {
		t.Fatalf("%d events: %+v", len(all), all)
	}
	man := g.index.manifests[helloV]
	for i, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		e := all[i]
		if e.Took <= 0 || e.Took > time.Minute {
			t.Errorf("%s took %v", k, e.Took)
		}
		e.Took = 0
		if want := (Event{What: Stored, Module: helloV, Kind: k, Bytes: man.Ref(k).Size, Source: g.up.URL()}); e != want {
			t.Errorf("got %+v, want %+v", e, want)
		}
	}
}

// What fails a check is told with the reason, in the words that a client gets.
func TestEventsOfARefusal(t *testing.T) {
	var w watcher
	g := newRig(t, w.watch)
	g.up.Tamper(helloV, artifact.Mod, func(b []byte) []byte { return append(b, "// evil\n"...) })
	g.want("/example.com/hello/@v/v1.0.0.mod", 403, "checksum mismatch")
	all := w.seen()
	if len(all) != 1 || all[0].What != Refused || all[0].Module != helloV || all[0].Kind != artifact.Mod || all[0].Source == "" ||
		!strings.HasPrefix(all[0].Reason, "checksum mismatch: upstream h1:") {
		t.Errorf("events %+v", all)
	}
}

// What another node sends is told with its name, and what rots with how it was healed.
func TestEventsAmongNodes(t *testing.T) {
	var all [2]watcher
	id := 0
	c := newCluster(t, 2, func(cf *Config) { all[id].watch(cf); id++ })
	c.nodes[0].want("/example.com/hello/@v/v1.0.0.zip", 200, "")
	ref := c.nodes[0].zipRef()
	fromNode := func(e Event) bool {
		return e.What == Stored && e.Kind == artifact.Zip && e.Bytes == ref.Size && e.Source == name(0)
	}
	if at := all[1].seen(); !slices.ContainsFunc(at, fromNode) {
		t.Errorf("no copy of node 0 in %+v", at)
	}
	all[0].seen()
	c.nodes[0].rot(ref)
	c.nodes[0].store.Doubt(ref.Digest)
	man, err := c.nodes[0].manifest(t.Context(), helloV)
	if err != nil {
		t.Fatal(err)
	}
	_, f, err := c.nodes[0].held(t.Context(), man, artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	var what []string
	for _, e := range all[0].seen() {
		what = append(what, fmt.Sprint(e.What))
		if e.What == Damaged && e.Reason == "" {
			t.Errorf("no reason in %+v", e)
		}
	}
	if !slices.Contains(what, "damaged") || !slices.Contains(what, "healed") {
		t.Errorf("happened: %q", what)
	}
}

// What the owner refuses is told at the node that was asked, too, with who refused it; what it only does not have is not.
func TestEventsOfARefusalElsewhere(t *testing.T) {
	var all [2]watcher
	id := 0
	c := newCluster(t, 2, func(cf *Config) { all[id].watch(cf); id++ })
	c.nodes[1].want("/example.com/never/@v/v1.0.0.mod", 404, "")
	c.up.Tamper(helloV, artifact.Mod, func(b []byte) []byte { return append(b, "// evil\n"...) }) // which no other node is sent meanwhile
	c.nodes[1].want("/example.com/hello/@v/v1.0.0.mod", 403, "checksum mismatch")
	if at := all[0].seen(); len(at) != 1 || at[0].What != Refused || at[0].Source == "" {
		t.Errorf("at the owner: %+v", at)
	}
	at := all[1].seen()
	if len(at) != 1 || at[0].What != Refused || at[0].Module != helloV || at[0].Kind != artifact.Mod || !strings.HasPrefix(at[0].Reason, "node "+name(0)+" refused it: ") ||
		!strings.Contains(at[0].Reason, "checksum mismatch") {
		t.Errorf("at the node that was asked: %+v", at)
	}
}

// Nothing that is told has a private name in it, wherever it may stand.
func TestEventsHidePrivateNames(t *testing.T) {
	var w watcher
	g := newRig(t, w.watch, func(c *Config) { c.Private = "corp.example" })
	secret := module.Version{Path: "corp.example/secret", Version: "v1.2.3"}
	g.want("/corp.example/secret/@v/v1.2.3.zip", 403, "private")
	g.alarm("id", failSum, fmt.Errorf("%s is wrong", secret), Event{Module: secret, Kind: artifact.Zip, Source: "node a"})
	g.happened(Event{What: Stored, Module: secret, Kind: artifact.Zip, Bytes: 7}, nil)
	all := w.seen()
	if len(all) != 2 {
		t.Errorf("%d events", len(all))
	}
	for _, e := range all {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, "secret") || strings.Contains(text, "v1.2.3") {
			t.Errorf("it is told: %s", text)
		}
	}
}
