package statuspage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"modmirror/mirror/artifact"
)

// Config is what a Page is made of.
type Config struct {
	Source  Source
	Private func(path string) bool // whether a module's name is not to be shown; nil: none is kept
	Version string                 // of the program
	Streams int                    // of events at a time; 0: 64

	// Client says who sent a request, so that one client has a quarter of the streams at most, and half of the searches. nil: no
	// client is held to that.
	Client func(*http.Request) netip.Addr
}

// Page is an [http.Handler] for the paths in the package's documentation. Make one with New.
type Page struct {
	config Config
	html   *template.Template
	assets *assets
	hub    *hub
	now    func() time.Time

	looks *slots // of searches and module pages
	glance
}

// maxLooks is how many searches and module pages are made at a time. Each reads for some milliseconds.
const maxLooks = 4

// New returns a Page. It starts nothing; Close must be called for what requests start.
func New(c Config) (*Page, error) {
	if c.Source == nil {
		return nil, errors.New("statuspage: a Source is needed")
	}
	if c.Private == nil {
		c.Private = func(string) bool { return false }
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	ofClient := func(part int) int {
		if c.Client == nil {
			return math.MaxInt
		}
		return max(part, 1)
	}
	p := &Page{config: c, now: time.Now, looks: newSlots(maxLooks, ofClient(maxLooks/2))}
	p.glance.turn = make(chan struct{}, 1)
	var err error
	if p.assets, err = loadAssets(); err == nil {
		p.html, err = parseTemplates()
	}
	if err != nil {
		return nil, fmt.Errorf("statuspage: %w", err)
	}
	p.hub = newHub(p, newSlots(c.Streams, ofClient(c.Streams/4)))
	return p, nil
}

// Close ends all streams of events, and begins no new one. The other pages are answered as before.
func (p *Page) Close() { p.hub.close() }

// policy allows what comes from this server, in files of their own: nothing that stands in a page can become a script or a style.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// ServeHTTP implements [http.Handler]. The method is GET or HEAD.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	path := r.URL.EscapedPath()
	var err error
	switch {
	case path == "/":
		err = p.serveHome(w, r)
	case path == "/events":
		err = p.serveEvents(w, r)
	case path == "/search":
		err = p.serveSearch(w, r)
	case strings.HasPrefix(path, modulesPrefix):
		err = p.serveModule(w, r, strings.TrimPrefix(path, modulesPrefix))
	case strings.HasPrefix(path, assetsPrefix):
		err = p.serveAsset(w, r, strings.TrimPrefix(path, assetsPrefix))
	default:
		err = notFound("there is no page here")
	}
	if err != nil {
		p.serveError(w, r, err)
	}
}

// frame is what every page has around it.
type frame struct {
	Title, Host, Version string
	Query                string // in the search field
	Assets               *assets
	Now                  time.Time
}

func (p *Page) frame(r *http.Request, title string) frame {
	return frame{Title: title, Host: hostOf(r), Version: p.config.Version, Assets: p.assets, Now: p.now().UTC()}
}

// home is the data of the first page.
type home struct {
	frame
	Setup  []string
	Undo   string
	Live   live
	Recent recent
}

// live is what changes.
type live struct {
	Now time.Time
	Cluster
}

// recent is what happened.
type recent struct {
	Now    time.Time
	Events []Event
}

func (p *Page) serveHome(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Vary", "Accept, User-Agent")
	if !wantsHTML(r) {
		p.sendText(w, r, http.StatusOK, setupText(r))
		return nil
	}
	c, err := p.glance.cluster(r.Context(), p)
	if err != nil {
		return err
	}
	f := p.frame(r, "modmirror at "+hostOf(r))
	return p.send(w, r, http.StatusOK, "home", home{frame: f, Setup: setupLines(r), Undo: undo, Live: live{f.Now, c}, Recent: recent{f.Now, p.events()}})
}

// maxEvents is how many events a page has.
const maxEvents = 30

