package mirror

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

func passing(cf *Config) { cf.OnQuorumLoss = passThrough }

// uncommittedAnswer expects one that nobody may keep.
func (n *node) uncommittedAnswer(path, part string, edit ...func(*http.Request)) string {
	n.t.Helper()
	a := n.want(path, 200, part, edit...)
	h := a.header
	if h.Get("Cache-Control") != "no-store" || h.Get("Modmirror-Committed") != "false" || h.Get("Etag") != "" || h.Get("Accept-Ranges") != "" || h.Get("Content-Range") != "" {
		n.t.Errorf("GET %s at %s: %v", path, name(n.id), h)
	}
	return a.body
}

// settle runs CommitPending until nothing waits.
func (n *node) settle() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	for !n.commitAll(ctx) {
		if ctx.Err() != nil {
			n.t.Fatal("something waits still")
		}
	}
}

// intents returns how many files wait in a node's data directory.
func (n *node) intents() int {
	files, _ := filepath.Glob(filepath.Join(n.dir, pendingDir, "*"))
	return len(files)
}

// Without a quorum what was verified is served and marked, at every node; with one again it is committed, once.
func TestPassThrough(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	for _, k := range []string{"info", "mod", "zip"} {
		for _, n := range c.nodes {
			body := n.uncommittedAnswer(helloPath+"v1.0.0."+k, "")
			if k != "info" && body != string(c.up.Artifact(helloV, map[string]artifact.Kind{"mod": artifact.Mod, "zip": artifact.Zip}[k])) {
				t.Errorf("%s: other bytes", k)
			}
		}
	}
	n := c.nodes[1]
	asked := len(c.up.Requests())
	n.uncommittedAnswer(zipPath, "PK", func(r *http.Request) { r.Header.Set("Range", "bytes=0-3") })
	if a := n.get(zipPath, func(r *http.Request) { r.Method = "HEAD" }); a.body != "" || a.header.Get("Modmirror-Committed") != "false" {
		t.Errorf("HEAD: %v", a)
	}
	n.want("/cached-only"+zipPath, 404, "")
	if got := len(c.up.Requests()); got != asked {
		t.Errorf("%d more questions to the upstream for what waits here", got-asked)
	}
	if got := n.metric("uncommitted_answers_total"); got != 5 {
		t.Errorf("%v answers counted", got)
	}
	if n.intents() != 3 {
		t.Errorf("%d intents", n.intents())
	}
	c.set(func() { c.quorum = true })
	for _, n := range c.nodes {
		n.settle()
		if n.intents() != 0 {
			t.Errorf("%d intents after the commit", n.intents())
		}
	}
	for _, n := range c.nodes {
		if a := n.want(zipPath, 200, "PK"); a.header.Get("Modmirror-Committed") != "" || a.header.Get("Etag") == "" {
			t.Errorf("after the commit: %v", a.header)
		}
	}
}

// Also if the nodes that could take copies are the ones that are missing.
func TestPassThroughAlone(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum, c.down[1], c.down[2] = false, true, true })
	c.nodes[0].uncommittedAnswer(zipPath, "PK")
	c.set(func() { c.quorum = true })
	if c.nodes[0].commitAll(t.Context()) {
		t.Error("committed without copies")
	}
	c.set(func() { clear(c.down) })
	c.nodes[0].settle()
	c.nodes[1].want(zipPath, 200, "PK")
}

// "fail" is an outage, and nothing is kept.
func TestQuorumLossFails(t *testing.T) {
	c := newCluster(t, 3)
	c.set(func() { c.quorum = false })
	for _, n := range c.nodes {
		n.want(zipPath, 503, "no majority of the voters")
		if n.intents() != 0 {
			t.Error("something is kept")
		}
	}
}

// Bytes that fail the check are not passed through.
func TestPassThroughIsVerified(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	c.up.Tamper(helloV, artifact.Zip, func([]byte) []byte {
		return mirrortest.Zip(helloV, map[string]string{"go.mod": "module example.com/hello\n"})
	})
	for _, n := range c.nodes {
		n.want(zipPath, 403, "checksum mismatch")
		if n.intents() != 0 {
			t.Error("something is kept")
		}
	}
}

