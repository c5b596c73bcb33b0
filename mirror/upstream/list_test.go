package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

const hello = "example.com/Hello@v1.0.0\n-- go.mod --\nmodule example.com/Hello\n-- hello.go --\npackage hello\n"

const (
	listPath   = "/example.com/!hello/@v/list"
	modPath    = "/example.com/!hello/@v/v1.0.0.mod"
	zipPath    = "/example.com/!hello/@v/v1.0.0.zip"
	latestPath = "/example.com/!hello/@latest"
)

func start(t *testing.T) (*mirrortest.Upstream, module.Version) {
	t.Helper()
	u := mirrortest.New()
	t.Cleanup(u.Close)
	return u, u.Add(hello)
}

func parse(t *testing.T, goproxy string, c Config) *List {
	t.Helper()
	l, err := Parse(goproxy, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// fetch fetches without any check.
func fetch(t *testing.T, l *List, m module.Version, k artifact.Kind) (b []byte, err error) {
	t.Helper()
	err = l.Fetch(t.Context(), m, k, func(body io.Reader, _ int64, _ string) (err error) {
		b, err = io.ReadAll(body)
		return err
	})
	return b, err
}

// all are the sentinels that an error may match; each error must match exactly those it should.
var all = map[string]error{
	"notexist": fs.ErrNotExist, "policy": artifact.ErrPolicy, "malformed": artifact.ErrMalformed, "unavailable": artifact.ErrUnavailable,
	"refused": artifact.ErrRefused, "deadline": context.DeadlineExceeded, "canceled": context.Canceled, "offline": ErrOffline,
}

func checkMatches(t *testing.T, what string, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want one that matches %v", what, want)
	}
	for name, sentinel := range all {
		wanted := strings.Contains(" "+strings.Join(want, " ")+" ", " "+name+" ")
		if errors.Is(err, sentinel) != wanted {
			t.Errorf("%s: matches %s: %v, want %v: %v", what, name, !wanted, wanted, err)
		}
	}
}

func TestQuestions(t *testing.T) {
	u, m := start(t)
	u.Alias(m.Path, "main", m.Version)
	tree := t.TempDir()
	if err := u.WriteTree(tree); err != nil {
		t.Fatal(err)
	}
	for _, goproxy := range []string{u.URL(), u.URL() + "/", "file://" + filepath.ToSlash(tree)} {
		l := parse(t, goproxy, Config{})
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			if b, err := fetch(t, l, m, k); err != nil || !bytes.Equal(b, u.Artifact(m, k)) {
				t.Errorf("%s: Fetch %v = %d bytes, %v", l, k, len(b), err)
			}
		}
		info := u.Artifact(m, artifact.Info)
		if b, err := l.Versions(t.Context(), m.Path); err != nil || string(b) != "v1.0.0\n" {
			t.Errorf("%s: Versions = %q, %v", l, b, err)
		}
		if b, err := l.Latest(t.Context(), m.Path); err != nil || !bytes.Equal(b, info) {
			t.Errorf("%s: Latest = %q, %v", l, b, err)
		}
		if b, err := l.Query(t.Context(), m.Path, "main"); err != nil || !bytes.Equal(b, info) {
			t.Errorf("%s: Query = %q, %v", l, b, err)
		}
		_, err := fetch(t, l, module.Version{Path: m.Path, Version: "v9.0.0"}, artifact.Mod)
		checkMatches(t, "unknown version at "+l.String(), err, "notexist")
		_, err = l.Versions(t.Context(), "example.com/unknown")
		checkMatches(t, "unknown module at "+l.String(), err, "notexist")
		_, err = l.Query(t.Context(), m.Path, "release/1.0")
		checkMatches(t, "a query that no URL can hold", err, "notexist")
		_, err = l.Query(t.Context(), m.Path, strings.Repeat("x", 300))
		checkMatches(t, "a long query at "+l.String(), err, "notexist")
	}
	parse(t, u.URL(), Config{}).Versions(t.Context(), m.Path)
	if n := u.Count(listPath); n == 0 {
		t.Error("the path is not escaped")
	}
}

