package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// pagesPrefixes are the beginnings of the paths that Config.Pages answers, besides "/", "/search" and "/events". No module path
// begins like that: the first element of one has a dot.
var pagesPrefixes = [...]string{"/modules/", "/assets/"}

// eventsPath is that of a stream, which goes on for as long as somebody looks.
const eventsPath = "/events"

// isPage reports whether Config.Pages answers path.
func isPage(path string) bool {
	switch path {
	case "/", "/search", eventsPath:
		return true
	}
	for _, prefix := range pagesPrefixes {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

// servePages has what is for people answered.
func (m *Mirror) servePages(w *response, r *http.Request, path string) error {
	w.class = classPage
	w.hidden = m.config.Private != "" && strings.HasPrefix(path, "/modules/")
	if m.config.Pages == nil {
		return notExist("there are no pages for people here")
	}
	if path == eventsPath {
		w.class = classEvents
		m.serving.Add(-1) // the scrub gives way to requests, and not to somebody who looks
		defer m.serving.Add(1)
	}
	m.config.Pages.ServeHTTP(w, r)
	w.outcome = outcomeFor(w.status)
	return nil
}

// outcomeFor returns what the metrics call an answer that another handler gave.
func outcomeFor(status int) outcome {
	switch {
	case status >= http.StatusInternalServerError:
		return outcomeError
	case status == http.StatusNotFound:
		return outcomeMiss
	case status >= http.StatusBadRequest:
		return outcomeRefused
	}
	return outcomeHit
}

// servePage answers what is for the machines that run the mirror.
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
