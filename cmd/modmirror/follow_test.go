package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/feed"
)

// copyOf is a mirror that follows the one of a site, with a directory of its own, and no other source than that.
type copyOf struct {
	*site
	source string // URL
	dir    string
	addr   string
}

func newCopy(s *site, source string) *copyOf {
	s.t.Helper()
	addr, err := freeAddress()
	if err != nil {
		s.t.Fatal(err)
	}
	return &copyOf{site: s, source: source, dir: s.t.TempDir(), addr: addr}
}

func (c *copyOf) flags(more ...string) []string {
	return append([]string{"--data-dir", filepath.Join(c.dir, "data"), "--drain-delay", "0s", "--sumdb", c.db.Key()}, more...)
}

// start starts it, and does not wait until it is ready.
func (c *copyOf) start(more ...string) *process {
	c.t.Helper()
	p, err := launch(c.bin, c.dir, filepath.Join(c.dir, "copy.log"), c.addr, c.env(), c.flags(append(more, "--follow", c.source)...))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.kill)
	return p
}

// ready starts it, and waits.
func (c *copyOf) ready(more ...string) *process {
	c.t.Helper()
	p := c.start(more...)
	if err := p.waitReady(30 * time.Second); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// once runs follow --once, and returns what it prints and how it ends.
func (c *copyOf) once(more ...string) (string, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	args := append([]string{"follow", c.source, "--once", "--listen", c.addr, "--peer-listen", "127.0.0.1:0"}, c.flags(more...)...)
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Dir, cmd.Env = c.dir, c.env()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		c.t.Fatalf("follow --once does not end\n%s", tail(errs.String(), 2000))
	}
	return out.String() + errs.String()[max(0, strings.LastIndex(errs.String(), "modmirror: ")):], err
}

// followStatus returns how far p is.
func (c *copyOf) followStatus(p *process) (st feed.Status) {
	c.t.Helper()
	var s status
	if err := json.Unmarshal([]byte(c.want(p, "/status", 200)), &s); err != nil || s.Follow == nil {
		c.t.Fatalf("/status: %+v, %v", s.Follow, err)
	}
	return *s.Follow
}

// until waits for a status.
func (c *copyOf) until(p *process, what string, ok func(feed.Status) bool) feed.Status {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 90*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		st := c.followStatus(p)
		if ok(st) {
			return st
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("no %s: %+v\n%s", what, st, tail(p.output(), 3000))
		case <-tick.C:
		}
	}
}

// entries returns what the feed of p has, without times.
func (c *copyOf) entries(p *process) (all []string) {
	c.t.Helper()
	for line := range strings.Lines(c.want(p, "/index?parts=1", 200)) {
		var e feed.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.t.Fatal(err)
		}
		all = append(all, fmt.Sprint(e.Path, "@", e.Version, e.Parts))
	}
	slices.Sort(all)
	return all
}

// same holds the copy to the source: the same versions, with the same parts, of the same bytes.
func (c *copyOf) same(source, p *process) {
	c.t.Helper()
	want, got := c.entries(source), c.entries(p)
	if !slices.Equal(got, want) {
		c.t.Errorf("the copy has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for line := range strings.Lines(c.want(source, "/index?parts=1", 200)) {
		var e feed.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.t.Fatal(err)
		}
		for _, k := range e.Kinds() {
			path := "/cached-only" + artifactPath(e.Module(), k)
			if a, b := c.want(source, path, 200), c.want(p, path, 200); a != b {
				c.t.Errorf("%s has %d bytes here, and other %d at the source", path, len(b), len(a))
			}
		}
	}
}

// fill has p take in modules: of some all, of others only what a client asks for first.
func (c *copyOf) fill(p *process, ms []module.Version, r *rand.Rand) {
	c.t.Helper()
	for _, m := range ms {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip}[:1+r.IntN(3)] {
			c.want(p, artifactPath(m, k), 200)
		}
	}
}

