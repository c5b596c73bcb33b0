package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/cmd/modmirror/statuspage"
	"modmirror/mirror/artifact"
)

// html asks a mirror as a browser does.
func (s *site) html(p *process, path string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	resp := s.browse(ctx, p, path)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, string(b)
}

func (s *site) browse(ctx context.Context, p *process, path string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", path, err, p.output())
	}
	return resp
}

// A single mirror shows itself, what comes in while somebody follows, and what it holds; and nothing of what is private by then.
func TestPageOfMirror(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.load()
	p := s.start()
	wants := func(path string, status int, texts ...string) string {
		t.Helper()
		got, body := s.html(p, path)
		for _, want := range texts {
			if got != status || !strings.Contains(body, want) {
				t.Errorf("%s: %d without %q:\n%s", path, got, want, body)
			}
		}
		return body
	}
	wants("/", 200, "go env -w GOPROXY="+p.url, "This mirror is healthy", "single node", databaseName)
	if _, body := s.get(p, "/"); strings.Contains(body, "<") || !strings.Contains(body, "go env -w GOPROXY="+p.url+"\n") {
		t.Errorf("for terminals the page is\n%s", body)
	}
	wants("/modules/example.com/hello", 404, "nothing of")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream := s.browse(ctx, p, "/events")
	defer stream.Body.Close()
	zip := "/example.com/hello/@v/v1.0.0.zip"
	s.want(p, zip, 200)
	lines := bufio.NewScanner(stream.Body)
	for told := false; !told && lines.Scan(); {
		told = strings.Contains(lines.Text(), "example.com/hello")
		if strings.Contains(lines.Text(), s.up.URL()) {
			t.Errorf("the stream tells an address: %s", lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("the stream did not tell what came in: %v", err)
	}
	wants("/search?q=HELLO", 200, `href="/modules/example.com/hello"`)
	page := wants("/modules/example.com/hello", 200, "1 version", databaseName, "Committed", "✓")
	for _, m := range s.up.Versions() {
		if m.Path == "example.com/hello" && m.Version == "v1.0.0" {
			sum, mod := s.up.Sums(m)
			for _, want := range []string{strings.ReplaceAll(sum, "+", "&#43;"), strings.ReplaceAll(mod, "+", "&#43;"), artifact.DigestOf(s.up.Artifact(m, artifact.Zip)).String()} {
				if !strings.Contains(page, want) {
					t.Errorf("the page of the module has no %s:\n%s", want, page)
				}
			}
		}
	}
	cancel()
	s.end(p)

	p = s.start("--private", "example.com/hello")
	wants("/modules/example.com/hello", 404, "nothing of")
	if _, body := s.html(p, "/search?q=example.com"); strings.Contains(body, "example.com/hello") {
		t.Errorf("a private module is found:\n%s", body)
	}
	if strings.Contains(p.output(), "/modules/") {
		t.Errorf("the log names a private module:\n%s", p.output())
	}
}

// Each node shows what it refused its clients, also if that was another one's doing, whose name it says then.
func TestRefusalIsShownWhereItWasAsked(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	hello := module.Version{Path: "example.com/hello", Version: "v1.0.0"}
	s.up.Tamper(hello, artifact.Mod, func(b []byte) []byte { return append(b, "// evil\n"...) })
	elsewhere := 0
	for _, n := range s.nodes {
		s.says(n.process, artifactPath(hello, artifact.Mod), 403, "checksum mismatch")
		_, page := s.html(n.process, "/")
		if !strings.Contains(page, "checksum mismatch") {
			t.Errorf("%s does not show what it refused:\n%s", n.name, page)
		}
		for _, o := range s.nodes {
			if strings.Contains(page, "node "+o.name+" refused it") && o != n {
				elsewhere++
			}
		}
	}
	if elsewhere != 2 {
		t.Errorf("%d nodes say that another one refused it, want 2", elsewhere)
	}
}

// One address has a part of the streams of events, unless it may have all connections, as that of a balancer.
func TestStreamsOfOneAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, c := range []struct {
		flags []string
		want  int
	}{{nil, 429}, {[]string{"--max-connections-per-client", "4096"}, 200}} {
		p := s.start(c.flags...)
		last := 0
		for range 64/4 + 1 {
			stream := s.browse(ctx, p, "/events")
			defer stream.Body.Close()
			last = stream.StatusCode
		}
		if last != c.want {
			t.Errorf("with %q, one stream more than a quarter is answered with %d, want %d", c.flags, last, c.want)
		}
		s.end(p)
	}
}

// Whoever follows a mirror is let go when it is told to stop: neither the drain delay nor the end waits for them.
func TestStreamsEndWithDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.start("--drain-delay", "20s", "--drain-timeout", "20s")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream := s.browse(ctx, p, "/events")
	defer stream.Body.Close()
	if line, err := bufio.NewReader(stream.Body).ReadString('\n'); line != "retry: 3000\n" || err != nil {
		t.Fatalf("the stream begins with %q, %v", line, err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stream.Body); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	if status, body := s.get(p, "/readyz"); status != 503 || !strings.Contains(body, "draining") { // so the delay is not over
		t.Errorf("after the end of the stream: %d %s", status, body)
	}
	if status, body := s.get(p, "/events"); status != 503 {
		t.Errorf("a stream begins while it drains: %d %s", status, body)
	}
	if _, body := s.html(p, "/"); !strings.Contains(body, "about to stop") {
		t.Errorf("the page does not say so:\n%s", body)
	}
}

// What a node says of itself as a word, from the worst to the best.
func TestHealthOfMember(t *testing.T) {
	one, long := 1, time.Hour
	well := memberView{Alive: true, Ready: "ok", Writes: "ok", Disk: "ok"}
	edit := func(f func(*memberView)) memberView { m := well; f(&m); return m }
	for _, c := range []struct {
		m     memberView
		state statuspage.State
		says  string
		why   string
	}{
		{well, statuspage.OK, "healthy", ""},
		{edit(func(m *memberView) { m.Ready, m.Writes = "", "" }), statuspage.OK, "healthy", ""},
		{edit(func(m *memberView) { m.Alive, m.Error = false, "ask 10.0.0.7:3001 for /v1/status: connection refused" }), statuspage.Bad, "does not answer", "connection refused"},
		{edit(func(m *memberView) { m.Ready = "about to stop" }), statuspage.Bad, "not ready", "about to stop"},
		{edit(func(m *memberView) { m.Roots = "no" }), statuspage.Bad, "differs", "its catalog is not the same as that of the node that shows this"},
		{edit(func(m *memberView) { m.Writes = "disk full, ask 10.0.0.7:3001" }), statuspage.Warn, "takes in nothing", "disk full, ask (address)"},
		{edit(func(m *memberView) { m.Disk = "low" }), statuspage.Warn, "disk low", ""},
		{edit(func(m *memberView) { m.Unhealed = &one }), statuspage.Warn, "damaged", "1 blob that it held cannot be read, and no right copy has come yet"},
		{edit(func(m *memberView) { m.MissingFor = &long }), statuspage.Warn, "behind", "it has waited for blobs for 60 minutes"},
	} {
		if state, says, why := c.m.health(); state != c.state || says != c.says || why != c.why {
			t.Errorf("%+v is %v %q %q, want %v %q %q", c.m, state, says, why, c.state, c.says, c.why)
		}
	}
}

// The map has each node once, in its zone, in the order of names, and nothing that changes without being seen.
func TestCardOfMember(t *testing.T) {
	v := clusterView{From: "b", Leader: "a", Nodes: []memberView{{ID: "a"}, {ID: "b"}}}
	lag, owed := int64(7), int64(123)
	m := memberView{ID: "b", Name: "n2", Address: "10.0.0.7:3001", Alive: true, Ready: "ok", Voter: true, RTT: 23_456_789, Seen: time.Now(), Free: 123_456_789, Total: 987_654_321,
		Missing: 3, MissingBytes: &owed, Lag: &lag, Heads: []headView{{Database: "db", Size: 5, Checked: time.Now()}}}
	c := v.card(m)
	if !c.Self || c.Free != 123_000_000 || c.Total != 987_000_000 || c.Lag != 7 || c.Missing != 3 || c.Owed != 123 || !c.Seen.IsZero() || c.Heads[0].Checked.Nanosecond() != 0 {
		t.Errorf("card is %+v", c)
	}
	if strings.Contains(fmt.Sprintf("%+v", c), "10.0.0.7") {
		t.Errorf("card has an address: %+v", c)
	}
	for ms, want := range map[int]time.Duration{0: 0, 1: time.Millisecond, 20: 20 * time.Millisecond, 21: 20 * time.Millisecond} {
		m.RTT = time.Duration(ms) * time.Millisecond
		if got := v.card(m).RTT; got != want && ms < 20 {
			t.Errorf("%v away is shown as %v, want %v", m.RTT, got, want)
		}
	}
	for ago, now := range map[time.Duration]bool{0: true, justNow - time.Second: true, justNow + time.Second: false, time.Hour: false} {
		m.Complete = time.Now().Add(-ago)
		if c := v.card(m); c.Current != now || c.Complete.IsZero() != now {
			t.Errorf("complete through %v ago is shown as %v, now: %v", ago, c.Complete, c.Current)
		}
	}
	m.Alive, m.Complete = false, time.Now()
	if c := v.card(m); c.Current || c.Complete.IsZero() {
		t.Error("a node that does not answer counts as complete now")
	}
	if m.Alive, m.Complete = true, (time.Time{}); v.card(m).Current || !v.card(m).Complete.IsZero() {
		t.Error("what is not known counts as complete")
	}
	unheard := v.card(memberView{ID: "c"})
	if unheard.Lag != -1 || unheard.Missing != -1 || !unheard.Silent {
		t.Errorf("card of a node that never said anything: %+v", unheard)
	}
	for n, want := range map[uint64]uint64{0: 0, 999: 999, 1234: 1230, 1<<64 - 1: 18_400_000_000_000_000_000} {
		if got := coarse(n); got != want {
			t.Errorf("coarse(%d) = %d, want %d", n, got, want)
		}
	}
}