func TestDeclaredSizeAndSourceAreTold(t *testing.T) {
	u, m := start(t)
	u.Unsized(m, artifact.Mod)
	l := parse(t, u.URL(), Config{})
	for k, want := range map[artifact.Kind]int64{artifact.Zip: int64(len(u.Artifact(m, artifact.Zip))), artifact.Mod: -1} {
		err := l.Fetch(t.Context(), m, k, func(body io.Reader, size int64, source string) error {
			if size != want || source != u.URL() {
				t.Errorf("accept of the %v gets size %d and source %s, want %d and %s", k, size, source, want, u.URL())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// The go command's own rules, as observed of Go 1.26: after "," only 404 and 410 lead on, after "|" everything does.
func TestSeparators(t *testing.T) {
	a, m := start(t)
	b, _ := start(t)
	for _, status := range []int{400, 401, 403, 404, 410, 429, 451, 500, 502, 503, 504, 204, -1 /* no connection */} {
		for _, sep := range []string{",", "|"} {
			a.Heal()
			a.Down(status < 0)
			if status > 0 {
				a.Status("/", status, "no", "Retry-After", "1")
			}
			b.Reset()
			l := parse(t, a.URL()+sep+b.URL(), Config{})
			goesOn := status == 404 || status == 410 || sep == "|"
			_, err := l.Versions(t.Context(), m.Path)
			if goesOn != (err == nil) || goesOn != (b.Count(listPath) == 1) {
				t.Errorf("%d before %q: second asked %d times, %v", status, sep, b.Count(listPath), err)
			}
			_, err = fetch(t, l, m, artifact.Mod)
			if goesOn != (err == nil) || goesOn != (b.Count(modPath) == 1) {
				t.Errorf("%d before %q: second asked for go.mod %d times, %v", status, sep, b.Count(modPath), err)
			}
		}
	}
}

// Which of several errors is the result.
func TestErrorsAreRanked(t *testing.T) {
	up := [3]*mirrortest.Upstream{}
	var urls [3]string
	var m module.Version
	for i := range up {
		up[i], m = start(t)
		urls[i] = up[i].URL()
	}
	for _, tt := range []struct {
		list     string // statuses with separators
		want     string
		wantText string
	}{
		{"404,404,410", "notexist", "410"},
		{"404|503|404", "unavailable", "503"},
		{"403|404,404", "policy", "403"},
		{"503|403|404", "policy", "403"},
		{"404,503,404", "unavailable", "503"},
		{"404,404,off", "notexist", "404"},
		{"503|off", "unavailable", "503"},
		{"off", "notexist", "module lookup disabled by GOPROXY=off"},
	} {
		goproxy, i := "", 0
		for rest := tt.list; rest != ""; {
			var code int
			if n, _ := fmt.Sscanf(rest, "%3d", &code); n == 0 {
				goproxy += rest
				break
			}
			up[i].Status("/", code, "no", "Retry-After", "1")
			goproxy += urls[i] + rest[3:min(4, len(rest))]
			rest = rest[min(4, len(rest)):]
			i++
		}
		_, err := parse(t, goproxy, Config{}).Latest(t.Context(), m.Path)
		checkMatches(t, tt.list, err, tt.want)
		if err != nil && !strings.Contains(err.Error(), tt.wantText) {
			t.Errorf("%s: %v, want the text %q", tt.list, err, tt.wantText)
		}
	}
}

// A lying source does not hide a good one, and a refusal is not hidden by what comes after it.
func TestRefusalGoesOnAndIsTheResult(t *testing.T) {
	liar, m := start(t)
	second, _ := start(t)
	liar.Tamper(m, artifact.Mod, func([]byte) []byte { return []byte("evil") })
	want := second.Artifact(m, artifact.Mod)
	for _, verdict := range []error{artifact.ErrRefused, artifact.ErrMalformed} {
		check := func(body io.Reader, _ int64, source string) error {
			b, err := io.ReadAll(body)
			if err == nil && !bytes.Equal(b, want) {
				err = fmt.Errorf("from %s: %q, want %q: %w", source, b, want, verdict)
			}
			return err
		}
		for _, sep := range []string{",", "|"} {
			var log bytes.Buffer
			l := parse(t, liar.URL()+sep+second.URL(), Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err := l.Fetch(t.Context(), m, artifact.Mod, check); err != nil {
				t.Errorf("a good source after %q: %v", sep, err)
			}
			if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), liar.URL()) {
				t.Errorf("the liar is not named: %s", &log)
			}
			for _, status := range []int{404, 503, 403} {
				second.Status("/", status, "", "Retry-After", "1")
				err := l.Fetch(t.Context(), m, artifact.Mod, check)
				checkMatches(t, fmt.Sprintf("%d after a refusal", status), err, map[error]string{artifact.ErrRefused: "refused", artifact.ErrMalformed: "malformed"}[verdict])
				if err != nil && !strings.Contains(err.Error(), "from "+liar.URL()) {
					t.Errorf("the evidence is lost: %v", err)
				}
			}
			second.Heal()
		}
	}
	second.Tamper(m, artifact.Mod, func([]byte) []byte { return []byte("evil, too") })
	err := parse(t, liar.URL()+","+second.URL(), Config{}).Fetch(t.Context(), m, artifact.Mod, func(_ io.Reader, _ int64, source string) error {
		return fmt.Errorf("from %s: %w", source, artifact.ErrRefused)
	})
	if err == nil || !strings.Contains(err.Error(), "from "+liar.URL()) {
		t.Errorf("of two refusals the first is lost: %v", err)
	}
	second.Status("/", 404, "")
	err = parse(t, second.URL()+","+liar.URL()+",off", Config{}).Fetch(t.Context(), m, artifact.Mod, func(io.Reader, int64, string) error { return artifact.ErrRefused })
	checkMatches(t, "refused between 404 and off", err, "refused")
}

// An answer that cannot be an artifact condemns its source as a failed check does; for what nothing verifies later, the list decides.
func TestRubbishGoesOnForArtifactsOnly(t *testing.T) {
	bad, m := start(t)
	good, _ := start(t)
	l := parse(t, bad.URL()+","+good.URL(), Config{})
	for name, set := range map[string]func(k artifact.Kind){
		"gzip": func(k artifact.Kind) { bad.Gzip(m, k) },
		"huge": func(k artifact.Kind) {
			bad.Tamper(m, k, func([]byte) []byte { return make([]byte, artifact.MaxInfo+1) })
		},
		"huge, not declared": func(k artifact.Kind) {
			bad.Tamper(m, k, func([]byte) []byte { return make([]byte, artifact.MaxInfo+1) })
			bad.Unsized(m, k)
		},
		"endless": func(k artifact.Kind) { bad.Endless(m, k) },
		"html":    func(k artifact.Kind) { bad.HTML(m, k) },
	} {
		set(artifact.Info)
		good.Reset()
		if b, err := fetch(t, l, m, artifact.Info); err != nil || !bytes.Equal(b, good.Artifact(m, artifact.Info)) {
			t.Errorf("%s: Fetch = %.50q, %v", name, b, err)
		}
		_, err := fetch(t, parse(t, bad.URL(), Config{}), m, artifact.Info)
		checkMatches(t, name, err, "malformed")
		_, err = l.Query(t.Context(), m.Path, m.Version)
		checkMatches(t, name+" as a query", err, "malformed")
		bad.Heal()
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<html>")
	})
	bad.Mount("/example.com", page)
	_, err := l.Versions(t.Context(), m.Path)
	checkMatches(t, "a list in HTML", err, "malformed")
	_, err = l.Latest(t.Context(), m.Path)
	checkMatches(t, "@latest in HTML", err, "malformed")
	if n := good.Count(listPath) + good.Count(latestPath); n != 0 {
		t.Errorf("after HTML and a comma the second was asked %d times", n)
	}
}

func TestAcceptsOwnErrorEndsTheWalk(t *testing.T) {
	a, m := start(t)
	b, _ := start(t)
	l := parse(t, a.URL()+"|"+b.URL(), Config{})
	full := errors.New("disk full")
	err := l.Fetch(t.Context(), m, artifact.Zip, func(io.Reader, int64, string) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("Fetch = %v, want %v", err, full)
	}
	// A missing directory of ours is not a missing module.
	_, missing := os.Open(filepath.Join(t.TempDir(), "x"))
	err = l.Fetch(t.Context(), m, artifact.Zip, func(io.Reader, int64, string) error { return missing })
	checkMatches(t, "accept lacks a file", err, "unavailable")
	if n := b.Count(zipPath); n != 0 {
		t.Errorf("the second was asked %d times", n)
	}
}

func TestOffline(t *testing.T) {
	l := Offline()
	m := module.Version{Path: "example.com/hello", Version: "v1.0.0"}
	_, err := fetch(t, l, m, artifact.Zip)
	checkMatches(t, "Fetch", err, "offline", "unavailable")
	_, err = l.Versions(t.Context(), m.Path)
	checkMatches(t, "Versions", err, "offline", "unavailable")
	if len(l.Entries()) != 0 || l.String() != "offline" {
		t.Errorf("%v has %d entries", l, len(l.Entries()))
	}
	l.Close()
}

// A directory that is not there proves nothing about what is in it.
func TestFileTrees(t *testing.T) {
	u, m := start(t)
	tree := t.TempDir()
	if err := u.WriteTree(tree); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := filepath.Join(tree, "example.com", "!hello", "@v")
	if err := os.Symlink(secret, filepath.Join(v, "v2.0.0.mod")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(v, "v3.0.0.mod"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := parse(t, "file://"+filepath.ToSlash(tree), Config{})
	b, err := fetch(t, l, module.Version{Path: m.Path, Version: "v2.0.0"}, artifact.Mod)
	checkMatches(t, fmt.Sprintf("a link out of the tree (%q)", b), err, "unavailable")
	_, err = fetch(t, l, module.Version{Path: m.Path, Version: "v3.0.0"}, artifact.Mod)
	checkMatches(t, "a directory", err, "malformed")
	if err := os.WriteFile(filepath.Join(tree, "example.com", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = l.Versions(t.Context(), "example.com/file/x")
	checkMatches(t, "a file where a directory should be", err, "notexist")
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	_, err = l.Versions(t.Context(), m.Path)
	checkMatches(t, "no tree", err, "unavailable")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Versions(ctx, m.Path)
	checkMatches(t, "canceled", err, "canceled")
}

func TestSites(t *testing.T) {
	u, _ := start(t)
	u.Mount("/base/sumdb/db.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.EscapedPath()) }))
	l := parse(t, u.URL()+"/base/", Config{})
	e := l.Entries()[0]
	below := e.Below("/sumdb/db.example/")
	direct, err := NewSite(u.URL()+"/base/sumdb/db.example", Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	for _, s := range []*Site{below, direct} {
		if want := u.URL() + "/base/sumdb/db.example"; s.String() != want {
			t.Errorf("String = %s, want %s", s, want)
		}
		const path = "/lookup/github.com/!burnt!sushi/toml@v0.3.1+incompatible"
		if b, err := s.Get(t.Context(), path, 1000); err != nil || string(b) != path {
			t.Errorf("Get = %q, %v, want %q", b, err, path)
		}
		_, err := s.Get(t.Context(), path, 10)
		checkMatches(t, "over the limit", err, "malformed")
		for _, path := range []string{"lookup", "/../x", "//x", "/x/", "/a/./b"} {
			_, err := s.Get(t.Context(), path, 1000)
			checkMatches(t, path, err, "malformed")
		}
	}
	if b, err := e.Get(t.Context(), "/sumdb/db.example/latest", 100); err != nil || string(b) != "/latest" {
		t.Errorf("Entry.Get = %q, %v", b, err)
	}
	_, err = e.Get(t.Context(), "/sumdb/other/latest", 100)
	checkMatches(t, "another database", err, "notexist")
	if _, err := NewSite("https://u:sec/ret@x", Config{}); err == nil || strings.Contains(err.Error(), "sec") {
		t.Errorf("NewSite = %v", err)
	}
}
