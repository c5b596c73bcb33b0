package statuspage

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
)

// The page says how to use the mirror at the address where it was asked for, to browsers and to terminals.
func TestSetup(t *testing.T) {
	p := newPage(t, newFake())
	srv := httptest.NewServer(p)
	defer srv.Close()
	host := srv.Listener.Addr().String()
	get := func(edit func(*http.Request)) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body := make([]byte, 1<<20)
		n := 0
		for {
			m, err := resp.Body.Read(body[n:])
			if n += m; err != nil {
				return resp, string(body[:n])
			}
		}
	}
	setup := "go env -w GOPROXY=http://" + host
	if resp, body := get(func(r *http.Request) { r.Header.Set("Accept", "text/html") }); resp.StatusCode != 200 || !strings.Contains(body, setup) || !strings.Contains(body, "v1.2.3") {
		t.Errorf("page: %s\n%s", resp.Status, body)
	}
	for _, edit := range []func(*http.Request){
		func(*http.Request) {},
		func(r *http.Request) { r.Header.Set("Accept", "text/html"); r.Header.Set("User-Agent", "curl/8.5.0") },
	} {
		resp, body := get(edit)
		if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || strings.Contains(body, "<") || !strings.Contains(body, setup+"\n") || !strings.Contains(body, "go env -u GOPROXY") {
			t.Errorf("for terminals: %v\n%s", resp.Header, body)
		}
		if !strings.Contains(resp.Header.Get("Vary"), "User-Agent") {
			t.Errorf("a cache could mix them up: %v", resp.Header)
		}
	}
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	want := func(line string, edit func(*http.Request)) {
		t.Helper()
		if _, body := get(edit); !strings.Contains(body, line) {
			t.Errorf("%s, want %s", body, line)
		}
	}
	for _, odd := range []string{"a;rm-rf$(x)", "a:b:c", ":80", "x:", "-x", "x:99999", "::1", "[127.0.0.1]:80", "fe80::1%eth0", "a_b", strings.Repeat("x", 256)} {
		want("GOPROXY=http://localhost:"+port+"\n", func(r *http.Request) { r.Host = odd })
	}
	for _, host := range []string{"mirror.corp:3000", "mirror", "[::1]:80", "[::1]", "10.0.0.1", "10.0.0.1:1"} {
		want("GOPROXY=http://"+host+"\n", func(r *http.Request) { r.Host = host })
	}
	for proto, scheme := range map[string]string{"https": "https", "HTTPS": "http", "https,http": "http", "javascript": "http", "": "http"} {
		want("GOPROXY="+scheme+"://mirror.corp\n", func(r *http.Request) {
			r.Host = "mirror.corp"
			r.Header.Set("X-Forwarded-Proto", proto)
		})
	}
	r := httptest.NewRequest("GET", "https://mirror.corp/", nil)
	r.TLS = &tls.ConnectionState{}
	if got := setupLines(r); !slices.Equal(got, []string{"go env -w GOPROXY=https://mirror.corp"}) {
		t.Errorf("over TLS: %s", got)
	}
	r.Host = ""
	if got := hostOf(r); got != "localhost:3000" {
		t.Errorf("without any address: %s", got)
	}
}

// nasty is a text that somebody else may choose.
const nasty = `</script><script>alert(1)</script><img src=x onerror=alert(2)>"'` + "`" + `&{{.}} javascript:alert(3)`

