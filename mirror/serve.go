package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// errGone is for a client that left before its answer was ready.
var errGone = errors.New("the client is gone")

// ServeHTTP implements [http.Handler].
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := m.ids.of(r)
	w.Header()["X-Request-Id"] = []string{id}
	sendWithin(w, m.config.ClientWait+sendTime(0)) // whatever the answer is; what is large gets its own time
	if r.ContentLength != 0 {
		refuseBody(w)
	}
	out := &response{ResponseWriter: w}
	m.metrics.inFlight.Inc()
	m.serving.Add(1)
	defer func() {
		m.metrics.inFlight.Dec()
		m.serving.Add(-1)
		took := time.Since(start)
		m.metrics.observe(out.class, out.outcome, out.status, out.sent, took)
		m.access(r, out, id, took)
	}()
	if err := m.route(out, r, id); err != nil {
		if r.Context().Err() != nil {
			err = fmt.Errorf("%w: %w", errGone, err)
		}
		out.err, out.outcome = err, outcomeOf(err)
		if out.outcome != outcomeGone {
			writeError(out, r, id, err)
		}
	}
}

// bodyWait is how long a body that a client announced may take to come, before the connection is cut.
const bodyWait = time.Second

// refuseBody sees to it that a body is not waited for. The server reads what is left of one when the answer is sent, and
// one that never comes would keep its connection for ever.
func refuseBody(w http.ResponseWriter) {
	w.Header()["Connection"] = []string{"close"}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyWait)) // not every writer has deadlines
}

// StopServing ends all answers but the pages, for ever: what this node holds, and what it remembers of it, is not to be relied
// on. Whoever asks is told err. Only the first reason counts.
func (m *Mirror) StopServing(err error) { m.stopped.CompareAndSwap(nil, &err) }

// route answers r, or returns an error before anything is sent.
func (m *Mirror) route(w *response, r *http.Request, id string) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fmt.Errorf("%s: %w, use GET or HEAD", artifact.Truncate(r.Method, 20), errMethod)
	}
	if r.ContentLength != 0 {
		return badRequest("this server takes no request bodies")
	}
	path := r.URL.EscapedPath()
	stopped := m.stopped.Load()
	if a, ok := m.hot.get(path); ok && stopped == nil {
		w.class = a.class
		return sendAnswer(w, r, &a.answer)
	}
	switch path {
	case "/status", "/healthz", "/readyz", "/metrics":
		w.class = classPage
		return m.servePage(w, r, path, id)
	}
	if isPage(path) {
		return m.servePages(w, r, path)
	}
	if stopped != nil {
		return *stopped
	}
	if rest, ok := strings.CutPrefix(path, provePrefix); ok {
		w.class = classPage
		return m.serveProof(w, r, rest)
	}
	if path == indexPath {
		w.class = classIndex
		return m.serveIndex(w, r)
	}
	p := strings.TrimPrefix(path, cachedOnly)
	if strings.HasPrefix(p, "/sumdb/") {
		w.class = classSumDB
		return m.serveSumDB(w, r, len(p) < len(path))
	}
	req, err := ParseRequest(path)
	if err != nil {
		return err
	}
	if v := r.Header["Disable-Module-Fetch"]; len(v) > 0 {
		if b, err := strconv.ParseBool(v[0]); err == nil && b {
			req.CachedOnly = true
		}
	}
	w.class = classOf(req)
	if m.config.Private != "" && module.MatchPrefixPatterns(m.config.Private, req.Module.Path) {
		w.hidden = true
		return fmt.Errorf("%s is private and not served here: %w", req.Module.Path, errPrivate)
	}
	return m.serveModule(w, r, req, path, id)
}

func classOf(req Request) class {
	switch req.Op {
	case OpList:
		return classList
	case OpLatest:
		return classLatest
	case OpQuery:
		return classQuery
	}
	switch req.Kind {
	case artifact.Info:
		return classInfo
	case artifact.Mod:
		return classMod
	}
	return classZip
}

// serveModule answers a request of the GOPROXY protocol.
func (m *Mirror) serveModule(w *response, r *http.Request, req Request, path, id string) error {
	ctx := r.Context()
	var a *answer
	var err error
	switch req.Op {
	case OpList:
		a, w.outcome, err = m.list.get(ctx, req.Module.Path, req.CachedOnly)
	case OpLatest:
		a, w.outcome, err = m.latest.get(ctx, req.Module.Path, req.CachedOnly)
	case OpQuery:
		a, w.outcome, err = m.query(ctx, req.Module, req.CachedOnly)
	default:
		return m.serveArtifact(w, r, req, path, id)
	}
	if err != nil {
		return err
	}
	return sendAnswer(w, r, a)
}

