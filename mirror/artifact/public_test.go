package artifact

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPublicText(t *testing.T) {
	for in, want := range map[string]string{
		"checksum mismatch: upstream h1:4733+a/b=, sumdb h1:12/34+x=": "checksum mismatch: upstream h1:4733+a/b=, sumdb h1:12/34+x=",
		"checksum mismatch: upstream h1://33+a/b=, sumdb h1:////+x=":  "checksum mismatch: upstream h1://33+a/b=, sumdb h1:////+x=",
		"git+ssh://me:pw@p.corp/a and HTTPS://p.corp/b":               "git+the upstream and the upstream",
		"proxyconnect: socks5://u:p@10.0.0.1:1080: refused":           "proxyconnect: the upstream: refused",
		"Get \"http://10.0.0.5:80/x\": dial tcp 10.0.0.5:80: refused": "Get \"the upstream\": dial tcp (address): refused",
		"https://p.corp/a: https://p.corp/a/@v/list: 404 Not Found":   "the upstream: 404 Not Found",
		"dial tcp: lookup proxy.corp on 10.0.0.2:53: no such host":    "dial tcp: lookup: no such host",
		"dial tcp: lookup proxy.corp: no such host":                   "dial tcp: lookup: no such host",
		"module lookup disabled by GOPROXY=off":                       "module lookup disabled by GOPROXY=off",
		"dial tcp [::1]:443: refused":                                 "dial tcp (address): refused",
		"write /var/lib/x/y: no space":                                "write (file): no space",
		"rename /data/tmp/a /data/blobs/b: no space":                  "rename (file): no space",
		`path "/a/../b" is not clean`:                                 `path "/a/../b" is not clean`,
		"lookup response has the record id":                           "lookup response has the record id",
		"m@v1.0.0: not held: file does not exist":                     "m@v1.0.0: not held",
		"m@v1.0.0: quorum lost: unavailable: file does not exist":     "m@v1.0.0: quorum lost",
		`path "/a/../b" is not clean: bad request`:                    `path "/a/../b" is not clean`,
		"m is private here: refused by policy":                        "m is private here",
		"no answer for 30s: context deadline exceeded: unavailable":   "no answer for 30s",
		"example.com/m/v2@v2.0.0 zip: a\x1b[31m\nb":                   "example.com/m/v2@v2.0.0 zip: a[31m b",
		"proxy.corp:8080 refused":                                     "(address) refused",
	} {
		if got := PublicText(errors.New(in), 420); got != want {
			t.Errorf("PublicText(%q) = %q, want %q", in, got, want)
		}
	}
	if got := PublicText(errors.New(strings.Repeat("ä", 10000)), 420); len(got) > 420 {
		t.Errorf("PublicText returns %d bytes", len(got))
	}
}

// Whatever stands around them, URLs with what is secret in them, addresses and control characters do not get out.
func FuzzPublicText(f *testing.F) {
	for _, s := range []string{"", ": ", "Get \"", "\n", "\x1b[31m", "x", "é", "://", "[", "h1:", "@", "1.", "\u202e", "%"} {
		f.Add(s, " ", "secret")
		f.Add("dial tcp ", s, "s3")
	}
	urls := regexp.MustCompile(`(?i)(https?|file|ssh|socks5)://\S`)
	address := regexp.MustCompile(`\b10\.11\.12\.13\b|fd00::1:2`)
	f.Fuzz(func(t *testing.T, before, after, secret string) {
		secret = "pw" + strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, secret) + "pw"
		text := before + " https://user:" + secret + "@p.example/x " + after + " 10.11.12.13:80 and [fd00::1:2]:443 " + before + "\x1b" + after
		got := PublicText(errors.New(text), 400)
		if strings.Contains(got, secret) && !strings.Contains(before+after, secret) || urls.MatchString(got) {
			t.Errorf("PublicText(%q) = %q shows a URL", text, got)
		}
		if address.MatchString(got) && !address.MatchString(before+after) {
			t.Errorf("PublicText(%q) = %q shows an address", text, got)
		}
		if len(got) > 400 || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("PublicText(%q) = %q is not fit for a terminal", text, got)
		}
	})
}
