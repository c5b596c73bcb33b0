package artifact

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

func TestParseList(t *testing.T) {
	for _, tt := range []struct{ name, path, in, want string }{
		{"nothing", "example.com/m", "", ""},
		{"sorted by semantic version", "example.com/m", "v1.10.0\nv1.9.0\nv1.10.0-rc.1\nv0.1.0\n", "v0.1.0 v1.9.0 v1.10.0-rc.1 v1.10.0"},
		{"each once", "example.com/m", "v1.0.0\nv1.0.0\nv1.0.0 2026-03-01T12:00:00Z\n", "v1.0.0"},
		{"with times", "example.com/m", "v1.0.0 2026-03-01T12:00:00Z\nv1.1.0 x y z\n", "v1.0.0 v1.1.0"},
		{"without a last newline, with carriage returns", "example.com/m", "v1.0.0\r\n\r\nv1.1.0", "v1.0.0 v1.1.0"},
		{"pseudo-versions", "example.com/m", "v0.0.0-20260301120000-abcdefabcdef\nv1.0.0\n", "v1.0.0"},
		{"not canonical", "example.com/m", "v1\nv1.2\nv1.2.3+meta\nV1.2.3\n1.2.3\nv01.2.3\nmaster\nv1.0.0\n", "v1.0.0"},
		{"wrong major", "example.com/m", "v2.0.0\nv2.0.0+incompatible\nv1.0.0\n", "v1.0.0 v2.0.0+incompatible"},
		{"major in the path", "example.com/m/v2", "v1.0.0\nv2.0.0\nv3.0.0\n", "v2.0.0"},
		{"gopkg.in", "gopkg.in/yaml.v2", "v2.0.0\nv3.0.0\n", "v2.0.0"},
		{"toolchains", "golang.org/toolchain", "v0.0.1-go1.25.0.linux-amd64\n", "v0.0.1-go1.25.0.linux-amd64"},
		{"HTML", "example.com/m", "<!DOCTYPE html>\n<html>v1.0.0</html>\n", ""},
		{"not a path", "no dots", "v1.0.0\n", ""},
	} {
		got := ParseList([]byte(tt.in), tt.path)
		if strings.Join(got, " ") != tt.want || got == nil {
			t.Errorf("%s: ParseList = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestFormatList(t *testing.T) {
	if got := FormatList([]string{"v1.0.0", "v1.1.0"}); string(got) != "v1.0.0\nv1.1.0\n" {
		t.Errorf("FormatList = %q", got)
	}
	if got := FormatList(nil); got == nil || len(got) > 0 {
		t.Errorf("FormatList of nothing = %q", got)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("v1.0.0\nv1.1.0 2026-03-01T12:00:00Z\n", "example.com/m")
	f.Add("v2.0.0+incompatible\r\nv0.0.0-20260301120000-abcdefabcdef\n\x00", "example.com/m/v2")
	f.Fuzz(func(t *testing.T, in, path string) {
		list := ParseList([]byte(in), path)
		for _, v := range list {
			if module.Check(path, v) != nil || module.IsPseudoVersion(v) || module.CanonicalVersion(v) != v || !strings.Contains(in, v) {
				t.Errorf("ParseList yields %q", v)
			}
		}
		b := FormatList(list)
		if again := ParseList(b, path); !slices.Equal(again, list) || !bytes.Equal(FormatList(again), b) {
			t.Errorf("ParseList of %q = %q", b, again)
		}
	})
}

func TestNewestPseudoVersion(t *testing.T) {
	const a, b = "v0.0.0-20200101000000-0123456789ab", "v1.2.1-0.20190101000000-0123456789ab"
	for list, want := range map[string]string{
		"":                                       "",
		"v1.0.0\nrubbish\n":                      "",
		a + "\n" + b:                             a,
		b + "\n" + a:                             a,
		a + "\n" + b + " 2021-01-01T00:00:00Z\n": b,
		a + " yesterday\n" + b:                   b,
		"v2.0.0-20210101000000-0123456789ab\n":   "", // not of this path
		"v0.0.0-20219901000000-0123456789ab\n":   "",
	} {
		if got := NewestPseudoVersion([]byte(list), "example.com/m"); got != want {
			t.Errorf("NewestPseudoVersion(%q) = %q, want %q", list, got, want)
		}
	}
}

// FuzzSortVersions: the order is that of package semver, whatever the versions are.
func FuzzSortVersions(f *testing.F) {
	f.Add("v1.2.3 v1.10.0 v1.9.9 v1.0.0-rc.1 v1.0.0 v2.0.0+incompatible v2.0.0 v1.2 v1 v1.2.3-pre v0.0.0-20200101000000-abcdefabcdef")
	f.Add("v1.0.0+b v1.0.0+a v01.0.0 x v1.99999999999999999999.0 v1.99999999999999999998.5 v1.2.3.4 v1.-1.0 v v1..2 v1.2.3-")
	f.Fuzz(func(t *testing.T, s string) {
		got := strings.Fields(s)
		want := slices.Clone(got)
		SortVersions(got)
		if semver.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func BenchmarkSortVersions(b *testing.B) {
	var list []string
	for i := range 10_000 {
		list = append(list, fmt.Sprintf("v1.%d.%d", i*7919%100, i*104729%100))
	}
	for b.Loop() {
		SortVersions(slices.Clone(list))
	}
}
