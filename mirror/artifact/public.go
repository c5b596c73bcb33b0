package artifact

import (
	"context"
	"io/fs"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// hidden is what an error of ours or of the standard library may say about the inside of a network or of a machine, and
// what a stranger reads in its place.
var hidden = []struct {
	pattern *regexp.Regexp
	instead string
}{
	// Of known schemes only: one sum in 4096 begins with a slash or two, and h1://… is no URL.
	{regexp.MustCompile(`(?i)(https?|file|ftps?|wss?|ssh|git|svn|hg|bzr|socks[45]?[ah]?|unix|tcp|udp|tls)://[^\s"]*[^\s":;,.]`), "the upstream"},
	{regexp.MustCompile(`\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%[^\]\s]+)?\](:\d+)?` + // IPv6
		`|\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b` + // IPv4
		`|\b(localhost|[a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)+):\d{1,5}\b`), "(address)"},
	{regexp.MustCompile(`\blookup \S+( on \(address\))?:`), "lookup:"}, // of net.DNSError
	// Of fs.PathError and os.LinkError; the path of a request begins with a slash too, and whoever sent it may read it.
	{regexp.MustCompile(`\b([a-z]*(?:open|read|write|stat|sync|link|name|mkdir|remove|close|seek|truncate|lock|chmod)[a-z]*) /[^\s":]+( /[^\s":]+)?`), "$1 (file)"},
	{regexp.MustCompile(`(the upstream: ){2,}`), "the upstream: "},
	// What the status says already.
	{regexp.MustCompile(`(: (` + strings.Join([]string{fs.ErrNotExist.Error(), ErrUnavailable.Error(), ErrMalformed.Error(), ErrPolicy.Error(),
		context.DeadlineExceeded.Error(), "bad request"}, "|") + `))+$`), ""},
}

// PublicText returns what err says, fit for a stranger's terminal: one line of at most limit bytes, printable, without
// URLs, addresses or file names of the inside, and without what the status of an answer says already.
func PublicText(err error, limit int) string {
	s := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\r' {
			return ' '
		}
		if r == utf8.RuneError || !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, Truncate(err.Error(), 4*limit))
	for _, h := range hidden {
		s = h.pattern.ReplaceAllString(s, h.instead)
	}
	return Truncate(s, limit)
}

// Truncate returns at most n bytes of s, whole characters.
func Truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
