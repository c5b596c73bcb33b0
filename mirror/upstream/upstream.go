// Package upstream asks what the mirror fetches from: the proxies of a GOPROXY list (go.dev/ref/mod#goproxy-protocol),
// over http, https or as files. It fetches and judges sources; whether bytes are right is for its caller to say.
//
// A list is written as for the go command and walked as by it, request for request (go.dev/ref/mod#environment-variables):
//
//	https://a.example,https://b.example|file:///srv/modules,off
//
// After "," the next entry is asked if the last one said 404 or 410, after "|" if it failed in any way. "off" and
// "direct" end the list; "direct" is accepted so that everybody's GOPROXY can be used, but nothing is fetched from
// version control. Of several errors the most telling is returned: one that is not "not found" before one that is.
// In one thing a mirror must be stricter than the go command: bytes that its caller refuses, because they are not what
// the checksum database promised, condemn the source, whatever separator follows it. The next entry is asked, and
// if no entry has the right bytes, the refusal is the result and never hides behind another entry's 404.
//
// What it promises:
//   - Nothing of the mirror's clients goes out: a request is built from the module, the version and [Config.UserAgent].
//   - A user name or password in an entry's URL goes as basic authentication to exactly that scheme, host and port, over
//     https or to a loopback address only, and stands in no error, log line or String.
//   - At most 5 redirects are followed, none to http but on the host and port of an entry that is http itself, none from a
//     public address to one of an inner network, and none to link-local addresses, where clouds keep their secrets. The
//     check is made on the address that is dialed.
//   - Every wait ends: for a free slot of the host, for the header of the answer, for the next byte, for all by ctx. A
//     body that comes with less than 1 KiB a second, over a minute, is given up like one that stalls.
//     Every body has a limit, and one that is shorter or longer than declared is an error.
//   - Errors say what they mean: see [Error].
//
// The package holds no state that a crash could damage.
package upstream

import (
	"cmp"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config says how upstreams are asked. The zero value works.
type Config struct {
	UserAgent string                // what upstreams see; should name a contact. Default: "modmirror"
	Log       *slog.Logger          // nil discards
	Metrics   prometheus.Registerer // nil: no metrics

	// IdleTimeout is how long a body may stay without a byte. Default: 30 s.
	IdleTimeout time.Duration

	// HeaderTimeout is how long to wait for an answer to begin if there is another entry to ask then, or if the context
	// has no deadline. If the context leaves less time, each entry gets an equal part of it, so that the last is asked, too. Otherwise the context alone decides: an upstream that fetches a new version first, and a checksum
	// database that has to learn of it, may take minutes (go.dev/issue/70042). Default: 30 s.
	HeaderTimeout time.Duration

	// MaxPerHost is how many requests to one host may be under way. Zips get at most half of them, so that large
	// downloads never hold up small answers. A request waits for its turn as for an answer, a zip for as long as ctx leaves
	// to its entry. Default: 64.
	MaxPerHost int

	// Transport replaces the network, for tests. It must heed contexts. Redirects are then checked by the name of the
	// host only, not by its address.
	Transport http.RoundTripper

	// Self are the addresses at which this mirror listens, as "host:port". An upstream there would ask itself for ever.
	Self []string
}

const (
	maxList      = 8 << 20  // bytes of a /@v/list; the longest known have about 100 KiB
	maxHeader    = 64 << 10 // bytes of the header of an answer
	maxRedirects = 5

	// A body that has less than minRate bytes a second, over rateTime of waiting for it, counts as stalled.
	minRate  = 1 << 10
	rateTime = time.Minute
)

func (c Config) withDefaults() Config {
	c.UserAgent = cmp.Or(c.UserAgent, "modmirror")
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 30*time.Second)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, 30*time.Second)
	c.MaxPerHost = cmp.Or(c.MaxPerHost, 64)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