// Whatever names and reasons others choose: they are text, in the pages and in the events.
func TestHostileTexts(t *testing.T) {
	f := newFake()
	f.show = Cluster{ID: nasty, Self: nasty, Leader: nasty, Ready: nasty, Writes: nasty, Voters: 1, Alive: 1, Problems: []string{nasty}, Zones: []Zone{{Name: nasty, Complete: day, Nodes: []Node{
		{ID: nasty, Name: nasty, Version: nasty, Role: nasty, Says: nasty, Why: nasty, State: Bad, Silent: true, Seen: day, Scrubbed: day, Complete: day, RTT: time.Second,
			Free: 1, Total: 3, Missing: 2, Owed: 3, Lag: 4, Low: true, Heads: []Head{{nasty, 5, day}}},
	}}}}
	f.happen(Event{ID: nasty, At: day, What: nasty, Module: nasty, Version: nasty, Kind: nasty, From: nasty, Reason: nasty, Bytes: 5, State: Bad})
	f.paths = []string{nasty}
	f.hold["example.com/m"] = []string{"v1.0.0"}
	p := newPage(t, f, func(c *Config) { c.Version = nasty })
	for _, path := range []string{"/", "/search?q=" + "%3C%2Fscript%3E%3Cscript%3E", "/search?q=%22%3E%3Cscript%3E&from=w%22%3E", "/modules/example.com/m", "/modules/example.com/other", "/nope"} {
		w := ask(p, path)
		d := parsed(t, w)
		if n := len(d.all("script", "src")); n != 1 {
			t.Errorf("%s has %d scripts", path, n)
		}
		if strings.Contains(w.Body.String(), "<script>") || strings.Contains(w.Body.String(), "<img src=x") {
			t.Errorf("%s has a tag of somebody else's:\n%s", path, w.Body)
		}
	}
	for _, name := range []string{"live", "recent"} {
		var data any = live{day, f.show}
		if name == "recent" {
			data = recent{day, p.events()}
		}
		frame := string(p.event(name, data))
		for line := range strings.Lines(strings.TrimSuffix(frame, "\n")) {
			if !strings.HasPrefix(line, "data: ") && line != "event: "+name+"\n" {
				t.Errorf("event %s has the line %q", name, line)
			}
		}
		if strings.Contains(frame, "<script") || strings.Contains(frame, "<img") || !strings.Contains(frame, "alert(1)") {
			t.Errorf("event %s is %s", name, frame)
		}
	}
}

// A text with line ends cannot end an event, or begin another one.
func TestEventOfManyLines(t *testing.T) {
	f := newFake()
	f.show.Problems = []string{"first\n\nevent: recent\ndata: <b>x</b>\r\rid: 7"}
	p := newPage(t, f)
	frame := string(p.event("live", live{day, f.show}))
	if strings.Count(frame, "event:") != 2 || strings.Contains(frame, "\nevent: recent") || strings.Contains(frame, "\r") || strings.Contains(strings.TrimSuffix(frame, "\n\n"), "\n\n") {
		t.Errorf("frame is %q", frame)
	}
}

