package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

const helloPath = "/example.com/hello/@v/"

// PROTOCOL 10, 12, 34: what was fetched once is served from then on, complete, with headers that never change.
func TestArtifacts(t *testing.T) {
	g := newRig(t)
	for _, round := range []string{"cold", "warm", "upstream and database down", "restarted"} {
		switch round {
		case "upstream and database down":
			g.up.Down(true)
			g.sums.down = artifact.ErrUnavailable
		case "restarted":
			g.start()
		}
		for kind, contentType := range map[artifact.Kind]string{
			artifact.Info: "application/json", artifact.Mod: "text/plain; charset=utf-8", artifact.Zip: "application/zip",
		} {
			want := string(g.up.Artifact(helloV, kind))
			if kind == artifact.Info {
				b, err := artifact.CanonicalInfo([]byte(want), helloV)
				if err != nil {
					t.Fatal(err)
				}
				want = string(b)
			}
			path := helloPath + "v1.0.0." + kind.String()
			a := g.get(path)
			if a.status != 200 || a.body != want {
				t.Fatalf("%s: GET %s = %d %q", round, path, a.status, a.body)
			}
			etag := `"sha256:` + artifact.DigestOf([]byte(want)).String() + `"`
			for k, v := range map[string]string{"Content-Type": contentType, "Etag": etag, "Cache-Control": "public, max-age=31536000, immutable",
				"Content-Length": fmt.Sprint(len(want)), "X-Content-Type-Options": "nosniff"} {
				if got := a.header.Get(k); got != v {
					t.Errorf("%s: GET %s: %s = %q, want %q", round, path, k, got, v)
				}
			}
			head := g.get(path, func(r *http.Request) { r.Method = "HEAD" })
			if head.status != 200 || head.body != "" || head.header.Get("Content-Length") != fmt.Sprint(len(want)) || head.header.Get("Etag") != etag {
				t.Errorf("%s: HEAD %s = %+v", round, path, head)
			}
			if a := g.get(path, func(r *http.Request) { r.Header.Set("Range", "bytes=2-5") }); a.status != 206 || a.body != want[2:6] {
				t.Errorf("%s: range of %s = %d %q", round, path, a.status, a.body)
			}
			if a := g.get(path, func(r *http.Request) { r.Header.Set("If-None-Match", etag) }); a.status != 304 || a.body != "" {
				t.Errorf("%s: conditional GET %s = %d", round, path, a.status)
			}
			if a := g.get(path, func(r *http.Request) { r.Header.Set("Range", "bytes=99999999-") }); a.status != 416 {
				t.Errorf("%s: range outside of %s = %d", round, path, a.status)
			}
			if n := g.up.Count(path); n != 1 {
				t.Errorf("%s: the upstream was asked %d times for %s", round, n, path)
			}
		}
	}
	if n := g.sums.count(); n != 1 {
		t.Errorf("the checksum database was asked %d times", n)
	}
}

// What is answered to a condition that is not met must not be kept by anybody as the artifact.
func TestUnmetCondition(t *testing.T) {
	g := newRig(t)
	g.add("example.com/large@v1.0.0\n-- go.mod --\nmodule example.com/large\n" + strings.Repeat("// x\n", 40_000))
	other := func(r *http.Request) { r.Header.Set("If-Match", `"sha256:00"`) }
	for _, path := range []string{helloPath + "v1.0.0.info", helloPath + "v1.0.0.mod", helloPath + "v1.0.0.zip", "/example.com/large/@v/v1.0.0.mod"} {
		etag := g.want(path, 200, "").header.Get("Etag")
		for _, method := range []string{"GET", "HEAD"} {
			a := g.get(path, other, func(r *http.Request) { r.Method = method })
			if a.status != 412 || a.header.Get("Etag") != "" || (a.body == "") != (method == "HEAD") {
				t.Errorf("%s %s = %d, %v %q", method, path, a.status, a.header, a.body)
			}
		}
		g.want(path, 200, "", func(r *http.Request) { r.Header.Set("If-Match", etag) })
	}
}

// An info or a go.mod never pulls the zip.
func TestNoZipForMod(t *testing.T) {
	g := newRig(t)
	g.want(helloPath+"v1.0.0.info", 200, "v1.0.0")
	g.want(helloPath+"v1.0.0.mod", 200, "module")
	if n := g.up.Count(helloPath + "v1.0.0.zip"); n != 0 {
		t.Errorf("%d zips fetched", n)
	}
	if man, err := g.index.Manifest(t.Context(), helloV); err != nil || !man.Zip.IsZero() || man.Mod.IsZero() {
		t.Errorf("manifest = %+v, %v", man, err)
	}
}

