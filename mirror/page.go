package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // for the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// page is what people see: how to use the mirror at the very address where they see it. It needs no script, and its
// policy allows nothing but its own style.
type page struct {
	html   *template.Template
	policy []string
}

var typeHTML = []string{"text/html; charset=utf-8"}

func newPage() (*page, error) {
	t, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(pageCSS))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return &page{html: t, policy: []string{policy}}, nil
}

// servePage answers what is for people and for the machines that run the mirror.
func (m *Mirror) servePage(w *response, r *http.Request, path, id string) error {
	switch path {
	case "/healthz":
		sendPlain(w, r, "ok\n")
	case "/readyz":
		if err := m.ready(r.Context(), r.URL.Query().Has("writes")); err != nil {
			return err
		}
		sendPlain(w, r, "ready\n")
	case "/metrics":
		if m.config.MetricsHandler == nil {
			return notExist("no metrics are kept")
		}
		m.config.MetricsHandler.ServeHTTP(w, r)
	case "/status":
		if m.config.Status == nil {
			return notExist("no status is kept")
		}
		b, err := json.MarshalIndent(m.config.Status(r.Context()), "", "\t")
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		send(w, r, typeJSON, append(b, '\n'))
	default:
		return m.serveHome(w, r)
	}
	return nil
}

const provePrefix = "/prove/"

// serveProof answers /prove/<escaped module>@<escaped version> with what proves a version that is held, as JSON.
func (m *Mirror) serveProof(w *response, r *http.Request, escaped string) error {
	if m.config.Prove == nil {
		return notExist("no proofs are served here")
	}
	w.hidden = m.config.Private != "" // until it is known what it is about
	p, err := decodePath("/" + escaped)
	if err != nil {
		return err
	}
	path, version, _ := strings.Cut(p, "@")
	mv := module.Version{}
	if mv.Path, err = parseModulePath(path); err != nil {
		return err
	}
	if mv.Version, err = module.UnescapeVersion(version); err != nil || !canonical(mv) {
		return badRequest("%q is not a version of %s", version, mv.Path)
	}
	if module.MatchPrefixPatterns(m.config.Private, mv.Path) {
		return fmt.Errorf("%s is private and not served here: %w", mv.Path, errPrivate)
	}
	w.hidden = false
	proof, err := m.config.Prove(r.Context(), mv)
	if err != nil {
		return fmt.Errorf("prove %s: %w", mv, err)
	}
	b, err := json.MarshalIndent(proof, "", "\t")
	if err != nil {
		return fmt.Errorf("prove %s: %w", mv, err)
	}
	send(w, r, typeJSON, append(b, '\n'))
	return nil
}

// ready returns why this node should get no requests now.
func (m *Mirror) ready(ctx context.Context, writes bool) error {
	if m.draining.Load() {
		return fmt.Errorf("draining: this node is about to stop: %w", artifact.ErrUnavailable)
	}
	if m.config.Ready == nil {
		return nil
	}
	if err := m.config.Ready(ctx, writes); err != nil {
		return fmt.Errorf("not ready: %w: %w", err, artifact.ErrUnavailable)
	}
	return nil
}

func (m *Mirror) serveHome(w *response, r *http.Request) error {
	host := hostOf(r)
	setup := setupLines(r)
	if !wantsHTML(r) {
		var b strings.Builder
		b.WriteString("modmirror: a Go module mirror that verifies. To use it:\n\n")
		for _, line := range setup {
			b.WriteString("\t" + line + "\n")
		}
		b.WriteString("\nBack to before: go env -u GOPROXY\n")
		w.Header()["Vary"] = []string{"Accept, User-Agent"}
		sendPlain(w, r, b.String())
		return nil
	}
	data := struct {
		Host                     string
		Style                    template.CSS
		Setup                    []string
		Ready, Version           string
		Status, Metrics, Offline bool
	}{Host: host, Style: template.CSS(pageCSS), Setup: setup, Version: m.config.Version,
		Status: m.config.Status != nil, Metrics: m.config.MetricsHandler != nil, Offline: m.config.Upstream == nil}
	if err := m.ready(r.Context(), false); err != nil {
		data.Ready = artifact.PublicText(err, maxReason)
	}
	var b bytes.Buffer
	if err := m.page.html.Execute(&b, data); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	h := w.Header()
	h["Content-Security-Policy"] = m.page.policy
	h["Referrer-Policy"] = []string{"no-referrer"}
	h["Vary"] = []string{"Accept, User-Agent"}
	send(w, r, typeHTML, b.Bytes())
	return nil
}

// setupLines are the commands that make a go command use the mirror at the address where r came in. There is no
// "direct" at the end: what the mirror refuses must not be fetched around it.
func setupLines(r *http.Request) []string {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" { // anybody can send this, and harms only their own page
		scheme = "https"
	}
	return []string{"go env -w GOPROXY=" + scheme + "://" + hostOf(r)}
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

func wantsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && !strings.HasPrefix(r.UserAgent(), "curl/")
}

func sendPlain(w *response, r *http.Request, s string) { send(w, r, typeText, []byte(s)) }

// send answers with something that is true only now.
func send(w *response, r *http.Request, contentType []string, b []byte) {
	h := w.Header()
	h["Content-Type"] = contentType
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b)
	}
}