// events are the newest events that may be shown.
func (p *Page) events() []Event {
	all, _ := p.config.Source.Events()
	return p.shown(all)
}

func (p *Page) shown(all []Event) []Event {
	out := make([]Event, 0, maxEvents)
	for _, e := range all {
		if len(out) < maxEvents && !p.config.Private(e.Module) {
			out = append(out, e)
		}
	}
	return out
}

// glance keeps the last look at the cluster for a moment: it costs as much for a thousand readers as for one.
type glance struct {
	turn chan struct{} // has an element while somebody looks
	last Cluster       // guarded by turn, as the next
	at   time.Time
}

const (
	glanceAge  = time.Second
	glanceWait = 5 * time.Second
)

// cluster returns the cluster as it was a moment ago at most.
func (g *glance) cluster(ctx context.Context, p *Page) (Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, glanceWait)
	defer cancel()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return Cluster{}, &failure{http.StatusServiceUnavailable, "this node takes long to say how it is; try again"}
	}
	closed := p.hub.stop.Err() != nil // then all has just become different
	if now := p.now(); closed || g.at.IsZero() || now.Sub(g.at) >= glanceAge || now.Before(g.at) {
		look, cancel := context.WithTimeout(context.WithoutCancel(ctx), glanceWait) // it is for all who ask, whoever goes away
		defer cancel()
		g.last, g.at = p.config.Source.Cluster(look), now
	}
	return g.last, nil
}

// client is who sent r, as slots count it.
func (p *Page) client(r *http.Request) (a netip.Addr) {
	if p.config.Client != nil {
		a = p.config.Client(r)
	}
	return a
}

// look takes a slot for a search or a module page, for a moment.
func (p *Page) look(r *http.Request) (context.Context, context.CancelFunc, error) {
	from := p.client(r)
	switch p.looks.take(from) {
	case full:
		return nil, nil, &failure{http.StatusServiceUnavailable, "too many searches run at the same time; try again in a moment"}
	case fullOfClient:
		return nil, nil, &failure{http.StatusTooManyRequests, "too many searches from your address run at the same time; try again in a moment"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookTime)
	return ctx, func() { cancel(); p.looks.free(from) }, nil
}

// lookTime bounds a search and a module page.
const lookTime = 3 * time.Second

// failure is an answer that is not the wanted one.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

func notFound(format string, args ...any) error {
	return &failure{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// maxReason bounds a reason, in bytes.
const maxReason = 420

// serveError says what is the matter. A fault is never "not found".
func (p *Page) serveError(w http.ResponseWriter, r *http.Request, err error) {
	f := &failure{http.StatusInternalServerError, ""}
	switch {
	case errors.As(err, &f):
	case errors.Is(err, context.DeadlineExceeded):
		f = &failure{http.StatusServiceUnavailable, "that took too long; try again"}
	default:
		f = &failure{http.StatusInternalServerError, artifact.PublicText(err, maxReason)}
	}
	if f.status == http.StatusTooManyRequests || f.status >= http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	if !wantsHTML(r) {
		p.sendText(w, r, f.status, f.text+"\n")
		return
	}
	data := struct {
		frame
		Status int
		Text   string
	}{p.frame(r, http.StatusText(f.status)), f.status, f.text}
	if err := p.send(w, r, f.status, "error", data); err != nil {
		p.sendText(w, r, http.StatusInternalServerError, "internal error\n")
	}
}

// send answers with a page.
func (p *Page) send(w http.ResponseWriter, r *http.Request, status int, name string, data any) error {
	var b bytes.Buffer
	if err := p.html.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Type", "text/html; charset=utf-8")
	reply(w, r, status, b.Bytes())
	return nil
}

func (p *Page) sendText(w http.ResponseWriter, r *http.Request, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	reply(w, r, status, []byte(s))
}

func reply(w http.ResponseWriter, r *http.Request, status int, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b) // the client sees by the length if it is cut short
	}
}