// PROTOCOL 5: upstream's Origin is kept, and the version is the one that was asked for.
func TestInfo(t *testing.T) {
	g := newRig(t)
	o := g.add("example.com/o@v1.0.0\n-- .info --\n{\"Time\":\"2020-01-01T00:00:00Z\", \"Version\":\"v1.0.0\",\"Origin\":{\"VCS\":\"git\"}}\n-- go.mod --\nmodule example.com/o\n")
	g.want("/example.com/o/@v/v1.0.0.info", 200, `"Origin":{"VCS":"git"}`)
	g.add("example.com/o@v1.1.0\n-- .info --\n{\"Version\":\"v9.9.9\"}\n-- go.mod --\nmodule example.com/o\n")
	g.want("/example.com/o/@v/v1.1.0.info", 502, "v9.9.9")
	if _, err := g.index.Manifest(t.Context(), module.Version{Path: o.Path, Version: "v1.1.0"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an info of another version was published: %v", err)
	}
}

// PROTOCOL 4: a branch has an info, which is not kept as immutable; it has no go.mod and no zip.
func TestQuery(t *testing.T) {
	g := newRig(t)
	g.up.Alias("example.com/hello", "master", "v1.0.0")
	a := g.want(helloPath+"master.info", 200, `"Version":"v1.0.0"`)
	if cc := a.header.Get("Cache-Control"); cc != "public, max-age=60" || a.header.Get("Etag") != "" {
		t.Errorf("query has %v", a.header)
	}
	g.want(helloPath+"master.mod", 404, "not canonical")
	g.want(helloPath+"master.zip", 404, "not canonical")
	if !g.index.empty() {
		t.Error("a query was published")
	}
	g.want(helloPath+"master.info", 200, "") // from memory
	if n := g.up.Count(helloPath + "master.info"); n != 1 {
		t.Errorf("upstream asked %d times", n)
	}
	g.want(helloPath+"other.info", 404, "")
	g.want(helloPath+"other.info", 404, "")
	if n := g.up.Count(helloPath + "other.info"); n != 1 {
		t.Errorf("upstream asked %d times for a branch that it does not have", n)
	}
	g.up.Alias("example.com/hello", "evil", "v2.0.0") // not a version that this path can have
	if a := g.get(helloPath + "evil.info"); a.status != 502 && a.status != 404 {
		t.Errorf("query that resolves to a wrong version = %d", a.status)
	}
	g.up.Down(true)
	g.want(helloPath+"master.info", 200, "")
	g.want(helloPath+"main.info", 503, "")
}

// PROTOCOL 6: build metadata is for the upstream to resolve; +incompatible works with a raw plus.
func TestPlus(t *testing.T) {
	g := newRig(t)
	g.add("example.com/inc@v2.0.0+incompatible\n-- a.go --\npackage a\n")
	for _, p := range []string{"/example.com/inc/@v/v2.0.0+incompatible", "/example.com/inc/@v/v2.0.0%2Bincompatible"} {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			g.want(p+ext, 200, "")
		}
	}
	g.want(helloPath+"v1.0.0+meta.info", 404, "")
}

// PROTOCOL 7: "!" and "%21" are the same object; an upper-case letter is 404 and never a second entry.
func TestEscapes(t *testing.T) {
	g := newRig(t)
	g.add("example.com/Up/Case@v1.0.0\n-- go.mod --\nmodule example.com/Up/Case\n")
	a := g.want("/example.com/!up/!case/@v/v1.0.0.mod", 200, "Up/Case")
	b := g.want("/example.com/%21up/%21case/@v/v1.0.0.mod", 200, "Up/Case")
	if a.header.Get("Etag") != b.header.Get("Etag") || g.sums.count() != 1 {
		t.Errorf("two objects: %v %v", a.header, b.header)
	}
	g.want("/example.com/Up/Case/@v/v1.0.0.mod", 404, "write !u for U")
	for _, r := range g.up.Requests() {
		if strings.Contains(r.Path, "U") {
			t.Errorf("upstream was asked for %s", r.Path)
		}
	}
}

