package statuspage

import (
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// results follows the pages of results for q, and returns what is on them, page by page.
func searched(t *testing.T, p *Page, q string, most int) (pages [][]string) {
	t.Helper()
	for at := "/search?q=" + url.QueryEscape(q); at != ""; {
		if len(pages) > most {
			t.Fatalf("%q has more than %d pages", q, most)
		}
		d := parsed(t, ask(p, at))
		at = ""
		var page []string
		for _, e := range d.elements {
			href := attr(e, "href")
			if path, ok := ModuleOf(href); ok {
				page = append(page, path)
			}
			if attr(e, "rel") == "next" {
				at = href
			}
		}
		pages = append(pages, page)
	}
	return pages
}

// A search finds what begins with the text, then what has it in it, each once, over any number of pages.
func TestSearch(t *testing.T) {
	f := newFake()
	var begin, within []string
	for i := range 130 {
		begin = append(begin, fmt.Sprintf("example.com/yaml/m%04d", i))
		within = append(within, fmt.Sprintf("git.example.org/m%04d/Example.com-yaml", i))
		f.paths = append(f.paths, fmt.Sprintf("zzz.example.org/other%04d", i))
	}
	within[7] = "aaa.org/example.com/YAML" // before those that begin with it
	slices.Sort(within)
	f.paths = slices.Concat(f.paths, begin, within)
	slices.Sort(f.paths)
	p := newPage(t, f)
	for _, c := range []struct {
		q    string
		want []string
	}{
		{"example.com/yaml", slices.Concat(begin, []string{"aaa.org/example.com/YAML"})},
		{"ExaMPle.com-Yaml", slices.DeleteFunc(slices.Clone(within), func(p string) bool { return !strings.Contains(p, "Example.com-yaml") })},
		{"example.com/yaml/m0007", begin[7:8]}, {"https://example.com/yaml/m0007@v1.0.0", begin[7:8]}, {" example.com/yaml/m0007 v1.0.0 // indirect", begin[7:8]},
		{"nothing", nil}, {"@v1.0.0", nil}, {"", nil},
	} {
		pages := searched(t, p, c.q, 10)
		if got := slices.Concat(pages...); !slices.Equal(got, c.want) {
			t.Errorf("%q finds %d, want %d: %.300q", c.q, len(got), len(c.want), got)
		}
		for _, page := range pages {
			if len(page) > pageRows {
				t.Errorf("a page of %q has %d rows", c.q, len(page))
			}
		}
	}
}

// However large the catalog is, one page looks at a part of it, says so, and the next goes on.
func TestSearchIsBounded(t *testing.T) {
	f := newFake()
	const many = 3*maxScanned + 500
	for i := range many {
		f.paths = append(f.paths, fmt.Sprintf("example.com/m%07d", i))
	}
	f.paths[many-1] = "zzz.example.com/needle"
	p := newPage(t, f)
	d := parsed(t, ask(p, "/search?q=needle"))
	if f.read > maxScanned+scanPage {
		t.Errorf("one page read %d paths", f.read)
	}
	if !strings.Contains(d.text, "Look further") || !strings.Contains(d.text, "20 000 module paths were looked at") {
		t.Errorf("the page does not say that it stopped: %s", d.text)
	}
	if got := slices.Concat(searched(t, p, "needle", 5)...); !slices.Equal(got, f.paths[many-1:]) {
		t.Errorf("found %q", got)
	}
	f.read = 0
	if d := parsed(t, ask(p, "/search?q=zzz.example.com/nee")); !strings.Contains(d.text, "zzz.example.com/needle") || f.read > 1+maxScanned {
		t.Errorf("a beginning is not found at once, after %d paths: %s", f.read, d.text)
	}
}

// Names that are not to be shown are not, anywhere, also not by how many there are.
func TestPrivateNames(t *testing.T) {
	f := newFake()
	for i := range 2 * scanPage {
		f.paths = append(f.paths, fmt.Sprintf("corp.example.com/secret/m%05d", i))
	}
	f.paths = append(f.paths, "corp.example.com/secretary", "example.com/secret")
	f.hold["corp.example.com/secret/m00001"] = []string{"v1.0.0"}
	f.happen(Event{ID: "1", At: day, What: "refused", Module: "corp.example.com/secret/m00001", Version: "v1.0.0", Reason: "corp.example.com/secret"})
	private := func(path string) bool { return strings.HasPrefix(path, "corp.example.com/secret/") }
	p := newPage(t, f, func(c *Config) { c.Private = private })
	for q, want := range map[string][]string{"corp.example.com/secret": {"corp.example.com/secretary"}, "secret": {"corp.example.com/secretary", "example.com/secret"},
		"corp.example.com/secret/m00001": nil, "m0000": nil} {
		if got := slices.Concat(searched(t, p, q, 5)...); !slices.Equal(got, want) {
			t.Errorf("%q finds %q, want %q", q, got, want)
		}
	}
	for _, path := range []string{"/", "/modules/corp.example.com/secret/m00001", "/modules/corp.example.com/secret/m99999"} {
		w := ask(p, path)
		if body := strings.ReplaceAll(w.Body.String(), strings.TrimPrefix(path, "/modules/"), ""); strings.Contains(body, "corp.example.com/secret") {
			t.Errorf("%s shows the name:\n%s", path, body)
		}
		if path != "/" && w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	held, other := ask(p, "/modules/corp.example.com/secret/m00001").Body.String(), ask(p, "/modules/corp.example.com/secret/m99999").Body.String()
	if strings.ReplaceAll(held, "m00001", "x") != strings.ReplaceAll(other, "m99999", "x") && !strings.Contains(held, "data-now") {
		t.Errorf("the page tells that it is held")
	}
	if frame := string(p.event("recent", recent{day, p.events()})); strings.Contains(frame, "corp.example.com") {
		t.Errorf("an event shows the name: %s", frame)
	}
}

// taken returns how many are taken.
func (s *slots) taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// One client has half of the searches, and what it has beyond that is refused at once.
func TestSearchSlotsOfOneClient(t *testing.T) {
	f := newFake()
	f.block = make(chan struct{})
	p := newPage(t, f, func(c *Config) { c.Client = fromHeader })
	search := func(from string) int {
		return ask(p, "/search?q=x", func(r *http.Request) { r.Header.Set("From", from) }).Code
	}
	done := make(chan int, maxLooks)
	for range maxLooks {
		go func() { done <- search("192.0.2.1") }()
	}
	for range maxLooks / 2 {
		if code := <-done; code != 429 {
			t.Errorf("a search of a client that has half of them: %d, want 429", code)
		}
	}
	go func() { done <- search("192.0.2.2") }()
	for p.looks.taken() <= maxLooks/2 {
		runtime.Gosched()
	}
	close(f.block)
	for range maxLooks/2 + 1 {
		if code := <-done; code != 200 {
			t.Errorf("a search: %d", code)
		}
	}
	if code := search("192.0.2.1"); code != 200 || len(p.looks.held) > 0 {
		t.Errorf("afterwards: %d, %v is held", code, p.looks.held)
	}
}

// Few searches run at a time; who comes when there are more is told so at once.
func TestSearchSlots(t *testing.T) {
	f := newFake()
	f.block = make(chan struct{})
	p := newPage(t, f)
	done := make(chan int)
	for range maxLooks {
		go func() { done <- ask(p, "/search?q=x").Code }()
	}
	for p.looks.taken() < maxLooks {
		select {
		case code := <-done:
			t.Fatalf("a search that waits was answered with %d", code)
		default:
		}
	}
	if w := ask(p, "/search?q=x"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more: %d", w.Code)
	}
	if w := ask(p, "/"); w.Code != 200 {
		t.Errorf("the first page: %d", w.Code)
	}
	close(f.block)
	for range maxLooks {
		if code := <-done; code != 200 {
			t.Errorf("a search: %d", code)
		}
	}
	if w := ask(p, "/search?q=x"); w.Code != 200 {
		t.Errorf("afterwards: %d", w.Code)
	}
}

// No page names a private module, also not as the place where the next page goes on, and the search goes on all the same.
func TestSearchGoesOnPastPrivate(t *testing.T) {
	f := newFake()
	for i := range 2*maxScanned + 10 {
		path := fmt.Sprintf("public.example.com/m%07d", i)
		if i == maxScanned-1 || i > maxScanned+2 && i < 2*maxScanned+9 { // the last of one page, and all of another
			path = fmt.Sprintf("public.example.com/m%07d-secret", i)
		}
		f.paths = append(f.paths, path)
	}
	f.paths = append(f.paths, "zzz.example.com/needle")
	p, err := New(Config{Source: f, Private: func(path string) bool { return strings.HasSuffix(path, "-secret") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	var found []string
	pages := 0
	for at := "/search?q=needle"; at != ""; pages++ {
		if pages > 5 {
			t.Fatal("the search does not come to an end")
		}
		d := parsed(t, ask(p, at))
		at = ""
		for _, e := range d.elements {
			href := attr(e, "href")
			if strings.Contains(href, "secret") {
				t.Errorf("page %d names a private module: %s", pages+1, href)
			}
			if path, ok := ModuleOf(href); ok {
				found = append(found, path)
			}
			if attr(e, "rel") == "next" {
				at = href
			}
		}
	}
	if !slices.Equal(found, []string{"zzz.example.com/needle"}) {
		t.Errorf("%v is found on %d pages", found, pages)
	}
}