// hotAnswer is an artifact of at most maxHot bytes that is ready to be sent.
type hotAnswer struct {
	answer
	class class
}

// serveArtifact answers with an info, a go.mod or a zip.
func (m *Mirror) serveArtifact(w *response, r *http.Request, req Request, path, id string) error {
	got, err := m.readable(r.Context(), req, id)
	if err != nil {
		return err
	}
	w.outcome = got.outcome
	if got.pending {
		return m.sendUncommitted(w, r, req.Kind, got)
	}
	etag := `"sha256:` + got.ref.Digest.String() + `"`
	contentType := typeOf(req.Kind)
	if got.file == nil {
		a := newAnswer(got.small, contentType, immutable, etag)
		// Only under the two spellings that clients use, or one object could fill the memory.
		if p := req.Path(); path == p || path == strings.ReplaceAll(p, "!", "%21") {
			m.hot.put(path, &hotAnswer{*a, w.class}, a.cost(), 0)
		}
		return sendAnswer(w, r, a)
	}
	defer got.file.Close()
	h := w.Header()
	h["Content-Type"] = contentType
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = immutable
	h["Etag"] = []string{etag}
	sendWithin(w, sendTime(got.ref.Size))
	err = w.serveContent(r, got.file)
	if err == nil && w.short(r) && r.Context().Err() == nil { // the client is there, so it may be the disk
		m.config.Store.Doubt(got.ref.Digest)
		m.reportRead(got.ref.Digest)
	}
	return err
}

// readable is artifact, with the bytes in memory if they are to be kept there. What the disk does not give back is found damaged,
// and brought back, by the second try.
func (m *Mirror) readable(ctx context.Context, req Request, id string) (found, error) {
	for again := false; ; again = true {
		got, err := m.artifact(ctx, req, id)
		m.reached("open")
		if err != nil || got.file == nil || got.ref.Size > maxHot {
			return got, err
		}
		got.small, err = readFile(got.file, got.ref.Size)
		got.file = nil
		if err == nil {
			return got, nil
		}
		if again {
			return found{}, fmt.Errorf("%s %s: %w", req.Module, req.Kind, err)
		}
		m.config.Store.Doubt(got.ref.Digest)
	}
}

// maxHot bounds an artifact that is kept in memory, ready to be sent. Half of all zips are smaller: to open, seek and close a
// file, four directories down, costs three times what the answer itself does.
const maxHot = 64 << 10

// readFile reads and closes f, which has size bytes.
func readFile(f *os.File, size int64) ([]byte, error) {
	defer f.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read what is stored: %v: %w", err, artifact.ErrDamaged)
	}
	return b, nil
}

// sendTime returns how long a client may take to read an answer.
func sendTime(size int64) time.Duration {
	const slowest = 32 << 10 // bytes a second
	return time.Minute + time.Duration(size/slowest)*time.Second
}

// sendWithin ends the answer after d: a client that does not read must not keep a connection, and what is sent over it,
// for ever. It costs 0.15 µs; the server forgets the deadline before the next request. Not every writer has deadlines.
func sendWithin(w http.ResponseWriter, d time.Duration) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d))
}

// found is an artifact ready to be sent: in memory, or in a file that the receiver closes.
type found struct {
	ref     artifact.Ref
	small   []byte
	file    *os.File
	outcome outcome
	pending bool // verified, and not committed yet
}

// artifact finds an artifact, and has it fetched if need be.
func (m *Mirror) artifact(ctx context.Context, req Request, id string) (found, error) {
	mv, k := req.Module, req.Kind
	if k == artifact.Mod {
		m.ahead.wanted(mv)
	}
	man, err := m.manifest(ctx, mv)
	if err != nil {
		return found{}, err
	}
	small, file, err := m.held(ctx, man, k)
	if err == nil {
		return found{ref: man.Ref(k), small: small, file: file, outcome: outcomeHit}, nil
	}
	if !isAbsent(err) && !errors.Is(err, artifact.ErrDamaged) {
		return found{}, err
	}
	if m.config.Upstream == nil {
		if isAbsent(err) {
			err = fmt.Errorf("%s %s: %w", mv, k, errOffline)
		}
		return found{}, err
	}
	if req.CachedOnly {
		return found{}, err
	}
	key := flightKey(k, mv)
	if it := m.pending.get(key); it != nil {
		return m.uncommitted(it)
	}
	if lost := err; errors.Is(lost, artifact.ErrDamaged) {
		return m.regain(ctx, mv, k, key, id, lost)
	}
	if err := m.knownAbsent(key); err != nil {
		return found{}, fmt.Errorf("%s %s: %w", mv, k, err)
	}
	return m.bringFor(ctx, mv, k, key, id)
}