// PROTOCOL 8, FAULTS 18, 20, 21: path tricks end here.
func TestPathTricks(t *testing.T) {
	g := newRig(t, func(c *Config) { c.SumDB = http.NotFoundHandler() })
	for _, p := range []string{
		"/example.com/../@v/list", "/example.com//hello/@v/list", "/example.com/hello/@v/list/", "/example.com/a%2fb/@v/list", "/example.com/a%00/@v/list",
		"/example.com/hello/@v/../../../etc/passwd", "/169.254.169.254/latest/@v/list", "/127.0.0.1/x/@v/v1.0.0.info", "/localhost/x/@v/list",
		"/example.com/a!/@v/list", "/" + strings.Repeat("x", 10<<10), "/sumdb/sum.golang.org/../../admin", "/sumdb/sum.golang.org/%2e%2e/x", "/sumdb/x%2fy",
	} {
		g.want(p, 400, "")
	}
	for _, p := range []string{"/foo", "/favicon.ico", "/example.com/hello", "/example.com/hello/@v/v1.0.0.ziphash"} {
		g.want(p, 404, "")
	}
	if r := g.up.Requests(); len(r) > 0 || g.sums.count() > 0 {
		t.Errorf("something went out: %v", r)
	}
}

// PROTOCOL 9: GET and HEAD, any query string, nothing else.
func TestMethods(t *testing.T) {
	g := newRig(t)
	g.want(helloPath+"v1.0.0.mod?x=/../y", 200, "module")
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
		for _, p := range []string{"/", "/metrics", helloPath + "list"} {
			a := g.want(p, 405, "use GET or HEAD", func(r *http.Request) { r.Method = method })
			if a.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: Allow = %q", method, a.header.Get("Allow"))
			}
		}
	}
}

// PROTOCOL 11, 35, FAULTS 29: what upstream says becomes what it means, and an outage is never 404.
func TestUpstreamStatus(t *testing.T) {
	for upstream, want := range map[int]int{404: 404, 410: 404, 403: 403, 451: 403, 429: 503, 500: 503, 502: 503, 503: 503, 504: 503, 401: 503, 418: 503} {
		g := newRig(t)
		for _, file := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", "master.info"} {
			g.up.Status(helloPath+file, upstream, "<p>no")
			g.want(helloPath+file, want, "")
		}
		g.nothingStored()
	}
	g := newRig(t)
	g.up.Down(true)
	for _, file := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", "master.info"} {
		g.want(helloPath+file, 503, "")
	}
	g.want("/example.com/hello/@latest", 503, "")
	g.up.Down(false)
	g.sums.down = fmt.Errorf("dial tcp 10.1.2.3:443: connect: refused: %w", artifact.ErrUnavailable)
	a := g.want(helloPath+"v1.0.0.mod", 503, "checksum database")
	if strings.Contains(a.body, "10.1.2.3") {
		t.Errorf("address in %q", a.body)
	}
	g.sums.down = nil
	g.want(helloPath+"v1.0.0.mod", 200, "") // PROTOCOL 19: an error is not remembered
}

// PROTOCOL 36: the go command asks twice for every 404; the upstream and the database see one. It is believed for a while only.
func TestNegative(t *testing.T) {
	g := newRig(t, func(c *Config) { c.NegativeTTL = time.Second })
	late := "example.com/late@v1.0.0\n-- go.mod --\nmodule example.com/late\n"
	for _, file := range []string{"@v/v1.0.0.info", "@v/list", "@latest"} {
		p := "/example.com/late/" + file
		for range 2 {
			if a := g.want(p, 404, ""); a.header.Get("Cache-Control") != "public, max-age=30" {
				t.Errorf("%s: %v", p, a.header)
			}
		}
		if up, sums := g.up.Count(p), g.sums.count(); max(up, sums) != 1 {
			t.Errorf("%s: asked the upstream %d times and the database %d times", p, up, sums)
		}
		g.sums.asked = nil
	}
	g.add(late)
	g.want("/example.com/late/@v/v1.0.0.zip", 200, "")   // another kind is not affected
	g.want("/example.com/late/@v/list", 200, "v1.0.0\n") // and what is published clears the list
	eventually(t, func() bool { return g.get("/example.com/late/@v/v1.0.0.info").status == 200 })
}

// eventually waits until ok, which must be so soon.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("never came true")
		}
	}
}