// A mirror that follows another one is killed at twenty random moments, while the other gets new versions and new parts of
// those that it has. In the end it is complete, and has the same bytes; nothing was asked of the upstream on its account.
func TestFollowerIsKilled(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := newSite(t)
	s.load()
	source := s.start()
	c := newCopy(s, source.url)
	var ms []module.Version
	begun := 0
	for round := range 20 {
		for i := range 6 {
			ms = append(ms, s.addRandom(r, fmt.Sprintf("example.com/r%d/m%d", round, i)))
		}
		p := c.start()
		c.fill(source, ms[max(0, len(ms)-9):], r)
		wait := time.NewTimer(time.Duration(r.Int64N(int64(600 * time.Millisecond))))
		<-wait.C // the moment is what is being drawn
		p.kill()
		if strings.Contains(p.output(), "following a feed") {
			begun++
		}
	}
	asked := len(s.up.Requests())
	p := c.ready()
	c.until(p, "end of the feed", func(st feed.Status) bool { return st.Behind == 0 && st.Failed+st.Refused == 0 })
	c.same(source, p)
	if n := len(s.up.Requests()); n != asked {
		t.Errorf("the upstream was asked %d times for the copy", n-asked)
	}
	t.Logf("%d of 20 processes had begun to follow", begun)
	if begun < 5 {
		t.Error("too few were killed while they followed")
	}
	c.end(p)
	p = c.ready("--offline=false")
	st := c.until(p, "end of the feed again", func(st feed.Status) bool { return st.Behind == 0 && !st.LastRead.IsZero() })
	if st.Entries > 1 {
		t.Errorf("after a restart %d entries are looked at again", st.Entries)
	}
	c.end(p)
	cmd := exec.CommandContext(t.Context(), s.bin, "fsck", "--data-dir", filepath.Join(c.dir, "data"))
	cmd.Env = s.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("fsck: %v\n%s", err, out)
	}
}

// lyingFront stands in front of a mirror, and lies about one path as long as it is told to, or forbids it; or is away.
type lyingFront struct {
	path    atomic.Pointer[string]
	forbids atomic.Pointer[string]
	away    atomic.Bool
	next    *httputil.ReverseProxy
	srv     *httptest.Server
}

func newLyingFront(t *testing.T, target string) (*lyingFront, string) {
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l := &lyingFront{next: httputil.NewSingleHostReverseProxy(u)}
	l.next.ModifyResponse = func(resp *http.Response) error {
		if lie := l.path.Load(); lie == nil || resp.Request.URL.Path != *lie || resp.StatusCode != 200 {
			return nil
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		resp.Body = io.NopCloser(bytes.NewReader(b))
		return nil
	}
	l.next.ErrorLog = log.New(io.Discard, "", 0) // of those who leave
	l.srv = httptest.NewServer(l)
	t.Cleanup(l.srv.Close)
	return l, l.srv.URL
}

func (l *lyingFront) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.away.Load() {
		panic(http.ErrAbortHandler)
	}
	if path := l.forbids.Load(); path != nil && r.URL.Path == *path {
		http.Error(w, "not for you", http.StatusForbidden)
		return
	}
	l.next.ServeHTTP(w, r)
}

// A source that sends a wrong zip: that one is refused and shown, all else comes in. follow --once ends with 1 then, and with 0
// when the source is honest again.
func TestFollowLyingSource(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 8))
	s := newSite(t)
	s.load()
	source := s.start()
	l, front := newLyingFront(t, source.url)
	c := newCopy(s, front)
	var ms []module.Version
	for i := range 12 {
		ms = append(ms, s.addRandom(r, fmt.Sprintf("example.com/lie%d", i)))
	}
	for _, m := range ms {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			c.want(source, artifactPath(m, k), 200)
		}
	}
	lie := artifactPath(ms[5], artifact.Zip)
	l.path.Store(&lie)
	out, err := c.once()
	if code(err) != 1 || !strings.Contains(out, "example.com/lie5@v1.0.0: REFUSED") || !strings.Contains(out, "1 versions refused, 0 could not be had") ||
		!strings.Contains(out, "checksum mismatch") && !strings.Contains(out, "not a module zip") {
		t.Errorf("follow --once: %v\n%s", err, out)
	}
	p := c.ready()
	st := c.until(p, "refusal", func(st feed.Status) bool { return st.Refused == 1 && st.Behind == 0 && !st.LastRead.IsZero() })
	if len(st.Owed) != 1 || st.Owed[0].Path != "example.com/lie5" || st.Failed != 0 {
		t.Errorf("status: %+v", st)
	}
	for i, m := range ms {
		if i != 5 {
			c.want(p, "/cached-only"+artifactPath(m, artifact.Zip), 200)
		}
	}
	c.want(p, "/cached-only"+lie, 404)
	c.says(p, "/metrics", 200, "\nmodmirror_feed_refused 1\n")
	c.end(p)
	l.path.Store(nil)
	out, err = c.once()
	if err != nil || !strings.Contains(out, "0 versions refused, 0 could not be had") {
		t.Errorf("follow --once of an honest source: %v\n%s", err, out)
	}
	p = c.ready()
	c.same(source, p)
	c.end(p)
}

