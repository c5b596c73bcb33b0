//go:build browser

package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"modmirror/mirror/artifact"
)

// A cluster in three zones, as people see it: what comes in and what is refused appears while they look, a search leads to the hashes, a
// node that dies is shown as dead, and all of it can be read without JavaScript and on a phone.
func TestBrowserCluster(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	bad := s.add("example.com/tampered@v1.0.0\n-- go.mod --\nmodule example.com/tampered\n-- a.go --\npackage tampered\n")
	s.up.Tamper(bad, artifact.Zip, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	for i, n := range s.nodes {
		n.extra = []string{"--zone", []string{"eu-central", "us-east", "ap-south"}[i]}
	}
	s.run()
	s.voters(3)
	first := s.nodes[0]

	b := newBrowser(t)
	b.screen(1280, 900, "light")
	b.open(first.url)
	b.awaits("stream", `document.getElementById("following").textContent === "live"`)
	b.awaits("healthy cluster", `document.querySelector(".sentence").innerText.includes("All 3 nodes in 3 zones are healthy")`)
	b.says("#main", "go env -w GOPROXY="+first.url, "eu-central", "us-east", "ap-south", "leader", "this node", "Disk free", databaseName, "any one voter may fail")
	eval[int](b, "window.loaded = 1")

	if _, err := s.download(first.url, app); err != nil {
		t.Fatal(err)
	}
	b.awaits("ingest", `[...document.querySelectorAll(".events li")].some((e) => e.innerText.includes("stored") && e.innerText.includes("example.com/hello") && e.innerText.includes("zip"))`)
	if status, body := s.get(first.process, artifactPath(bad, artifact.Zip)); status != http.StatusForbidden {
		t.Fatalf("the tampered zip: %d %s", status, body)
	}
	if !eval[bool](b, "window.loaded === 1") {
		t.Error("the page was loaded again")
	}
	seer := s.refuser("example.com/tampered")
	b.open(seer.url)
	b.awaits("refusal", `[...document.querySelectorAll(".events li")].some((e) => e.innerText.includes("refused") && e.innerText.includes("example.com/tampered") && e.innerText.includes("zip"))`)
	b.awaits("what came in", `[...document.querySelectorAll(".events li")].some((e) => e.innerText.includes("stored") && e.innerText.includes("example.com/hello"))`)
	b.awaits("end of what is missing", `[...document.querySelectorAll(".node")].length === 3 && [...document.querySelectorAll(".node")].every((n) => /Missing blobs\s*none/.test(n.innerText))`)
	b.fits("the cluster")
	b.legible("the cluster")

	b.finds(s, "example.com/hello")

	last := s.nodes[2]
	if last == seer {
		last = s.nodes[1]
	}
	b.open(seer.url)
	b.awaits("stream", `document.getElementById("following").textContent === "live"`)
	eval[int](b, "window.loaded = 2")
	last.kill()
	b.awaits("dead node", fmt.Sprintf(`document.querySelector('[aria-label="Node %s"]').innerText.includes("does not answer")`, last.name))
	b.awaits("sentence", `document.querySelector(".sentence").innerText.includes("1 of 3 nodes does not answer")`)
	b.says(fmt.Sprintf(`[aria-label="Zone %s"] header`, last.extra[1]), "silent")
	if !eval[bool](b, "window.loaded === 2") {
		t.Error("the page was loaded again")
	}
	for _, scheme := range []string{"light", "dark"} {
		b.screen(1280, 900, scheme)
		b.legible("a dead node, " + scheme)
		b.shot("cluster-" + scheme)
	}
	b.screen(360, 800, "light")
	b.fits("the cluster on a phone")
	b.shot("cluster-phone")

	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.open(seer.url)
	b.says("#main", "go env -w GOPROXY="+seer.url, "1 of 3 nodes does not answer", "example.com/hello", "example.com/tampered", "refused", "reload to see news")
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: false})
}

// refuser returns the node that has refused something of a module: the one whose turn it was to fetch it.
func (s *clusterSite) refuser(path string) (n *clusterNode) {
	s.t.Helper()
	s.await("refusal of "+path, func() bool {
		for _, n = range s.nodes {
			if _, body := s.html(n.process, "/"); strings.Contains(body, "refused") && strings.Contains(body, path) {
				return true
			}
		}
		return false
	}, func() string { return "" })
	return n
}

// says fails the test unless an element shows all texts.
func (b *browser) says(selector string, texts ...string) {
	b.t.Helper()
	shown := act(b, chromedp.Text(selector, chromedp.NodeVisible))
	for _, want := range texts {
		if !strings.Contains(shown, want) {
			b.t.Errorf("%s does not say %q:\n%s", selector, want, shown)
		}
	}
}

// finds searches for a part of a module's path, as people do, and reads its page.
func (b *browser) finds(s *clusterSite, path string) {
	b.t.Helper()
	act(b, chromedp.SendKeys("#q", strings.ToUpper(path[3:])+"\r"))
	b.awaits("result", fmt.Sprintf(`location.pathname === "/search" && [...document.querySelectorAll(".results a")].some((a) => a.textContent === %q)`, path))
	b.fits("results")
	act(b, chromedp.Click(fmt.Sprintf(`.results a[href="/modules/%s"]`, path)))
	b.awaits("page of the module", `location.pathname.startsWith("/modules/") && document.querySelector("details")`)
	for _, m := range s.up.Versions() {
		if m.Path != path || m.Version != "v1.0.0" {
			continue
		}
		zip, mod := s.up.Sums(m)
		b.says("#main", m.Version, zip, mod, artifact.DigestOf(s.up.Artifact(m, artifact.Zip)).String(), "of "+databaseName, "n1", "n2", "n3", "eu-central")
	}
	b.fits("a module")
	b.legible("a module")
	b.shot("cluster-module")
	proof := eval[string](b, `[...document.querySelectorAll("a")].find((a) => a.textContent === "Proof as JSON").href`)
	if body, err := bodyOf(http.DefaultClient, proof); err != nil || !strings.Contains(string(body), `"treeHead"`) {
		b.t.Errorf("%s: %v %.200s", proof, err, body)
	}
}