// /cached-only and Disable-Module-Fetch answer from what is held and ask nobody.
func TestCachedOnly(t *testing.T) {
	g := newRig(t)
	only := func(r *http.Request) { r.Header.Set("Disable-Module-Fetch", "true") }
	files := []string{"@v/list", "@latest", "@v/v1.0.0.info", "@v/v1.0.0.mod", "@v/v1.0.0.zip", "@v/master.info"}
	for _, f := range files {
		for _, a := range []answered{g.want("/cached-only/example.com/hello/"+f, 404, ""), g.want("/example.com/hello/"+f, 404, "", only)} {
			if a.header.Get("Cache-Control") != "no-store" { // the answer without the header is another one
				t.Errorf("%s: %v", f, a.header)
			}
		}
	}
	if r := g.up.Requests(); len(r) > 0 || g.sums.count() > 0 {
		t.Fatalf("something went out: %v", r)
	}
	g.up.Alias("example.com/hello", "master", "v1.0.0")
	g.up.Alias("example.com/hello", "latest", "v1.0.0")
	for _, f := range files {
		g.want("/example.com/hello/"+f, 200, "")
		g.want("/cached-only/example.com/hello/"+f, 200, "")
		g.want("/example.com/hello/"+f, 200, "", only)
	}
	g.want(helloPath+"v1.0.0.mod", 200, "", func(r *http.Request) { r.Header.Set("Disable-Module-Fetch", "maybe") })
}

// Offline, what is not held does not exist, and all that is held is served.
func TestOffline(t *testing.T) {
	g := newRig(t)
	g.add("example.com/hello@v1.1.0-0.20200101000000-0123456789ab\n-- go.mod --\nmodule example.com/hello\n")
	g.want(helloPath+"v1.0.0.zip", 200, "")
	g.want(helloPath+"v1.1.0-0.20200101000000-0123456789ab.mod", 200, "")
	g.start(func(c *Config) { c.Upstream, c.Checksums = nil, nil })
	before := len(g.up.Requests())
	g.want(helloPath+"v1.0.0.zip", 200, "")
	g.want(helloPath+"list", 200, "v1.0.0\n")
	g.want("/example.com/hello/@latest", 200, `{"Version":"v1.0.0"}`)
	for _, p := range []string{helloPath + "v1.0.0.info", helloPath + "v1.2.0.mod", helloPath + "master.info", "/example.com/other/@v/list", "/example.com/other/@latest"} {
		g.want(p, 404, "offline")
	}
	if n := len(g.up.Requests()); n != before {
		t.Errorf("%d requests went out", n-before)
	}
}

// FAULTS 22, 23, SECURITY 14: a private name is refused by its decoded form and told to nobody.
func TestPrivate(t *testing.T) {
	g := newRig(t, func(c *Config) {
		c.Private = "github.com/MyCo/*,corp.example"
		c.SumDB = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Errorf("the checksum database was asked %s", r.URL) })
	})
	for _, p := range []string{
		"/github.com/!my!co/secret/@v/list", "/github.com/%21my%21co/secret/@v/v1.0.0.zip", "/github.com/!my!co/secret/sub/@latest", "/corp.example/x/@v/main.info",
		"/cached-only/corp.example/@v/list", "/sumdb/sum.golang.org/lookup/github.com/!my!co/secret@v1.0.0", "/sumdb/sum.golang.org/lookup/github.com/%21my%21co/secret@v1.0.0",
		"/cached-only/sumdb/sum.golang.org/lookup/corp.example/x@v1.0.0",
	} {
		g.want(p, 403, "GOPRIVATE")
	}
	g.want("/github.com/!my!cow/pub/@v/list", 404, "") // not private
	for _, r := range g.up.Requests() {
		if !strings.Contains(r.Path, "cow") {
			t.Errorf("went upstream: %s", r.Path)
		}
	}
	if g.sums.count() > 0 {
		t.Errorf("went to the checksum database: %v", g.sums.asked)
	}
	// What cannot be parsed may be private as well, and is not logged either.
	for _, p := range []string{
		"/corp.example/x/@v/master.zip", "/corp.example/x/@v/v1.0.0.exe", "/corp.example/x", "/github.com/MyCo/secret/@v/list", "/corp.example//x/@v/list",
		"/github.com/!my!co%2fsecret/@v/list", "/sumdb/sum.golang.org/lookup/corp.example//x@v1.0.0", "/modules/corp.example/x", "/modules/corp.example//x",
	} {
		if a := g.get(p); a.status != 400 && a.status != 404 {
			t.Errorf("%s = %d", p, a.status)
		}
	}
	g.want("/corp.example/x/@v/list", 405, "", func(r *http.Request) { r.Method = "POST" })
	if logs := g.logs.String(); strings.Contains(logs, "secret") || strings.Contains(logs, "corp.example") {
		t.Errorf("logged:\n%s", logs)
	}
	if g.metric("requests_total", "refused", "403") != 8 {
		t.Errorf("refusals = %v", g.metric("requests_total", "refused", "403"))
	}
}