// What people must see of a cluster is in the page, in words.
func TestHome(t *testing.T) {
	f := newFake()
	f.show = healthy(3)
	dead := &f.show.Zones[1].Nodes[0]
	dead.State, dead.Says, dead.Why, dead.Silent, dead.Seen, dead.Lag = Bad, "does not answer", "no route", true, day.Add(-5*time.Minute), 17
	self := &f.show.Zones[0].Nodes[0]
	self.Missing, self.Owed, self.Scrubbed, self.Complete = 3, 4e6, day.Add(-72*time.Hour), day.Add(-30*time.Second)
	self.Heads = []Head{{"sum.golang.org", 44212345, day.Add(-12 * time.Second)}}
	f.show.Alive, f.show.Problems = 2, []string{"n2 does not answer: no route"}
	f.happen(Event{ID: "1", At: day.Add(-time.Minute), What: "refused", State: Bad, Module: "example.com/bad", Version: "v1.0.0", Kind: "zip", Reason: "checksum mismatch"})
	p := newPage(t, f)
	p.now = func() time.Time { return day }
	d := parsed(t, ask(p, "/"))
	for _, want := range []string{"Use this mirror", "1 of 3 nodes does not answer.", "no more voter may fail", "eu ✓ healthy", "us ✕ silent", "n2 ✕ does not answer", "no route", "last heard of 5 min ago",
		"17 changes", "3, 4.0 MB", "3 days ago", "30 s ago", "5.0 GB of 20 GB", "tree of 44 212 345, checked 12 s ago", "12 345", "this node", "1 problem",
		"✕ refused example.com/bad @ v1.0.0 zip 60 s ago checksum mismatch"} {
		if !strings.Contains(d.text, want) {
			t.Errorf("the page does not say %q:\n%s", want, d.text)
		}
	}
	if !slices.Contains(d.all("a", "href"), "/modules/example.com/bad") || !slices.Contains(d.all("form", "action"), "/search") {
		t.Errorf("links are %q", d.all("a", "href"))
	}
	for _, id := range []string{"live", "recent", "main", "q", "following"} {
		n := 0
		for _, e := range d.elements {
			if attr(e, "id") == id {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d elements have the id %s", n, id)
		}
	}
}

// A busy page costs one look a second, however many people look.
func TestGlance(t *testing.T) {
	f := newFake()
	p := newPage(t, f)
	now := day
	p.now = func() time.Time { return now }
	for range 100 {
		ask(p, "/")
	}
	if n := f.looks(); n != 1 {
		t.Errorf("looked %d times", n)
	}
	now = now.Add(glanceAge)
	ask(p, "/")
	if n := f.looks(); n != 2 {
		t.Errorf("looked %d times, a second later", n)
	}
	ask(p, "/", func(r *http.Request) { r.Header.Del("Accept") })
	if n := f.looks(); n != 2 {
		t.Errorf("looked %d times, for a terminal", n)
	}
}

// Style, script and icon have the hash of their bytes in their names, and in the page that refers to them.
func TestAssets(t *testing.T) {
	p := newPage(t, newFake())
	d := parsed(t, ask(p, "/"))
	type ref struct{ path, integrity string }
	var refs []ref
	for _, e := range d.elements {
		switch e.Name.Local {
		case "script":
			refs = append(refs, ref{attr(e, "src"), attr(e, "integrity")})
		case "link":
			refs = append(refs, ref{attr(e, "href"), attr(e, "integrity")})
		}
	}
	if len(refs) != 3 {
		t.Fatalf("the page refers to %v", refs)
	}
	for _, r := range refs {
		w := ask(p, r.path)
		sum := sha256.Sum256(w.Body.Bytes())
		if w.Code != 200 || !strings.Contains(r.path, hex.EncodeToString(sum[:8])) {
			t.Errorf("%s: %d, and its bytes have the hash %x", r.path, w.Code, sum)
		}
		if r.integrity != "" && r.integrity != "sha256-"+base64.StdEncoding.EncodeToString(sum[:]) {
			t.Errorf("%s: the page expects %s", r.path, r.integrity)
		}
		if r.integrity == "" && path.Ext(r.path) != ".svg" {
			t.Errorf("%s: the page expects nothing", r.path)
		}
		if cc := w.Header().Get("Cache-Control"); !strings.Contains(cc, "immutable") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s has %v", r.path, w.Header())
		}
		if mime := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(r.path)]; w.Header().Get("Content-Type") != mime {
			t.Errorf("%s has the type %s", r.path, w.Header().Get("Content-Type"))
		}
	}
	for _, odd := range []string{"/assets/", "/assets/page.css", "/assets/../page.go", "/assets/page.0000000000000000.css"} {
		if w := ask(p, odd); w.Code != 404 || strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", odd, w.Code, w.Header())
		}
	}
}

// The policy allows what is in files of this server, and has no exception.
func TestPolicy(t *testing.T) {
	rules := make(map[string]string)
	for rule := range strings.SplitSeq(policy, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(rule), " ")
		rules[name] = value
	}
	for name, want := range map[string]string{"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'", "connect-src": "'self'", "form-action": "'self'",
		"base-uri": "'none'", "frame-ancestors": "'none'"} {
		if rules[name] != want {
			t.Errorf("%s is %q, want %q", name, rules[name], want)
		}
		delete(rules, name)
	}
	if len(rules) > 0 {
		t.Errorf("and %v", rules)
	}
}

