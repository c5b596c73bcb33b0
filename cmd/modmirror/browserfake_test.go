//go:build browser

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"golang.org/x/mod/module"

	"modmirror/cmd/modmirror/statuspage"
)

// stage is a mirror that has what a test puts on it.
type stage struct {
	mu      sync.Mutex
	cluster statuspage.Cluster // guarded by mu, as the rest
	events  []statuspage.Event
	more    chan struct{}
}

func (s *stage) Cluster(context.Context) statuspage.Cluster {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

func (s *stage) Events() ([]statuspage.Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events, s.more
}

func (s *stage) Modules(context.Context, string, string, int) ([]string, error) {
	return []string{"github.com/example/" + strings.Repeat("very-long-name-", 8) + "x", "golang.org/x/text"}, nil
}

func (s *stage) Versions(context.Context, string) ([]string, error) {
	return []string{"v0.3.0", "v0.3.1-0.20261126170000-0123456789ab"}, nil
}

func (s *stage) Describe(_ context.Context, path string, versions []string) (out []statuspage.Version, err error) {
	hash := strings.Repeat("0123456789abcdef", 4)
	for _, v := range versions {
		d := statuspage.Version{Module: module.Version{Path: path, Version: v}, Released: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC), Committed: time.Now().Add(-time.Hour),
			ModSum: "h1:3uUn5rBnFWHCrXUCbpBUcEfYQQAbXkXUuP6VZ1FRlws=", ZipSum: "h1:Z7BAhNWGZ5gXhUM0WY2dPUYvAx2LUvSCyoEgnk2m7qE=",
			Mod: statuspage.Artifact{SHA256: hash, Size: 88}, Zip: statuspage.Artifact{SHA256: hash, Size: 6_912_411}, Database: "sum.golang.org", Record: 44_212_345}
		for _, z := range s.Cluster(context.Background()).Zones {
			for _, n := range z.Nodes {
				d.Holders = append(d.Holders, statuspage.Holder{Node: n.Name, Zone: z.Name, Holds: n.Missing == 0, Known: !n.Silent})
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// crowded is nine nodes in three zones, with long names, one that is dead and one that is behind.
func crowded() statuspage.Cluster {
	now := time.Now()
	c := statuspage.Cluster{Self: "mirror-fra-1", Leader: "mirror-fra-2", Voters: 5, Alive: 4, Versions: 1_284_302,
		Problems: []string{"5 voters, 4 alive; a majority is 3: 1 more may fail", "mirror-sgp-3.asia-southeast.mirrors.corp.example.com does not answer: connection refused"}}
	for i, z := range []string{"eu-central-frankfurt-1", "us-east", "ap-southeast"} {
		zone := statuspage.Zone{Name: z, Current: i != 1, Complete: now.Add(-22 * time.Minute)}
		for j := range 3 {
			n := statuspage.Node{ID: fmt.Sprintf("id%d%d", i, j), Name: fmt.Sprintf("mirror-%s-%d", []string{"fra", "iad", "sgp"}[i], j+1), Version: "v1.4.2-18-g828a59e", Role: "voter", Says: "healthy",
				RTT: time.Duration(i*40+1) * time.Millisecond, Free: 212_000_000_000, Total: 480_000_000_000, Scrubbed: now.Add(-50 * time.Hour), Current: true,
				Heads: []statuspage.Head{{Database: "sum.golang.org", Size: 44_212_345, Checked: now.Add(-12 * time.Second)}}}
			switch {
			case i == 0 && j == 0:
				n.Self = true
			case i == 0 && j == 1:
				n.Role = "leader"
			case j == 2 && i < 2, i == 2 && j > 0:
				n.Role = "replica"
			}
			if i == 1 && j == 2 {
				n.Current = false
				n.State, n.Says, n.Why, n.Missing, n.Owed, n.Lag, n.Complete, n.Low, n.Free = statuspage.Warn, "behind", "it has waited for blobs for 22 minutes", 311, 2_400_000_000, 1204, now.Add(-22*time.Minute), true, 9_000_000_000
			}
			if i == 2 && j == 2 {
				n.Name = "mirror-sgp-3.asia-southeast.mirrors.corp.example.com"
				n.State, n.Says, n.Why, n.Silent, n.Seen, n.Lag, n.RTT = statuspage.Bad, "does not answer", "connection refused", true, now.Add(-7*time.Minute), 88, 0
			}
			zone.Nodes = append(zone.Nodes, n)
		}
		c.Zones = append(c.Zones, zone)
	}
	return c
}

func busy() (out []statuspage.Event) {
	for i, m := range []string{"golang.org/x/text", "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2", "gopkg.in/yaml.v3", "github.com/BurntSushi/toml", "example.com/tampered", "k8s.io/api"} {
		e := statuspage.Event{ID: fmt.Sprint(100 - i), At: time.Now().Add(-time.Duration(i*i*7) * time.Second), What: "stored", Module: m, Version: "v1.2.3", Kind: "zip", Bytes: 1_300_000, From: "upstream proxy.corp.example.com"}
		if i == 4 {
			e.State, e.What, e.Reason = statuspage.Bad, "refused", "checksum mismatch: upstream h1:Z7BAhNWGZ5gXhUM0WY2dPUYvAx2LUvSCyoEgnk2m7qE=, sumdb h1:3uUn5rBnFWHCrXUCbpBUcEfYQQAbXkXUuP6VZ1FRlws= (zip): refused"
		}
		out = append(out, e)
	}
	return out
}

func newStage(t *testing.T) (*stage, string) {
	t.Helper()
	s := &stage{cluster: crowded(), events: busy(), more: make(chan struct{})}
	p, err := statuspage.New(statuspage.Config{Source: s, Version: "v1.4.2-18-g828a59e"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	srv := httptest.NewServer(p)
	t.Cleanup(srv.CloseClientConnections)
	t.Cleanup(srv.Close)
	return s, srv.URL
}

// change changes what is on the stage, and wakes whoever follows.
func (s *stage) change(f func(*stage)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
	close(s.more)
	s.more = make(chan struct{})
}

// Nine nodes with long names fit into any window, and everything can be read, in the light and in the dark.
func TestBrowserLooks(t *testing.T) {
	t.Parallel()
	_, url := newStage(t)
	b := newBrowser(t)
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 768, 360} {
			b.screen(width, 900, scheme)
			for name, path := range map[string]string{"home": "/", "search": "/search?q=e", "module": "/modules/golang.org/x/text", "error": "/modules/example.com/"} {
				if name == "error" {
					b.may("400 (Bad Request)")
				}
				b.open(url + path)
				what := fmt.Sprintf("%s-%s-%d", name, scheme, width)
				b.fits(what)
				b.legible(what)
				b.shot("stage-" + what)
			}
		}
	}
	if light, dark := b.background("light"), b.background("dark"); light == dark {
		t.Errorf("light and dark have the same background %s", light)
	}
}

// background returns the colour of the page.
func (b *browser) background(scheme string) string {
	b.t.Helper()
	b.screen(1280, 900, scheme)
	return eval[string](b, "getComputedStyle(document.body).backgroundColor")
}

// legible fails the test if a text has less contrast with what is behind it than WCAG 2 asks for at level AA.
func (b *browser) legible(what string) {
	b.t.Helper()
	for _, poor := range eval[[]string](b, contrastJS) {
		b.t.Errorf("%s: too little contrast: %s", what, poor)
	}
	if n := eval[int](b, "document.body.innerText.length"); n < 50 {
		b.t.Errorf("%s: the page has %d letters", what, n)
	}
}

// contrastJS returns the texts that have too little contrast (WCAG 2.2, 1.4.3): below 4.5, or 3 for what is large.
const contrastJS = `(() => {
	const parse = (s) => { const m = s.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
	const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
	const behind = (e) => {
		const layers = [];
		for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
		return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
	};
	const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
	const luminance = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
	const poor = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n = walk.nextNode(); n; n = walk.nextNode()) {
		const e = n.parentElement, text = n.nodeValue.trim();
		if (!text || !e.checkVisibility()) continue;
		const style = getComputedStyle(e), back = behind(e);
		const a = luminance(over(parse(style.color), back)), b = luminance(back);
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		const px = parseFloat(style.fontSize), large = px >= 24 || px >= 18.66 && style.fontWeight >= 700;
		if (ratio < (large ? 3 : 4.5)) poor.push(ratio.toFixed(2) + " of " + text.slice(0, 40));
	}
	return poor;
})()`

// The page is brought up to date in place: what does not change stays the same element, with the focus on it, and an event that is new
// is told to screen readers once. When the stream breaks, the page says so, and goes on by itself.
func TestBrowserUpdates(t *testing.T) {
	t.Parallel()
	s, url := newStage(t)
	b := newBrowser(t)
	b.open(url)
	b.awaits("stream", `document.getElementById("following").textContent === "live"`)
	eval[bool](b, `(window.card = document.querySelector('[data-key="id11"]'), window.other = document.querySelector('[data-key="100"]'), window.added = 0,
		new MutationObserver((all) => { for (const m of all) for (const n of m.addedNodes) if (n.nodeName === "LI") added++; }).observe(document.querySelector(".events"), { childList: true }),
		document.querySelector('[data-key="99"] a').focus(), true)`)
	s.change(func(s *stage) {
		s.events = append([]statuspage.Event{{ID: "101", At: time.Now(), What: "refused", State: statuspage.Bad, Module: "example.com/<b>new</b>", Version: "v1.0.0", Reason: "a <script>reason</script>"}}, s.events...)
	})
	b.awaits("event", `document.querySelector(".events li").innerText.includes("example.com/<b>new</b>")`)
	if !eval[bool](b, `other.isConnected && document.activeElement === document.querySelector('[data-key="99"] a') && added === 1`) {
		t.Errorf("an event changed what was there: %s", eval[string](b, `[other.isConnected, document.activeElement.outerHTML, added].join(" ")`))
	}
	s.change(func(s *stage) {
		n := &s.cluster.Zones[1].Nodes[1]
		n.State, n.Says, n.Silent, n.Why = statuspage.Bad, "does not answer", true, "no route to host"
		s.cluster.Alive--
		s.cluster.Zones[0].Nodes = s.cluster.Zones[0].Nodes[1:]
	})
	b.awaits("dead node", `card.classList.contains("bad") && card.innerText.includes("does not answer") && card.innerText.includes("no route to host")`)
	b.awaits("sentence", `document.querySelector(".sentence").innerText.includes("2 of 8 nodes do not answer")`)
	if !eval[bool](b, `card.isConnected && card === document.querySelector('[data-key="id11"]') && !document.querySelector('[data-key="id00"]')`) {
		t.Error("the card is another element, or that of a node that left is there")
	}
	s.change(func(s *stage) { s.events[0].At = time.Now().Add(-70 * time.Second) })
	b.agesAgree()

	s.change(func(s *stage) {
		s.cluster.Problems, s.cluster.Zones = nil, s.cluster.Zones[2:]
		s.cluster.Zones[0].Nodes = s.cluster.Zones[0].Nodes[:2]
		s.events = nil
	})
	b.awaits("quiet page", `!document.querySelector(".problems") && document.querySelectorAll(".node").length === 2 && document.querySelector(".nothing").checkVisibility() && !document.querySelector(".events li")`)
}

// agesAgree compares what the page says of how long ago things were with what the server says.
func (b *browser) agesAgree() {
	b.t.Helper()
	const now = `[...document.querySelectorAll("main time")].map((t) => t.dateTime + " " + t.textContent)`
	b.awaits("same ages as the server's", `(async () => {
		const r = await fetch("/", { headers: { Accept: "text/html" } });
		const d = new DOMParser().parseFromString(await r.text(), "text/html");
		const theirs = [...d.querySelectorAll("main time")].map((t) => t.dateTime + " " + t.textContent);
		return JSON.stringify(theirs) === JSON.stringify(`+now+`);
	})()`)
}

// The page comes back by itself when the stream broke, and says what is true meanwhile.
func TestBrowserReconnects(t *testing.T) {
	t.Parallel()
	s := &stage{cluster: crowded(), events: busy(), more: make(chan struct{})}
	p, err := statuspage.New(statuspage.Config{Source: s})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var broken atomic.Bool
	refused := make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() && r.URL.Path == "/events" {
			w.WriteHeader(http.StatusServiceUnavailable)
			select {
			case refused <- struct{}{}:
			default:
			}
			return
		}
		p.ServeHTTP(w, r)
	}))
	defer srv.Close()
	defer srv.CloseClientConnections()
	b := newBrowser(t)
	b.may("503 (Service Unavailable)")
	b.may("net::ERR_")
	b.open(srv.URL)
	b.awaits("stream", `document.getElementById("following").textContent === "live"`)
	broken.Store(true)
	srv.CloseClientConnections()
	b.awaits("word of it", `document.getElementById("following").textContent.includes("connection lost")`)
	b.shot("stage-lost")
	select {
	case <-refused: // after which a browser does not try again by itself
	case <-time.After(patient):
		t.Fatal("the browser did not come again")
	}
	broken.Store(false)
	s.change(func(s *stage) { s.cluster.Problems = []string{"something new"} })
	b.awaits("stream again", `document.getElementById("following").textContent === "live" && document.querySelector(".problems").innerText.includes("something new")`)
}

// Everything can be reached with the keyboard and has a name for screen readers; who wants no motion gets none.
func TestBrowserAccess(t *testing.T) {
	t.Parallel()
	s, url := newStage(t)
	b := newBrowser(t)
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: "reduce"}}})
	b.open(url)
	b.awaits("stream", `document.getElementById("following").textContent === "live"`)
	s.change(func(s *stage) {
		s.events = append([]statuspage.Event{{ID: "101", At: time.Now(), What: "stored", Module: "example.com/new"}}, s.events...)
	})
	b.awaits("event", `document.querySelector('[data-key="101"]')`)
	if n := eval[int](b, "document.getAnimations().length"); n > 0 {
		t.Errorf("%d things move", n)
	}
	act(b, chromedp.KeyEvent("\t"))
	if !eval[bool](b, `document.activeElement.className === "skip" && document.activeElement.getBoundingClientRect().top >= 0`) {
		t.Errorf("the first stop is %s", eval[string](b, "document.activeElement.outerHTML"))
	}
	seen := make(map[string]bool)
	for range 60 {
		act(b, chromedp.KeyEvent("\t"))
		seen[eval[string](b, `document.activeElement.id || document.activeElement.textContent`)] = true
	}
	for _, want := range []string{"q", "Search", "Copy", "golang.org/x/text", "Status as JSON"} {
		if !seen[want] {
			t.Errorf("the keyboard does not reach %q: %v", want, seen)
		}
	}
	roles := make(map[string]int)
	for _, n := range call(b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		role := strings.Trim(string(n.Role.Value), `"`)
		roles[role]++
		switch role {
		case "link", "button", "searchbox", "article", "region", "navigation", "heading", "log":
			if n.Name == nil || strings.Trim(string(n.Name.Value), `"`) == "" {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	for role, want := range map[string]int{"banner": 1, "main": 1, "contentinfo": 1, "search": 1, "log": 1, "article": 9, "status": 1, "searchbox": 1} {
		if roles[role] != want {
			t.Errorf("%d elements are a %s, want %d: %v", roles[role], role, want, roles)
		}
	}
	if label := eval[string](b, `document.getElementById("q").labels[0]?.textContent || ""`); !strings.Contains(label, "held here") {
		t.Errorf("the search field is called %q", label)
	}
	levels := eval[[]int](b, `[...document.querySelectorAll("h1,h2,h3,h4,h5,h6")].map((h) => Number(h.nodeName[1]))`)
	for i, level := range levels {
		if i == 0 && level != 1 || i > 0 && level > levels[i-1]+1 {
			t.Errorf("the headings have the levels %v", levels)
			break
		}
	}
	if plain := eval[[]string](b, `[...document.querySelectorAll(".pill")].filter((p) => !p.textContent.replace(/[^a-z]/gi, "")).map((p) => p.outerHTML)`); len(plain) > 0 {
		t.Errorf("a state has no words: %s", plain)
	}
}