// FAULTS 24: nothing of a client's headers goes upstream or to the checksum database.
func TestHeaderLeak(t *testing.T) {
	var seen http.Header
	g := newRig(t, func(c *Config) {
		c.SumDB = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = r.Header
			if r.URL.Path != "/sumdb/sum.golang.org/latest" {
				t.Errorf("the checksum database sees %s", r.URL.Path)
			}
		})
	})
	secret := func(r *http.Request) {
		r.SetBasicAuth("user", "hunter2")
		r.Header.Set("Cookie", "session=hunter2")
		r.Header.Set("Proxy-Authorization", "hunter2")
		r.Header.Set("X-Secret", "keep")
	}
	for _, p := range []string{helloPath + "list", helloPath + "v1.0.0.info", helloPath + "v1.0.0.zip", "/example.com/hello/@latest", helloPath + "x.info"} {
		g.get(p, secret)
	}
	for _, r := range g.up.Requests() {
		if r.Header.Get("Authorization")+r.Header.Get("Cookie")+r.Header.Get("X-Secret") != "" {
			t.Errorf("%s: upstream sees %v", r.Path, r.Header)
		}
	}
	g.want("/sumdb/sum.golang.org/latest", 200, "", secret)
	if seen.Get("Authorization")+seen.Get("Cookie")+seen.Get("Proxy-Authorization") != "" || seen.Get("X-Secret") == "" {
		t.Errorf("the checksum database sees %v", seen)
	}
	g.want("/cached-only/sumdb/sum.golang.org/latest", 200, "", secret)
	if seen.Get("Disable-Module-Fetch") != "true" {
		t.Errorf("cached-only is lost: %v", seen)
	}
	if strings.Contains(g.logs.String(), "hunter2") {
		t.Errorf("logged:\n%s", g.logs.String())
	}
}

// PROTOCOL 38: an error says in its first line what is wrong, in words for the person who reads them, and each thing once.
func TestTexts(t *testing.T) {
	g := newRig(t, func(c *Config) {
		c.Private = "corp.example"
		c.SumDB = http.NotFoundHandler()
	})
	const private = " is private and not served here: put it in the client's GOPRIVATE\n"
	for path, want := range map[string]string{
		helloPath + "nope.zip":                        "version \"nope\" is not canonical for example.com/hello: only its .info can be asked for\n",
		"/a/../b":                                     "path \"/a/../b\" is not clean\n",
		"/corp.example/x/@v/list":                     "corp.example/x" + private,
		"/sumdb/s/lookup/corp.example/x@v1.0.0":       "corp.example/x is private here and in no checksum database: put it in the client's GOPRIVATE\n",
		"/cached-only/example.com/nope/@v/list":       "example.com/nope: no version list is held here\n",
		"/cached-only/example.com/nope/@latest":       "example.com/nope: no version is held here\n",
		"/cached-only/example.com/nope/@v/v1.0.0.mod": "example.com/nope@v1.0.0 mod: not held\n",
		"/cached-only/example.com/nope/@v/main.info":  "example.com/nope@main: not held\n",
	} {
		a := g.get(path)
		if got, ok := strings.CutPrefix(a.body, want); !ok || !strings.HasPrefix(got, "request id: ") {
			t.Errorf("%s: %d %q, want %q", path, a.status, a.body, want)
		}
	}
	g.up.Tamper(helloV, artifact.Info, func([]byte) []byte { return []byte(`{"Version":"v1.2.0"}`) })
	want := "example.com/hello@v1.0.0 info: the info is that of another version, v1.2.0\ntry again, or ask who runs this mirror\nrequest id: "
	if a := g.want(helloPath+"v1.0.0.info", 502, ""); !strings.HasPrefix(a.body, want) {
		t.Errorf("%q, want %q", a.body, want)
	}
	g.index.publish = artifact.ErrConflict
	g.want(helloPath+"v1.0.0.mod", 403, "\nit is not served, ask who runs this mirror\nrequest id: ")
}