// A fault is never "not found", HEAD has no body, and terminals get text.
func TestFailures(t *testing.T) {
	f := newFake()
	f.hold["example.com/m"] = []string{"v1.0.0"}
	p := newPage(t, f)
	for _, c := range []struct {
		path   string
		err    error
		status int
	}{
		{"/", nil, 200}, {"/search", nil, 200}, {"/search?q=x", nil, 200}, {"/modules/example.com/m", nil, 200}, {"/modules/example.com/other", nil, 404}, {"/other", nil, 404},
		{"/modules/example.com/M", nil, 400}, {"/modules/", nil, 400}, {"/modules/example.com/%00", nil, 400}, {"/search?q=" + strings.Repeat("x", 201), nil, 400},
		{"/modules/example.com/m?from=" + strings.Repeat("v", 201), nil, 400}, {"/search?q=x&from=" + strings.Repeat("x", 3000), nil, 400},
		{"/search?q=x", errors.New("the disk is gone"), 500}, {"/modules/example.com/other", errors.New("the disk is gone"), 500}, {"/search?q=x", context.DeadlineExceeded, 503},
	} {
		f.mu.Lock()
		f.err = c.err
		f.mu.Unlock()
		w := ask(p, c.path)
		if w.Code != c.status {
			t.Errorf("%s with %v: %d, want %d", c.path, c.err, w.Code, c.status)
		}
		parsed(t, w)
		w = ask(p, c.path, func(r *http.Request) { r.Method = "HEAD" })
		if w.Code != c.status || w.Body.Len() > 0 || w.Header().Get("Content-Length") == "0" {
			t.Errorf("HEAD %s: %d with %d bytes", c.path, w.Code, w.Body.Len())
		}
		if c.status == 503 && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s says not when to come again", c.path)
		}
		if c.status >= 400 {
			w = ask(p, c.path, func(r *http.Request) { r.Header.Set("User-Agent", "curl/8") })
			if w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || strings.Contains(w.Body.String(), "<") {
				t.Errorf("%s for a terminal: %s", c.path, w.Body)
			}
		}
	}
}

// The page of a module has what proves and names its bytes.
func TestModulePage(t *testing.T) {
	f := newFake()
	f.hold["github.com/BurntSushi/toml"] = []string{"v0.9.0", "v0.10.0", "v0.10.0-rc.1"}
	p := newPage(t, f)
	p.now = func() time.Time { return day.Add(time.Hour) }
	d := parsed(t, ask(p, "/modules/github.com/!burnt!sushi/toml"))
	for _, want := range []string{"3 versions", "h1:zipv0.10.0", "h1:modv0.10.0", strings.Repeat("ab", 32), strings.Repeat("cd", 32), "1.2 MB", "99 B", "record 44212345 of sum.golang.org",
		"2026-11-26 12:00:00 UTC", "60 min ago", "✓ n1 eu", "– n2 us not yet", "? n3 unknown"} {
		if !strings.Contains(d.text, want) {
			t.Errorf("the page does not say %q:\n%s", want, d.text)
		}
	}
	if a, b, c := strings.Index(d.text, "v0.10.0 "), strings.Index(d.text, "v0.10.0-rc.1 "), strings.Index(d.text, "v0.9.0 "); !(0 < a && a < b && b < c) {
		t.Errorf("the order is not that of versions: %d %d %d", a, b, c)
	}
	for _, want := range []string{"/prove/github.com/!burnt!sushi/toml@v0.10.0", "/github.com/!burnt!sushi/toml/@v/v0.10.0.zip", "/github.com/!burnt!sushi/toml/@v/v0.10.0.mod"} {
		if !slices.Contains(d.all("a", "href"), want) {
			t.Errorf("no link to %s: %q", want, d.all("a", "href"))
		}
	}
}