// regain has bytes fetched that are published and lost here. Whatever the upstream says of them now, they exist, and are right
// somewhere: its no, or other bytes of the same sum, is no answer for the client.
func (m *Mirror) regain(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, lost error) (found, error) {
	out, err := m.bringFor(ctx, mv, k, key, id)
	if isAbsent(err) || isRefusal(err) {
		err = fmt.Errorf("%w; the upstream: %v", lost, err)
	}
	return out, err
}

// bringFor has an artifact brought in for a client.
func (m *Mirror) bringFor(ctx context.Context, mv module.Version, k artifact.Kind, key, id string) (found, error) {
	man, small, joined, err := m.fetch(ctx, mv, k, key, id)
	if err != nil {
		return m.passedThrough(err)
	}
	out := found{ref: man.Ref(k), small: small, outcome: outcomeFetched}
	if joined {
		out.outcome = outcomeJoined
	}
	if small == nil {
		if out.small, out.file, err = m.held(ctx, man, k); err != nil {
			return found{}, notAbsent(err)
		}
	}
	return out, nil
}

// flightKey joins fetches of the same artifact.
func flightKey(k artifact.Kind, mv module.Version) string { return k.String() + " " + mv.String() }

// bringing is an artifact that has come in: the manifest that has it, and its bytes if they are small and at hand.
type bringing struct {
	man   artifact.Manifest
	small []byte
}

// fetch brings an artifact in for a client, or joins whoever does.
func (m *Mirror) fetch(ctx context.Context, mv module.Version, k artifact.Kind, key, id string) (artifact.Manifest, []byte, bool, error) {
	l, err := m.bringIn(ctx, mv, k, key, id, m.slots(k))
	if err != nil {
		err = fmt.Errorf("%s %s: %w", mv, k, err)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("no space left on this mirror's disk: %w: %w", err, artifact.ErrUnavailable)
	}
	if err == nil && k == artifact.Mod && !l.joined {
		m.ahead.admitted(mv, l.value.small)
	}
	return l.value.man, l.value.small, l.joined, err
}

// bringHere has one artifact pass the gate, and remembers that there is none.
func (m *Mirror) bringHere(ctx context.Context, mv module.Version, k artifact.Kind, key, id string) (bringing, error) {
	return m.bringPaced(ctx, mv, k, key, id, nil)
}

// bringPaced is bringHere at the pace of whoever is not to be in the way of others; nil: as fast as can be.
func (m *Mirror) bringPaced(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, pace pacer) (bringing, error) {
	man, small, err := m.ingest(ctx, mv, k, id, pace)
	if err != nil {
		return bringing{}, m.forget(key, err)
	}
	return bringing{man, small}, nil
}

// bringIn has one artifact brought in, by another node if it is its turn, or joins whoever does that.
func (m *Mirror) bringIn(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, slots chan struct{}) (landed[bringing], error) {
	if err := m.config.Store.Err(); err != nil {
		return landed[bringing]{}, err // nobody is asked for what cannot be kept
	}
	ctx, cancel := m.whileWriting(ctx)
	defer cancel()
	if m.config.Peers != nil {
		return m.resolve(ctx, mv, k, key, id, slots)
	}
	return m.own(ctx, mv, k, key, id, slots)
}

// own has one artifact pass the gate here, in one of slots, or joins whoever does that: also who acquires it for later, and is not
// to take its time any more.
func (m *Mirror) own(ctx context.Context, mv module.Version, k artifact.Kind, key, id string, slots chan struct{}) (landed[bringing], error) {
	defer m.hurried.wait(key)()
	return fly(ctx, m.flights, key, m.config.ClientWait, m.budget(k), slots, func(ctx context.Context) (bringing, error) {
		return m.bringHere(ctx, mv, k, key, id)
	})
}

// manifest returns what is published for mv, which is nothing if the catalog does not know it.
func (m *Mirror) manifest(ctx context.Context, mv module.Version) (artifact.Manifest, error) {
	man, err := m.config.Index.Manifest(ctx, mv)
	if isAbsent(err) {
		return artifact.Manifest{Module: mv}, nil
	}
	if err != nil {
		return artifact.Manifest{}, fmt.Errorf("%s: catalog: %w", mv, err)
	}
	return man, nil
}

// load returns the published bytes of kind k: in memory if the catalog carries them, else as a file. The error matches
// fs.ErrNotExist if there are none, and artifact.ErrDamaged if they should be here and are not.
func (m *Mirror) load(ctx context.Context, man artifact.Manifest, k artifact.Kind) ([]byte, *os.File, error) {
	ref := man.Ref(k)
	if ref.IsZero() {
		return nil, nil, notExist("%s %s: not held", man.Module, k)
	}
	if k != artifact.Zip && ref.Size <= artifact.MaxInline {
		b, err := m.config.Index.Inline(ctx, ref.Digest)
		if err == nil && artifact.RefOf(b) != ref {
			err = fmt.Errorf("the catalog has %v for it: %w", artifact.RefOf(b), artifact.ErrDamaged)
		}
		if err != nil {
			return nil, nil, notAbsent(fmt.Errorf("%s %s: %w", man.Module, k, err))
		}
		return b, nil, nil
	}
	f, err := m.openGenuine(ctx, man, k)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("published, but its bytes are missing here: %w", artifact.ErrDamaged)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", man.Module, k, err)
	}
	return nil, f, nil
}

