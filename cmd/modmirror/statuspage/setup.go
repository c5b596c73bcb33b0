package statuspage

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// setupLines are the commands that make a go command use the mirror at the address where r came in. There is no
// "direct" at the end: what the mirror refuses must not be fetched around it.
func setupLines(r *http.Request) []string {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" { // anybody can send this, and harms only their own page
		scheme = "https"
	}
	return []string{"go env -w GOPROXY=" + scheme + "://" + hostOf(r)}
}

// undo makes a go command do what it did before.
const undo = "go env -u GOPROXY"

// setupText is what a terminal is told.
func setupText(r *http.Request) string {
	var b strings.Builder
	b.WriteString("modmirror: a Go module mirror that verifies. To use it:\n\n")
	for _, line := range setupLines(r) {
		b.WriteString("\t" + line + "\n")
	}
	b.WriteString("\nBack to before: " + undo + "\n")
	return b.String()
}

// hostOf returns the address that the client used, if it cannot be anything else: people paste it into a shell. If it
// can, they have to put the name in themselves, but the port is known.
func hostOf(r *http.Request) string {
	if isHostPort(r.Host) {
		return r.Host
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if _, port, err := net.SplitHostPort(local.String()); err == nil {
			return net.JoinHostPort("localhost", port)
		}
	}
	return "localhost:3000"
}

// isHostPort reports whether s is a host name or an address, with or without a port.
func isHostPort(s string) bool {
	host, port := s, "1"
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || len(s) > 255 {
		return false
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return a.Zone() == "" && a.Is6() == strings.HasPrefix(s, "[")
	}
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-' && i > 0, c == '.' && i > 0:
		default:
			return false
		}
	}
	return host != ""
}

// wantsHTML tells a browser from a terminal.
func wantsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && !strings.HasPrefix(r.UserAgent(), "curl/")
}