func code(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// A source that is away for a while is followed again when it is back, from where it was.
func TestFollowSourceIsAway(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(9, 10))
	s := newSite(t)
	s.load()
	source := s.start()
	l, front := newLyingFront(t, source.url)
	c := newCopy(s, front)
	c.fill(source, []module.Version{s.addRandom(r, "example.com/early")}, r)
	p := c.ready()
	c.until(p, "end of the feed", func(st feed.Status) bool { return st.Behind == 0 && st.Entries == 1 })
	l.away.Store(true)
	l.srv.CloseClientConnections()
	c.fill(source, []module.Version{s.addRandom(r, "example.com/late")}, r)
	c.until(p, "failure", func(st feed.Status) bool { return st.State == feed.StateFailing })
	c.want(p, "/readyz", 200) // it serves what it has
	l.away.Store(false)
	c.until(p, "end of the feed", func(st feed.Status) bool { return st.State == feed.StateFollowing && st.Behind == 0 && st.Entries >= 2 })
	c.same(source, p)
	c.end(p)
	if out, err := c.once("--private", "example.com/*"); err != nil || !strings.Contains(out, "complete through") {
		t.Errorf("follow --once of what is here: %v\n%s", err, out)
	}
}

// What the other mirror lists and does not hand over, as one does that wants credentials, is missing, and not unwanted.
func TestFollowForbiddingSource(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(11, 12))
	s := newSite(t)
	s.load()
	source := s.start()
	l, front := newLyingFront(t, source.url)
	c := newCopy(s, front)
	m := s.addRandom(r, "example.com/mine")
	c.want(source, artifactPath(m, artifact.Zip), 200)
	forbidden := artifactPath(m, artifact.Zip)
	l.forbids.Store(&forbidden)
	out, err := c.once()
	if code(err) != 1 || !strings.Contains(out, "1 could not be had") || !strings.Contains(out, "not for you") {
		t.Errorf("follow --once: %v\n%s", err, out)
	}
	l.forbids.Store(nil)
	if out, err = c.once(); err != nil {
		t.Errorf("follow --once of what is handed over now: %v\n%s", err, out)
	}
}

func TestFollowFlags(t *testing.T) {
	s := newSite(t)
	for args, want := range map[string]string{
		"follow":                            "accepts 1 arg",
		"follow http://a.example --offline": "--follow and --offline",
		"follow http://a.example --follow-limit 1KB":                             "at least 64KiB",
		"follow http://a.example --follow-parallel 0":                            "want 1 to 256",
		"follow http://a.example --once --bootstrap-expect 3 --join 127.0.0.1:1": "--once is for a mirror of one node",
		"follow nonsense://x":                                                    "has not the scheme",
	} {
		cmd := exec.CommandContext(t.Context(), s.bin, append(strings.Fields(args), "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0")...)
		cmd.Env = s.env()
		out, err := cmd.CombinedOutput()
		if code(err) != 2 || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v %s, want %q", args, err, out, want)
		}
	}
}