// What waits survives the process; what is left of a file does not, and stops nothing.
func TestPendingSurvives(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	n := c.nodes[0]
	n.uncommittedAnswer(zipPath, "PK")
	n.uncommittedAnswer(helloPath+"v1.0.0.info", "v1.0.0")
	dir := filepath.Join(n.dir, pendingDir)
	files, _ := os.ReadDir(dir)
	if len(files) != 2 {
		t.Fatalf("%d files, want 2: %v", len(files), files)
	}
	good, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for junk, data := range map[string][]byte{
		files[0].Name() + tmpSuffix:       good[:20],
		strings.Repeat("0", 64) + ".json": good,
		strings.Repeat("1", 64) + ".json": good[:len(good)-1],
		"README":                          good,
	} {
		if err := os.WriteFile(filepath.Join(dir, junk), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.boot()
	if n.intents() != 2 {
		t.Errorf("%d files after the restart, want 2", n.intents())
	}
	c.up.Down(true)
	n.uncommittedAnswer(zipPath, "PK")
	c.set(func() { c.quorum = true })
	n.settle()
	c.nodes[2].want(zipPath, 200, "PK")
	c.nodes[2].want(helloPath+"v1.0.0.info", 200, "v1.0.0")
}

// An intent whose blob is gone is given up, and brought in again when somebody asks.
func TestPendingWithoutBlob(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	n := c.nodes[0]
	n.uncommittedAnswer(zipPath, "PK")
	n.lose(artifact.RefOf(c.up.Artifact(helloV, artifact.Zip)))
	n.settle()
	if n.intents() != 0 {
		t.Error("it waits still")
	}
	n.uncommittedAnswer(zipPath, "PK")
}

// An intent survives its file, also the smallest one.
func TestIntentRoundTrip(t *testing.T) {
	c := newCluster(t, 1)
	for _, it := range []*intent{
		{Kind: artifact.Zip, Manifest: c.manifestOf(helloV), Ref: artifact.Ref{Size: 7}},
		{Kind: artifact.Mod, Manifest: c.manifestOf(helloV), Ref: artifact.RefOf(nil), Small: []byte{}},
		{Kind: artifact.Info, Manifest: c.manifestOf(helloV), Ref: artifact.RefOf([]byte("{}")), Small: []byte("{}")},
	} {
		b, err := it.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseIntent(b); err != nil || !reflect.DeepEqual(got, it) {
			t.Errorf("%s: %+v, %v", it.Kind, got, err)
		}
	}
	other := &intent{Kind: artifact.Mod, Manifest: c.manifestOf(helloV), Ref: artifact.RefOf([]byte("a")), Small: []byte("b")}
	b, _ := other.encode()
	if _, err := parseIntent(b); err == nil {
		t.Error("takes other bytes than those it names")
	}
	other.Small = []byte("a")
	b, _ = other.encode()
	if _, err := parseIntent(append([]byte(`{"format":2,`), b[1:]...)); err == nil || !strings.Contains(err.Error(), "it has format 2, and this version knows format 1") {
		t.Errorf("takes an intent of a later version: %v", err)
	}
}

func FuzzIntent(f *testing.F) {
	f.Add([]byte(`{"kind":3,"manifest":"","digest":"","size":1,"small":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		it, err := parseIntent(b)
		if err != nil {
			return
		}
		again, err := it.encode()
		if err != nil {
			t.Fatal(err)
		}
		if same, err := parseIntent(again); err != nil || !reflect.DeepEqual(same, it) {
			t.Errorf("%+v becomes %+v, %v", it, same, err)
		}
	})
}

// Of what several nodes passed through, the first that is committed wins; what contradicts it raises the alarm.
func TestPendingConflict(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	zip := c.nodes[0].uncommittedAnswer(zipPath, "PK")
	c.up.Tamper(helloV, artifact.Zip, mirrortest.Repack)
	c.set(func() { c.owner = func(_ module.Version, asker int) int { return asker } })
	other := c.nodes[1].uncommittedAnswer(zipPath, "PK")
	if other == zip {
		t.Fatal("the test needs two forms of the zip")
	}
	evil := mirrortest.Zip(helloV, map[string]string{"go.mod": "module example.com/hello\n", "evil.go": "package evil\n"})
	c.up.Tamper(helloV, artifact.Zip, func([]byte) []byte { return evil })
	_, mod := c.up.Sums(helloV)
	c.sums.set(helloV, mirrortest.ZipSum(evil), mod) // a database that forks
	c.nodes[2].uncommittedAnswer(zipPath, "PK")
	c.set(func() { c.quorum = true })
	c.nodes[0].spreadAnyway(artifact.RefOf([]byte(zip)))
	c.nodes[1].settle()
	c.nodes[2].settle()
	for _, n := range c.nodes {
		if n.want(zipPath, 200, "PK").body != zip {
			t.Errorf("%s serves something else", name(n.id))
		}
	}
	if got := c.nodes[1].metric("verification_failures_total", "conflict"); got != 0 {
		t.Errorf("%v alarms for other bytes of the same sum", got)
	}
	if got := c.nodes[2].metric("verification_failures_total", "conflict"); got != 1 {
		t.Errorf("%v alarms for another sum", got)
	}
}

// spreadAnyway commits what waits at n although the database says something else now.
func (n *node) spreadAnyway(artifact.Ref) {
	n.t.Helper()
	n.c.set(func() { n.c.enough = 0 })
	n.settle()
}

// CommitPending goes on by itself when the quorum is back.
func TestCommitPending(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	n := c.nodes[0]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- n.CommitPending(ctx) }()
	n.uncommittedAnswer(zipPath, "PK")
	wake := n.Wake()
	c.set(func() { c.quorum = true })
	<-wake
	c.nodes[1].want(zipPath, 200, "PK")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What waits is bounded; what finds no room is served all the same.
func TestPendingIsBounded(t *testing.T) {
	c := newCluster(t, 3, passing)
	c.set(func() { c.quorum = false })
	n := c.nodes[0]
	for i := range maxPending {
		n.pending.keep(&intent{Kind: artifact.Mod, Manifest: artifact.Manifest{Module: module.Version{Path: "example.com/x", Version: string(rune('a' + i))}}})
	}
	n.uncommittedAnswer(zipPath, "PK")
	if n.intents() != 0 || len(n.pending.items) != maxPending {
		t.Errorf("%d intents, %d in memory", n.intents(), len(n.pending.items))
	}
}
