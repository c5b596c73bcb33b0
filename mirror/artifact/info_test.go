package artifact

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
)

var hello = module.Version{Path: "example.com/hello", Version: "v1.2.0"}

func TestCanonicalInfo(t *testing.T) {
	origin := `{"VCS":"git","URL":"https://example.com/hello","Ref":"refs/tags/v1.2.0","Hash":"abc"}`
	for _, tt := range []struct{ name, in, want string }{
		{"canonical", `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00Z","Origin":` + origin + `}`, `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00Z","Origin":` + origin + `}`},
		{"only a version", `{"Version":"v1.2.0"}`, `{"Version":"v1.2.0"}`},
		{"zero time", `{"Version":"v1.2.0","Time":"0001-01-01T00:00:00Z"}`, `{"Version":"v1.2.0"}`},
		{"null time", `{"Version":"v1.2.0","Time":null}`, `{"Version":"v1.2.0"}`},
		{"other order and white space", " {\n\t\"Time\": \"2026-03-01T12:00:00Z\",\r\n \"Version\": \"v1.2.0\" }\n", `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00Z"}`},
		{"time zone", `{"Version":"v1.2.0","Time":"2026-03-01T01:00:00+02:00"}`, `{"Version":"v1.2.0","Time":"2026-02-28T23:00:00Z"}`},
		{"part of a second", `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00.120Z"}`, `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00.12Z"}`},
		{"names in lower case", `{"version":"v1.2.0","time":"2026-03-01T12:00:00Z"}`, `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00Z"}`},
		{"escaped", `{"Version":"\u00761.2.0"}`, `{"Version":"v1.2.0"}`},
		{"unknown fields", `{"Name":"x","Short":{"a":[1,2]},"Version":"v1.2.0"}`, `{"Version":"v1.2.0"}`},
		{"origin with white space", `{"Version":"v1.2.0","Origin":{ "VCS" : "git" , "Hash" : "a b" }}`, `{"Version":"v1.2.0","Origin":{"VCS":"git","Hash":"a b"}}`},
		{"origin with unknown fields", `{"Version":"v1.2.0","Origin":{"VCS":"git","New":[1, {"a":2}]}}`, `{"Version":"v1.2.0","Origin":{"VCS":"git","New":[1,{"a":2}]}}`},
		{"origin with markup", `{"Version":"v1.2.0","Origin":{"URL":"<&>"}}`, `{"Version":"v1.2.0","Origin":{"URL":"<&>"}}`},
		{"empty origin", `{"Version":"v1.2.0","Origin":{}}`, `{"Version":"v1.2.0","Origin":{}}`},
		{"null origin", `{"Version":"v1.2.0","Origin":null}`, `{"Version":"v1.2.0"}`},
		{"origin is no object", `{"Version":"v1.2.0","Origin":"git"}`, `{"Version":"v1.2.0"}`},
		{"origin that go cannot read", `{"Version":"v1.2.0","Origin":{"vcs":1}}`, `{"Version":"v1.2.0"}`},
		{"origin with a field twice", `{"Version":"v1.2.0","Origin":{"VCS":"git","vcs":"hg"}}`, `{"Version":"v1.2.0"}`},
		{"origin too long", `{"Version":"v1.2.0","Origin":{"URL":"` + strings.Repeat("x", maxOrigin) + `"}}`, `{"Version":"v1.2.0"}`},
		{"origin as long as may be", `{"Version":"v1.2.0","Origin":{"URL":"` + strings.Repeat("x", maxOrigin-10) + `"}}`, `{"Version":"v1.2.0","Origin":{"URL":"` + strings.Repeat("x", maxOrigin-10) + `"}}`},
	} {
		got, err := CanonicalInfo([]byte(tt.in), hello)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: CanonicalInfo = %.200s, %v, want %.200s", tt.name, got, err, tt.want)
			continue
		}
		if again, err := CanonicalInfo(got, hello); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: CanonicalInfo of itself = %.200s, %v, want %.200s", tt.name, again, err, got)
		}
	}
}

func TestCanonicalInfoRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in string }{
		{"nothing", ``},
		{"HTML", `<!DOCTYPE html>`},
		{"null", `null`},
		{"a list", `[{"Version":"v1.2.0"}]`},
		{"a string", `"v1.2.0"`},
		{"cut short", `{"Version":"v1.2.0"`},
		{"two objects", `{"Version":"v1.2.0"}{"Version":"v1.2.0"}`},
		{"bytes behind", `{"Version":"v1.2.0"}x`},
		{"a byte order mark", "\ufeff" + `{"Version":"v1.2.0"}`},
		{"not UTF-8", `{"Version":"v1.2.0","x":"` + "\xff" + `"}`},
		{"no version", `{"Time":"2026-03-01T12:00:00Z"}`},
		{"null version", `{"Version":null}`},
		{"numeric version", `{"Version":1}`},
		{"another version", `{"Version":"v1.2.1"}`},
		{"short version", `{"Version":"v1.2"}`},
		{"version with metadata", `{"Version":"v1.2.0+meta"}`},
		{"version in capitals", `{"Version":"V1.2.0"}`},
		{"version with a blank", `{"Version":"v1.2.0 "}`},
		{"version twice", `{"Version":"v1.2.0","Version":"v1.2.0"}`},
		{"version twice in other case", `{"Version":"v1.2.0","VERSION":"v1.2.1"}`},
		{"time is a number", `{"Version":"v1.2.0","Time":1}`},
		{"time is no time", `{"Version":"v1.2.0","Time":"yesterday"}`},
		{"time without zone", `{"Version":"v1.2.0","Time":"2026-03-01T12:00:00"}`},
		{"time before the years", `{"Version":"v1.2.0","Time":"0000-01-01T00:00:00+01:00"}`},
		{"time after the years", `{"Version":"v1.2.0","Time":"9999-12-31T23:59:59-01:00"}`},
		{"too long", `{"Version":"v1.2.0"}` + strings.Repeat(" ", MaxInfo)},
		{"too deep", `{"Version":"v1.2.0","x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`},
	} {
		got, err := CanonicalInfo([]byte(tt.in), hello)
		if !errors.Is(err, ErrMalformed) || errors.Is(err, fs.ErrNotExist) || got != nil {
			t.Errorf("%s: CanonicalInfo = %q, %v, want ErrMalformed", tt.name, got, err)
		} else if len(err.Error()) > 600 {
			t.Errorf("%s: a message of %d bytes", tt.name, len(err.Error()))
		}
	}
}

func TestParseInfoOfQuery(t *testing.T) {
	got, err := ParseInfo([]byte(`{"Version":"v0.0.0-20260301120000-abcdefabcdef","Time":"2026-03-01T13:00:00+01:00"}`))
	want := RevInfo{Version: "v0.0.0-20260301120000-abcdefabcdef", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	if err != nil || got.Version != want.Version || !got.Time.Equal(want.Time) || got.Origin != nil {
		t.Errorf("ParseInfo = %+v, %v, want %+v", got, err, want)
	}
	for _, v := range []string{"master", "v1", "latest", "", `v1.0.0\",\"Time\":\"`, "v1.0.0-a/b"} {
		if got, err := ParseInfo([]byte(`{"Version":"` + v + `"}`)); !errors.Is(err, ErrMalformed) {
			t.Errorf("ParseInfo of version %q = %+v, %v, want ErrMalformed", v, got, err)
		}
	}
}

// What CanonicalInfo accepts, the go command reads, and reads the same before and after.
func FuzzCanonicalInfo(f *testing.F) {
	f.Add([]byte(`{"Version":"v1.2.0","Time":"2026-03-01T12:00:00.5+02:00","Origin":{"VCS":"git","URL":"x"}}`))
	f.Add([]byte(`{"version":"v1.2.0","Origin":{"vcs":null,"TagSum":"t1:\u2028\ud800","x":{"y":[]}},"Name":"n"}`))
	f.Add([]byte(`{"Version":"v1.2.0","Time":"0000-01-01T00:00:00-23:59"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := CanonicalInfo(b, hello)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("CanonicalInfo: %v, want ErrMalformed", err)
			}
			return
		}
		if again, err := CanonicalInfo(got, hello); err != nil || !bytes.Equal(again, got) {
			t.Errorf("CanonicalInfo of %s = %s, %v", got, again, err)
		}
		before, after := goInfo(t, b), goInfo(t, got)
		if after.Version != hello.Version || before.Version != after.Version || !before.Time.Equal(after.Time) {
			t.Errorf("go reads %+v, and %+v from %s", before, after, got)
		}
		if len(got) > MaxInline {
			t.Errorf("canonical info of %d bytes", len(got))
		}
	})
}

// goInfo reads an info as cmd/go/internal/modfetch does.
func goInfo(t *testing.T, b []byte) (info struct {
	Version string
	Time    time.Time
	Origin  *struct{ VCS, URL, Subdir, Hash, TagPrefix, TagSum, Ref, RepoSum string }
}) {
	if err := json.Unmarshal(b, &info); err != nil && info.Origin == nil {
		t.Errorf("go cannot read %q: %v", b, err)
	}
	return info
}

func TestModSum(t *testing.T) {
	// The line of rsc.io/quote v1.5.2/go.mod in go.sum files.
	mod := "module \"rsc.io/quote\"\n\nrequire \"rsc.io/sampler\" v1.3.0\n"
	if got, want := ModSum([]byte(mod)), "h1:LzX7hefJvL54yjefDEDHNONDjII0t9xZLPXsUe+TKr0="; got != want {
		t.Errorf("ModSum = %s, want %s", got, want)
	}
	if got := ModSum(nil); !validH1(got) || got == ModSum([]byte(mod)) {
		t.Errorf("ModSum of nothing = %s", got)
	}
}