// However many versions a module has, a page has some of them, and the pages have all.
func TestManyVersions(t *testing.T) {
	f := newFake()
	var all []string
	for i := range 47 {
		all = append(all, module.PseudoVersion("v1", "", day.Add(time.Duration(i)*time.Hour), "0123456789ab"))
	}
	f.hold["example.com/m"] = all
	p := newPage(t, f)
	var seen []string
	for url, pages := "/modules/example.com/m", 0; url != ""; pages++ {
		d := parsed(t, ask(p, url))
		n := 0
		for _, v := range all {
			if strings.Contains(d.text, "h1:zip"+v+" ") {
				n++
				seen = append(seen, v)
			}
		}
		if n > pageVersions || pages > 3 {
			t.Fatalf("page %d has %d versions", pages, n)
		}
		url = ""
		for _, e := range d.elements {
			if attr(e, "rel") == "next" {
				url = "/modules/example.com/m" + attr(e, "href")
			}
		}
	}
	slices.Sort(seen)
	if !slices.Equal(seen, all) {
		t.Errorf("the pages have %d versions, want each of %d once", len(seen), len(all))
	}
	for _, from := range []string{"v0.0.0", "v9.0.0", "rubbish", "v1.0.0"} {
		if w := ask(p, "/modules/example.com/m?from="+from); w.Code != 200 {
			t.Errorf("from %s: %d", from, w.Code)
		}
	}
}

// A page is cut as if all versions were sorted, whatever they are and wherever it begins; and not for somebody who has left.
func TestCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	version := func() string {
		return fmt.Sprintf("v%d.%d.%d%s", r.IntN(2), r.IntN(4), r.IntN(4), []string{"", "-rc.1", "+incompatible"}[r.IntN(3)])
	}
	for range 1000 {
		set := map[string]bool{version(): true}
		for range r.IntN(60) {
			set[version()] = true
		}
		sorted := slices.SortedFunc(maps.Keys(set), func(a, b string) int { return newest(b, a) })
		from, first := []string{version(), ""}[r.IntN(2)], 0
		for first < len(sorted)-1 && from != "" && newest(sorted[first], from) > 0 {
			first++
		}
		want, next := sorted[first:min(first+pageVersions, len(sorted))], ""
		if first+pageVersions < len(sorted) {
			next = sorted[first+pageVersions]
		}
		var d versions
		all := slices.Collect(maps.Keys(set))
		if got, err := d.cut(t.Context(), all, from); err != nil || !slices.Equal(got, want) || d.From != first+1 || d.Next != next {
			t.Fatalf("from %q of %q: %q from %d, then %q, %v; want %q from %d, then %q", from, sorted, got, d.From, d.Next, err, want, first+1, next)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := new(versions).cut(ctx, []string{"v1.0.0"}, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("for somebody who has left: %v", err)
	}
}

func TestModuleOf(t *testing.T) {
	for path, want := range map[string]string{
		"/modules/github.com/!burnt!sushi/toml": "github.com/BurntSushi/toml", "/modules/github.com/%21burnt!sushi/toml": "github.com/BurntSushi/toml", "/modules/golang.org/x/text": "golang.org/x/text",
		"/modules/github.com/BurntSushi/toml": "", "/modules/": "", "/": "", "/modules/a b": "", "/modules/%zz": "", "/modules/x/../y": "", "/modules/example.com/" + strings.Repeat("a", 3000): "",
	} {
		if got, ok := ModuleOf(path); got != want && ok || ok != (want != "") {
			t.Errorf("ModuleOf(%q) = %q, %v, want %q", path, got, ok, want)
		}
		if want != "" {
			if got, _ := ModuleOf(modulePage(want)); got != want {
				t.Errorf("the page of %s is %s", want, modulePage(want))
			}
		}
	}
}

// A reader that goes away does not spoil for the others what is looked at once for all.
func TestGlanceOfWhoGoesAway(t *testing.T) {
	p := newPage(t, newFake())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // whether there is a turn or the reader is gone first is chance
		_, err := p.glance.cluster(ctx, p)
		if c, _ := p.glance.cluster(t.Context(), p); len(c.Problems) > 0 || len(c.Zones) == 0 {
			t.Fatalf("after a reader went away (%v) the page has the problems %v", err, c.Problems)
		}
		p.glance.at = time.Time{}
	}
}
