package mirror

import (
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/upstream"
)

// PROTOCOL 3: @latest is upstream's word, or the last one, or the newest that was published.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{}, newMemIndex())
		b.set("", `{"Version": "v0.0.0-20200101000000-0123456789ab", "Time":"2020-01-01T00:00:00Z","X":1}`, nil, 0)
		b.want(latestOf, 200, `{"Version":"v0.0.0-20200101000000-0123456789ab","Time":"2020-01-01T00:00:00Z"}`)
		for body, status := range map[string]int{`{"Version":"v2.0.0"}`: 502, `{"Version":"main"}`: 502, `<html>`: 502, `{}`: 502} {
			b.set("", body, nil, 0)
			b.want("/example.com/other/@latest", status, "")
		}
		b.set("", "", fmt.Errorf("x: %w", fs.ErrNotExist), 0)
		b.want("/example.com/none/@latest", 404, "")
		for _, v := range []string{"v1.2.0-0.20200101000000-0123456789ab", "v1.2.0-pre", "v1.1.0", "v1.0.0"} {
			b.index.commit(t, "example.com/pub", v)
		}
		b.want("/example.com/pub/@latest", 200, `{"Version":"v1.1.0"}`)
	})
}

// PROTOCOL 3: an upstream without @latest has the newest pseudo-version of its list for it, as for the go command.
func TestLatestOfTagless(t *testing.T) {
	const (
		old    = "v0.0.0-20180101000000-0123456789ab"
		recent = "v0.0.0-20200101000000-0123456789ab"
		last   = "v0.0.0-20220101000000-0123456789ab"
	)
	info := func(v string) string { return `{"Version":"` + v + `","Time":"2020-01-01T00:00:00Z"}` }
	for name, c := range map[string]struct {
		list      string
		published string
		want      string
	}{
		"nothing published":      {old + "\n" + recent + "\n", "", info(recent)},
		"an older one":           {recent + "\n", old, info(recent)},
		"a newer one":            {recent + "\n", last, info(last)},
		"a time in the list":     {old + " 2021-01-01T00:00:00Z\n" + recent + "\n", "", info(old)},
		"of an older base":       {"v1.0.1-0.20180101000000-0123456789ab\n" + recent + "\n", "", info(recent)},
		"an older one of a base": {recent + "\n", "v1.0.1-0.20180101000000-0123456789ab", info(recent)},
		"a tag":                  {"v1.0.0\n" + recent + "\n", last, info("v1.0.0")},
		"a published tag":        {recent + "\n", "v0.1.0", info("v0.1.0")},
		"unknown, but published": {"", old, info(old)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &lister{none: true, infos: map[string]string{}}, newMemIndex())
				for _, v := range []string{old, recent, last, "v0.1.0", "v1.0.0"} {
					b.up.infos[v] = info(v)
				}
				b.set(c.list, "", nil, 0)
				if c.published != "" {
					b.index.commit(t, "example.com/m", c.published)
				}
				b.want(latestOf, 200, c.want)
				if c.published == "" {
					b.index.commit(t, "example.com/m", last)
					b.published(t.Context(), module.Version{Path: "example.com/m", Version: last})
					b.want(latestOf, 200, info(last))
				} else {
					b.want("/cached-only"+latestOf, 200, c.want)
				}
				w := httptest.NewRecorder()
				b.ServeHTTP(w, httptest.NewRequest("GET", listOf, nil))
				if strings.Contains(w.Body.String(), "-0") {
					t.Errorf("listed: %q", w.Body)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &lister{none: true, infos: map[string]string{recent: info(old)}}, newMemIndex())
		b.want(latestOf, 404, "no @latest")
		time.Sleep(time.Minute)
		b.set(recent, "", nil, 0)
		b.want(latestOf, 502, "") // the info of another version
		b.up.infos = map[string]string{}
		b.want(latestOf, 404, "no @latest")
		b.index.commit(t, "example.com/m", old)
		b.published(t.Context(), module.Version{Path: "example.com/m", Version: old})
		b.want(latestOf, 200, `{"Version":"`+old+`"}`)
		time.Sleep(time.Hour)
		b.set("<html>", "", nil, 0)
		b.want("/example.com/other/@latest", 502, "not a list")
	})
}

// A directory has no @latest; a module without tags in it is found all the same, as gopkg.in/check.v1 would be.
func TestLatestOfDirectory(t *testing.T) {
	const version = "v1.0.0-20201130134442-10cb98267c6c"
	dir := t.TempDir()
	at := filepath.Join(dir, "gopkg.in", "check.v1", "@v")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"list": version + "\n", version + ".info": `{"Version":"` + version + `","Time":"2020-11-30T13:44:42Z"}`} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := upstream.Parse("file://"+filepath.ToSlash(dir), upstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, nil, newMemIndex(), func(c *Config) { c.Upstream = l })
	want := `{"Version":"` + version + `","Time":"2020-11-30T13:44:42Z"}`
	b.want("/gopkg.in/check.v1/@v/list", 200, "")
	b.want("/gopkg.in/check.v1/@latest", 200, want)
	b = newBench(t, nil, b.index) // offline, after a restart
	b.want("/gopkg.in/check.v1/@v/list", 200, "")
	b.want("/gopkg.in/check.v1/@latest", 200, want)
}