// An upstream that says when to ask again is believed, within reason.
func TestRetryAfter(t *testing.T) {
	for said, want := range map[time.Duration]string{0: "5", -1: "5", 1: "1", 90*time.Second + 1: "91", time.Hour: "3600", 100 * time.Hour: "3600"} {
		g := newRig(t)
		g.sums.down = fmt.Errorf("x: %w: %w", patience(said), artifact.ErrUnavailable)
		if a := g.want(helloPath+"v1.0.0.mod", 503, ""); a.header.Get("Retry-After") != want {
			t.Errorf("after %v: Retry-After = %q, want %s", said, a.header.Get("Retry-After"), want)
		}
	}
}

type patience time.Duration

func (p patience) Error() string          { return "busy" }
func (p patience) RetryIn() time.Duration { return time.Duration(p) }

func TestRequestID(t *testing.T) {
	g := newRig(t)
	a := g.want("/example.com/hello/@v/nope.mod", 404, "request id: mine-1.x", func(r *http.Request) { r.Header.Set("X-Request-Id", "mine-1.x") })
	if a.header.Get("X-Request-Id") != "mine-1.x" {
		t.Errorf("id is %q", a.header.Get("X-Request-Id"))
	}
	for _, evil := range []string{"a b", strings.Repeat("x", 65), "<script>", "ü"} {
		a := g.get(helloPath+"list", func(r *http.Request) { r.Header["X-Request-Id"] = []string{evil} })
		if id := a.header.Get("X-Request-Id"); id == evil || id == "" {
			t.Errorf("id is %q", id)
		}
	}
}

func TestStatusOf(t *testing.T) {
	absent := fmt.Errorf("x: %w", fs.ErrNotExist)
	for want, errs := range map[int][]error{
		404: {absent, &believedError{err: absent}, errors.Join(absent, absent)},
		403: {artifact.ErrPolicy, artifact.ErrRefused, artifact.ErrConflict, errors.Join(absent, artifact.ErrRefused), errors.Join(artifact.ErrUnavailable, artifact.ErrRefused), &mismatch{}},
		502: {artifact.ErrMalformed, errors.Join(absent, artifact.ErrMalformed)},
		504: {context.DeadlineExceeded, &waitError{}, errors.Join(absent, context.DeadlineExceeded)},
		503: {artifact.ErrUnavailable, artifact.ErrStale, artifact.ErrDamaged, context.Canceled, errors.Join(absent, artifact.ErrUnavailable)},
		500: {errors.New("x")},
		400: {ErrBadRequest},
		405: {errMethod},
		200: {nil},
	} {
		for _, err := range errs {
			if got := statusOf(err); got != want {
				t.Errorf("statusOf(%v) = %d, want %d", err, got, want)
			}
		}
	}
}

// One object is in memory under the spellings that clients use, however it is asked for.
func TestHotSpellings(t *testing.T) {
	g := newRig(t)
	g.add("example.com/Up@v1.0.0\n-- go.mod --\nmodule example.com/Up\n")
	for _, p := range []string{"/example.com/!up/", "/example.com/%21up/", "/ex%61mple.com/!up/", "/example.com/!u%70/", "/example.com/%21u%70/", "/exampl%65.com/%21up/"} {
		g.want(p+"@v/v1.0.0.mod", 200, "module example.com/Up")
	}
	if n, _ := g.hot.size(); n != 2 {
		t.Errorf("one go.mod is in memory %d times, want 2", n)
	}
}

// What should be here and is not, or cannot be read, is not looked for elsewhere, and it exists: no 404.
func TestUnreadableInline(t *testing.T) {
	for want, err := range map[int]error{503: notExist("no such row"), 500: errBroken} {
		g := newRig(t, func(c *Config) { c.Index = unreadable{c.Index.(*memIndex), err} })
		g.index.commit(t, helloV.Path, helloV.Version)
		g.want(helloPath+"v1.0.0.mod", want, "")
		g.want("/cached-only"+helloPath+"v1.0.0.mod", want, "")
		if n := len(g.up.Requests()) + g.sums.count(); n != 0 {
			t.Errorf("%v: %d requests went out", err, n)
		}
	}
}

// unreadable is a catalog that has lost the bytes of small artifacts.
type unreadable struct {
	*memIndex
	err error
}

func (x unreadable) Inline(context.Context, artifact.Digest) ([]byte, error) { return nil, x.err }