// published is called when something of mv was published here: what memory says of it may be out of date.
func (m *Mirror) published(ctx context.Context, mv module.Version) {
	m.list.published(ctx, mv.Path)
	m.latest.published(ctx, mv.Path)
	m.pending.retry()
}

// atOnce is what a client on any line reads within the time that every answer has, in bytes.
const atOnce = 64 << 10

// sendAnswer sends a. What is not an artifact has no ETag and no ranges. An error means that nothing is sent.
func sendAnswer(w *response, r *http.Request, a *answer) error {
	h := w.Header()
	h["Content-Type"] = a.contentType
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = a.cacheFor
	if len(a.body) > atOnce {
		sendWithin(w, sendTime(int64(len(a.body))))
	}
	if a.etag != nil {
		h["Etag"] = a.etag
		if conditional(r.Header) {
			return w.serveContent(r, bytes.NewReader(a.body))
		}
	}
	h["Content-Length"] = a.length
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.body) // the client sees by the length if it is cut short
	}
	return nil
}

func conditional(h http.Header) bool {
	return h["Range"] != nil || h["If-None-Match"] != nil || h["If-Match"] != nil || h["If-Range"] != nil
}

// serveSumDB hands a request over to the checksum database, without the client's credentials, and unless it asks about
// a private module.
func (m *Mirror) serveSumDB(w *response, r *http.Request, only bool) error {
	if m.config.SumDB == nil {
		return notExist("no checksum database is served here")
	}
	path, err := decodePath(r.URL.EscapedPath())
	if err != nil {
		w.hidden = m.config.Private != ""
		return err
	}
	if i := strings.Index(path, "/lookup/"); i >= 0 && m.config.Private != "" {
		escaped, _, _ := strings.Cut(path[i+len("/lookup/"):], "@")
		mod, err := module.UnescapePath(escaped)
		if w.hidden = err != nil || module.MatchPrefixPatterns(m.config.Private, mod); w.hidden && err == nil {
			return fmt.Errorf("%s is private here and in no checksum database: %w", mod, errPrivate)
		}
	}
	m.config.SumDB.ServeHTTP(w, toSumDB(r, only))
	w.outcome = outcomeFor(w.status)
	return nil
}

// credentials are the headers that are the business of nobody behind this handler.
var credentials = [...]string{"Authorization", "Cookie", "Proxy-Authorization"}

// toSumDB returns r as the checksum database may see it. Nearly every request is that already.
func toSumDB(r *http.Request, only bool) *http.Request {
	bare := !only
	for _, k := range credentials {
		bare = bare && r.Header[k] == nil
	}
	if bare {
		return r
	}
	r2 := *r
	r2.Header = r.Header.Clone()
	for _, k := range credentials {
		delete(r2.Header, k)
	}
	if only {
		u := *r.URL
		u.Path = strings.TrimPrefix(u.Path, cachedOnly)
		u.RawPath = strings.TrimPrefix(u.RawPath, cachedOnly)
		r2.URL = &u
		r2.Header["Disable-Module-Fetch"] = []string{"true"}
	}
	return &r2
}

// access logs one answered request: what failed or was refused at Info, the rest at Debug.
func (m *Mirror) access(r *http.Request, w *response, id string, took time.Duration) {
	level := slog.LevelDebug
	if w.status >= http.StatusInternalServerError || w.status == http.StatusForbidden {
		level = slog.LevelInfo
	}
	ctx := r.Context()
	if !m.log.Enabled(ctx, level) {
		return
	}
	path, reason := artifact.Truncate(r.URL.Path, 512), ""
	if w.err != nil {
		reason = artifact.Truncate(w.err.Error(), 2<<10)
	}
	if w.hidden || w.class == classBad && m.config.Private != "" { // which module it is about, nobody can say
		path, reason = "(private)", ""
	}
	m.log.LogAttrs(ctx, level, "request", slog.String("id", id), slog.String("method", artifact.Truncate(r.Method, 20)), slog.String("path", path),
		slog.Int("status", w.status), slog.String("class", w.class.String()), slog.String("outcome", w.outcome.String()),
		slog.Int64("bytes", w.sent), slog.Duration("took", took), slog.String("err", reason))
}
