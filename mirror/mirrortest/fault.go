package mirrortest

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// faults is how an upstream misbehaves now. All of it is guarded by the Upstream's mu.
type faults struct {
	down      bool
	statuses  []status
	redirects []redirect
	artifacts map[target]fault
	release   chan struct{} // closed by Release; nil while nothing can be stalled
}

type status struct {
	prefix string
	code   int
	body   string
	header [][2]string
}

type redirect struct{ prefix, base string }

type target struct {
	m module.Version
	k artifact.Kind
}

// fault is what happens to one artifact. The zero fault is none.
type fault struct {
	tamper  func([]byte) []byte
	stall   bool
	stallAt int           // bytes sent before the stall; negative: not even the header
	chunk   int           // drip: so many bytes …
	every   time.Duration // … so often
	cut     bool
	cutAt   int // truncate: bytes sent before the connection is closed
	lengthy bool
	length  int // wrong length: how much the declared length differs
	unsized bool
	endless bool
	gzip    bool
	html    bool
}

// Down makes the upstream close every connection without an answer, or lets it answer again.
func (u *Upstream) Down(down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults.down = down
}

// Status makes every request whose path begins with prefix get this status and plain text, with optional header
// fields as name, value pairs. Code 0 ends it. A later call for the same prefix replaces the earlier one; of several prefixes the longest counts.
func (u *Upstream) Status(prefix string, code int, body string, header ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults.statuses = slices.DeleteFunc(u.faults.statuses, func(s status) bool { return s.prefix == prefix })
	if code != 0 {
		s := status{prefix: prefix, code: code, body: body}
		for i := 0; i+1 < len(header); i += 2 {
			s.header = append(s.header, [2]string{header[i], header[i+1]})
		}
		u.faults.statuses = append(u.faults.statuses, s)
	}
	slices.SortStableFunc(u.faults.statuses, func(a, b status) int { return len(b.prefix) - len(a.prefix) })
}

// Redirect sends every request whose path begins with prefix to base followed by the same path. An empty base ends it.
func (u *Upstream) Redirect(prefix, base string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults.redirects = slices.DeleteFunc(u.faults.redirects, func(r redirect) bool { return r.prefix == prefix })
	if base != "" {
		u.faults.redirects = append(u.faults.redirects, redirect{prefix, strings.TrimSuffix(base, "/")})
	}
}

// Tamper passes the bytes of an artifact through f, which may change its argument, before they are served.
func (u *Upstream) Tamper(m module.Version, k artifact.Kind, f func([]byte) []byte) {
	u.fault(m, k, func(x *fault) { x.tamper = f })
}

// Stall makes the answer stop after so many bytes of the body, until [Upstream.Release] or the client goes away.
// With a negative number not even the header is sent.
func (u *Upstream) Stall(m module.Version, k artifact.Kind, after int) {
	u.fault(m, k, func(x *fault) { x.stall, x.stallAt = true, after })
}

// Release lets go all that is stalled. It ends every Stall, Drip and Endless.
func (u *Upstream) Release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.faults.release != nil {
		close(u.faults.release)
		u.faults.release = nil
	}
	for t, f := range u.faults.artifacts {
		f.stall, f.chunk, f.endless = false, 0, false
		u.faults.artifacts[t] = f
	}
}

// Drip sends the artifact in pieces of so many bytes with a pause between them.
func (u *Upstream) Drip(m module.Version, k artifact.Kind, bytes int, pause time.Duration) {
	u.fault(m, k, func(x *fault) { x.chunk, x.every = bytes, pause })
}

// Truncate declares the whole length and closes the connection after so many bytes.
func (u *Upstream) Truncate(m module.Version, k artifact.Kind, after int) {
	u.fault(m, k, func(x *fault) { x.cut, x.cutAt = true, after })
}

// WrongLength declares a length that differs by delta from what there is to send. A client that believes a length that
// is too small reads a body that is cut short and looks whole; one that is too large ends in an unexpected EOF.
func (u *Upstream) WrongLength(m module.Version, k artifact.Kind, delta int) {
	u.fault(m, k, func(x *fault) { x.lengthy, x.length = true, delta })
}

// Unsized sends the artifact without declaring its length.
func (u *Upstream) Unsized(m module.Version, k artifact.Kind) {
	u.fault(m, k, func(x *fault) { x.unsized = true })
}

// Endless sends zeros after the artifact, for ever, without declaring a length.
func (u *Upstream) Endless(m module.Version, k artifact.Kind) {
	u.fault(m, k, func(x *fault) { x.endless, x.unsized = true, true })
}

// Gzip sends the artifact compressed, with the Content-Encoding that says so, whether or not the client accepts that.
func (u *Upstream) Gzip(m module.Version, k artifact.Kind) {
	u.fault(m, k, func(x *fault) { x.gzip = true })
}

// HTML sends a page of HTML with status 200 in place of the artifact, as captive portals and login pages do.
func (u *Upstream) HTML(m module.Version, k artifact.Kind) {
	u.fault(m, k, func(x *fault) { x.html = true })
}

// Heal ends all faults, also what is stalled at the moment.
func (u *Upstream) Heal() {
	u.Release()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = faults{}
}

func (u *Upstream) fault(m module.Version, k artifact.Kind, set func(*fault)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.faults.artifacts == nil {
		u.faults.artifacts = make(map[target]fault)
	}
	if u.faults.release == nil {
		u.faults.release = make(chan struct{})
	}
	f := u.faults.artifacts[target{m, k}]
	set(&f)
	u.faults.artifacts[target{m, k}] = f
}