// A cluster of three follows a mirror, and its leader is killed again and again while that grows. Whoever is next goes on; one
// node does the work, and in the end each of the three has all of it.
func TestClusterFollows(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(11, 12))
	s := newClusterSite(t, 3)
	s.load()
	source := s.site.start()
	c := &copyOf{site: s.site}
	s.source = []string{"--follow", source.url, "--sumdb", s.db.Key()}
	count := 0
	grow := func() {
		var ms []module.Version
		for range 10 {
			count++
			ms = append(ms, s.addRandom(r, fmt.Sprintf("example.com/c%d", count)))
		}
		c.fill(source, ms, r)
	}
	grow()
	s.run()
	s.voters(3)
	for range 3 {
		grow()
		lead := s.leader()
		lead.kill()
		grow()
		s.run(lead)
		s.voters(3)
	}
	want := c.entries(source)
	for _, n := range s.nodes {
		s.await("all of the feed at "+n.name, func() bool { return slices.Equal(c.entries(n.process), want) }, n.output)
		c.same(source, n.process)
	}
	follow := 0
	for _, n := range s.nodes {
		st := c.followStatus(n.process)
		if st.State != feed.StateWaiting {
			follow++
			if st.Refused+st.Failed > 0 {
				t.Errorf("%s: %+v", n.name, st)
			}
		}
	}
	if follow != 1 {
		t.Errorf("%d nodes follow", follow)
	}
	// A node that waited has kept what the other one claimed, and goes on from there.
	cursor := func(n *clusterNode) string {
		b, _ := os.ReadFile(filepath.Join(n.dir, feed.StateName))
		var st struct{ Since string }
		_ = json.Unmarshal(b, &st) // there may be none yet
		return st.Since
	}
	lead := s.leader()
	for _, n := range s.nodes {
		s.await("cursor of "+lead.name+" at "+n.name, func() bool { return cursor(n) != "" && cursor(n) == cursor(lead) }, n.output)
	}
	through, before := c.followStatus(lead.process).Through, map[string]int{}
	for _, n := range s.nodes {
		before[n.name] = c.followStatus(n.process).Entries
	}
	lead.kill()
	var next *clusterNode
	s.await("another node that follows", func() bool {
		for _, n := range s.alive() {
			if st := c.followStatus(n.process); st.State == feed.StateFollowing && st.Behind == 0 {
				next = n
				return true
			}
		}
		return false
	}, lead.output)
	st := c.followStatus(next.process)
	if again := st.Entries - before[next.name]; again > 1 || st.Through.Before(through) {
		t.Errorf("%s looks at %d entries again, of %d; complete through %v, and before through %v", next.name, again, len(want), st.Through, through)
	}
	t.Logf("%s looks at %d entries again, of %d", next.name, st.Entries-before[next.name], len(want))
}

// The runbook of docs/follow.md for a network without any way out: an import host takes a copy, which goes inside on a medium;
// there a mirror is made of it, and later ones are followed.
func TestImportIntoAnAirGap(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(13, 14))
	s := newSite(t)
	s.load()
	source := s.start()
	c := newCopy(s, source.url)
	medium := filepath.Join(t.TempDir(), "medium")
	command := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), s.bin, args...)
		cmd.Env = s.env()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	carry := func(to string) {
		t.Helper()
		if out, err := c.once(); err != nil {
			t.Fatalf("follow --once: %v\n%s", err, out)
		}
		command("backup", medium, "--data-dir", filepath.Join(c.dir, "data"), "--keep", "3")
		command("restore", medium, "--data-dir", to, "--sumdb", s.db.Key())
	}
	grow := func(name string) {
		t.Helper()
		for i := range 5 {
			c.fill(source, []module.Version{s.addRandom(r, fmt.Sprintf("example.com/%s%d", name, i))}, r)
		}
	}
	grow("first")
	inner := newCopy(s, "") // where it finds the mirror of the medium later
	carry(filepath.Join(inner.dir, "data"))
	grow("second")
	outside := newSite(t)
	carry(outside.data)
	want := c.entries(source)
	source.kill()
	s.up.Close() // from here on there is no way out

	p, err := startProcess(s.bin, outside.dir, filepath.Join(outside.dir, "medium.log"), s.env(), []string{"--offline", "--data-dir", outside.data, "--drain-delay", "0s", "--sumdb", s.db.Key()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	inner.source = p.url
	q := inner.ready()
	inner.until(q, "end of the feed", func(st feed.Status) bool { return st.Behind == 0 && st.Refused+st.Failed == 0 })
	if got := inner.entries(q); !slices.Equal(got, want) {
		t.Errorf("inside there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	inner.same(p, q)
	inner.says(q, "/sumdb/"+databaseName+"/lookup/example.com/second0@v1.0.0", 200, "example.com/second0 v1.0.0 h1:")
}
